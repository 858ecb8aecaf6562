"""Which attempts are alive on this host, and when: read from the names that the matrix's plugin gives its processes."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from pathlib import Path

_NAME = re.compile(r"ch([0-9a-f]{8})\.(\d+)\n?")
_EVERY_S = 0.1


class Watcher:
    """A context manager. ``overlap``: the longest time, in seconds, for which two attempts of one job were alive at once."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._since: dict[str, float] = {}
        self.overlaps: dict[str, float] = defaultdict(float)
        self.seen: set[tuple[str, int]] = set()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def overlap(self) -> float:
        return max(self.overlaps.values(), default=0.0)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        alive: dict[str, set[int]] = defaultdict(set)
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and (found := _NAME.fullmatch(_name(path))) and not _dead(path):
                alive[found[1]].add(int(found[2]))
                self.seen.add((found[1], int(found[2])))
        doubled = {job for job, attempts in alive.items() if len(attempts) > 1}
        for job in doubled:
            self.overlaps[job] = max(self.overlaps[job], now - self._since.setdefault(job, now))
        self._since = {job: since for job, since in self._since.items() if job in doubled}


def _name(path: Path) -> str:
    try:
        return (path / "comm").read_text()
    except OSError:
        return ""


def _dead(path: Path) -> bool:
    """Whether it is dead, even if its parent has not noticed yet."""
    try:
        return "Z" in (path / "stat").read_text().rpartition(")")[2].split()[:1]
    except OSError:
        return True
