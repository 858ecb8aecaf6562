"""Pages of what belongs to one job, its attempts and its trace: a job may be retried by hand as often as one likes, so that neither has an end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, select, tuple_

from cloche.db import tables as t
from cloche.services.cursors import decode_moment, decode_number, encode_moment, encode_number

Rows = list[dict[str, Any]]
_attempt, _event = t.attempt.c, t.trace_event.c


def attempts(job_id: str, cursor: str | None, limit: int) -> Select[Any]:
    """One more than ``limit``, the first attempt first, behind the cursor."""
    query = select(t.attempt).where(_attempt.job_id == job_id)
    if cursor is not None:
        query = query.where(_attempt.number > decode_number(cursor))
    return query.order_by(_attempt.number).limit(limit + 1)


def after_attempt(rows: Sequence[Mapping[str, Any]], limit: int) -> str | None:
    """The cursor behind the first ``limit`` of the rows; None where there are no more."""
    return encode_number(rows[limit - 1]["number"]) if len(rows) > limit else None


def events(job_id: str, cursor: str | None, limit: int) -> Select[Any]:
    """One more than ``limit``, in the order in which they happened, behind the cursor."""
    query = select(t.trace_event).where(_event.job_id == job_id)
    if cursor is not None:
        query = query.where(tuple_(_event.at, _event.id) > tuple_(*decode_moment(cursor)))
    return query.order_by(_event.at, _event.id).limit(limit + 1)


def after_event(rows: Sequence[Mapping[str, Any]], limit: int) -> str | None:
    """The cursor behind the first ``limit`` of the rows; None where there are no more."""
    return encode_moment(rows[limit - 1]["at"], rows[limit - 1]["id"]) if len(rows) > limit else None


def latest(connection: Connection, job_id: str, limit: int) -> tuple[Rows, Rows]:
    """The last ``limit`` attempts and the last ``limit`` events, each in its order; one more where there are more."""
    tries = select(t.attempt).where(_attempt.job_id == job_id).order_by(_attempt.number.desc())
    happened = select(t.trace_event).where(_event.job_id == job_id).order_by(_event.at.desc(), _event.id.desc())
    found = [
        [dict(row) for row in connection.execute(query.limit(limit + 1)).mappings()][::-1]
        for query in (tries, happened)
    ]
    return found[0], found[1]
