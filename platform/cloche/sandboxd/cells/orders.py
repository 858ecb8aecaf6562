"""What is done behind the jobs' backs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from cloche import logs

log = logs.get(__name__)
_END_SECONDS = 30.0


class Orders:
    """A queue with threads of its own. ``start`` once, ``put`` from any thread, ``close`` once: what was ordered by then is still done.

    An order that fails is logged, and ends nothing else.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def put(self, order: Callable[[], None]) -> None:
        self._queue.put(order)

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=_END_SECONDS)

    def _work(self) -> None:
        while (order := self._queue.get()) is not None:
            with logs.survived(log, "cells_order_failed"):
                order()
