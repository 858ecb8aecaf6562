"""The broker protocol: what the rest of Cloche may ask of Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Ready:
    """A job to put into its queue. ``score`` in ms: ready time minus priority × aging step; lowest goes first."""

    job_id: str
    queue: str
    score: int


class NoIndex(Exception):
    """The index is missing (new server, FLUSHALL): nothing may be taken until it has been rebuilt."""


class Broker(Protocol):
    """An index of ready jobs. Losing all of it loses no job. Every method may be called from any thread and more than once.

    Raises (all methods):
        Unavailable: Redis does not answer.
    """

    def push(self, items: Iterable[Ready]) -> None:
        """Add jobs that are not there yet, and wake waiting workers."""
        ...

    def take(self, queue: str, count: int) -> Sequence[str]:
        """Remove and return up to ``count`` ids, best first. A taken id that is never claimed is pushed again by the sweeper.

        Raises:
            NoIndex: see there.
        """
        ...

    def wait(self, queue: str, timeout_s: float) -> bool:
        """Block until there may be something to take, or the time is over. True: woken."""
        ...

    def remove(self, queue: str, job_ids: Iterable[str]) -> None: ...

    def depth(self, queue: str) -> int: ...

    def rebuild(self, items: Iterable[Ready]) -> None:
        """Replace the index by ``items`` and mark it whole."""
        ...

    def whole(self) -> bool:
        """Whether the index is marked as whole."""
        ...

    def publish(self, event: dict[str, Any]) -> None:
        """Append to the event stream (bounded); best effort by contract: readers reload on a gap."""
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

    def ping(self) -> None: ...

    def close(self) -> None: ...
