"""Whose turn it is among a worker's queues: each in turn, so that none starves behind another that is always full."""

from __future__ import annotations

from collections.abc import Sequence

from cloche.queueing.broker import HOLD_MS, Broker, Taken


class Turns:
    """Used by the worker's loop alone."""

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("a worker has at least one queue")
        self.names = tuple(names)
        self._order = list(names)

    def take(self, broker: Broker, count: int, hold_ms: int = HOLD_MS) -> Sequence[Taken]:
        """Up to ``count`` jobs of all queues that have any, in one call. Those served come last the next time, the latest served very last.

        Raises:
            NoIndex, Unavailable: see the broker.
        """
        taken = broker.take(self._order, count, hold_ms)
        served = list(dict.fromkeys(one.queue for one in reversed(taken)))
        self._order = [name for name in self._order if name not in served] + served[::-1]
        return taken
