"""Watches SQLite's write lock: a process that stands still in a transaction (SIGSTOP, a frozen cgroup, a debugger) holds up everybody.

PostgreSQL ends such a session by itself. SQLite has no server that could: the lock goes with the process, so the process has to go.
Killed, it leaves a transaction that was not committed, as any death does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

from cloche.db import sqlite_locks
from cloche.db.engine import Database
from cloche.errors import Unavailable

_EVERY_S = 5.0
_LOOK_S = 0.5


class Standstill:
    """``blocked(pid, seconds)`` is called from a thread of its own when a write has waited, and that process held the lock at every look,
    for ``limit_s`` seconds; and again after as long, if it still does. ``start`` once, ``stop`` as often as one likes.
    """

    def __init__(self, db: Database, limit_s: float, blocked: Callable[[int, float], None]) -> None:
        self._db = db
        self._limit_s = limit_s
        self._blocked = blocked
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="standstill", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            try:
                self._until_written()
            except Unavailable:
                return  # closed: `cloche up` ends

    def _until_written(self) -> None:
        """A write takes its turn behind all who came before it, so it comes through unless somebody keeps the lock."""
        probe = self._probe()
        holder: int | None = None
        stood_s = 0.0  # counted by looks, not by a clock: if this process stood still itself, that is nobody's fault
        while not self._stopped.is_set():
            if wait([probe], _LOOK_S).done:
                if probe.exception() is None:
                    return
                probe = self._probe()  # SQLite itself refused it: somebody who stood in no line has the lock
                self._stopped.wait(_LOOK_S)  # or its disk did, and at once
            seen = sqlite_locks.writer(self._db.path)
            if seen is None or seen != holder:
                holder, stood_s = seen, 0.0
                continue
            stood_s += _LOOK_S
            if stood_s >= self._limit_s:
                self._blocked(seen, stood_s)
                stood_s = 0.0

    def _probe(self) -> Future[None]:
        return self._db.submit(lambda _connection: None)
