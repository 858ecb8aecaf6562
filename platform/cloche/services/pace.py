"""Submissions a minute: counted in Redis for all processes together, and in each process alone, more strictly, while Redis is away."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from cloche import clock, logs
from cloche.domain.pace import Window
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker, Spent

_log = logs.get(__name__)
SHARE = 4  # without Redis one process lets through this part of a limit: how many processes there are it does not know
_AWAY_MS = 5_000  # so long Redis is not asked again, for it may take seconds to say nothing
_MAX_KEYS = 10_000  # beyond it the longest unused is forgotten, so that memory stays flat


class Pace:
    """Shared by a process's threads."""

    def __init__(self, broker: Broker, now_ms: Callable[[], int] = clock.now_ms) -> None:
        self._broker = broker
        self._now_ms = now_ms
        self._away_until = 0
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._lock = threading.Lock()

    def spend(self, limits: Sequence[tuple[str, int]], count: int) -> Spent | None:
        """Count ``count`` submissions under each of the ``limits`` (name, number in a minute), or under none: then the first of them that has
        no room. ``count`` may not be more than any of them."""
        if self._now_ms() >= self._away_until:
            try:
                return self._broker.spend(limits, count)
            except Unavailable as error:
                self._away_until = self._now_ms() + _AWAY_MS
                _log.warning("submissions are counted in this process alone", error=str(error))
        return self._alone(limits, count)

    def _alone(self, limits: Sequence[tuple[str, int]], count: int) -> Spent | None:
        now = self._now_ms()
        with self._lock:
            windows = [self._window(name) for name, _ in limits]
            for place, (window, (_, limit)) in enumerate(zip(windows, limits, strict=True)):
                # One that asks for more than the part is let through when it is the only one of its minute.
                wait_ms = window.wait_ms(min(count, max(1, limit // SHARE)), max(1, limit // SHARE), now)
                if wait_ms:
                    return Spent(place, window.used(), wait_ms)
            for window in windows:
                window.add(count, now)
        return None

    def _window(self, name: str) -> Window:
        found = self._windows.setdefault(name, Window())
        self._windows.move_to_end(name)
        if len(self._windows) > _MAX_KEYS:
            self._windows.popitem(last=False)
        return found
