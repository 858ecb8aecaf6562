"""The check of a whole trail, in one pass over its leaves, with memory that does not grow with it.

For each leaf, in order: no gap in ``seq``; its event there; the event's HMAC (when the key is at hand); the leaf's hash. At each batch's
end: the tree's root, the note's signature by the pinned key, the columns against the note, the chain to the batch before. Where a
checkpoint was kept elsewhere, the tree must pass through its root. Then the events not sealed yet, the numbers of each job's events, the
people's commitments, and what the store itself can check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from cloche.audit.event import Event, TamperedTrail, canonical_bytes, commitment, leaf_bytes, mac
from cloche.audit.merkle import Frontier, leaf_hash
from cloche.audit.note import NO_PREVIOUS, BadNote, Checkpoint, PublicKey, note_hash, open_checkpoint
from cloche.audit.trail import Batch, Leaf, Trail

GRACE_MS = 10_000  # the sealer closes a batch within a second; ten allow for a restart


class Status(StrEnum):
    VALID = "valid"
    TAMPERED = "tampered"
    INCOMPLETE = "incomplete"


_EXIT_CODES = {Status.VALID: 0, Status.TAMPERED: 1, Status.INCOMPLETE: 2}


@dataclass(frozen=True)
class Bad:
    """The first thing that is wrong: sequence number (None before sealing), event id where known, and why."""

    seq: int | None
    event_id: str | None
    why: str


@dataclass
class Verdict:
    """What a verification found. ``events`` counts those seen, sealed or not; ``root`` is hex."""

    status: Status = Status.VALID
    first_bad: Bad | None = None
    events: int = 0
    leaves: int = 0
    batches: int = 0
    unsealed: int = 0
    root: str = ""
    key: str = ""
    hmac_checked: bool = False
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
    hmac_key: bytes | None = None,
    checkpoint: Checkpoint | str | None = None,
) -> Verdict:
    """Check ``trail`` against the pinned public key; never raises for what is wrong with it.

    Args:
        checkpoint: a signed note kept elsewhere, or one opened before: the trail must be an extension of it.
    """
    check = _Check(trail, key, hmac_key, now_ms)
    verdict = check.verdict
    try:
        opened = _opened(checkpoint, key) if isinstance(checkpoint, str) else checkpoint
        check.sealed(opened)
        check.unsealed()
        check.numbering()
        check.people()
        verdict.notes.extend(check.missing(trail.finish(key)))
    except TamperedTrail as found:
        verdict.status = Status.TAMPERED
        verdict.first_bad = Bad(found.seq, found.event_id, found.why)
    return verdict


def _opened(note: str, key: PublicKey) -> Checkpoint:
    try:
        return open_checkpoint(note, key)
    except BadNote as error:
        raise TamperedTrail(f"the checkpoint kept elsewhere does not belong to this trail's key: {error}") from None


class _Check:
    def __init__(self, trail: Trail, key: PublicKey, hmac_key: bytes | None, now_ms: int) -> None:
        self._trail = trail
        self._key = key
        self._hmac_key = hmac_key
        self._now_ms = now_ms if trail.as_of is None else trail.as_of
        self._frontier = Frontier()
        self.verdict = Verdict(key=key.text, hmac_checked=hmac_key is not None)
        if hmac_key is None:
            self.verdict.notes.append("the HMAC key is not at hand: events not sealed yet were not checked")

    def sealed(self, checkpoint: Checkpoint | None) -> None:
        frontier, verdict = self._frontier, self.verdict
        batches = self._opened_batches()
        batch = next(batches, None)
        for leaf in self._counted_leaves():
            if batch is None:
                if self._trail.truncated:
                    break
                raise TamperedTrail("the leaf is in no signed batch", seq=frontier.size, event_id=leaf.event_id)
            self._append(leaf)
            if checkpoint is not None and checkpoint.size == frontier.size:
                self._expect_root(
                    checkpoint.root, 0, "the checkpoint kept elsewhere has another root: the trail was rewritten"
                )
            if batch.size == frontier.size:
                start = verdict.leaves
                self._expect_root(
                    batch.root,
                    start,
                    f"leaves {start} to {batch.size - 1} are not all those batch {batch.number} signed",
                )
                verdict.leaves, verdict.batches = frontier.size, verdict.batches + 1
                batch = next(batches, None)
        verdict.root = frontier.root().hex()
        if batch is not None and not self._trail.truncated:
            raise TamperedTrail(f"leaves are missing: batch {batch.number} signed {batch.size}", seq=frontier.size)
        if checkpoint is not None and checkpoint.size > frontier.size:
            why = f"the trail ends before the checkpoint kept elsewhere, which has {checkpoint.size} leaves: its end was cut off"
            raise TamperedTrail(why, seq=frontier.size)

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
        current, last = None, 0
        for item in self._trail.numbered():
            if item.object != current:
                current, last = item.object, 0
            if item.object_seq != last + 1:
                why = f"event {last + 1} of {item.object} is missing (the next there is {item.object_seq})"
                raise TamperedTrail(why, seq=item.seq, event_id=item.event_id)
            last += 1

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

    def missing(self, what: Iterator[str] | list[str]) -> list[str]:
        """``what`` as a list; anything in it makes the verdict incomplete."""
        found = list(what)
        if found:
            self.verdict.status = Status.INCOMPLETE
        return found

    def _counted_leaves(self) -> Iterator[Leaf]:
        leaves = iter(self._trail.leaves())
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
        seq = self._frontier.size
        if leaf.foreign:
            self._frontier.append(_digest(leaf.hash, seq))
            return
        if leaf.event is None:
            raise TamperedTrail("the event is missing", seq=seq, event_id=leaf.event_id)
        canonical = self._canonical(leaf.event, seq)
        self._check_mac(leaf.event, canonical, seq)
        computed = leaf_hash(leaf_bytes(canonical, leaf.event.mac))
        if computed.hex() != leaf.hash:
            raise TamperedTrail("the event is not the one that was sealed", seq=seq, event_id=leaf.event_id)
        self.verdict.events += 1
        self._frontier.append(computed)

    def _canonical(self, event: Event, seq: int | None) -> bytes:
        # SQLite lets any column hold any type; the sealed ones are checked by their bytes, these three are computed with
        if not isinstance(event.mac, str) or not isinstance(event.at, int) or not isinstance(event.id, str):
            raise TamperedTrail("a column holds a value of the wrong type", seq=seq, event_id=str(event.id))
        try:
            return canonical_bytes(event)
        except (TypeError, ValueError):
            raise TamperedTrail("a column holds a value of the wrong type", seq=seq, event_id=event.id) from None

    def _check_mac(self, event: Event, canonical: bytes, seq: int | None) -> None:
        if self._hmac_key is not None and mac(self._hmac_key, canonical) != event.mac:
            raise TamperedTrail(
                "the event was changed, or not written by the platform (HMAC)", seq=seq, event_id=event.id
            )

    def _expect_root(self, root: bytes, seq: int, why: str) -> None:
        if self._frontier.root() != root:
            raise TamperedTrail(why, seq=seq)

    def _opened_batches(self) -> Iterator[Checkpoint]:
        """The batches' notes, each checked against its row, the key and the batch before."""
        size, previous = 0, NO_PREVIOUS
        for number, batch in enumerate(self._trail.batches()):
            opened = self._open(batch, number, size)
            if opened.previous != previous:
                raise TamperedTrail(f"batch {number} does not follow the batch before it", seq=size)
            if opened.size <= size:
                raise TamperedTrail(f"batch {number} is not larger than the batch before it", seq=size)
            yield opened
            size, previous = opened.size, note_hash(batch.note)

    def _open(self, batch: Batch, number: int, seq: int) -> Checkpoint:
        if batch.number != number:
            raise TamperedTrail(f"batch {number} is missing (the next there is {batch.number})", seq=seq)
        try:
            opened = open_checkpoint(batch.note, self._key)
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
