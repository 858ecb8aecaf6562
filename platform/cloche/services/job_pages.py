"""A tenant's jobs in pages, newest first: by when each was stored, which the database's clock says. An id is of its web host's clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select, tuple_

from cloche.clock import from_rfc3339
from cloche.db import tables as t
from cloche.domain.permissions import Actor
from cloche.errors import Invalid, Problem
from cloche.services.cursors import decode_moment, encode_moment
from cloche.services.queue_rows import with_waiting
from cloche.services.views import job_view

LOOKED_AT = 5_000  # jobs that one page looks at, where no index finds those that fit
_job = t.job.c
_PLACE = tuple_(_job.created_at, _job.id)
_COLUMNS: Mapping[str, ColumnElement[Any]] = {
    "status": _job.state,
    "queue": _job.queue,
    "type": _job.type,
    "version": _job.plugin_version,
    "priority": _job.priority,
}
_INDEXED = ("submitted_by", "status", "type")  # each beside the tenant and the time, the narrowest first


def page(
    connection: Connection, actor: Actor, filters: Mapping[str, Any], cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """At most ``limit`` jobs, and the cursor behind which to go on, None at the end.

    Where an index answers, a page is full unless it is the last. Else it looks at :data:`LOOKED_AT` jobs of those that one filter finds, and may
    be short, or empty, and not be the last.

    Raises:
        Invalid: the cursor, or a time, is none.
    """
    asked = _conditions(filters)
    lead = next((name for name in _INDEXED if name in asked), None)
    within = [_job.tenant_id == actor.tenant_id, *_times(filters)]
    if cursor is not None:
        within.append(tuple_(*decode_moment(cursor)) > _PLACE)
    if lead is not None:
        within.append(asked.pop(lead))
    last = _last(connection, within) if asked else None
    if last is not None:
        within.append(tuple_(*last) <= _PLACE)
    query = joined(select(t.job)).where(*within, *asked.values())
    query = query.order_by(_job.created_at.desc(), _job.id.desc()).limit(limit + 1)
    rows = [dict(row) for row in connection.execute(query).mappings()]
    if len(rows) > limit:
        last = rows[limit - 1]["created_at"], rows[limit - 1]["id"]
    shown = [job_view(row, row["username"], row["tenant"]) for row in rows[:limit]]
    return shown, None if last is None else encode_moment(*last)


def _last(connection: Connection, within: list[ColumnElement[bool]]) -> tuple[int, str] | None:
    """Where the last job lies that a page looks at; None where there are fewer. Read from the index alone."""
    query = select(_job.created_at, _job.id).where(*within).order_by(_job.created_at.desc(), _job.id.desc())
    row = connection.execute(query.offset(LOOKED_AT - 1).limit(1)).one_or_none()
    return None if row is None else (row[0], row[1])


def _conditions(filters: Mapping[str, Any]) -> dict[str, ColumnElement[bool]]:
    found = {name: column == filters[name] for name, column in _COLUMNS.items() if filters.get(name) is not None}
    if filters.get("submitted_by"):
        who = select(t.user.c.id).where(t.user.c.username == filters["submitted_by"])
        found["submitted_by"] = _job.submitted_by == who.scalar_subquery()
    if filters.get("label"):
        found["label"] = labelled(filters["label"])
    return found


def _times(filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    found = []
    for name in ("since", "until"):
        if filters.get(name):
            try:
                moment = from_rfc3339(filters[name])
            except ValueError as error:
                raise Invalid("a filter is wrong", problems=[Problem(f"/{name}", str(error))]) from None
            found.append(_job.created_at >= moment if name == "since" else _job.created_at < moment)
    return found


def labelled(text: str) -> ColumnElement[bool]:
    """Whether a job has the label: ``key=value``, or ``key`` with any value."""
    key, given, value = text.partition("=")
    label = t.job.c.labels[key].as_string()
    return label == value if given else label.is_not(None)


def joined(query: Select[Any]) -> Select[Any]:
    """The query over ``job``, with the submitter's and the tenant's names beside it, and what it waits for."""
    return with_waiting(
        query.add_columns(t.user.c.username, t.tenant.c.name.label("tenant"))
        .join(t.user, t.user.c.id == t.job.c.submitted_by)
        .join(t.tenant, t.tenant.c.id == t.job.c.tenant_id)
    )
