"""How often one address, one user and one token may ask. Most requests are answered from permits that this process already holds.

A process takes a hundredth of a limit at a time, so a limit is kept to that hundredth for each process. While Redis is away each process
counts by itself, and gives a quarter: nobody gets more for it, however many processes there are up to four.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

from cloche import logs
from cloche.errors import Unavailable
from cloche.queueing.permits import Ask, Given, MemoryPermits, Permits

WINDOW_MS = 60_000
_PORTION = 100  # this part of a limit is taken at once
_WITHOUT = 0.25  # what a process gives of a limit while it counts alone
_ALONE_S = 2.0  # how long it does so before it asks again
_MAX_KEYS = 20_000
_log = logs.get(__name__)


@dataclass
class _Held:
    """``permits``: taken and not used yet. ``until``: no asking before this monotonic time, because there is none."""

    permits: int = 0
    left: int = 0
    until: float = 0.0


@dataclass(frozen=True)
class Standing:
    """One policy's limit as it stands for one request. ``wait_s``: 0, or in how many seconds to ask again; then it is refused."""

    policy: str
    limit: int
    left: int
    wait_s: int


class RateLimits:
    """``limits``: requests per minute by policy (``address``, ``user``, ``token``); one of 0 is none. Safe from any thread."""

    def __init__(self, permits: Permits, limits: dict[str, int], clock: Callable[[], float] = monotonic) -> None:
        self._permits = permits
        self._limits = {policy: limit for policy, limit in limits.items() if limit > 0}
        self._alone = MemoryPermits(_WITHOUT)
        self._alone_until = 0.0
        self._clock = clock
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def policies(self) -> dict[str, int]:
        return self._limits

    def refused(self, policy: str, key: str) -> Standing | None:
        """Whether it is known, without asking, that this one has to wait."""
        with self._lock:
            held = self._held.get((policy, key))
            if held is None or policy not in self._limits or held.permits:
                return None
            wait = held.until - self._clock()
        return Standing(policy, self._limits[policy], 0, _seconds(wait)) if wait > 0 else None

    def charge(self, who: Iterable[tuple[str, str]]) -> list[Standing]:
        """Count one request for each (policy, key); at most one question to Redis for all of them."""
        keys = [key for key in who if key[0] in self._limits]
        with self._lock:
            empty = [key for key in keys if not self._entry(key).permits and self._entry(key).until <= self._clock()]
        if empty:
            self._fill(empty)
        with self._lock:
            return [self._use(key) for key in keys]

    def close(self) -> None:
        self._permits.close()

    def _entry(self, key: tuple[str, str]) -> _Held:
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held()
            if len(self._held) > _MAX_KEYS:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(key)
        return held

    def _use(self, key: tuple[str, str]) -> Standing:
        held, limit = self._entry(key), self._limits[key[0]]
        if held.permits:
            held.permits -= 1
            return Standing(key[0], limit, held.left + held.permits, 0)
        # Another thread may have used up what was fetched: whoever finds nothing and knows no time waits a moment.
        return Standing(key[0], limit, 0, max(1, _seconds(held.until - self._clock())))

    def _fill(self, keys: list[tuple[str, str]]) -> None:
        asks = [self._ask(policy, key) for policy, key in keys]
        given = self._given(asks)
        with self._lock:
            for key, one in zip(keys, given, strict=True):
                held = self._entry(key)
                held.permits += one.permits
                held.left = one.left
                held.until = 0.0 if one.permits else self._clock() + one.wait_ms / 1000
                if not one.permits:
                    _log.info("rate limit reached", policy=key[0])

    def _ask(self, policy: str, key: str) -> Ask:
        limit = self._limits[policy]
        return Ask(f"{policy}:{key}", limit, WINDOW_MS, max(1, limit // _PORTION))

    def _given(self, asks: list[Ask]) -> Iterable[Given]:
        if self._clock() >= self._alone_until:
            try:
                return self._permits.take(asks)
            except Unavailable as error:
                self._alone_until = self._clock() + _ALONE_S
                _log.warning("this process counts requests by itself", error=error.detail)
        return self._alone.take(asks)


def _seconds(left: float) -> int:
    return max(0, -int(-left // 1))
