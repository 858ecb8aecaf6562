"""Audit events that have no leaf yet, found without reading those that have one.

Each kind of database knows in its own way what may have been committed since one looked last. SQLite numbers rows in the order they are
committed in, so what is new lies behind the last row seen (kept as an id, for VACUUM renumbers rows). In PostgreSQL transactions end in any
order: each event holds its transaction's number, and every number below a snapshot's ``xmin`` belongs to a transaction that is over, so what
is new lies at or above the ``xmin`` of the last look. Numbers beyond the snapshot's ``xmax`` come from the cluster a dump was taken of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, literal_column, select, text

from cloche.audit.event import Event
from cloche.db import tables

Mark = str | int | None  # None: nothing is known, look at all events

_event, _leaf = tables.audit_event, tables.audit_leaf
_COLUMNS = tuple(_event.c[name] for name in Event._fields)
_NO_LEAF = ~select(_leaf.c.seq).where(_leaf.c.event_id == _event.c.id).exists()

_rowid: ColumnElement[int] = literal_column("audit_event.rowid")
_LAST_ROW = select(_event.c.id).order_by(_rowid.desc()).limit(1)
_AFTER_ROW = text(
    "audit_event.rowid > coalesce((SELECT m.rowid FROM audit_event AS m WHERE m.id = :mark), -9223372036854775808)"
)

_txid: ColumnElement[int] = literal_column("audit_event.txid")
_WINDOW = text(
    "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() AS s"
)


@dataclass(frozen=True)
class Unsealed:
    """``events`` in the order in which they may be sealed; every event before ``mark`` has a leaf once these have theirs."""

    events: Sequence[Event]
    mark: Mark


def find(connection: Connection, mark: Mark, limit: int) -> Unsealed:
    """Up to ``limit`` events without a leaf among those behind ``mark``. In a reading transaction."""
    return (_in_postgresql if connection.dialect.name == "postgresql" else _in_sqlite)(connection, mark, limit)


def counted(connection: Connection, mark: Mark) -> tuple[int, Mark]:
    """How many events have no leaf, and the mark to count from the next time."""
    if connection.dialect.name != "postgresql":
        first = select(func.min(_rowid)).select_from(_event).where(_AFTER_ROW, _NO_LEAF)
        oldest = connection.scalar(first, {"mark": mark})
        if oldest is None:
            return 0, connection.scalar(_LAST_ROW)
        count = connection.scalar(select(func.count()).select_from(_event).where(_rowid >= oldest, _NO_LEAF))
        before = select(_event.c.id).where(_rowid < oldest).order_by(_rowid.desc()).limit(1)
        return count or 0, connection.scalar(before)
    xmin, conditions = _window(connection, mark)
    query = select(func.count(), func.min(_txid)).select_from(_event).where(*conditions)
    count, oldest = connection.execute(query).one()
    return count, xmin if oldest is None else min(oldest, xmin)


def _in_sqlite(connection: Connection, mark: Mark, limit: int) -> Unsealed:
    query = select(*_COLUMNS).where(_AFTER_ROW, _NO_LEAF).order_by(_rowid).limit(limit)
    events = [Event._make(row) for row in connection.execute(query, {"mark": mark})]
    return Unsealed(events, events[-1].id if len(events) == limit else connection.scalar(_LAST_ROW))


def _in_postgresql(connection: Connection, mark: Mark, limit: int) -> Unsealed:
    xmin, conditions = _window(connection, mark)
    query = select(*_COLUMNS, _txid).where(*conditions).order_by(_txid, _event.c.id).limit(limit)
    rows = connection.execute(query).all()
    last = xmin if len(rows) < limit else min(xmin, rows[-1][-1])
    # A transaction may begin early and act late: by their ids, which hold the time, a job's events come in their own order.
    events = sorted((Event._make(row[:-1]) for row in rows), key=lambda event: event.id)
    return Unsealed(events, last)


def _window(connection: Connection, mark: Mark) -> tuple[int, list[Any]]:
    xmin, xmax = connection.execute(_WINDOW).one()
    if mark is None:
        return xmin, [_NO_LEAF]
    return xmin, [_NO_LEAF, _txid >= mark, _txid < xmax]
