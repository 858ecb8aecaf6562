"""The broker in one process's memory, for unit tests. Held to the same contract suite as Redis."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cloche.queueing.broker import NoIndex, Ready


class MemoryBroker:
    """See :class:`cloche.queueing.broker.Broker`."""

    def __init__(self) -> None:
        self._ready: dict[str, dict[str, int]] = defaultdict(dict)
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._trimmed = 0
        self._whole = False
        self._changed = threading.Condition()

    def push(self, items: Iterable[Ready]) -> None:
        with self._changed:
            for item in items:
                self._ready[item.queue].setdefault(item.job_id, item.score)
            self._changed.notify_all()

    def take(self, queue: str, count: int) -> Sequence[str]:
        with self._changed:
            if not self._whole:
                raise NoIndex
            best = sorted(self._ready[queue].items(), key=lambda pair: (pair[1], pair[0]))[:count]
            for job_id, _ in best:
                del self._ready[queue][job_id]
            return [job_id for job_id, _ in best]

    def wait(self, queue: str, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._ready[queue]), timeout_s)

    def remove(self, queue: str, job_ids: Iterable[str]) -> None:
        with self._changed:
            for job_id in job_ids:
                self._ready[queue].pop(job_id, None)

    def depth(self, queue: str) -> int:
        with self._changed:
            return len(self._ready[queue])

    def rebuild(self, items: Iterable[Ready]) -> None:
        self.push(items)
        with self._changed:
            self._whole = True

    def whole(self) -> bool:
        return self._whole

    def flush(self) -> None:
        """What FLUSHALL does to the real one."""
        with self._changed:
            self._ready.clear()
            self._events.clear()
            self._whole = False

    def publish(self, event: dict[str, Any]) -> None:
        with self._changed:
            self._trimmed += 1
            self._events.append((f"{self._trimmed}-0", event))
            self._changed.notify_all()

    def events(self, last_id: str | None, timeout_s: float) -> Sequence[tuple[str, dict[str, Any]]]:
        with self._changed:
            start = int((last_id or self.last_event_id()).partition("-")[0])
            self._changed.wait_for(lambda: self._trimmed > start, timeout_s)
            return [entry for entry in self._events if int(entry[0].partition("-")[0]) > start]

    def last_event_id(self) -> str:
        return f"{self._trimmed}-0"

    def has_event(self, event_id: str) -> bool:
        return any(key == event_id for key, _ in self._events)

    def ping(self) -> None:
        return

    def close(self) -> None:
        return
