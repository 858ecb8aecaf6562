"""Failures by key, with back-off; and the store of them that one process has in its memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cloche.clock import now_ms

KNOWN_MAX = 16  # places remembered of one account
KNOWN_MS = 30 * 86_400_000
_STEPS = 30  # doublings that are counted; the longest wait comes long before


@dataclass(frozen=True)
class Limit:
    """From the ``free``-th try on each one that is not forgiven has to wait, twice as long each time. All times in ms.

    A count is forgotten when nothing was added to it for ``window`` after the last wait was over.
    """

    free: int
    base: int
    longest: int
    window: int

    def lock(self, tries: int) -> int:
        """How long nobody is let through after so many tries."""
        return 0 if tries < self.free else min(self.longest, self.base << min(tries - self.free, _STEPS))

    def stricter(self, by: int) -> Limit:
        return replace(self, free=max(1, self.free // by))


@dataclass(frozen=True)
class Tally:
    """What a try counts against. ``spares_known``: it does not hold up a place where the account has succeeded before."""

    key: str
    limit: Limit
    spares_known: bool = False


class Failures(Protocol):
    """Tries by key. A try is counted before its outcome is known, so that many at once are not let through together; a success takes it back.

    Every method may be called from any thread.

    Raises (all methods):
        Unavailable: the store does not answer.
    """

    def wait_ms(self, account: str, place: str, tallies: Sequence[Tally]) -> int:
        """How long a try would have to wait; 0: it would be let through."""
        ...

    def attempt(self, account: str, place: str, tallies: Sequence[Tally]) -> int:
        """As :meth:`wait_ms`; a try that is let through is counted."""
        ...

    def forgive(self, account: str, place: str, tallies: Sequence[Tally], clear: Sequence[str] = ()) -> None:
        """The try succeeded: it is taken back, what ``clear`` names is forgotten, and the place is known from now on."""
        ...


@dataclass
class _Count:
    tries: int = 0
    until: int = 0  # nobody is let through before
    ends: int = 0  # forgotten then


class MemoryFailures:
    """Of one process; a restart forgets. Memory stays flat: beyond ``most`` keys the longest unused is forgotten."""

    def __init__(self, clock: Callable[[], int] = now_ms, most: int = 20_000) -> None:
        self._clock = clock
        self._most = most
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()  # until when
        self._lock = threading.Lock()

    def wait_ms(self, account: str, place: str, tallies: Sequence[Tally]) -> int:
        with self._lock:
            return self._wait(account, place, tallies, self._clock())

    def attempt(self, account: str, place: str, tallies: Sequence[Tally]) -> int:
        with self._lock:
            now = self._clock()
            if wait := self._wait(account, place, tallies, now):
                return wait
            for tally in tallies:
                count = self._count(tally.key, now)
                count.tries += 1
                lock = tally.limit.lock(count.tries)
                count.until = now + lock if lock else count.until
                count.ends = now + lock + tally.limit.window
                self._counts[tally.key] = count
                self._counts.move_to_end(tally.key)
            while len(self._counts) > self._most:
                self._counts.popitem(last=False)
            return 0

    def forgive(self, account: str, place: str, tallies: Sequence[Tally], clear: Sequence[str] = ()) -> None:
        with self._lock:
            now = self._clock()
            for tally in tallies:
                count = self._counts.get(tally.key)
                if count is not None:
                    count.tries, count.until = max(0, count.tries - 1), 0
            for key in clear:
                self._counts.pop(key, None)
            self._known[account, place] = now + KNOWN_MS
            self._known.move_to_end((account, place))
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def _wait(self, account: str, place: str, tallies: Sequence[Tally], now: int) -> int:
        known = self._known.get((account, place), 0) > now
        held = (self._count(tally.key, now).until for tally in tallies if not (known and tally.spares_known))
        return max(0, max(held, default=0) - now)

    def _count(self, key: str, now: int) -> _Count:
        count = self._counts.get(key)
        return count if count is not None and now < count.ends else _Count()
