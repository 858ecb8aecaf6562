"""The trail for those who read it: pages, verification, export, checkpoints.

Whether somebody may is asked at the route; whose events they see is settled here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Select, func, select, union

from cloche import clock
from cloche.audit.event import Event, is_commitment
from cloche.audit.export import ExportWriter
from cloche.audit.keys import KeyRing
from cloche.audit.offline import verify_database, verify_export, verify_file
from cloche.audit.trail import Batch, Person
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog, actor_columns
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.errors import Invalid, Problem

__all__ = ["FILTERS", "AuditService", "verify_database", "verify_export"]

_event, _leaf, _batch, _person = tables.audit_event, tables.audit_leaf, tables.audit_batch, tables.audit_person
_EVENT = tuple(_event.c[name] for name in Event._fields)
_EQUAL = ("action", "object", "outcome", "request_id", "token_id")
FILTERS = frozenset({*_EQUAL, "actor", "since", "until"})
MAX_PAGE = 100
_CHUNK = 500  # rows fetched at once by an export


class AuditService:
    """Shared by a process's threads. Every read is of the actor's tenant alone."""

    def __init__(self, db: Database, keyring: KeyRing) -> None:
        self._db = db
        self._keyring = keyring
        self._log = AuditLog(keyring.hmac_key)

    def list(
        self, actor: Actor, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """A page, newest first: ``{"items": [...], "next_cursor": str | None}``; ``seq`` is null until an event is sealed.

        Args:
            filters: any of action, object, outcome, actor (a user's name or a part's), request_id, token_id, since, until (ms).

        Raises:
            Invalid: an unknown filter, or a cursor that is none of ours.
        """
        if unknown := sorted(filters.keys() - FILTERS):
            problem = f"no such filter; there are {', '.join(sorted(FILTERS))}"
            raise Invalid("unknown filter", problems=[Problem(f"/{name}", problem) for name in unknown])
        if cursor is not None and not clock.is_uuid7(cursor):
            raise Invalid(
                "the cursor is not one this list gave", problems=[Problem("/cursor", "pass next_cursor back unchanged")]
            )
        limit = max(1, min(limit, MAX_PAGE))

        def unit(connection: Connection) -> dict[str, Any]:
            rows = connection.execute(_page(connection, actor, filters, cursor).limit(limit + 1)).all()
            people = _people(connection, {text for row in rows for text in (row.actor, row.ip) if text})
            items = [_item(row, people) for row in rows[:limit]]
            return {"items": items, "next_cursor": rows[limit - 1].id if len(rows) > limit else None}

        return self._db.read(unit)

    def verify(self, actor: Actor) -> dict[str, Any]:  # noqa: ARG002 - one tree holds every tenant's events
        """The verdict over the whole trail (:meth:`Verdict.to_dict`), every tenant's: it names events and jobs by their ids alone."""
        return verify_file(self._db.path, self._keyring.verifier, hmac_key=self._keyring.hmac_key).to_dict()

    def export(self, actor: Actor) -> Iterator[str]:
        """The tenant's trail as lines of :mod:`cloche.audit.export`. The export itself is recorded, before its first line."""
        entry = AuditEntry(actor=actor, action=Action.AUDIT_EXPORT, object=f"tenant:{actor.tenant_id}")
        self._db.write(lambda connection: self._log.record(connection, entry))
        return self._lines(actor.tenant_id)

    def checkpoints(self, actor: Actor, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:  # noqa: ARG002 - one log for all
        """Signed checkpoints, newest first, to be kept elsewhere; with the public key that they verify under."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise Invalid(
                "the cursor is not one this list gave", problems=[Problem("/cursor", "pass next_cursor back unchanged")]
            )
        limit = max(1, min(limit, MAX_PAGE))
        query = select(_batch).order_by(_batch.c.number.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(_batch.c.number < int(cursor))
        rows = self._db.read(lambda connection: connection.execute(query).all())
        items = [
            {"number": row.number, "size": row.size, "root": row.root, "at": clock.to_rfc3339(row.at), "note": row.note}
            for row in rows[:limit]
        ]
        following = str(rows[limit - 1].number) if len(rows) > limit else None
        return {"items": items, "next_cursor": following, "public_key": self._keyring.public_key}

    def backlog(self) -> dict[str, Any]:
        """How far sealing is behind: ``{"events", "sealed", "unsealed", "last_sealed_at"}`` (ms), cheap enough for health and metrics."""

        def unit(connection: Connection) -> dict[str, Any]:
            # Nothing is ever deleted, so the largest row number counts the events without reading them
            events = connection.exec_driver_sql("SELECT coalesce(max(rowid), 0) FROM audit_event").scalar_one()
            sealed = connection.scalar(select(func.coalesce(func.max(_leaf.c.seq) + 1, 0))) or 0
            last = connection.scalar(select(_batch.c.at).order_by(_batch.c.number.desc()).limit(1))
            return {"events": events, "sealed": sealed, "unsealed": max(0, events - sealed), "last_sealed_at": last}

        return self._db.read(unit)

    def _lines(self, tenant_id: str) -> Iterator[str]:
        writer = ExportWriter(self._keyring.origin, tenant_id, clock.now_ms())
        with self._db.reader() as connection:
            yield writer.head()
            for row in connection.execute(_tenant_people(tenant_id)):
                yield writer.person(Person._make(row))
            yield from _sealed_lines(connection, writer, tenant_id)
            fresh = ~select(_leaf.c.seq).where(_leaf.c.event_id == _event.c.id).exists()
            unsealed = select(*_EVENT).where(_event.c.tenant_id == tenant_id, fresh).order_by(_event.c.id)
            for row in connection.execute(unsealed, execution_options={"yield_per": _CHUNK}):
                yield writer.event(Event._make(row), None, None)
        yield writer.end(self._keyring)


def _page(connection: Connection, actor: Actor, filters: Mapping[str, Any], cursor: str | None) -> Select[Any]:
    query = (
        select(_leaf.c.seq, *_EVENT)
        .join_from(_event, _leaf, _leaf.c.event_id == _event.c.id, isouter=True)
        .where(_event.c.tenant_id == actor.tenant_id)
        .order_by(_event.c.id.desc())
    )
    for name in _EQUAL:
        if filters.get(name) is not None:
            query = query.where(_event.c[name] == filters[name])
    if filters.get("actor") is not None:
        query = query.where(_event.c.actor.in_(actor_columns(connection, [filters["actor"]])))
    # Ids begin with their milliseconds, so the index that gives the order gives the time too
    if filters.get("since") is not None:
        query = query.where(_event.c.id >= _first_id(filters["since"]))
    if filters.get("until") is not None:
        query = query.where(_event.c.id < _first_id(filters["until"]))
    return query if cursor is None else query.where(_event.c.id < cursor)


def _first_id(ms: int) -> str:
    """The smallest text that a UUIDv7 of this millisecond can be."""
    digits = f"{max(0, min(ms, (1 << 48) - 1)):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _people(connection: Connection, columns: set[str]) -> dict[str, str]:
    query = select(_person.c.commitment, _person.c.value).where(_person.c.commitment.in_(columns))
    return {row.commitment: row.value for row in connection.execute(query)}


def _item(row: Any, people: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": row.id,
        "seq": row.seq,
        "at": clock.to_rfc3339(row.at),
        "actor": _shown(row.actor, people),
        "action": row.action,
        "object": row.object,
        "outcome": row.outcome,
        "ip": None if row.ip is None else _shown(row.ip, people),
        "request_id": row.request_id,
        "token_id": row.token_id,
        "reason": row.reason,
        "details": _details(row.details),
    }


def _details(text: str) -> Any:
    """The details; the stored text itself where somebody made it unreadable, for a page must still show that event."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return str(text)


def _shown(column: str, people: Mapping[str, str]) -> str:
    if not is_commitment(column):
        return column
    return people.get(column) or f"forgotten:{column[:12]}"


def _tenant_people(tenant_id: str) -> Select[Any]:
    mine = _event.c.tenant_id == tenant_id
    used = union(select(_event.c.actor).where(mine), select(_event.c.ip).where(mine, _event.c.ip.is_not(None)))
    return select(*(_person.c[name] for name in Person._fields)).where(_person.c.commitment.in_(used))


def _sealed_lines(connection: Connection, writer: ExportWriter, tenant_id: str) -> Iterator[str]:
    streamed = {"yield_per": _CHUNK}
    leaves = select(_leaf.c.seq, _leaf.c.hash, *_EVENT).join_from(
        _leaf, _event, _leaf.c.event_id == _event.c.id, isouter=True
    )
    batches = connection.execute(
        select(*(_batch.c[name] for name in Batch._fields)).order_by(_batch.c.number), execution_options=streamed
    )
    following = next(batches, None)
    for row in connection.execute(leaves.order_by(_leaf.c.seq), execution_options=streamed):
        if row.tenant_id == tenant_id:
            yield writer.event(Event._make(row[2:]), row.seq, row.hash)
        else:
            yield writer.foreign(row.seq, row.hash)
        while following is not None and following.size <= row.seq + 1:
            yield writer.batch(Batch._make(following))
            following = next(batches, None)
