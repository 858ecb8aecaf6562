"""A few at once, a few more waiting, and nobody before their turn: a burst of one address holds up the others as little as can be."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from cloche.errors import Crowded

_PATIENCE_S = 10.0
_RANDOM = random.SystemRandom()
_RETRY_S = (1, 3)  # so that those who are sent away do not come back together


class _Waiter:
    def __init__(self, place: str) -> None:
        self.place = place
        self.told = threading.Event()
        self.called = False


class Turns:
    """At most ``parallel`` have the turn and ``waiting`` wait for it. Safe from any thread.

    Places take turns. Where as many wait as may, somebody from a place that has fewer there takes the spot of the place that has the most.
    """

    def __init__(self, parallel: int, waiting: int) -> None:
        self._free = parallel
        self._waiting = waiting
        self._lines: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # the next place first
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, place: str = "") -> Iterator[None]:
        """The turn, for the length of the block.

        Raises:
            Crowded: too many wait already, or it took too long.
        """
        self._enter(place)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, place: str) -> None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            waiter = self._join(place)
        waiter.told.wait(_PATIENCE_S)
        with self._lock:
            if not waiter.called:
                self._drop(waiter)
                raise _busy()

    def _join(self, place: str) -> _Waiter:
        if sum(map(len, self._lines.values())) >= self._waiting:
            own = len(self._lines.get(place, ()))
            most = max(self._lines.values(), key=len, default=None)
            if most is None or len(most) < own + 2:
                raise _busy()
            out = most[-1]
            self._drop(out)
            out.told.set()
        waiter = _Waiter(place)
        self._lines.setdefault(place, deque()).append(waiter)
        return waiter

    def _drop(self, waiter: _Waiter) -> None:
        line = self._lines.get(waiter.place)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[waiter.place]

    def _leave(self) -> None:
        with self._lock:
            if not self._lines:
                self._free += 1
                return
            place, line = self._lines.popitem(last=False)
            waiter = line.popleft()
            if line:
                self._lines[place] = line
            waiter.called = True
            waiter.told.set()


def _busy() -> Crowded:
    return Crowded("too many sign-ins at once; try again in a moment", retry_after=_RANDOM.randint(*_RETRY_S))
