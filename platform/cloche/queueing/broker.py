"""The broker protocol: what the rest of Cloche may ask of Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

HOLD_MS = 15_000  # how long a taken id counts as in flight before its lease is known
# How much longer than its lease what runs counts: a worker that stands still does not kill its sandboxes, and whoever finds that its lease is
# over does that first and then says that nothing runs any more. Longer than the sweeper's rounds, which say again what is held.
LINGER_MS = 10_000


@dataclass(frozen=True)
class Ready:
    """A job to put into its queue. ``tenant`` is an id. ``score`` in ms: ready time minus priority × aging step; lowest goes first."""

    job_id: str
    queue: str
    tenant: str
    score: int


@dataclass(frozen=True)
class Taken(Ready):
    """A job taken out of its queue, with all that puts it back where it was. ``fresh``: it was not in flight before."""

    fresh: bool = True


@dataclass(frozen=True)
class Running:
    """A job in flight. ``left_ms``: how long it counts, unless it is freed before: what is left of its lease, and :data:`LINGER_MS`."""

    job_id: str
    queue: str
    left_ms: int


@dataclass(frozen=True)
class Share:
    """What one tenant gets of a queue: nothing while ``paused``, else turns in proportion to ``weight`` (1–100)."""

    paused: bool = False
    weight: int = 1


@dataclass(frozen=True)
class Rules:
    """How a queue is taken from. ``version`` grows with every change. ``limit``: jobs in flight at most, None = no limit.

    ``shares``: of tenants (by id) that differ from ``Share()``, or did once.
    """

    queue: str
    version: int
    paused: bool = False
    limit: int | None = None
    shares: Mapping[str, Share] = field(default_factory=dict)


@dataclass(frozen=True)
class Spent:
    """A limit that has no room: its place in what was asked, what is used of it, and after how many ms there will be room."""

    place: int
    used: int
    wait_ms: int


class NoIndex(Exception):
    """The index is missing (new server, FLUSHALL): nothing may be taken until it has been rebuilt."""


class Hints(Protocol):
    """What is said to an index and answered by nothing. Raises ``Unavailable``."""

    def push(self, items: Iterable[Ready]) -> None:
        """Add jobs that are not there yet, and wake waiting workers."""
        ...

    def give_back(self, taken: Iterable[Taken]) -> None:
        """Put ids that were taken and not claimed where they were."""
        ...

    def remove(self, queue: str, tenant: str, job_ids: Iterable[str]) -> None: ...

    def free(self, ended: Iterable[tuple[str, str]]) -> None:
        """``(queue, job id)`` that are in flight no more."""
        ...

    def publish(self, event: dict[str, Any]) -> None:
        """Append to the event stream (bounded); best effort by contract: readers reload on a gap."""
        ...


class Broker(Hints, Protocol):
    """An index of ready jobs. Losing all of it loses no job. Every method may be called from any thread and more than once.

    Nothing is taken from a queue whose rules are not there.

    Raises (all methods):
        Unavailable: Redis does not answer.
    """

    def take(self, queues: Sequence[str], count: int, hold_ms: int = HOLD_MS) -> Sequence[Taken]:
        """Remove and return up to ``count`` ids: one of each queue in turn, in the order given; of a queue one of each tenant in turn, by
        weight; of a tenant the best. What is paused or at its limit gives none. A taken id is in flight; one that is never claimed is found
        there and put back by the sweeper.

        Raises:
            NoIndex: see there.
        """
        ...

    def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """Block until there may be something to take from one of the queues, or the time is over. True: woken."""
        ...

    def keep(self, running: Iterable[Running]) -> None:
        """Renew what is in flight, and add what is not known to be. None is shortened."""
        ...

    def in_flight(self, queue: str, *, over: bool = False) -> Sequence[str]:
        """Ids in flight, in any order. ``over``: those too whose time is over and that nobody has freed; they count against no limit."""
        ...

    def depth(self, queue: str) -> int:
        """How many ids are ready."""
        ...

    def set_rules(self, rules: Iterable[Rules]) -> None:
        """Say how queues are taken from, except where newer rules are known."""
        ...

    def queues(self) -> Sequence[str]:
        """Names of the queues that have rules, in any order."""
        ...

    def drop(self, queue: str, version: int) -> None:
        """Forget a queue with all that is in it, unless its rules are newer than ``version``."""
        ...

    def spend(self, limits: Sequence[tuple[str, int]], count: int) -> Spent | None:
        """Count ``count`` under each of the ``limits`` (name, how many in any minute), or under none of them: then the first one that has no
        room. ``count`` may not be more than any of them."""
        ...

    def rebuild(self, items: Iterable[Ready], rules: Iterable[Rules], running: Iterable[Running] = ()) -> None:
        """Say the rules, add jobs and what is in flight, and then mark the index as whole."""
        ...

    def whole(self) -> bool:
        """Whether the index is marked as whole."""
        ...

    def events(self, last_id: str | None, timeout_s: float) -> Sequence[tuple[str, dict[str, Any]]]:
        """Events after ``last_id`` (None: from now), waiting up to ``timeout_s``. Empty: none came."""
        ...

    def last_event_id(self) -> str:
        """The id of the newest event, to read on from."""
        ...

    def has_event(self, event_id: str) -> bool:
        """Whether a reader that saw ``event_id`` last can read on without a gap."""
        ...

    def together(self) -> AbstractContextManager[Hints]:
        """Hints that are given inside are said in their order, in one trip, by the time it is left without an error."""
        ...

    def ping(self) -> None: ...

    def close(self) -> None: ...
