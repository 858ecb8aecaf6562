"""Which events a filter means, and how one is shown. Every query is of one tenant, and by an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select

from cloche import clock
from cloche.audit.event import Event, is_commitment
from cloche.db import tables
from cloche.db.audit_log import actor_columns, ip_columns
from cloche.errors import Invalid, Problem

_event, _leaf, _person = tables.audit_event, tables.audit_leaf, tables.audit_person
EVENT = tuple(_event.c[name] for name in Event._fields)
_EQUAL = ("action", "object", "outcome", "request_id", "token_id")
FILTERS = frozenset({*_EQUAL, "actor", "ip", "since", "until"})


def check_filters(filters: Mapping[str, Any]) -> None:
    """
    Raises:
        Invalid: there is no such filter.
    """
    if unknown := sorted(filters.keys() - FILTERS):
        problem = f"no such filter; there are {', '.join(sorted(FILTERS))}"
        raise Invalid("unknown filter", problems=[Problem(f"/{name}", problem) for name in unknown])


def matching(connection: Connection, tenant_id: str, filters: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    """The conditions on ``audit_event``. Ids begin with their milliseconds, so the indexes that give the order give the time too."""
    found: list[ColumnElement[bool]] = [_event.c.tenant_id == tenant_id]
    found += [_event.c[name] == filters[name] for name in _EQUAL if filters.get(name) is not None]
    if filters.get("actor") is not None:
        found.append(_event.c.actor.in_(actor_columns(connection, [filters["actor"]])))
    if filters.get("ip") is not None:
        found.append(_event.c.ip.in_(ip_columns(connection, filters["ip"])))
    if filters.get("since") is not None:
        found.append(_event.c.id >= _first_id(filters["since"]))
    if filters.get("until") is not None:
        found.append(_event.c.id < _first_id(filters["until"]))
    return found


def page(connection: Connection, tenant_id: str, filters: Mapping[str, Any], cursor: str | None) -> Select[Any]:
    """Newest first, with ``seq``."""
    query = (
        select(_leaf.c.seq, *EVENT)
        .join_from(_event, _leaf, _leaf.c.event_id == _event.c.id, isouter=True)
        .where(*matching(connection, tenant_id, filters))
        .order_by(_event.c.id.desc())
    )
    return query if cursor is None else query.where(_event.c.id < cursor)


def people(connection: Connection, columns: set[str]) -> dict[str, str]:
    """The values behind the commitments among these."""
    query = select(_person.c.commitment, _person.c.value).where(_person.c.commitment.in_(columns))
    return {row.commitment: row.value for row in connection.execute(query)}


def item(row: Any, known: Mapping[str, str]) -> dict[str, Any]:
    """An event as REST shows it."""
    return {
        "id": row.id,
        "seq": row.seq,
        "at": clock.to_rfc3339(row.at),
        "actor": _shown(row.actor, known),
        "action": row.action,
        "object": row.object,
        "outcome": row.outcome,
        "ip": None if row.ip is None else _shown(row.ip, known),
        "request_id": row.request_id,
        "token_id": row.token_id,
        "reason": row.reason,
        "before_sha256": row.before_sha256,
        "after_sha256": row.after_sha256,
        "details": _details(row.details),
    }


def _first_id(ms: int) -> str:
    """The smallest text that a UUIDv7 of this millisecond can be."""
    digits = f"{max(0, min(ms, (1 << 48) - 1)):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _details(text: str) -> Any:
    """The details; the stored text itself where somebody made it unreadable, for a page must still show that event."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return str(text)


def _shown(column: str, known: Mapping[str, str]) -> str:
    if not is_commitment(column):
        return column
    return known.get(column) or f"forgotten:{column[:12]}"
