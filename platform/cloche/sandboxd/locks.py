"""Ends sandboxes that hold too many record locks.

The kernel makes a record lock of 192 bytes for each separate range of a file that a process locks, counts it to no cgroup and limits the
number nowhere: a job could take 300 MB of the host's memory a second. The system call filter sees that a lock is asked for, not which,
and databases (SQLite) need a few. So the host counts them. Each lock names its process: the filter refuses the kinds that do not.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloche import logs
from cloche.domain.limits import MAX_LOCKS

LOCKS_OVER = "locks_over"  # in a sandbox's usage: ended for so many
INTERVAL_SECONDS = 0.2
_REST = 4.0  # for each second a round took: a list of sixty thousand takes one, and the host's own locks wait while it is read
_LONGEST_REST = 1.0  # seconds, however long it took: many jobs just below the limit are not to buy another one time
_OPEN = 100  # of a thousand locks that dead processes left: files that a sandbox has open, so that they are its
_CHUNK = 64 << 10

log = logs.get(__name__)


class Watched(Protocol):
    """A running sandbox, as far as its locks go."""

    @property
    def id(self) -> str: ...

    def processes(self) -> list[int]:
        """Their numbers as the host sees them; empty once it is dead."""
        ...

    def stop_for(self, counter: str, used: int) -> None:
        """Note what it used, and of this counter so much, then kill it."""
        ...


class LockWatch:
    """``start`` once, ``close`` once. Looks only while there are sandboxes."""

    def __init__(self, running: Callable[[], Sequence[Watched]], proc: Path = Path("/proc")) -> None:
        self._running = running
        self._proc = proc
        self._ended: set[str] = set()  # sandboxes whose locks count no more: they were killed for them
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="locks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def look(self) -> bool:
        """One round: count, and end the first sandbox that is found to have too many. Whether there was one."""
        running = self._running()
        self._ended &= {sandbox.id for sandbox in running}
        count = _Count(running, self._proc, frozenset(self._ended))
        for lock in _locks(self._proc / "locks"):
            # The list is read no further than needed: the kernel takes longer the longer it is.
            if (owner := count.add(lock)) is not None:
                log.warning("sandbox_holds_too_many_locks", sandbox=owner.id, limit=MAX_LOCKS)
                self._ended.add(owner.id)
                owner.stop_for(LOCKS_OVER, MAX_LOCKS + 1)  # nobody counts further than that
                return True
        return False

    def _watch(self) -> None:
        spent = 0.0
        while not self._stop.wait(pause(spent)):
            began = time.monotonic()
            try:
                # At once again after a find: many may do it together, and the next is not to have that much longer.
                while self._running() and self.look() and not self._stop.is_set():
                    continue
            except Exception:
                log.exception("locks_not_counted")
            spent = time.monotonic() - began


def pause(spent: float) -> float:
    """Seconds until the next round, after one that took so many."""
    return max(INTERVAL_SECONDS, min(_REST * spent, _LONGEST_REST))


class _Count:
    """Locks by sandbox. ``flock`` counts too: else a job could hide its record locks behind a list that takes a second to read."""

    def __init__(self, running: Sequence[Watched], proc: Path, ended: Set[str]) -> None:
        self._running = running
        self._proc = proc
        self._ended = ended
        self._early: (
            list[_Lock] | None
        ) = []  # those seen before there were so many that it is worth asking whose they are
        self._owners: dict[int, Watched] = {}
        self._held: Counter[str] = Counter()
        self._alive: dict[int, bool] = {}
        self._orphans: set[tuple[int, int]] = (
            set()
        )  # files with locks whose process is gone: it gave the open file away
        self._orphaned = 0

    def add(self, lock: _Lock) -> Watched | None:
        """The sandbox that has too many with this one."""
        if self._early is None:
            return self._add(lock)
        self._early.append(lock)
        if len(self._early) <= MAX_LOCKS:
            return None
        early, self._early = self._early, None
        self._owners = {process: sandbox for sandbox in self._running for process in sandbox.processes()}
        return next((owner for one in early if (owner := self._add(one)) is not None), None)

    def _add(self, lock: _Lock) -> Watched | None:
        if (owner := self._owners.get(lock.process)) is not None:
            if owner.id in self._ended:
                return None
            self._held[owner.id] += 1
            return owner if self._held[owner.id] > MAX_LOCKS else None
        if lock.process not in self._alive:
            self._alive[lock.process] = (self._proc / str(lock.process)).exists()
        if self._alive[lock.process]:
            return None  # the host's own
        self._orphans.add(lock.file)
        self._orphaned += 1
        return self._searched() if self._orphaned == MAX_LOCKS + 1 else None

    def _searched(self) -> Watched | None:
        """The sandbox that has most of those files open."""
        found: Counter[str] = Counter()
        for process, owner in self._owners.items():
            for fd in _entries(self._proc / str(process) / "fd"):
                try:
                    facts = os.stat(fd)
                except OSError:
                    continue
                found[owner.id] += (facts.st_dev, facts.st_ino) in self._orphans
        worst = found.most_common(1)
        if not worst or worst[0][1] < _OPEN or worst[0][0] in self._ended:
            return None
        return next(owner for owner in self._owners.values() if owner.id == worst[0][0])


@dataclass(frozen=True)
class _Lock:
    process: int
    file: tuple[int, int]  # device and inode


def _locks(source: Path) -> Iterator[_Lock]:
    """Every lock that names a process, also of those that are waited for."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest = b""
        while data := os.read(fd, _CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                words = line.replace(b"->", b"").split()
                if len(words) > 5 and words[1] in (b"POSIX", b"FLOCK"):
                    yield _Lock(int(words[4]), _file(words[5]))
    finally:
        os.close(fd)


def _file(text: bytes) -> tuple[int, int]:
    """``MAJOR:MINOR:INODE``; the kernel writes ``<none>:0`` where it cannot say."""
    parts = text.split(b":")
    if len(parts) != 3:
        return (0, 0)
    return os.makedev(int(parts[0], 16), int(parts[1], 16)), int(parts[2])


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except OSError:
        return []
