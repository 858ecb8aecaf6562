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
from cloche.isolation.cell_spec import RUNNER_MEMORY, slot_memory, slot_pids
from cloche.sandboxd import kernel_text
from cloche.sandboxd.cgroups import SOCKET_MEMORY, Cgroup

_PERIOD_US = 100_000
_V1 = ("memory", "pids", "cpu", "cpuacct")
_V2 = ("memory", "pids", "cpu")
_AGENT = "agent"
_REMOVE_SECONDS = 5
_FREED_SECONDS = 2.0
_FREED_POLL_SECONDS = 0.002
_SLACK = RUNNER_MEMORY // 2  # bytes that may stay from cell to cell: they are no part of the job's own


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
    above: Cgroup  # the container's
    cpu: float
    _set: int = 0  # bytes it has now
    _before: Mapping[str, int] = field(default_factory=dict)
    _rest: int | None = None  # bytes in use without a cell
    _hastened: bool = False  # its bound of CPU time is lifted

    @classmethod
    def make(cls, container: Cgroup, name: str, limits: Limits, *, preloads: bool = False) -> SlotCgroup:
        """``preloads``: whether there is a preloader in it.

        Raises:
            OSError: the kernel refuses one of the limits; nothing is left behind.
        """
        if container.unified is not None:
            group = Cgroup(container.unified / name, {})
        else:
            group = Cgroup(None, {kind: container.controllers[kind] / name for kind in _V1})
        made = cls(group, slot_memory(limits), container, limits.cpu)
        try:
            for folder in made.folders():
                folder.mkdir(exist_ok=True)  # two controllers may share one
            made._limit(slot_pids(limits, preloads=preloads))
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
        if self._hastened:
            self._bound_cpu()
            self._hastened = False
        # The lowest ever: before the first cell the compiler may still be at work.
        used = self.group.memory_used()
        self._rest = used if self._rest is None else min(self._rest, used)
        if (memory := self.group.controllers.get("memory")) is not None:
            (memory / "memory.max_usage_in_bytes").write_text("0", "ascii")
        self._before = self.group.usage()

    def freed(self) -> bool:
        """Whether the memory of the cell that has died is the kernel's again, within two seconds.

        Its processes' is at once. What System V segments, semaphores and messages hold is freed behind everybody's back, some hundredths of
        a second later: until then it would be missing to the slot's next job.
        """
        if self._rest is None:
            return True
        deadline = time.monotonic() + _FREED_SECONDS
        while (self.group.memory_used() - self._rest) > _SLACK and self._kept() > _SLACK:
            if time.monotonic() > deadline:
                return False
            time.sleep(_FREED_POLL_SECONDS)
        return True

    def hasten(self) -> None:
        """Lift the bound of CPU time, until ``begin``: all that is in here is dying.

        The container's for good, or neighbours would pay for it: each slot has a bound of its own, and beside the slots there is our agent.
        """
        self._hastened = True
        self.group.lift_cpu()
        self.above.lift_cpu()

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

    def oom_kills(self) -> int:
        """As in ``usage``."""
        return self.group.oom_kills() - self._before.get("oom_kills", 0)

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

    def _kept(self) -> int:
        """Bytes in use beyond those without a cell, and without copies of files, which the kernel drops when it needs room."""
        folder = self.group.unified or self.group.controllers["memory"]
        used = self.group.memory_used()
        droppable = 0
        for line in kernel_text.lines(folder / "memory.stat"):
            name, _, value = line.partition(" ")
            if name in ("active_file", "inactive_file", "slab_reclaimable"):
                droppable += int(value)
        return used - droppable - (self._rest or 0)

    def _bound_cpu(self) -> None:
        quota = int(self.cpu * _PERIOD_US)
        if (folder := self.group.unified) is not None:
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}", "ascii")
        else:
            (self.group.controllers["cpu"] / "cpu.cfs_quota_us").write_text(str(quota), "ascii")

    def _limit(self, processes: int) -> None:
        pids = str(processes)
        if (folder := self.group.unified) is not None:
            self.set_memory(self.memory)
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting has none to limit
                (folder / "memory.swap.max").write_text("0", "ascii")
            (folder / "pids.max").write_text(pids, "ascii")
            self._bound_cpu()
            return
        controllers = self.group.controllers
        self.set_memory(self.memory)
        self.group.bound_sockets(SOCKET_MEMORY)
        (controllers["pids"] / "pids.max").write_text(pids, "ascii")
        (controllers["cpu"] / "cpu.cfs_period_us").write_text(str(_PERIOD_US), "ascii")
        self._bound_cpu()
