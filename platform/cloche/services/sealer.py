"""Seals audit events into the signed tree, beside the work and never in its way.

A pass reads the events that have no leaf yet, checks each one's HMAC, computes leaves and root on a reader, and writes leaves and signed
batch in one short transaction, which first makes sure that the tree is still the one it computed from. Several sealers may run: the lease
row ``sealer`` keeps the others idle, that check (and the append-only triggers) keeps them harmless when the lease changes hands in between.

Which key signs a batch is what the batches before it announce: a rotation needs no restart.

An event whose HMAC is wrong is **not** sealed, nor is anything after it: sealing would put the platform's own signature under a forgery.
Later events stay covered by their HMACs, ``unsealed`` grows, and health, metrics and ``audit verify`` show it, until an operator has
looked (docs/audit.md says how).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, or_, select, true, update

from cloche import failpoints
from cloche.audit.chain import Chain
from cloche.audit.event import Event, TamperedTrail, canonical_bytes, leaf_bytes, mac
from cloche.audit.keys import KeyRing
from cloche.audit.merkle import Frontier, leaf_hash
from cloche.audit.note import NO_PREVIOUS, BadNote, Checkpoint, Gap, PublicKey, note_hash, open_checkpoint
from cloche.db import tables, unsealed
from cloche.db.dialect import insert_or
from cloche.db.engine import Database, now_ms
from cloche.errors import Unavailable
from cloche.failpoints import Point
from cloche.services.audit_chain import stored_chain, stored_mark

LEASE = "sealer"
BATCH = 1_000  # leaves
_OLD_KEY_MS = 86_400_000  # how long what an HMAC key of before signed is still sealed
_PASS = 20  # batches in one call, so that a long backlog does not keep the caller

_leaf, _batch, _lease = tables.audit_leaf, tables.audit_batch, tables.lease
_HEAD = select(_batch.c.number, _batch.c.size, _batch.c.root, _batch.c.note).order_by(_batch.c.number.desc()).limit(1)
_HASHES = select(_leaf.c.seq, _leaf.c.hash).order_by(_leaf.c.seq)


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
    mark: unsealed.Mark
    nodes: list[dict[str, object]]
    chain: Chain


@dataclass(frozen=True)
class Said:
    """What a batch announces beside its root."""

    key: PublicKey | None = None
    gap: Gap | None = None


_NOTHING = Said()


class Sealer:
    """``run_once`` is called about every ``interval_ms``, by one thread; ``owner`` names the process (at most 36 characters)."""

    def __init__(self, db: Database, keyring: KeyRing, owner: str, *, interval_ms: int = 1_000) -> None:
        self._db = db
        self._keyring = keyring
        self._owner = owner
        self._lease_ms = 2 * interval_ms
        self._frontier = Frontier()
        self._mark: unsealed.Mark = None  # every event before it has a leaf
        self._chain: Chain | None = None
        self._chain_at = -1  # the last batch that it takes in
        self._completed: list[tuple[int, int, bytes]] = []  # nodes of leaves that were read again
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

    def announce(self, said: Said, record: Callable[[Connection], None]) -> None:
        """Record an act, and seal it in a batch that also says ``said``. Whichever sealer is at it is stopped for as long as this takes.

        Raises:
            TamperedTrail: see :meth:`run_once`; the act was recorded, and nothing announced.
            Unavailable: the database does not answer.
        """

        def begin(connection: Connection) -> None:
            self._take_lease(connection, by_force=True)
            record(connection)

        self._db.write(begin)
        try:
            if not self._seal_batch(said):
                raise Unavailable("another sealer was faster; try again")
        finally:
            self.close()

    def close(self) -> None:
        """Give the lease back, so that another sealer need not wait for it to lapse. Safe to call twice."""
        self._db.write(
            lambda connection: connection.execute(
                delete(_lease).where(_lease.c.name == LEASE, _lease.c.owner == self._owner)
            )
        )

    def _seal_batch(self, said: Said = _NOTHING) -> int:
        sealing = self._db.read(lambda connection: self._prepare(connection, said))
        if sealing is None:
            return 0
        failpoints.hit(Point.SEALER_PREPARED)
        if not self._db.write(lambda connection: self._write(connection, sealing)):
            return 0
        failpoints.hit(Point.SEALER_WRITTEN)
        self._frontier, self._mark, self._completed = sealing.frontier, sealing.mark, []
        self._chain, self._chain_at = sealing.chain, sealing.head.number + 1
        if said is not _NOTHING:
            self._chain = None  # read again, with what was said
        return len(sealing.leaves)

    def _prepare(self, connection: Connection, said: Said = _NOTHING) -> _Sealing | None:
        if self._held_by_another(connection):
            return None
        waiting = unsealed.find(connection, self._mark, BATCH)
        if not waiting.events:
            self._mark = waiting.mark
            return None
        head = _read_head(connection)
        if self._chain is None or self._chain_at != head.number:
            self._chain, self._chain_at = stored_chain(connection, self._keyring.verifier), head.number
        if self._frontier.size != head.size or head.number < 0:
            self._frontier = self._caught_up(connection, head, self._chain)
        return self._sealing(head, waiting, now_ms(connection), self._chain, said)

    def _sealing(self, head: _Head, waiting: unsealed.Unsealed, now: int, chain: Chain, said: Said) -> _Sealing:
        frontier, completed = self._frontier.copy(), list(self._completed)
        leaves: list[dict[str, object]] = []
        for event in waiting.events:
            leaf = leaf_hash(self._checked(event, now))
            leaves.append({"seq": frontier.size, "event_id": event.id, "hash": leaf.hex()})
            frontier.append(leaf, completed)
        number, root = head.number + 1, frontier.root()
        key = None if said.key is None else said.key.text
        point = Checkpoint(self._keyring.origin, frontier.size, root, number, now, head.previous, key, said.gap)
        batch: dict[str, object] = {
            "number": point.number,
            "size": point.size,
            "root": point.root.hex(),
            "previous": point.previous,
            "at": point.at,
            "note": self._keyring.sign_note(point.body(), chain.of_batch(number)),
        }
        nodes: list[dict[str, object]] = [
            {"level": level, "number": place, "hash": node.hex()} for level, place, node in completed
        ]
        return _Sealing(head, leaves, batch, frontier, waiting.mark, nodes, chain)

    def _checked(self, event: Event, now: int) -> bytes:
        try:
            canonical = canonical_bytes(event)
        except (TypeError, ValueError):
            raise TamperedTrail("a column holds a value of the wrong type", event_id=event.id) from None
        if mac(self._keyring.current_hmac_key(), canonical) != event.mac and not self._by_an_old_key(
            event, canonical, now
        ):
            raise TamperedTrail(
                "the event was changed, or not written by the platform (HMAC); not sealed", event_id=event.id
            )
        return leaf_bytes(canonical, event.mac)

    def _by_an_old_key(self, event: Event, canonical: bytes, now: int) -> bool:
        """Processes find a new HMAC key within a second; those of other hosts when it is brought there."""
        return any(mac(key, canonical) == event.mac for key in self._keyring.hmac_keys(since_ms=now - _OLD_KEY_MS))

    def _write(self, connection: Connection, sealing: _Sealing) -> bool:
        if not self._take_lease(connection) or _read_head(connection) != sealing.head:
            return False
        connection.execute(insert(_leaf), sealing.leaves)
        connection.execute(insert(_batch), sealing.batch)
        if sealing.nodes:
            connection.execute(insert_or(connection, tables.audit_node).on_conflict_do_nothing(), sealing.nodes)
        return True

    def _take_lease(self, connection: Connection, *, by_force: bool = False) -> bool:
        now = now_ms(connection)
        mine = {"owner": self._owner, "until": now + self._lease_ms}
        free = true() if by_force else or_(_lease.c.owner == self._owner, _lease.c.until <= now)
        if connection.execute(update(_lease).where(_lease.c.name == LEASE, free).values(mine)).rowcount:
            return True
        added = connection.execute(insert_or(connection, _lease).values(name=LEASE, **mine).on_conflict_do_nothing())
        return bool(added.rowcount)

    def _held_by_another(self, connection: Connection) -> bool:
        held = select(func.count()).where(
            _lease.c.name == LEASE, _lease.c.owner != self._owner, _lease.c.until > now_ms(connection)
        )
        return bool(connection.scalar(held))

    def _caught_up(self, connection: Connection, head: _Head, chain: Chain) -> Frontier:
        """The tree at ``head``: from the one in memory when that is its beginning, else from the leaves alone, behind those that retention
        deleted.

        Raises:
            TamperedTrail: the leaves do not give the signed root, or the note is not this key's. Sealing on would hide that.
        """
        mark = stored_mark(connection, chain)
        begins = [self._frontier.copy(), Frontier() if mark is None else mark.frontier()]
        for start in begins if begins[0].size >= begins[1].size else begins[1:]:
            completed: list[tuple[int, int, bytes]] = []
            for seq, digest in connection.execute(_HASHES.where(_leaf.c.seq >= start.size)):
                if seq != start.size:
                    raise TamperedTrail("the leaf is missing", seq=start.size)
                start.append(bytes.fromhex(digest), completed)
            if start.size == head.size and (head.number < 0 or start.root().hex() == head.root):
                self._check_note(head, start, chain)
                self._completed += completed
                return start
        raise TamperedTrail(f"the leaves do not give the signed root of batch {head.number}")

    def _check_note(self, head: _Head, frontier: Frontier, chain: Chain) -> None:
        if head.number < 0:
            return
        try:
            point = open_checkpoint(head.note, chain.of_batch(head.number))
        except BadNote as error:
            raise TamperedTrail(f"batch {head.number}: {error}") from None
        if (point.number, point.size, point.root) != (head.number, frontier.size, frontier.root()):
            raise TamperedTrail(f"batch {head.number} is not what its signed note says")


def _read_head(connection: Connection) -> _Head:
    row = connection.execute(_HEAD).first()
    return _NO_HEAD if row is None else _Head(*row)
