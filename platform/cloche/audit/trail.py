"""What a verification reads: the rows of a trail, and the protocol of whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from cloche.audit.event import Event
from cloche.audit.note import PublicKey


class Leaf(NamedTuple):
    """A leaf of the tree with its event. ``event`` is None where the row is missing, or where ``foreign`` (another tenant's) is set."""

    seq: int
    event_id: str | None
    hash: str
    event: Event | None
    foreign: bool = False


class Batch(NamedTuple):
    """A row of ``audit_batch``, in the order of its columns."""

    number: int
    size: int
    root: str
    previous: str
    at: int
    note: str


class Prune(NamedTuple):
    """A row of ``audit_prune``: what retention deleted, as :mod:`cloche.audit.prune` signs it."""

    number: int
    upto: int
    at: int
    note: str


class Person(NamedTuple):
    """A row of ``audit_person``: the value behind a commitment."""

    commitment: str
    kind: str
    value: str
    salt: str


class Break(NamedTuple):
    """An event that carries a number within its object (a job's first, second, … event) and does not follow the one before it."""

    object: str
    object_seq: int
    previous: int | None  # None where there is none before it
    event_id: str
    seq: int | None  # None before sealing


class Trail(Protocol):
    """One consistent view of a trail. Every method may be called more than once and streams: memory does not grow with the trail.

    Any of them raises :class:`~cloche.audit.event.TamperedTrail` where the store itself cannot be read as a trail.
    """

    @property
    def truncated(self) -> bool:
        """Whether the end is missing, so that the last leaves may lie in a batch whose note is missing too."""

    @property
    def as_of(self) -> int | None:
        """The moment (ms) the view shows, where that is known to be earlier than now: an export does not grow old."""

    def leaves(self, start: int = 0) -> Iterator[Leaf]:
        """By ``seq``, from ``start`` on."""

    def prunes(self) -> Iterator[Prune]:
        """By ``number``."""

    def batches(self) -> Iterator[Batch]:
        """By ``number``."""

    def unsealed(self) -> Iterator[Event]:
        """Events without a leaf in the tree: one whose leaf has a number that no leaf has (below 0) is not sealed."""

    def breaks(self) -> Iterator[Break]:
        """Every event whose number is not one more than that of its object's event before it, or not 1 where it is the first; by object,
        then ``object_seq``."""

    def persons(self) -> Iterator[Person]: ...

    def finish(self, key: PublicKey, until: int) -> Iterator[str]:
        """What only this kind of store can check. Yields what is missing, raises TamperedTrail for what is wrong.

        Args:
            key: the one in force at the end of the trail.
            until: events up to this moment (ms) may have been deleted by retention; -1 where none were.
        """
