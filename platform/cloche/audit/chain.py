"""The keys of a trail: the first is pinned, each one after it is announced in a batch that the one before signed.

The same batches say which restores were declared. Both are read before the tree is, so that a checkpoint or a mark signed by a later key
can be opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloche.audit.event import TamperedTrail
from cloche.audit.note import BadNote, Checkpoint, Gap, PublicKey, open_checkpoint, open_with
from cloche.audit.prune import Mark, open_mark
from cloche.audit.trail import Trail


@dataclass(frozen=True)
class Period:
    """``key`` signs the batches from number ``first`` on, until the next period; ``at``: when it was announced, ms (0 for the first key)."""

    key: PublicKey
    first: int
    at: int


@dataclass(frozen=True)
class Declared:
    """A restore that was declared: what was lost, by which batch, when (ms)."""

    gap: Gap
    batch: int
    at: int

    def covers(self, kept: Checkpoint) -> bool:
        """Whether the checkpoint is of the part that was lost."""
        if not self.gap.first < kept.size <= self.gap.end or kept.at > self.at:
            return False
        return kept.size < self.gap.end or kept.root == self.gap.root


@dataclass
class Chain:
    """What the batches announce. ``periods`` begins with the pinned key."""

    periods: list[Period]
    declared: list[Declared] = field(default_factory=list)

    @classmethod
    def of(cls, pinned: PublicKey) -> Chain:
        return cls([Period(pinned, 0, 0)])

    @property
    def keys(self) -> list[PublicKey]:
        return [period.key for period in self.periods]

    @property
    def last(self) -> PublicKey:
        return self.periods[-1].key

    def of_batch(self, number: int) -> PublicKey:
        """The key that has to sign this batch."""
        return next((period.key for period in reversed(self.periods) if period.first <= number), self.periods[0].key)

    def mark(self, note: str) -> Mark:
        """The prune mark a note holds, by a key that was in force when the first batch it keeps was there already: whoever steals an old key
        prunes nothing that a later one signed.

        Raises:
            BadNote: malformed, or signed by no such key.
        """
        problem = BadNote("there is no key to open it with")
        ends = [*(period.first for period in self.periods[1:]), None]
        for period, end in zip(self.periods, ends, strict=True):
            try:
                mark = open_mark(note, period.key)
            except BadNote as error:
                problem = error
                continue
            if end is not None and mark.batch >= end:
                raise BadNote("signed by a key that was not in force any more")
            return mark
        raise problem

    def follow(self, note: str) -> bool:
        """Take in what the next batch that :func:`announces` says; False, and nothing taken, where it is not signed as it has to be."""
        try:
            opened = open_checkpoint(note, self.last)
            following = None if opened.key is None else PublicKey.parse(opened.key)
        except (BadNote, TypeError, AttributeError, ValueError):
            return False
        if following is not None:
            self.periods.append(Period(following, opened.number + 1, opened.at))
        if opened.gap is not None:
            self.declared.append(Declared(opened.gap, opened.number, opened.at))
        return True


def announces(note: object) -> bool:
    """Whether a batch's note has to be looked at, and kept when the batches around it are pruned."""
    return isinstance(note, str) and ("\nkey " in note or "\nrestored " in note)


def read_chain(trail: Trail, pinned: PublicKey) -> Chain:
    """The chain as far as it holds. Where it breaks, or the batches cannot be read, the check of that batch says so."""
    chain = Chain.of(pinned)
    with contextlib.suppress(TamperedTrail):
        for batch in trail.batches():
            if announces(batch.note) and not chain.follow(batch.note):
                break
    return chain


def open_kept(note: str, chain: Chain, also: Sequence[PublicKey]) -> Checkpoint:
    """A checkpoint that was kept elsewhere, signed by a key of the chain or by one that is trusted for that alone.

    Raises:
        TamperedTrail: it is none of this trail's.
    """
    try:
        return open_with(note, [*chain.keys, *also])[0]
    except BadNote as error:
        raise TamperedTrail(f"the checkpoint kept elsewhere does not belong to this trail's keys: {error}") from None
