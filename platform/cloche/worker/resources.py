"""What the worker's host has left: processors, memory, and the disk that jobs' files are staged on. Read from the kernel alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloche import logs

_log = logs.get(__name__)
_MEMINFO = Path("/proc/meminfo")
NAMES = ("cpu_count", "load", "memory_total", "memory_free", "disk_total", "disk_free")


def read(folder: Path, meminfo: Path = _MEMINFO) -> dict[str, Any]:
    """Of this host, and of the file system that ``folder`` is on. Memory and disk in bytes; what cannot be read is None.

    ``load`` is the average of runnable processes over a minute. ``memory_free`` is what programs can still take without swapping,
    ``disk_free`` what a program that is not root can still write.
    """
    found: dict[str, Any] = dict.fromkeys(NAMES)
    found["cpu_count"] = os.cpu_count()
    try:
        found["load"] = round(os.getloadavg()[0], 2)
    except OSError as error:
        _log.debug("no load average", error=str(error))
    memory = _memory(meminfo)
    found["memory_total"], found["memory_free"] = memory.get("MemTotal"), memory.get("MemAvailable")
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        _log.debug("the disk cannot be looked at", error=str(error))
    else:
        found["disk_total"], found["disk_free"] = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    return found


def _memory(meminfo: Path) -> dict[str, int]:
    """Bytes by the kernel's names; empty where it tells none."""
    try:
        lines = meminfo.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


class ResourceWatch:
    """``start`` once, ``close`` once; ``latest`` from any thread. A thread of its own: a disk that does not answer must not hold up the
    heartbeat, which takes along what was seen last."""

    def __init__(self, look: Callable[[], dict[str, Any]], every_s: float) -> None:
        self._look = look
        self._every_s = every_s
        self._latest: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resources", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def latest(self) -> dict[str, Any] | None:
        """What was seen last; None before the first look has ended."""
        return self._latest

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1)

    def _run(self) -> None:
        while True:
            self._latest = self._look()
            if self._stop.wait(self._every_s):
                return
