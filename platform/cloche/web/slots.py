"""Long polls and live streams hold a thread each. This caps them below the number of threads, so that other requests still get one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """``stopping`` is set when the process shuts down: whoever holds a slot ends within a second."""

    def __init__(self, count: int, stopping: threading.Event) -> None:
        self._free = threading.BoundedSemaphore(count)
        self.stopping = stopping

    def take(self) -> Slot | None:
        """A slot, or None when all are taken; never waits."""
        return Slot(self._free) if self._free.acquire(blocking=False) else None

    @contextmanager
    def maybe(self) -> Iterator[bool]:
        """Whether there was a free slot, held for the length of the block."""
        slot = self.take()
        try:
            yield slot is not None
        finally:
            if slot is not None:
                slot.release()


class Slot:
    """Held by one request. ``release`` is safe to call twice."""

    def __init__(self, free: threading.BoundedSemaphore) -> None:
        self._free = free
        self._lock = threading.Lock()
        self._held = True

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._free.release()
