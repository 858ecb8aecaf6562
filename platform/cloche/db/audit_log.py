"""Writes audit events, in the transaction of the change they record: both are there, or neither."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Transaction, bindparam, insert, select
from sqlalchemy.dialects import sqlite

from cloche import redact
from cloche.audit import canonical
from cloche.audit.event import Event, canonical_bytes, commitment, is_commitment, mac
from cloche.clock import uuid7
from cloche.db import tables
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor

_INSERT = insert(tables.audit_event)
_PERSON = tables.audit_person.c
_KNOWN = select(_PERSON.commitment).where(_PERSON.kind == bindparam("kind"), _PERSON.value == bindparam("value"))
_ADD_PERSON = sqlite.insert(tables.audit_person).on_conflict_do_nothing()
_CACHE = 10_000  # people and addresses remembered by a process
_FRESH = "cloche_audit_fresh"


@dataclass(frozen=True)
class AuditEntry:
    """One act to record. ``object`` names what it was done to: ``job:<id>``, ``user:<id>``, ``remote:<name>`` …

    ``object_seq`` numbers a job's events 1, 2, 3 … without gaps. Of ``before`` and ``after`` (any JSON) the canonical SHA-256 is
    stored, not the value. ``details`` holds no secrets; what sounds like one is masked all the same.
    """

    actor: Actor
    action: Action
    object: str
    outcome: Outcome = Outcome.ALLOWED
    reason: str | None = None
    object_seq: int | None = None
    before: Any = None
    after: Any = None
    details: Mapping[str, Any] = field(default_factory=dict)


class AuditLog:
    """Shared by a process's threads. ``key`` is the HMAC key of :class:`cloche.audit.keys.KeyRing`."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("the HMAC key has 32 bytes")
        self._key = key
        self._lock = threading.Lock()
        self._last_id = ""
        self._commitments: dict[tuple[str, str], str] = {}

    def record(self, connection: Connection, *entries: AuditEntry) -> None:
        """Insert the entries, in order, in the caller's transaction. An error here must undo that transaction, so let it rise.

        Raises:
            TypeError, ValueError: an entry's values are not JSON, or ``object_seq`` is not a job's.
        """
        if entries:
            connection.execute(_INSERT, [self._row(connection, entry, self._next_id()) for entry in entries])

    def _next_id(self) -> str:
        """A UUIDv7 after the last one: random within a millisecond, ids alone would shuffle a list of events."""
        with self._lock:
            new, last = uuid7(), self._last_id
            if new[:13] == last[:13] and new < last:
                digits = f"{int(last.replace('-', ''), 16) + 1:032x}"
                new = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            self._last_id = new
        return new

    def _row(self, connection: Connection, entry: AuditEntry, event_id: str) -> dict[str, Any]:
        if entry.object_seq is not None and (entry.object_seq < 1 or not entry.object.startswith("job:")):
            raise ValueError(
                f"object_seq {entry.object_seq} on {entry.object}: only a job's events are numbered, from 1"
            )
        actor = entry.actor
        unsigned = Event(
            id=event_id,
            at=int(event_id[:8] + event_id[9:13], 16),  # a UUIDv7 begins with its milliseconds
            tenant_id=actor.tenant_id,
            actor=self._name(connection, actor),
            token_id=actor.token_id,
            action=entry.action.value,
            object=_clean(entry.object, 255),
            object_seq=entry.object_seq,
            outcome=entry.outcome.value,
            ip=None if actor.ip is None else self._commit(connection, "ip", _clean(actor.ip, 64)),
            request_id=None if actor.request_id is None else _clean(actor.request_id, 64),
            reason=None if entry.reason is None else _clean(redact.text(entry.reason), 255),
            before_sha256=None if entry.before is None else canonical.digest(entry.before),
            after_sha256=None if entry.after is None else canonical.digest(entry.after),
            details=canonical.text(redact.value(entry.details)) if entry.details else "{}",
            mac="",
        )
        return unsigned._replace(mac=mac(self._key, canonical_bytes(unsigned)))._asdict()

    def _name(self, connection: Connection, actor: Actor) -> str:
        """A part of the platform goes by its name (its id and name are the same word), a person by a commitment."""
        if actor.user_id != actor.username:
            return self._commit(connection, "name", _clean(actor.username, 255))
        if is_commitment(actor.username) or len(actor.username) > 64:
            raise ValueError("a part of the platform has a short, plain name")
        return actor.username

    def _commit(self, connection: Connection, kind: str, value: str) -> str:
        known = self._commitments.get((kind, value))
        if known is not None:
            return known
        person = {"kind": kind, "value": value}
        found = connection.scalar(_KNOWN, person)
        if found is None:
            salt = secrets.token_hex(16)
            connection.execute(_ADD_PERSON, person | {"salt": salt, "commitment": commitment(salt, value)})
            # Read again: where another process was first, its commitment counts
            found = connection.execute(_KNOWN, person).scalar_one()
            _remember_fresh(connection)
        elif not _is_fresh(connection):
            if len(self._commitments) >= _CACHE:
                self._commitments.clear()
            self._commitments[kind, value] = found
        return str(found)


def _remember_fresh(connection: Connection) -> None:
    """Mark this transaction as one that added people: until it has been committed, nothing read in it may be remembered outside it."""
    transaction = connection.get_transaction()
    if transaction is not None:
        connection.info[_FRESH] = weakref.ref(transaction)


def _is_fresh(connection: Connection) -> bool:
    marked: weakref.ref[Transaction] | None = connection.info.get(_FRESH)
    return marked is not None and marked() is connection.get_transaction()


def _clean(text: str, limit: int) -> str:
    """The text in at most ``limit`` characters, with what has no UTF-8 form (lone surrogates) spelled out."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def actor_columns(connection: Connection, names: Sequence[str]) -> list[str]:
    """What the ``actor`` column may hold for these names: the plain name, and the commitment where there is one."""
    found = connection.scalars(select(_PERSON.commitment).where(_PERSON.kind == "name", _PERSON.value.in_(names)))
    return [*(name for name in names if not is_commitment(name)), *found]
