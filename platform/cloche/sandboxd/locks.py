"""Ends sandboxes that hold too many record locks.

The kernel makes a record lock of 192 bytes for each separate range of a file that a process locks, counts it to no cgroup and limits the
number nowhere: a job could take 300 MB of the host's memory a second. The system call filter sees that a lock is asked for, not which,
and databases (SQLite) need a few. So the host counts them. Each lock names its process: the filter refuses the kinds that do not.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cloche import logs
from cloche.domain.limits import MAX_LOCKS

LOCKS_OVER = "locks_over"  # in a sandbox's usage: ended for this
INTERVAL_SECONDS = 0.2
_CHUNK = 64 << 10

log = logs.get(__name__)


class Watched(Protocol):
    """A running sandbox, as far as its locks go."""

    @property
    def id(self) -> str: ...

    def processes(self) -> list[int]:
        """Their numbers as the host sees them; empty once it is dead."""
        ...

    def stop_for(self, counter: str) -> None:
        """Note what it used, and with it this counter, then kill it."""
        ...


class LockWatch:
    """``start`` once, ``close`` once. Looks only while there are sandboxes."""

    def __init__(self, running: Callable[[], Sequence[Watched]], source: Path = Path("/proc/locks")) -> None:
        self._running = running
        self._source = source
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="locks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def look(self) -> None:
        """One round: count, and end the first sandbox that is found to have too many."""
        counted: Counter[int] = Counter()
        owners: dict[int, Watched] | None = None
        held: Counter[str] = Counter()
        for number, pid in enumerate(_holders(self._source), start=1):
            counted[pid] += 1
            if number <= MAX_LOCKS:
                continue
            if owners is None:  # more than one sandbox may have: only now is it worth asking whose they are
                owners = {process: sandbox for sandbox in self._running() for process in sandbox.processes()}
                for process in counted.keys() & owners.keys():
                    held[owners[process].id] += counted[process]
            elif pid in owners:
                held[owners[pid].id] += 1
            # The list is read no further than needed: the kernel takes longer the longer it is.
            if (owner := owners.get(pid)) is not None and held[owner.id] > MAX_LOCKS:
                log.warning("sandbox_holds_too_many_locks", sandbox=owner.id, limit=MAX_LOCKS)
                owner.stop_for(LOCKS_OVER)
                return

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            if not self._running():
                continue
            try:
                self.look()
            except OSError as error:
                log.warning("locks_not_counted", error=str(error))


def _holders(source: Path) -> Iterator[int]:
    """The process of every record lock there is, also of those that are waited for."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest = b""
        while data := os.read(fd, _CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                words = line.replace(b"->", b"").split()
                if len(words) > 4 and words[1] == b"POSIX":
                    yield int(words[4])
    finally:
        os.close(fd)
