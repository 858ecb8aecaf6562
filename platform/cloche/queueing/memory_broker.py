"""The broker in one process's memory, for unit tests. Held to the same contract suite as Redis."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cloche import clock
from cloche.domain.pace import Window
from cloche.queueing.broker import HOLD_MS, Hints, NoIndex, Ready, Rules, Running, Share, Spent, Taken


@dataclass
class _Queue:
    """One queue's index; see the key map of :mod:`cloche.queueing.scripts`."""

    rules: Rules | None = None
    ready: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))  # tenant → id → score
    tenants: dict[str, float] = field(default_factory=dict)
    inflight: dict[str, float] = field(default_factory=dict)  # id → end, in ms of the process's clock

    def share(self, tenant: str) -> Share:
        return (self.rules.shares if self.rules else {}).get(tenant, Share())

    def join(self, tenant: str) -> None:
        share = self.share(tenant)
        if share.paused:
            self.tenants.pop(tenant, None)
        elif self.ready[tenant] and tenant not in self.tenants:
            self.tenants[tenant] = min(self.tenants.values()) + 1 / share.weight if self.tenants else 0

    def leave_if_empty(self, tenant: str) -> None:
        if not self.ready[tenant]:
            self.tenants.pop(tenant, None)
            del self.ready[tenant]

    def room(self) -> float:
        if self.rules is None or self.rules.paused:
            return 0
        if self.rules.limit is None:
            return float("inf")
        now = _now()
        return self.rules.limit - sum(ends > now for ends in self.inflight.values())


class MemoryBroker:
    """See :class:`cloche.queueing.broker.Broker`."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = defaultdict(_Queue)
        self._windows: dict[str, Window] = defaultdict(Window)
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._trimmed = 0
        self._whole = False
        self._changed = threading.Condition()

    def push(self, items: Iterable[Ready]) -> None:
        with self._changed:
            for item in items:
                queue = self._queues[item.queue]
                queue.ready[item.tenant].setdefault(item.job_id, item.score)
                queue.join(item.tenant)
            self._changed.notify_all()

    def take(self, queues: Sequence[str], count: int, hold_ms: int = HOLD_MS) -> Sequence[Taken]:
        with self._changed:
            if not self._whole:
                raise NoIndex
            open_ = {name: self._queues[name].room() for name in queues}
            taken: list[Taken] = []
            before = -1
            while before < len(taken) < count:
                before = len(taken)
                for name in queues:
                    if len(taken) < count and open_[name] > 0 and self._queues[name].tenants:
                        open_[name] -= 1
                        taken.append(self._take_one(name, hold_ms))
            return taken

    def _take_one(self, name: str, hold_ms: int) -> Taken:
        queue = self._queues[name]
        tenant = min(queue.tenants, key=lambda one: (queue.tenants[one], one))
        ready = queue.ready[tenant]
        job_id = min(ready, key=lambda one: (ready[one], one))
        score = ready.pop(job_id)
        known, now = queue.inflight.get(job_id, 0), _now()
        fresh = known <= now
        queue.inflight[job_id] = max(known, now + hold_ms)
        queue.tenants[tenant] += 1 / queue.share(tenant).weight
        queue.leave_if_empty(tenant)
        return Taken(job_id, name, tenant, score, fresh)

    def give_back(self, taken: Iterable[Taken]) -> None:
        taken = list(taken)
        self.free((one.queue, one.job_id) for one in taken if one.fresh)
        self.push(taken)

    def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        def something() -> bool:
            return any(self._queues[name].tenants and self._queues[name].room() > 0 for name in queues)

        with self._changed:
            return self._changed.wait_for(something, timeout_s)

    def remove(self, queue: str, tenant: str, job_ids: Iterable[str]) -> None:
        with self._changed:
            for job_id in job_ids:
                self._queues[queue].ready[tenant].pop(job_id, None)
            self._queues[queue].leave_if_empty(tenant)

    def free(self, ended: Iterable[tuple[str, str]]) -> None:
        with self._changed:
            for queue, job_id in ended:
                self._queues[queue].inflight.pop(job_id, None)
            self._changed.notify_all()

    def keep(self, running: Iterable[Running]) -> None:
        with self._changed:
            for one in running:
                inflight = self._queues[one.queue].inflight
                inflight[one.job_id] = max(inflight.get(one.job_id, 0), _now() + one.left_ms)

    def in_flight(self, queue: str, *, over: bool = False) -> Sequence[str]:
        with self._changed:
            return [job_id for job_id, ends in self._queues[queue].inflight.items() if over or ends > _now()]

    def depth(self, queue: str) -> int:
        with self._changed:
            return sum(map(len, self._queues[queue].ready.values()))

    def set_rules(self, rules: Iterable[Rules]) -> None:
        with self._changed:
            for each in rules:
                queue = self._queues[each.queue]
                if queue.rules is None or queue.rules.version <= each.version:
                    queue.rules = each
                    for tenant in list(queue.ready):
                        queue.join(tenant)
            self._changed.notify_all()

    def queues(self) -> Sequence[str]:
        with self._changed:
            return [name for name, queue in self._queues.items() if queue.rules is not None]

    def drop(self, queue: str, version: int) -> None:
        with self._changed:
            known = self._queues[queue].rules
            if known is None or known.version <= version:
                del self._queues[queue]

    def spend(self, limits: Sequence[tuple[str, int]], count: int) -> Spent | None:
        with self._changed:
            now = clock.now_ms()
            for place, (name, limit) in enumerate(limits):
                wait_ms = self._windows[name].wait_ms(count, limit, now)
                if wait_ms:
                    return Spent(place, self._windows[name].used(), wait_ms)
            for name, _ in limits:
                self._windows[name].add(count, now)
        return None

    def rebuild(self, items: Iterable[Ready], rules: Iterable[Rules], running: Iterable[Running] = ()) -> None:
        self.set_rules(rules)
        self.push(items)
        self.keep(running)
        with self._changed:
            self._whole = True

    def whole(self) -> bool:
        return self._whole

    def flush(self) -> None:
        """What FLUSHALL does to the real one."""
        with self._changed:
            self._queues.clear()
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

    @contextmanager
    def together(self) -> Iterator[Hints]:
        yield self

    def last_event_id(self) -> str:
        return f"{self._trimmed}-0"

    def has_event(self, event_id: str) -> bool:
        return any(key == event_id for key, _ in self._events)

    def ping(self) -> None:
        return

    def close(self) -> None:
        return


def _now() -> float:
    return time.monotonic() * 1000
