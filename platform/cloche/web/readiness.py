"""What keeps jobs from running: which part, since when, why, and what to do about it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass
from pathlib import Path

from cloche.clock import now_ms
from cloche.errors import ClocheError, Unavailable
from cloche.services import checkpoint_sinks
from cloche.services.container import Services

_LOW_ROOM = 32 << 20  # bytes: less, and a claim, an upload or a result may not find room any more
_PATIENCE_S = 2.0  # for one part; a probe of its own waits on, and its answer counts for the next who asks
_ADVICE = {
    "sqlite": "Look at the disk that holds the file, and at what else has it open. Cloche goes on by itself.",
    "postgresql": "Start PostgreSQL, or restore the way to it (CLOCHE_DATABASE_URL). Accepted jobs wait; Cloche goes on by itself.",
    "redis": "Start Redis, or restore the way to it (CLOCHE_REDIS_URL). Accepted jobs are in the database and wait; Cloche goes on by itself.",
    "workers": "Start a worker (`cloche up`, `cloche worker`), or do what its reason asks for.",
    "checkpoints": "Look at the place (CLOCHE_AUDIT_CHECKPOINT_…). Cloche tries again by itself; jobs are run.",
    "disk": "Free space on the disk that holds CLOCHE_HOME.",
}


@dataclass(frozen=True)
class Outage:
    """``part``: database, redis, workers, disk or checkpoints. ``since``: when this process first saw it so, in ms."""

    part: str
    since: int
    reason: str
    advice: str


class Readiness:
    """One per web process. ``outages`` answers within a few seconds, also when a store takes what is sent and never answers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._since: dict[str, int] = {}
        self._asking: dict[str, Future[list[str]]] = {}
        self._probes = ThreadPoolExecutor(2, thread_name_prefix="readiness")

    def outages(self) -> list[Outage]:
        """Everything that is missing, one entry for each reason; empty when jobs are run."""
        services = self._services
        found: list[tuple[str, str, str]] = []
        away = self._asked(
            "database", lambda: _unless(lambda: services.db.read(lambda c: c.exec_driver_sql("SELECT 1")))
        )
        found += [("database", reason, services.db.kind) for reason in away]
        if not away:
            found += [("workers", reason, "workers") for reason in self._asked("workers", lambda: _workers(services))]
        found += [("redis", reason, "redis") for reason in self._asked("redis", lambda: _unless(services.broker.ping))]
        found += [("disk", reason, "disk") for reason in no_room(services.settings.home)]
        now = now_ms()
        with self._lock:
            self._since = {part: self._since.get(part, now) for part, _, _ in found}
            return [Outage(part, self._since[part], reason, _ADVICE[kind]) for part, reason, kind in found]

    def warnings(self, *, whole: bool) -> list[Outage]:
        """What keeps no job from running, and needs somebody all the same: places that audit checkpoints do not reach. Empty when the
        database does not answer. ``whole``: also where they are and what went wrong, which is the operator's to know."""
        found: list[Outage] = []

        def look() -> list[str]:
            failed = self._services.db.read(checkpoint_sinks.failing)
            found.extend(
                Outage("checkpoints", since, f"{place}: {why}" if whole else _kind(place), _ADVICE["checkpoints"])
                for place, since, why in failed
            )
            return []

        self._asked("checkpoints", lambda: _unless(look))
        return list(found)

    def close(self) -> None:
        """Safe to call twice."""
        self._probes.shutdown(wait=False, cancel_futures=True)

    def _asked(self, part: str, probe: Callable[[], list[str]]) -> list[str]:
        with self._lock:
            asking = self._asking.get(part)
            if asking is None or asking.done():  # an answer that nobody waited for is of the past
                asking = self._asking[part] = self._probes.submit(probe)
        try:
            reasons = asking.result(_PATIENCE_S)
        except NoAnswer:
            return [f"the {part} {'have' if part == 'workers' else 'has'} not answered for {_PATIENCE_S:.0f} s"]
        with self._lock:
            if self._asking.get(part) is asking:
                del self._asking[part]
        return reasons


def _kind(place: str) -> str:
    return f"checkpoints do not reach the {place.partition(' ')[0]}"


def _unless(answers: Callable[[], object]) -> list[str]:
    try:
        answers()
    except Unavailable as error:
        return [error.detail]
    except ClocheError as error:
        return [str(error)]
    return []


def _workers(services: Services) -> list[str]:
    try:
        summary = services.workers.summary()
    except Unavailable as error:
        return [error.detail]
    if not summary["running"]:
        return ["no worker is alive"]
    return [] if summary["ready"] else [f"no worker takes jobs: {reason}" for reason in summary["reasons"]]


def no_room(home: Path) -> list[str]:
    """Whether the home's disk is full. Workers notice by failed heartbeats; that takes until the last good one is stale."""
    try:
        facts = os.statvfs(home)
    except OSError as error:
        return [f"the home directory cannot be read: {error.strerror}"]
    if facts.f_bavail * facts.f_frsize < _LOW_ROOM:
        return [f"the home's disk is full: less than {_LOW_ROOM >> 20} MB are free"]
    if facts.f_files and not facts.f_favail:
        return ["the home's disk is full: no more files can be made on it"]
    return []
