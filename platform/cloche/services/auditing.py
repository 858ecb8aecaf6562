"""The trail for those who read it: pages, verification, export, proofs, checkpoints, keys; and the forgetting of a person.

Whether somebody may is asked at the route; whose events they see is settled here. Reading is itself recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select

from cloche import clock
from cloche.audit.event import Event
from cloche.audit.keys import KeyRing
from cloche.audit.note import PublicKey
from cloche.audit.offline import Trust, verify_database, verify_export, verify_store
from cloche.audit.proof import FORMAT
from cloche.audit.trail import Person
from cloche.db import tables, unsealed
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.errors import Conflict, Invalid, NotFound, Problem, Unavailable
from cloche.services import audit_export, audit_pages
from cloche.services.audit_chain import announcing_notes, stored_chain, stored_mark
from cloche.services.audit_pages import EVENT, FILTERS
from cloche.services.audit_reads import Reads
from cloche.services.proofs import Proofs

__all__ = ["FILTERS", "AuditService", "verify_database", "verify_export"]

_event, _leaf, _batch, _person = tables.audit_event, tables.audit_leaf, tables.audit_batch, tables.audit_person
_account = tables.user
_PERSON = tuple(_person.c[name] for name in Person._fields)
MAX_PAGE = 100
TRAIL = "audit:trail"  # what was read, as an event's object


class AuditService:
    """Shared by a process's threads. Every read is of the actor's tenant alone. ``reads`` records reads; without it nobody does."""

    def __init__(self, db: Database, keyring: KeyRing, reads: Reads | None = None) -> None:
        self._db = db
        self._keyring = keyring
        self._log = AuditLog(keyring.current_hmac_key)
        self.reads = reads
        self._verifying = threading.Lock()
        self._mark: unsealed.Mark = None  # every event before it has a leaf

    def list(
        self, actor: Actor, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """A page, newest first: ``{"items": [...], "next_cursor": str | None}``; ``seq`` is null until an event is sealed.

        Args:
            filters: any of action, object, outcome, actor (a user's name or a part's), ip, request_id, token_id, since, until (ms).

        Raises:
            Invalid: an unknown filter, or a cursor that is none of ours.
        """
        audit_pages.check_filters(filters)
        if cursor is not None and not clock.is_uuid7(cursor):
            raise _bad_cursor()
        limit = max(1, min(limit, MAX_PAGE))

        def unit(connection: Connection) -> dict[str, Any]:
            rows = connection.execute(
                audit_pages.page(connection, actor.tenant_id, filters, cursor).limit(limit + 1)
            ).all()
            known = audit_pages.people(connection, {text for row in rows for text in (row.actor, row.ip) if text})
            items = [audit_pages.item(row, known) for row in rows[:limit]]
            return {"items": items, "next_cursor": rows[limit - 1].id if len(rows) > limit else None}

        self._read(actor, Action.AUDIT_READ, _sought(filters))
        return self._db.read(unit)

    def verify(self, actor: Actor) -> dict[str, Any]:
        """The verdict over the whole trail (:meth:`Verdict.to_dict`), every tenant's: it names events and jobs by their ids alone.

        Raises:
            Unavailable: one is running in this process. It reads every event: a few at once would keep everybody else from the processors.
        """
        if not self._verifying.acquire(blocking=False):
            raise Unavailable("the trail is being verified already: try again when that has ended", retry_after=10)
        try:
            self._read(actor, Action.AUDIT_VERIFY)
            trust = Trust(self._keyring.verifier, self._keyring.hmac_keys(), self._keyring.held())
            return verify_store(self._db.url, trust).to_dict()
        finally:
            self._verifying.release()

    def export(self, actor: Actor, filters: Mapping[str, Any] | None = None) -> Iterator[str]:
        """The tenant's trail as lines of :mod:`cloche.audit.export`; with filters what they find, as lines of
        :mod:`cloche.audit.filtered`. The export itself is recorded, before its first line.

        Raises:
            Invalid: an unknown filter.
        """
        audit_pages.check_filters(filters or {})
        entry = AuditEntry(
            actor, Action.AUDIT_EXPORT, f"tenant:{actor.tenant_id}", details=_sought(filters) if filters else {}
        )
        self._db.write(lambda connection: self._log.record(connection, entry))
        return self._lines(actor.tenant_id, filters)

    def proof(self, actor: Actor, place: str) -> dict[str, Any]:
        """The proof of one event, as :mod:`cloche.audit.proof` checks it.

        Args:
            place: its ``seq`` or its id.

        Raises:
            NotFound: the tenant has no such event (any more).
            Conflict: it is not sealed yet.
        """
        if place.isascii() and place.isdigit() and len(place) < 19:
            here = _leaf.c.seq == int(place)
        elif clock.is_uuid7(place):
            here = _event.c.id == place
        else:
            raise NotFound("there is no such event")
        query = select(_leaf.c.seq, _leaf.c.hash, *EVENT).join_from(
            _event, _leaf, _leaf.c.event_id == _event.c.id, isouter=True
        )

        def unit(connection: Connection) -> dict[str, Any]:
            row = connection.execute(query.where(here, _event.c.tenant_id == actor.tenant_id)).first()
            if row is None:
                raise NotFound("there is no such event")
            chain = stored_chain(connection, self._keyring.verifier)
            head = audit_export.newest(connection, chain)
            if row.seq is None or head is None:
                raise Conflict("the event is not sealed yet; try again in a second", code="audit-not-sealed")
            point, note = head
            known = select(*_PERSON).where(_person.c.commitment.in_([row.actor, row.ip or ""]))
            return {
                "format": FORMAT,
                "origin": self._keyring.origin,
                "seq": row.seq,
                "event": Event._make(row[2:])._asdict(),
                "leaf": row.hash,
                "path": Proofs(connection, point, stored_mark(connection, chain)).path(
                    row.seq, bytes.fromhex(row.hash)
                ),
                "note": note,
                "announcements": announcing_notes(connection),
                "people": [Person._make(one)._asdict() for one in connection.execute(known)],
            }

        found = self._db.read(unit)
        self._read(actor, Action.AUDIT_READ, {"proof": found["event"]["id"]})
        return found

    def checkpoints(self, actor: Actor, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
        """Signed checkpoints, newest first, to be kept elsewhere; with the public key that they verify under."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise _bad_cursor()
        limit = max(1, min(limit, MAX_PAGE))
        query = select(_batch).order_by(_batch.c.number.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(_batch.c.number < int(cursor))
        self._read(actor, Action.AUDIT_READ, {"checkpoints": True})
        rows = self._db.read(lambda connection: connection.execute(query).all())
        items = [
            {"number": row.number, "size": row.size, "root": row.root, "at": clock.to_rfc3339(row.at), "note": row.note}
            for row in rows[:limit]
        ]
        following = str(rows[limit - 1].number) if len(rows) > limit else None
        return {"items": items, "next_cursor": following, "public_key": self._keyring.public_key}

    def keys(self, actor: Actor) -> Sequence[dict[str, Any]]:
        """The public keys, the first one first: from which batch on each signs, to which, and the note that announces it."""

        def unit(connection: Connection) -> Sequence[dict[str, Any]]:
            chain = stored_chain(connection, self._keyring.verifier)
            notes = [None, *(note for note in announcing_notes(connection) if "\nkey " in note)]
            ends = [*(period.first - 1 for period in chain.periods[1:]), None]
            return [
                _key(period.key, period.first, end, period.at or None, note)
                for period, end, note in zip(chain.periods, ends, notes, strict=True)
            ]

        self._read(actor, Action.AUDIT_READ, {"keys": True})
        return self._db.read(unit)

    def forget(self, actor: Actor, kind: str, value: str) -> dict[str, Any]:
        """Remove what is behind a person's commitment, in every tenant: their events stay, and verify. ``kind``: ``name`` or ``ip``.

        Raises:
            NotFound: the trail knows no such name or address.
            Conflict: an account of that name can still sign in: its next act would make it known again.
        """

        def unit(connection: Connection) -> dict[str, Any]:
            if kind == "name":
                alive = select(_account.c.id).where(
                    _account.c.username == value, _account.c.disabled.is_(False), _account.c.deleted_at.is_(None)
                )
                if connection.execute(alive).first() is not None:
                    raise Conflict("the account can still sign in: disable or delete it first", code="account-active")
            here = (_person.c.kind == kind) & (_person.c.value == value)
            known = connection.scalar(select(_person.c.commitment).where(here))
            if known is None:
                raise NotFound("the trail knows no such person")
            connection.execute(delete(_person).where(here))
            entry = AuditEntry(actor, Action.AUDIT_FORGET, f"person:{known}", details={"kind": kind})
            self._log.record(connection, entry)
            return {"commitment": known, "kind": kind}

        return self._db.write(unit)

    def backlog(self) -> dict[str, Any]:
        """How far sealing is behind: ``{"events", "sealed", "unsealed", "last_sealed_at"}`` (ms), cheap enough for health and metrics."""

        def unit(connection: Connection) -> tuple[dict[str, Any], unsealed.Mark]:
            waiting, mark = unsealed.counted(connection, self._mark)
            sealed = connection.scalar(select(func.coalesce(func.max(_leaf.c.seq) + 1, 0))) or 0
            last = connection.scalar(select(_batch.c.at).order_by(_batch.c.number.desc()).limit(1))
            shown = {"events": sealed + waiting, "sealed": sealed, "unsealed": waiting, "last_sealed_at": last}
            return shown, mark

        # Two threads may set it one after the other: each mark is true, and the older one only lets more be looked at.
        shown, self._mark = self._db.read(unit)
        return shown

    def _read(self, actor: Actor, action: Action, details: Mapping[str, Any] | None = None) -> None:
        if self.reads is not None:
            self.reads.record(actor, action, TRAIL, details)

    def _lines(self, tenant_id: str, filters: Mapping[str, Any] | None) -> Iterator[str]:
        with self._db.reader() as connection:
            if filters:
                yield from audit_export.some(connection, self._keyring, tenant_id, filters)
            else:
                yield from audit_export.whole(connection, self._keyring, tenant_id)


def _key(key: PublicKey, first: int, last: int | None, announced: int | None, note: str | None) -> dict[str, Any]:
    return {
        "public_key": key.text,
        "key_id": key.id.hex(),
        "first_batch": first,
        "last_batch": last,
        "announced_at": clock.to_rfc3339(announced),
        "announcement": note,
    }


def _sought(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The filters as they are recorded. That a person's name or address was sought is said, not which: it could not be forgotten here."""
    given = {name: value for name, value in (filters or {}).items() if value is not None}
    for name in ("actor", "ip"):
        if name in given:
            given[name] = "given"
    return given


def _bad_cursor() -> Invalid:
    return Invalid(
        "the cursor is not one this list gave", problems=[Problem("/cursor", "pass next_cursor back unchanged")]
    )
