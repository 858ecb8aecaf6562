"""The check of a whole trail, in one pass over its leaves, with memory that does not grow with it.

For each leaf, in order: no gap in ``seq``; its event there; the event's HMAC (when the key is at hand); the leaf's hash. At each batch's
end: the tree's root, the note's signature by the key in force, the columns against the note, the chain to the batch before. Where
checkpoints were kept elsewhere, the tree must pass through their roots, unless a restore was declared. What retention deleted is replaced
by the roots in its signed mark. Then the events not sealed yet, the numbers of each job's events, the people's commitments, and what the
store itself can check.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from cloche.audit.chain import open_kept, read_chain
from cloche.audit.event import Event, TamperedTrail, canonical_bytes, commitment, leaf_bytes, mac
from cloche.audit.merkle import Frontier, leaf_hash
from cloche.audit.note import NO_PREVIOUS, BadNote, Checkpoint, PublicKey, note_hash, notes_in, open_checkpoint
from cloche.audit.prune import Mark
from cloche.audit.trail import Batch, Break, Leaf, Trail
from cloche.clock import uuid7_ms

GRACE_MS = 10_000  # the sealer closes a batch within a second; ten allow for a restart


class Status(StrEnum):
    VALID = "valid"
    TAMPERED = "tampered"
    INCOMPLETE = "incomplete"
    GAP = "gap"  # valid, but for what a declared restore lost


_EXIT_CODES = {Status.VALID: 0, Status.TAMPERED: 1, Status.INCOMPLETE: 2, Status.GAP: 3}


@dataclass(frozen=True)
class Bad:
    """The first thing that is wrong: sequence number (None before sealing), event id where known, and why."""

    seq: int | None
    event_id: str | None
    why: str


@dataclass
class Verdict:
    """What a verification found. ``events`` counts those seen, sealed or not; ``leaves`` those of the tree, with the ``pruned`` ones that
    retention deleted; ``root`` is hex, ``key`` the first public key; ``gaps``: ``{"from", "to"}``, the sequence numbers that checkpoints
    vouch for and a declared restore lost."""

    status: Status = Status.VALID
    first_bad: Bad | None = None
    events: int = 0
    leaves: int = 0
    batches: int = 0
    unsealed: int = 0
    pruned: int = 0
    root: str = ""
    key: str = ""
    hmac_checked: bool = False
    gaps: list[dict[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.status]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"status": self.status.value, "exit_code": self.exit_code}


def verify(
    trail: Trail,
    *,
    key: PublicKey,
    now_ms: int,
    hmac_key: bytes | Sequence[bytes] | None = None,
    checkpoint: str | None = None,
    held: Sequence[PublicKey] = (),
) -> Verdict:
    """Check ``trail`` against the pinned public key, its first; never raises for what is wrong with it.

    Args:
        hmac_key: the HMAC key; several where it was rotated.
        checkpoint: signed notes kept elsewhere, one or several on end: the trail must be an extension of each.
        held: the signing keys whose private half the platform has. The trail has to end under one of them: whoever stole a key that was
            replaced could cut off its end and announce one of his own. A checkpoint may bear one that the trail does not announce, as it would
            not after its end was cut off.
    """
    check = _Check(trail, key, hmac_key, now_ms)
    verdict = check.verdict
    if not held:
        verdict.notes.append(
            "the platform's signing keys are not at hand: whether the trail ends under one of them was not checked"
        )
    try:
        check.read_marks()
        check.left_behind()
        check.keep(checkpoint, held)
        check.sealed()
        check.unsealed()
        check.numbering()
        check.people()
        check.ends_under(held)
        verdict.notes.extend(check.missing(trail.finish(check.chain.last, check.pruned_until)))
    except TamperedTrail as found:
        verdict.status = Status.TAMPERED
        verdict.first_bad = Bad(found.seq, found.event_id, found.why)
    if verdict.gaps and verdict.status is Status.VALID:
        verdict.status = Status.GAP
    return verdict


class _Check:
    def __init__(self, trail: Trail, key: PublicKey, hmac_key: bytes | Sequence[bytes] | None, now_ms: int) -> None:
        self._trail = trail
        self._hmac_keys = (hmac_key,) if isinstance(hmac_key, bytes) else tuple(hmac_key or ())
        self._now_ms = now_ms if trail.as_of is None else trail.as_of
        self._frontier = Frontier()
        self._mark: Mark | None = None
        self._kept: deque[Checkpoint] = deque()
        self.chain = read_chain(trail, key)
        self.verdict = Verdict(key=key.text, hmac_checked=bool(self._hmac_keys))
        if not self._hmac_keys:
            self.verdict.notes.append("the HMAC key is not at hand: events not sealed yet were not checked")

    @property
    def pruned_until(self) -> int:
        return -1 if self._mark is None else self._mark.until

    def read_marks(self) -> None:
        """Begin where retention stopped. The newest mark counts: an older one that is put in its place leaves a gap behind it."""
        for number, row in enumerate(self._trail.prunes()):
            try:
                mark = self.chain.mark(row.note)
            except (BadNote, TypeError, AttributeError, ValueError) as error:
                raise TamperedTrail(f"prune mark {number}: {error}", seq=0) from None
            if (row.number, row.upto, row.at) != (mark.number, mark.upto, mark.at) or mark.number != number:
                raise TamperedTrail(f"prune mark {number} is not what its signed note says", seq=0)
            if self._mark is not None and mark.upto <= self._mark.upto:
                raise TamperedTrail(f"prune mark {number} does not follow the one before it", seq=0)
            self._mark, self._frontier = mark, mark.frontier()
        self.verdict.pruned = self.verdict.leaves = self._frontier.size
        if self._mark is not None:
            self.verdict.notes.append(f"events before sequence {self._mark.upto} were deleted by retention")
        for one in self.chain.declared:
            lost = (
                f"events {one.gap.first} to {one.gap.end - 1} were lost"
                if one.gap.end > one.gap.first
                else "nothing was lost"
            )
            self.verdict.notes.append(f"batch {one.batch} declares a restore: {lost}")

    def left_behind(self) -> None:
        """Rows that retention has still to delete are in no tree any more: their HMACs alone vouch for them."""
        count = 0
        for leaf in self._trail.leaves() if self._mark is not None else ():
            if not isinstance(leaf.seq, int | float) or leaf.seq >= self._frontier.size:
                break
            count += 1
            if leaf.event is not None:
                self._check_mac(leaf.event, self._canonical(leaf.event, leaf.seq), leaf.seq)
        if count and self._hmac_keys:
            self.verdict.notes.append(f"retention has still to delete {count} events: prune again")
        elif count:
            what = (
                f"{count} events before the mark are still there, and only the HMAC key can vouch for them: prune again"
            )
            self.verdict.notes.extend(self.missing([what]))

    def keep(self, checkpoint: str | None, held: Sequence[PublicKey]) -> None:
        """Take what was kept elsewhere."""
        if checkpoint is None:
            return
        opened = (open_kept(note, self.chain, held) for note in notes_in(checkpoint))
        self._kept = deque(sorted(opened, key=lambda one: one.size))
        old = 0
        while self._kept and self._kept[0].size < self._frontier.size:
            self._kept.popleft()
            old += 1
        if old:
            self.verdict.notes.append(
                f"{old} checkpoints are older than what retention deleted: they say nothing any more"
            )

    def sealed(self) -> None:
        frontier, verdict = self._frontier, self.verdict
        self._pass_kept()
        batches = self._opened_batches()
        batch = next(batches, None)
        for leaf in self._counted_leaves():
            if batch is None:
                if self._trail.truncated:
                    break
                raise TamperedTrail("the leaf is in no signed batch", seq=frontier.size, event_id=leaf.event_id)
            self._append(leaf)
            if self._kept and self._kept[0].size == frontier.size:
                self._pass_kept()
            if batch.size == frontier.size:
                if frontier.root() != batch.root:
                    start = verdict.leaves
                    why = f"leaves {start} to {batch.size - 1} are not all those batch {batch.number} signed"
                    raise TamperedTrail(why, seq=start)
                verdict.leaves, verdict.batches = frontier.size, verdict.batches + 1
                batch = next(batches, None)
        verdict.root = frontier.root().hex()
        if batch is not None and not self._trail.truncated:
            raise TamperedTrail(f"leaves are missing: batch {batch.number} signed {batch.size}", seq=frontier.size)
        for kept in self._kept:
            if not self._declared(kept):
                why = f"the trail ends before the checkpoint kept elsewhere, which has {kept.size} leaves: its end was cut off"
                raise TamperedTrail(why, seq=frontier.size)

    def _pass_kept(self) -> None:
        while self._kept and self._kept[0].size == self._frontier.size:
            kept = self._kept.popleft()
            if self._frontier.root() != kept.root and not self._declared(kept):
                why = "the checkpoint kept elsewhere has another root: the trail was rewritten"
                raise TamperedTrail(why, seq=0 if self._mark is None else self._mark.upto)

    def _declared(self, kept: Checkpoint) -> bool:
        found = next((one for one in self.chain.declared if one.covers(kept)), None)
        if found is None:
            return False
        gap = {"from": found.gap.first, "to": kept.size - 1}
        self.verdict.gaps.append(gap)
        self.verdict.notes.append(
            f"gap declared: events {gap['from']} to {gap['to']}, which a checkpoint vouches for, were lost in a restore"
        )
        return True

    def unsealed(self) -> None:
        oldest: int | None = None
        for event in self._trail.unsealed():
            self.verdict.unsealed += 1
            self._check_mac(event, self._canonical(event, None), None)
            oldest = event.at if oldest is None else min(oldest, event.at)
        self.verdict.events += self.verdict.unsealed
        if oldest is None:
            return
        self.verdict.notes.append(f"{self.verdict.unsealed} events are not sealed yet")
        if oldest < self._now_ms - GRACE_MS:
            self.verdict.notes.extend(
                self.missing(["an event older than 10 s is not sealed: the sealer does not run, or refuses"])
            )

    def numbering(self) -> None:
        for item in self._trail.breaks():
            last = self._before(item) if item.previous is None else item.previous
            if item.object_seq != last + 1:
                why = f"event {last + 1} of {item.object} is missing (the next there is {item.object_seq})"
                raise TamperedTrail(why, seq=item.seq, event_id=item.event_id)

    def _before(self, first: Break) -> int:
        """The number after which an object's events have to be there: 0, unless the object is older than what retention deleted."""
        if self._mark is None:
            return 0
        made = uuid7_ms(first.object.removeprefix("job:"))
        return first.object_seq - 1 if made is not None and made <= self._mark.until else 0

    def people(self) -> None:
        for person in self._trail.persons():
            try:
                same = commitment(person.salt, person.value) == person.commitment
            except (TypeError, ValueError, AttributeError):
                same = False
            if not same:
                raise TamperedTrail(
                    f"the {person.kind} behind the commitment {str(person.commitment)[:12]}… was changed"
                )

    def ends_under(self, held: Sequence[PublicKey]) -> None:
        if not held or self.chain.last in held:
            return
        key = f"{self.chain.last.name}+{self.chain.last.id.hex()}"
        if len(self.chain.periods) == 1:
            why = f"the trail ends under the first key, {key}, which the platform has no more: what announced the next one was cut off"
        else:
            why = (
                f"batch {self.chain.periods[-1].first - 1} announces the key {key}, which the platform does not have: "
                "somebody else announced it"
            )
        raise TamperedTrail(f"{why}, or the folder of keys is not the one that belongs to this database")

    def missing(self, what: Iterator[str] | list[str]) -> list[str]:
        """``what`` as a list; anything in it makes the verdict incomplete."""
        found = list(what)
        if found:
            self.verdict.status = Status.INCOMPLETE
        return found

    def _counted_leaves(self) -> Iterator[Leaf]:
        leaves = iter(self._trail.leaves(self._frontier.size))
        while True:
            expected = self._frontier.size
            try:
                leaf = next(leaves, None)
            except TamperedTrail as error:
                raise TamperedTrail(
                    error.why, seq=expected if error.seq is None else error.seq, event_id=error.event_id
                ) from None
            if leaf is None:
                return
            if leaf.seq != expected:
                raise TamperedTrail(f"the leaf is missing (the next there is {leaf.seq})", seq=expected)
            yield leaf

    def _append(self, leaf: Leaf) -> None:
        frontier, event = self._frontier, leaf.event
        if event is None:
            if not leaf.foreign:
                raise TamperedTrail("the event is missing", seq=frontier.size, event_id=leaf.event_id)
            frontier.append(_digest(leaf.hash, frontier.size))
            return
        canonical = self._canonical(event, frontier.size)
        self._check_mac(event, canonical, frontier.size)
        computed = leaf_hash(leaf_bytes(canonical, event.mac))
        if computed.hex() != leaf.hash:
            raise TamperedTrail("the event is not the one that was sealed", seq=frontier.size, event_id=leaf.event_id)
        self.verdict.events += 1
        frontier.append(computed)

    def _canonical(self, event: Event, seq: int | None) -> bytes:
        try:
            if isinstance(event.mac, str):  # SQLite lets any column hold any type
                return canonical_bytes(event)
        except (TypeError, ValueError):
            pass
        raise TamperedTrail("a column holds a value of the wrong type", seq=seq, event_id=str(event.id))

    def _check_mac(self, event: Event, canonical: bytes, seq: int | None) -> None:
        for key in self._hmac_keys:
            if mac(key, canonical) == event.mac:
                return
        if self._hmac_keys:
            raise TamperedTrail(
                "the event was changed, or not written by the platform (HMAC)", seq=seq, event_id=event.id
            )

    def _opened_batches(self) -> Iterator[Checkpoint]:
        """The batches' notes, each checked against its row, the key and the batch before. Of those that retention deleted the ones that
        announce something are still there: they are checked by themselves."""
        mark = self._mark
        size, previous, expected = (0, NO_PREVIOUS, 0) if mark is None else (mark.upto, mark.previous, mark.batch)
        for batch in self._trail.batches():
            if mark is not None and isinstance(batch.number, int) and batch.number < mark.batch:
                self._open(batch, batch.number, size)
                continue
            opened = self._open(batch, expected, size)
            if opened.previous != previous:
                raise TamperedTrail(f"batch {expected} does not follow the batch before it", seq=size)
            if opened.size <= size:
                raise TamperedTrail(f"batch {expected} is not larger than the batch before it", seq=size)
            yield opened
            size, previous, expected = opened.size, note_hash(batch.note), expected + 1

    def _open(self, batch: Batch, number: int, seq: int) -> Checkpoint:
        if batch.number != number:
            raise TamperedTrail(f"batch {number} is missing (the next there is {batch.number})", seq=seq)
        try:
            opened = open_checkpoint(batch.note, self.chain.of_batch(number))
        except (BadNote, TypeError, AttributeError, ValueError) as error:
            raise TamperedTrail(f"batch {number}: {error}", seq=seq) from None
        row = (batch.number, batch.size, batch.root, batch.previous, batch.at)
        if row != (opened.number, opened.size, opened.root.hex(), opened.previous, opened.at):
            raise TamperedTrail(f"batch {number} is not what its signed note says", seq=seq)
        return opened


def _digest(text: str, seq: int) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise TamperedTrail("the leaf's hash is malformed", seq=seq)
    return digest
