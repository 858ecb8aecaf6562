"""A slot's cgroup below its container's, version 1 or 2: the job's limits, and what each cell used."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloche.domain.limits import Limits
from cloche.isolation.cell_spec import RUNNER_PIDS, slot_memory
from cloche.sandboxd.cgroups import SOCKET_MEMORY, Cgroup

_PERIOD_US = 100_000
_V1 = ("memory", "pids", "cpu", "cpuacct")
_V2 = ("memory", "pids", "cpu")
_AGENT = "agent"
_REMOVE_SECONDS = 5


class CgroupProblem(Exception):
    """This host has no cgroups of our own below a container's. The message says what is missing."""


def open_for_slots(container: Cgroup) -> None:
    """Let the container's cgroup have children with controllers. Version 2 wants its processes in one of them first.

    Raises:
        CgroupProblem: a controller is missing.
        OSError: the kernel refuses.
    """
    if container.unified is None:
        if missing := [name for name in _V1 if name not in container.controllers]:
            raise CgroupProblem(f"no cgroup controller {', '.join(missing)}")
        return
    folder = container.unified
    found = (folder / "cgroup.controllers").read_text("ascii").split()
    if missing := [name for name in _V2 if name not in found]:
        raise CgroupProblem(f"no cgroup controller {', '.join(missing)}")
    (folder / _AGENT).mkdir(exist_ok=True)
    for pid in (folder / "cgroup.procs").read_text("ascii").split():
        (folder / _AGENT / "cgroup.procs").write_text(pid, "ascii")
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _V2), "ascii")


@dataclass
class SlotCgroup:
    """One slot's. ``begin`` before each cell, then ``usage`` tells of that cell alone."""

    group: Cgroup
    memory: int  # bytes it is made with
    _set: int = 0  # bytes it has now
    _before: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def make(cls, container: Cgroup, name: str, limits: Limits) -> SlotCgroup:
        """
        Raises:
            OSError: the kernel refuses one of the limits; nothing is left behind.
        """
        if container.unified is not None:
            group = Cgroup(container.unified / name, {})
        else:
            group = Cgroup(None, {kind: container.controllers[kind] / name for kind in _V1})
        made = cls(group, slot_memory(limits))
        try:
            for folder in made.folders():
                folder.mkdir(exist_ok=True)  # two controllers may share one
            made._limit(limits)
        except BaseException:
            made.remove()
            raise
        return made

    def folders(self) -> list[Path]:
        if self.group.unified is not None:
            return [self.group.unified]
        return list(dict.fromkeys(self.group.controllers.values()))

    def add(self, pid: int) -> None:
        """Put a process in; its children are born here.

        Raises:
            OSError: it is gone, or the kernel refuses.
        """
        for folder in self.folders():
            (folder / "cgroup.procs").write_text(str(pid), "ascii")

    def begin(self) -> None:
        """What is counted from now on belongs to the next cell, which has the slot's whole memory whatever the last one had."""
        if self._set != self.memory:
            self.set_memory(self.memory)
        if (memory := self.group.controllers.get("memory")) is not None:
            (memory / "memory.max_usage_in_bytes").write_text("0", "ascii")
        self._before = self.group.usage()

    def usage(self) -> dict[str, int]:
        """As :meth:`cloche.sandboxd.cgroups.Cgroup.usage`, since ``begin``."""
        now = self.group.usage()
        for name in ("cpu_ms", "oom_kills", "pids_denied"):
            if name in now:
                now[name] -= self._before.get(name, 0)
        if "cpu_ms" in now:
            now["cpu_ms"] = max(1, now["cpu_ms"])  # a started one counts
        if self.group.unified is not None:
            # Version 2 keeps the highest value ever: it tells of this cell only when it has risen since.
            for name in ("memory_peak", "pids_peak"):
                if name in now and now[name] <= self._before.get(name, 0):
                    del now[name]
        return now

    def processes(self) -> list[int]:
        """Numbers of the processes in it, as this process sees them."""
        folder = self.folders()[0]
        return [int(pid) for pid in (folder / "cgroup.procs").read_text("ascii").split()]

    def set_memory(self, size: int) -> None:
        """Another limit of memory in bytes, with the runner's part.

        Raises:
            OSError: more than that is in use.
        """
        if self.group.unified is not None:
            (self.group.unified / "memory.max").write_text(str(size), "ascii")
            self._set = size
            return
        folder = self.group.controllers["memory"]
        limit, with_swap = folder / "memory.limit_in_bytes", folder / "memory.memsw.limit_in_bytes"
        files = [path for path in (limit, with_swap) if path.exists()]
        if size > int(limit.read_text("ascii")):
            files.reverse()  # the limit may never be above the one with swap, not even between two writes
        for path in files:
            path.write_text(str(size), "ascii")
        self._set = size

    def remove(self) -> None:
        """Take it away; nothing happens when it is gone. A dead process may keep it busy for a moment."""
        for folder in self.folders():
            deadline = time.monotonic() + _REMOVE_SECONDS
            while True:
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
                else:
                    break

    def _limit(self, limits: Limits) -> None:
        pids = str(limits.pids + RUNNER_PIDS)
        quota = int(limits.cpu * _PERIOD_US)
        if (folder := self.group.unified) is not None:
            self.set_memory(self.memory)
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting has none to limit
                (folder / "memory.swap.max").write_text("0", "ascii")
            (folder / "pids.max").write_text(pids, "ascii")
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}", "ascii")
            return
        controllers = self.group.controllers
        self.set_memory(self.memory)
        self.group.bound_sockets(SOCKET_MEMORY)
        (controllers["pids"] / "pids.max").write_text(pids, "ascii")
        (controllers["cpu"] / "cpu.cfs_period_us").write_text(str(_PERIOD_US), "ascii")
        (controllers["cpu"] / "cpu.cfs_quota_us").write_text(str(quota), "ascii")
