"""Writes audit events, in the transaction of the change they record: both are there, or neither."""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, Transaction, bindparam, select

from cloche import redact
from cloche.audit import canonical
from cloche.audit.event import Event, canonical_bytes, commitment, is_commitment, mac
from cloche.db import tables
from cloche.db.bulk import BulkInsert
from cloche.db.dialect import insert_or
from cloche.db.store import new_id
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor

_INSERT = BulkInsert(tables.audit_event, Event._fields)
_PERSON = tables.audit_person.c
_KNOWN = select(_PERSON.commitment).where(_PERSON.kind == bindparam("kind"), _PERSON.value == bindparam("value"))
_CACHE = 10_000  # people and addresses remembered by a process
_CACHE_S = 600.0  # so that somebody who was forgotten, and acts again, gets another commitment
_FRESH = "cloche_audit_fresh"


class Digest(str):
    """A digest that is already one, in place of a value that is no longer at hand."""

    __slots__ = ()


@dataclass(frozen=True)
class AuditEntry:
    """One act to record. ``object`` names what it was done to: ``job:<id>``, ``user:<id>``, ``remote:<name>`` …

    ``object_seq`` numbers a job's events 1, 2, 3 … without gaps. Of ``before`` and ``after`` (any JSON) the canonical SHA-256 is
    stored, not the value. ``details`` holds no secrets; what sounds like one is masked all the same. ``spelled`` is for whoever writes
    thousands of like events: the details as :func:`spell` gave them, in place of ``details``.
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
    spelled: str | None = None


def spell(details: Mapping[str, Any]) -> str:
    """Details as they are stored: canonical JSON, with what sounds like a secret masked."""
    return canonical.text(redact.value(details)) if details else "{}"


class _Who(NamedTuple):
    """An actor's part of an event."""

    tenant_id: str
    name: str
    token_id: str | None
    ip: str | None
    request_id: str | None


class AuditLog:
    """Shared by a process's threads. ``key`` is the HMAC key of :class:`cloche.audit.keys.KeyRing`, or what gives the present one."""

    def __init__(self, key: bytes | Callable[[], bytes]) -> None:
        if isinstance(key, bytes) and len(key) != 32:
            raise ValueError("the HMAC key has 32 bytes")
        self._key = (lambda: key) if isinstance(key, bytes) else key
        self._lock = threading.Lock()
        self._last_id = ""
        self._commitments: dict[tuple[str, str], str] = {}
        self._lapse = time.monotonic() + _CACHE_S

    def record(self, connection: Connection, *entries: AuditEntry) -> None:
        """Insert the entries, in order, in the caller's transaction. An error here must undo that transaction, so let it rise.

        Raises:
            TypeError, ValueError: an entry's values are not JSON, or ``object_seq`` is not a job's.
        """
        if entries:
            _INSERT.execute(connection, self.events(connection, entries))

    def knows(self, actor: Actor) -> bool:
        """Whether :meth:`events` of this actor's acts need nothing written first."""
        named = actor.user_id == actor.username or ("name", _clean(actor.username, 255)) in self._commitments
        return named and (actor.ip is None or ("ip", _clean(actor.ip, 64)) in self._commitments)

    def introduce(self, connection: Connection, actor: Actor) -> None:
        """Add the actor's name and address to the people, where they are not among them. Once that is committed, and this was called
        again on any connection, the log ``knows`` them."""
        self._who(connection, actor)

    def events(self, connection: Connection, entries: Iterable[AuditEntry]) -> list[Event]:
        """The entries as they are to be inserted, numbered and signed. Whoever writes many acts of actors that the log ``knows`` may ask for
        them before the transaction that inserts them, on a reading connection.

        Raises:
            TypeError, ValueError: see :meth:`record`.
        """
        known: dict[int, _Who] = {}  # by the actor's identity: entries keep theirs alive
        found = []
        for entry in entries:
            who = known.get(id(entry.actor))
            if who is None:
                who = known[id(entry.actor)] = self._who(connection, entry.actor)
            found.append(self._event(who, entry, self._next_id(connection)))
        return found

    def _next_id(self, connection: Connection) -> str:
        """A UUIDv7 of the database's clock, after the last one: random within a moment, ids alone would shuffle a list of events."""
        with self._lock:
            new, last = new_id(connection), self._last_id
            if new <= last:
                digits = f"{int(last.replace('-', ''), 16) + 1:032x}"
                new = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            self._last_id = new
        return new

    def _event(self, who: _Who, entry: AuditEntry, event_id: str) -> Event:
        if entry.object_seq is not None and (entry.object_seq < 1 or not entry.object.startswith("job:")):
            raise ValueError(
                f"object_seq {entry.object_seq} on {entry.object}: only a job's events are numbered, from 1"
            )
        unsigned = Event(
            id=event_id,
            at=int(event_id[:8] + event_id[9:13], 16),  # a UUIDv7 begins with its milliseconds
            tenant_id=who.tenant_id,
            actor=who.name,
            token_id=who.token_id,
            action=entry.action.value,
            object=_clean(entry.object, 255),
            object_seq=entry.object_seq,
            outcome=entry.outcome.value,
            ip=who.ip,
            request_id=who.request_id,
            reason=None if entry.reason is None else _clean(redact.text(entry.reason), 255),
            before_sha256=_digest(entry.before),
            after_sha256=_digest(entry.after),
            details=spell(entry.details) if entry.spelled is None else entry.spelled,
            mac="",
        )
        return Event(*unsigned[:-1], mac(self._key(), canonical_bytes(unsigned)))

    def _who(self, connection: Connection, actor: Actor) -> _Who:
        return _Who(
            tenant_id=actor.tenant_id,
            name=self._name(connection, actor),
            token_id=actor.token_id,
            ip=None if actor.ip is None else self._commit(connection, "ip", _clean(actor.ip, 64)),
            request_id=None if actor.request_id is None else _clean(actor.request_id, 64),
        )

    def _name(self, connection: Connection, actor: Actor) -> str:
        """A part of the platform goes by its name (its id and name are the same word), a person by a commitment."""
        if actor.user_id != actor.username:
            return self._commit(connection, "name", _clean(actor.username, 255))
        if is_commitment(actor.username) or len(actor.username) > 64:
            raise ValueError("a part of the platform has a short, plain name")
        return actor.username

    def _commit(self, connection: Connection, kind: str, value: str) -> str:
        if time.monotonic() > self._lapse:
            self._commitments.clear()
            self._lapse = time.monotonic() + _CACHE_S
        known = self._commitments.get((kind, value))
        if known is not None:
            return known
        person = {"kind": kind, "value": value}
        found = connection.scalar(_KNOWN, person)
        if found is None:
            salt = secrets.token_hex(16)
            added = insert_or(connection, tables.audit_person).on_conflict_do_nothing()
            connection.execute(added, person | {"salt": salt, "commitment": commitment(salt, value)})
            # Read again: where another process was first, its commitment counts
            found = connection.execute(_KNOWN, person).scalar_one()
            _remember_fresh(connection)
        elif not _is_fresh(connection):
            if len(self._commitments) >= _CACHE:
                self._commitments.clear()
            self._commitments[kind, value] = found
        return str(found)


def _digest(value: Any) -> str | None:
    if value is None or isinstance(value, Digest):
        return value
    return canonical.digest(value)


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


def ip_columns(connection: Connection, address: str) -> list[str]:
    """What the ``ip`` column may hold for this address: its commitment, where there is one."""
    return list(connection.scalars(select(_PERSON.commitment).where(_PERSON.kind == "ip", _PERSON.value == address)))
