"""The sandboxes that wait for jobs of one plugin version, and the jobs that wait for one of them. No I/O of its own."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from cloche.isolation.backend import SandboxSpec
from cloche.sandboxd.sizing import Arrivals, Average, Backoff, Bounds, target
from cloche.sandboxd.warm import Warm

FIRST_FILL_S = 0.5  # until one was made
FIRST_BYTES = 24 << 20  # of one that waits, until one was measured


@dataclass(frozen=True)
class Key:
    """What decides whether one sandbox can stand in for another."""

    template: SandboxSpec
    image: str


@dataclass(eq=False)
class Ticket:
    """One request. ``settled`` once it has a sandbox, or the reason why it starts cold."""

    key: Key
    owner: str
    priority: int
    number: int
    warm: Warm | None = None
    why: str | None = None
    settled: threading.Event = field(default_factory=threading.Event)

    def grant(self, warm: Warm) -> None:
        self.warm = warm
        self.settled.set()

    def refuse(self, why: str) -> None:
        self.why = why
        self.settled.set()


@dataclass
class Counts:
    """Since the pool came to be."""

    hits: int = 0
    cold: int = 0
    evicted: int = 0  # given up to make room for others
    expired: int = 0
    lost: int = 0  # found dead or unfit while waiting
    failed: int = 0  # could not be made ready


@dataclass(eq=False)
class Pool:
    """Guarded by its keeper's lock. ``idle`` is oldest first, ``waiting`` first come first; ``making`` counts those not started yet."""

    key: Key
    idle: deque[Warm] = field(default_factory=deque)
    warming: list[Warm] = field(default_factory=list)
    waiting: list[Ticket] = field(default_factory=list)
    making: int = 0
    arrivals: Arrivals = field(default_factory=Arrivals)
    fill_s: Average = field(default_factory=lambda: Average(FIRST_FILL_S))
    each: Average = field(default_factory=lambda: Average(float(FIRST_BYTES)))  # bytes of one that waits
    backoff: Backoff = field(default_factory=Backoff)
    counts: Counts = field(default_factory=Counts)
    problem: str | None = None  # the last failure, for the jobs
    kind: str | None = None  # the same in words that name nothing of the plugin's
    short_since: float | None = None  # since when one more is wanted
    retired: bool = False

    def kept(self) -> int:
        return len(self.idle) + len(self.warming) + self.making

    def bytes(self) -> float:
        """Of memory: measured where they wait, expected of those to come."""
        coming = len(self.warming) + self.making
        return sum(warm.memory for warm in self.idle) + coming * self.each.value

    def shortage(self, bounds: Bounds, now: float) -> int:
        """How many more should be made now."""
        if self.retired or self.backoff.until > now:
            return 0
        if self.backoff.failures and self.kept():
            return 0  # one at a time until one has succeeded
        return target(self.arrivals, self.fill_s.value, bounds, now) - self.kept()

    def fails(self) -> bool:
        """Whether it fails again and again, so that it gets only what no other pool needs. A single failure may be chance, or the engine's: who
        counted as failing after that would stay cold on a full host, however often it is asked for."""
        return self.backoff.failures > 1

    def settle(self, warm: Warm) -> bool:
        """Take it off the list it is on; False when it is on none any more."""
        for kept in (self.idle, self.warming):
            if warm in kept:
                kept.remove(warm)
                return True
        return False

    def refusal(self, now: float) -> str:
        """Why a job of this pool starts cold."""
        if self.backoff.until > now and self.problem is not None:
            return f"setup failed: {self.problem}"
        return "pool empty"

    def facts(self, busy: int) -> dict[str, object]:
        """As ``pools`` answers it."""
        spec = self.key.template
        return {
            "bundle": spec.bundle,
            "warm": len(self.idle),
            "filling": len(self.warming) + self.making,
            "busy": busy,
            "hits": self.counts.hits,
            "cold_starts": self.counts.cold,
            "evictions": self.counts.evicted,
            "expired": self.counts.expired,
            "lost": self.counts.lost,
            "failures": self.counts.failed,
            "memory": sum(warm.memory for warm in self.idle),
            "last_error": self.kind,
        }
