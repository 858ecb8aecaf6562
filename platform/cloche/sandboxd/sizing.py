"""How many sandboxes should wait: pure arithmetic of arrivals, time to make one, and bounds. Times are monotonic seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY_TAU_S = 30.0  # arrivals count less the longer ago they are: by 1/e after so long
_MARGIN = 2.0  # standard deviations of a Poisson process above its mean
_FIRST_BACKOFF_S = 5.0
_LONGEST_BACKOFF_S = 600.0


@dataclass
class Arrivals:
    """The rate at which jobs come, as an exponentially weighted average."""

    weight: float = 0.0
    last: float = -math.inf

    def note(self, now: float) -> None:
        self.weight = self._faded(now) + 1.0
        self.last = now

    def rate(self, now: float) -> float:
        """Jobs a second."""
        return self._faded(now) / MEMORY_TAU_S

    def _faded(self, now: float) -> float:
        return self.weight * math.exp(-max(0.0, now - self.last) / MEMORY_TAU_S) if self.weight else 0.0


@dataclass(frozen=True)
class Bounds:
    """What an operator allows: sandboxes per pool, and seconds one may wait."""

    least: int = 0
    most: int = 8
    idle_s: float = 600.0


def target(arrivals: Arrivals, fill_s: float, bounds: Bounds, now: float) -> int:
    """How many should wait: as many as will be asked for while another is being made, and a margin for their coming in clumps.

    One waits for as long as a job came within ``idle_s``; after that, ``least``.
    """
    if now - arrivals.last > bounds.idle_s:
        return min(bounds.least, bounds.most)
    asked = arrivals.rate(now) * fill_s
    wanted = math.ceil(asked + _MARGIN * math.sqrt(asked))
    return min(bounds.most, max(bounds.least, wanted, 1))


@dataclass
class Average:
    """Of the last few values."""

    value: float
    share: float = 0.3

    def note(self, value: float) -> None:
        self.value += self.share * (value - self.value)


@dataclass
class Backoff:
    """After each failure in a row twice as long as before, within bounds."""

    failures: int = 0
    until: float = -math.inf

    def failed(self, now: float) -> None:
        self.failures += 1
        self.until = now + min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(self.failures - 1, 20))

    def succeeded(self) -> None:
        self.failures, self.until = 0, -math.inf


@dataclass
class Bucket:
    """So many at once, and ``rate`` a second after that."""

    rate: float
    burst: float
    left: float = field(init=False)
    at: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.left = self.burst

    def wait_s(self, now: float) -> float:
        """Seconds until one may be taken."""
        self._refill(now)
        return max(0.0, (1.0 - self.left) / self.rate)

    def take(self, now: float) -> None:
        self._refill(now)
        self.left -= 1.0

    def _refill(self, now: float) -> None:
        if self.at > -math.inf:
            self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
