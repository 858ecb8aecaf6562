"""Numbers about jobs over a window of time: how they are bounded, and how they are made of what was counted. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloche.clock import parse_duration
from cloche.domain.states import TERMINAL

WINDOWS = {"1m": 60_000, "5m": 300_000, "1h": 3_600_000}  # of the overall statistics
DEFAULT_WINDOW = "5m"
SHORTEST_MS, LONGEST_MS = 10_000, 86_400_000  # a window that is asked for
MOST_COUNTED = 10_000  # arrivals, or ends, of one queue that are counted in a window: the newest
MOST_TIMED = 2_000  # ended jobs that percentiles are made of: the newest
MOST_WAITING = 100_000  # jobs of one queue in one state, before the count stops
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def parse_window(text: str) -> int:
    """Milliseconds of ``"5m"`` or ``"300"`` (seconds).

    Raises:
        ValueError: it is no duration, or shorter than 10 s, or longer than a day.
    """
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
    window = parse_duration(number)
    if not SHORTEST_MS <= window <= LONGEST_MS:
        raise ValueError("a window lies between 10s and 24h")
    return window


def percentiles(times_ms: Sequence[int]) -> dict[str, float] | None:
    """Seconds by the names in :data:`SHARES`, by nearest rank; None where there is nothing."""
    if not times_ms:
        return None
    ordered = sorted(times_ms)
    return {name: ordered[math.ceil(share * len(ordered)) - 1] / 1000 for name, share in SHARES.items()}


@dataclass(frozen=True)
class Counted:
    """Events of one kind in one window: how many were seen, in how long a time. ``complete``: these are all."""

    number: int
    span_ms: int
    complete: bool = True

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.number * 1000 / max(1, self.span_ms)


def counted(number: int, seen: int, oldest: int | None, now: int, window_ms: int) -> Counted:
    """``number`` events fell into the window, of the ``seen`` newest that were looked at, the oldest of them at ``oldest``.

    Where looking stopped at :data:`MOST_COUNTED` within the window, the rate is that of the time which was looked at.
    """
    if seen < MOST_COUNTED or oldest is None or oldest < now - window_ms:
        return Counted(number, window_ms)
    return Counted(number, now - oldest, complete=False)


@dataclass(frozen=True)
class Flow:
    """What came to one queue and what ended there, in one window."""

    arrived: Counted
    ended: Counted
    by_state: dict[str, int] = field(default_factory=dict)


def flow_view(flows: Iterable[Flow], *, complete: bool = True) -> dict[str, Any]:
    """Several queues' flows in the same window as one. Rates are jobs a second; ``completion_rate`` counts every end. ``complete``: whether
    these are all queues."""
    flows = list(flows)
    ends = {state.value: sum(flow.by_state.get(state.value, 0) for flow in flows) for state in TERMINAL}
    judged = ends["completed"] + ends["failed"]
    return {
        "arrived": sum(flow.arrived.number for flow in flows),
        **{name: ends[name] for name in ("completed", "failed", "canceled")},
        "arrival_rate": round(sum(flow.arrived.rate for flow in flows), 4),
        "completion_rate": round(sum(flow.ended.rate for flow in flows), 4),
        "failure_share": round(ends["failed"] / judged, 4) if judged else None,
        "complete": complete and all(flow.arrived.complete and flow.ended.complete for flow in flows),
    }


@dataclass(frozen=True)
class Timed:
    """When one ended job could run, was first started, and ended, in ms."""

    state: str
    ready_at: int
    started_at: int | None
    finished_at: int

    @property
    def wait_ms(self) -> int | None:
        """From the moment it could run to its first start. Not known of one that was retried: that moved ``ready_at``."""
        if self.started_at is None or self.ready_at > self.started_at:
            return None
        return self.started_at - self.ready_at

    @property
    def run_ms(self) -> int | None:
        """From its first start to its end, retries included; of one that was canceled it says nothing."""
        if self.started_at is None or self.state == "canceled":
            return None
        return max(0, self.finished_at - self.started_at)


def times_view(jobs: Sequence[Timed], *, complete: bool) -> dict[str, Any]:
    """Percentiles in seconds, and of how many jobs they are made."""
    waits = [job.wait_ms for job in jobs if job.wait_ms is not None]
    runs = [job.run_ms for job in jobs if job.run_ms is not None]
    return {
        "jobs_looked_at": len(jobs),
        "complete": complete,
        "wait_s": percentiles(waits),
        "run_s": percentiles(runs),
    }
