"""Seals audit events into the signed tree, beside the work and never in its way.

A pass reads the events that have no leaf yet, checks each one's HMAC, computes leaves and root on a reader, and writes leaves and signed
batch in one short transaction, which first makes sure that the tree is still the one it computed from. Several sealers may run: the lease
row ``sealer`` keeps the others idle, that check (and the append-only triggers) keeps them harmless when the lease changes hands in between.

An event whose HMAC is wrong is **not** sealed, nor is anything after it: sealing would put the platform's own signature under a forgery.
Later events stay covered by their HMACs, ``unsealed`` grows, and health, metrics and ``audit verify`` show it, until an operator has
looked (docs/audit.md says how).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, insert, literal_column, or_, select, text, update
from sqlalchemy.dialects import sqlite

from cloche import clock
from cloche.audit.event import Event, TamperedTrail, canonical_bytes, leaf_bytes, mac
from cloche.audit.keys import KeyRing
from cloche.audit.merkle import Frontier, leaf_hash
from cloche.audit.note import NO_PREVIOUS, BadNote, Checkpoint, note_hash, open_checkpoint
from cloche.db import tables
from cloche.db.engine import Database

LEASE = "sealer"
BATCH = 1_000  # leaves
_PASS = 20  # batches in one call, so that a long backlog does not keep the caller

_event, _leaf, _batch, _lease = tables.audit_event, tables.audit_leaf, tables.audit_batch, tables.lease
_HEAD = select(_batch.c.number, _batch.c.size, _batch.c.root, _batch.c.note).order_by(_batch.c.number.desc()).limit(1)
_HASHES = select(_leaf.c.seq, _leaf.c.hash).order_by(_leaf.c.seq)
_ROWID: ColumnElement[int] = literal_column("audit_event.rowid")
_MARK = select(_event.c.id).order_by(_ROWID.desc()).limit(1)
# SQLite numbers rows in the order they are committed in, so what is new lies behind the mark; the mark is an id, for VACUUM renumbers rows
_AFTER_MARK = text(
    "audit_event.rowid > coalesce((SELECT m.rowid FROM audit_event AS m WHERE m.id = :mark), -9223372036854775808)"
)
_PENDING = (
    select(*(_event.c[name] for name in Event._fields))
    .where(_AFTER_MARK, ~select(_leaf.c.seq).where(_leaf.c.event_id == _event.c.id).exists())
    .order_by(_ROWID)
    .limit(BATCH)
)


@dataclass(frozen=True)
class _Head:
    """The last batch, as read: ``number`` and ``size`` are -1 and 0 before the first."""

    number: int
    size: int
    root: str
    note: str

    @property
    def previous(self) -> str:
        return note_hash(self.note) if self.note else NO_PREVIOUS


_NO_HEAD = _Head(-1, 0, "", "")


@dataclass(frozen=True)
class _Sealing:
    """A batch ready to be written, and what may be remembered once it is."""

    head: _Head
    leaves: list[dict[str, object]]
    batch: dict[str, object]
    frontier: Frontier
    mark: str | None


class Sealer:
    """``run_once`` is called about every ``interval_ms``, by one thread; ``owner`` names the process (at most 36 characters)."""

    def __init__(self, db: Database, keyring: KeyRing, owner: str, *, interval_ms: int = 1_000) -> None:
        self._db = db
        self._keyring = keyring
        self._owner = owner
        self._lease_ms = 2 * interval_ms
        self._frontier = Frontier()
        self._mark: str | None = None  # every event up to this one has a leaf
        self.problem: str | None = None  # why sealing stopped, in words; None while all is well

    def run_once(self) -> int:
        """Seal what is waiting, at most 20 batches of 1,000, and return how many leaves that made (0 when another sealer is at it).

        Raises:
            TamperedTrail: an event, or the tree itself, is not what the platform wrote. Nothing after it was sealed.
            Unavailable: the database does not answer. Nothing is lost; call again.
        """
        sealed = 0
        try:
            for _ in range(_PASS):
                made = self._seal_batch()
                sealed += made
                if made < BATCH:
                    break
        except TamperedTrail as error:
            self.problem = str(error)
            raise
        self.problem = None
        return sealed

    def close(self) -> None:
        """Give the lease back, so that another sealer need not wait for it to lapse. Safe to call twice."""
        self._db.write(
            lambda connection: connection.execute(
                delete(_lease).where(_lease.c.name == LEASE, _lease.c.owner == self._owner)
            )
        )

    def _seal_batch(self) -> int:
        sealing = self._db.read(self._prepare)
        if sealing is None:
            return 0
        if not self._db.write(lambda connection: self._write(connection, sealing)):
            return 0
        self._frontier, self._mark = sealing.frontier, sealing.mark
        return len(sealing.leaves)

    def _prepare(self, connection: Connection) -> _Sealing | None:
        if self._held_by_another(connection):
            return None
        events = [Event._make(row) for row in connection.execute(_PENDING, {"mark": self._mark})]
        mark = events[-1].id if len(events) == BATCH else connection.scalar(_MARK)
        if not events:
            self._mark = mark
            return None
        head = _read_head(connection)
        if self._frontier.size != head.size or head.number < 0:
            self._frontier = self._caught_up(connection, head)
        return self._sealing(head, events, mark)

    def _sealing(self, head: _Head, events: Sequence[Event], mark: str | None) -> _Sealing:
        frontier = self._frontier.copy()
        leaves: list[dict[str, object]] = []
        for event in events:
            leaf = leaf_hash(self._checked(event))
            leaves.append({"seq": frontier.size, "event_id": event.id, "hash": leaf.hex()})
            frontier.append(leaf)
        point = Checkpoint(
            self._keyring.origin, frontier.size, frontier.root(), head.number + 1, clock.now_ms(), head.previous
        )
        batch: dict[str, object] = {
            "number": point.number,
            "size": point.size,
            "root": point.root.hex(),
            "previous": point.previous,
            "at": point.at,
            "note": self._keyring.sign_note(point.body()),
        }
        return _Sealing(head, leaves, batch, frontier, mark)

    def _checked(self, event: Event) -> bytes:
        try:
            canonical = canonical_bytes(event)
        except (TypeError, ValueError):
            raise TamperedTrail("a column holds a value of the wrong type", event_id=event.id) from None
        if mac(self._keyring.hmac_key, canonical) != event.mac:
            raise TamperedTrail(
                "the event was changed, or not written by the platform (HMAC); not sealed", event_id=event.id
            )
        return leaf_bytes(canonical, event.mac)

    def _write(self, connection: Connection, sealing: _Sealing) -> bool:
        if not self._take_lease(connection) or _read_head(connection) != sealing.head:
            return False
        connection.execute(insert(_leaf), sealing.leaves)
        connection.execute(insert(_batch), sealing.batch)
        return True

    def _take_lease(self, connection: Connection) -> bool:
        now = clock.now_ms()
        mine = {"owner": self._owner, "until": now + self._lease_ms}
        free = or_(_lease.c.owner == self._owner, _lease.c.until <= now)
        if connection.execute(update(_lease).where(_lease.c.name == LEASE, free).values(mine)).rowcount:
            return True
        added = connection.execute(sqlite.insert(_lease).values(name=LEASE, **mine).on_conflict_do_nothing())
        return bool(added.rowcount)

    def _held_by_another(self, connection: Connection) -> bool:
        held = select(func.count()).where(
            _lease.c.name == LEASE, _lease.c.owner != self._owner, _lease.c.until > clock.now_ms()
        )
        return bool(connection.scalar(held))

    def _caught_up(self, connection: Connection, head: _Head) -> Frontier:
        """The tree at ``head``: from the one in memory when that is its beginning, else from the leaves alone.

        Raises:
            TamperedTrail: the leaves do not give the signed root, or the note is not this key's. Sealing on would hide that.
        """
        for start in (self._frontier.copy(), Frontier()):
            for seq, digest in connection.execute(_HASHES.where(_leaf.c.seq >= start.size)):
                if seq != start.size:
                    raise TamperedTrail("the leaf is missing", seq=start.size)
                start.append(bytes.fromhex(digest))
            if start.size == head.size and (head.number < 0 or start.root().hex() == head.root):
                self._check_note(head, start)
                return start
        raise TamperedTrail(f"the leaves do not give the signed root of batch {head.number}")

    def _check_note(self, head: _Head, frontier: Frontier) -> None:
        if head.number < 0:
            return
        try:
            point = open_checkpoint(head.note, self._keyring.verifier)
        except BadNote as error:
            raise TamperedTrail(f"batch {head.number}: {error}") from None
        if (point.number, point.size, point.root) != (head.number, frontier.size, frontier.root()):
            raise TamperedTrail(f"batch {head.number} is not what its signed note says")


def _read_head(connection: Connection) -> _Head:
    row = connection.execute(_HEAD).first()
    return _NO_HEAD if row is None else _Head(*row)
