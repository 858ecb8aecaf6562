"""Cgroups of our own, version 1 or 2: for sandboxes whose runtime does not put its processes into the engine's.

``<root>/<controller>/cloche/<home>/<sandbox>`` with version 1, ``<root>/cloche/<home>/<sandbox>`` with version 2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloche.isolation.gvisor import GroupLimits
from cloche.sandboxd.cgroups import ROOT, Cgroup, version

_PARENT = "cloche"
_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")  # of version 1
_PERIOD_US = 100_000
_NAP_SECONDS = 0.005
_LAST_SECONDS = 20
_BUSY_SECONDS = 2
_TRIES = 10


class GroupProblem(Exception):
    """A cgroup could not be made, or does not hold what was written into it."""


@dataclass(frozen=True)
class Group:
    """One sandbox's cgroup, made and limited. ``folders``: one with version 2; with version 1 one for each controller, ``pids`` among them."""

    cgroup: Cgroup
    folders: tuple[Path, ...]

    def add(self, pid: int) -> None:
        """Move a process with all its threads; its later children are born here.

        Raises:
            ProcessLookupError: it is gone.
            OSError: the kernel refuses.
        """
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid), "ascii")

    def members(self) -> set[int]:
        """Processes in it, in any of its folders; empty when it is gone."""
        found: set[int] = set()
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError):
                found |= {int(line) for line in (folder / "cgroup.procs").read_text("ascii").split()}
        return found

    def holds(self, pid: int) -> bool:
        """Whether the process is in every one of its folders."""
        return all(str(pid) in (folder / "cgroup.procs").read_text("ascii").split() for folder in self.folders)

    def set_memory(self, size: int) -> None:
        """Another limit of memory, in bytes; swap stays none.

        Raises:
            OSError: more is in use.
        """
        if self.cgroup.unified is not None:
            _write(self.cgroup.unified / "memory.max", size)
            return
        folder = self.cgroup.controllers["memory"]
        both = folder / "memory.memsw.limit_in_bytes"
        files = [folder / "memory.limit_in_bytes", *([both] if both.exists() else [])]
        # Memory alone may never exceed memory and swap together.
        growing = size > int(files[0].read_text("ascii"))
        for file in reversed(files) if growing else files:
            _write(file, size)

    def kill(self) -> None:
        """SIGKILL to everything in it. A process that is being born may escape one call; :meth:`emptied` repeats it."""
        if self.cgroup.unified is not None and (self.cgroup.unified / "cgroup.kill").exists():
            (self.cgroup.unified / "cgroup.kill").write_text("1", "ascii")
            return
        for pid in self.members():
            # No process is in here but those that were moved in and their children, and none leaves: the number can mean no other for long.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def emptied(self, timeout_s: float) -> bool:
        """Kill until nothing is left; whether that was so within the time."""
        deadline = time.monotonic() + timeout_s
        while self.members():
            if time.monotonic() >= deadline:
                return False
            self.kill()
            time.sleep(_NAP_SECONDS)
        return True

    def remove(self) -> None:
        """Remove the folders. Nothing happens to those that are gone.

        Raises:
            OSError: something is still in it.
        """
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError):
                _remove(folder)


class Groups:
    """The cgroups of one home. Any thread may call."""

    def __init__(self, home: str, root: Path = ROOT) -> None:
        self._root = root
        self._home = home

    def make(self, sandbox_id: str, limits: GroupLimits) -> Group:
        """A cgroup with these limits, empty.

        Raises:
            GroupProblem: it cannot be had, or the kernel keeps other limits than those.
        """
        return self._made(sandbox_id, lambda group: _limit(group, limits))

    def parent(self, sandbox_id: str) -> Group:
        """One without limits, empty, in which there may be others.

        Raises:
            GroupProblem: it cannot be had.
        """
        return self._made(sandbox_id, lambda _: None)

    def _made(self, sandbox_id: str, limit: Callable[[Group], None]) -> Group:
        group = self.find(sandbox_id)
        for name, place in group.cgroup.controllers.items():
            # Anywhere else the folders could be made just as well, and would limit nothing.
            if not (place.parents[2] / "cgroup.procs").exists():
                raise GroupProblem(f"this host has no cgroup controller {name}")
        try:
            for folder in group.folders:
                self._make(folder, unified=group.cgroup.unified is not None)
            limit(group)
        except (OSError, GroupProblem) as error:
            with contextlib.suppress(OSError):  # what is wrong with it is known already
                self.remove(sandbox_id)
            if isinstance(error, GroupProblem):
                raise
            raise GroupProblem(f"no cgroup can be made ({error.filename}: {error.strerror})") from None
        return group

    def find(self, sandbox_id: str) -> Group:
        """The group of that name, whether it is there or not."""
        if version(self._root) == 2:
            folder = self._root / _PARENT / self._home / sandbox_id
            return Group(Cgroup(folder, {}), (folder,))
        places = {name: self._controller(name) / _PARENT / self._home / sandbox_id for name in _CONTROLLERS}
        return Group(Cgroup(None, places), tuple(dict.fromkeys(places.values())))

    def remove(self, sandbox_id: str) -> None:
        """Kill what is in it and remove it; the last one to go takes the home's folders along. Nothing happens when it is gone.

        Raises:
            OSError: something in it does not die.
        """
        group = self.find(sandbox_id)
        group.emptied(_LAST_SECONDS)
        group.remove()
        self._clean()

    def leftovers(self) -> set[str]:
        """Names of the groups there are."""
        return {
            folder.name
            for parent in self._parents()
            if parent.is_dir()
            for folder in parent.iterdir()
            if folder.is_dir()
        }

    def _clean(self) -> None:
        for parent in self._parents():
            with contextlib.suppress(OSError):  # not empty, or gone
                parent.rmdir()
                parent.parent.rmdir()

    def _parents(self) -> Iterator[Path]:
        yield from dict.fromkeys(folder.parent for folder in self.find("any").folders)

    def _controller(self, name: str) -> Path:
        """Controllers may be mounted together (``cpu,cpuacct``), with links by each name or without."""
        if (self._root / name).is_dir():
            return (self._root / name).resolve()
        joined = [path for path in self._root.iterdir() if name in path.name.split(",")]
        return joined[0] if joined else self._root / name

    def _make(self, folder: Path, unified: bool) -> None:
        for left in reversed(range(_TRIES)):
            try:
                if unified:
                    self._delegate(folder.parent)
                folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                folder.mkdir(mode=0o755)
                return
            except FileNotFoundError:  # another home's last sandbox took the empty folder above along
                if left == 0:
                    raise

    def _delegate(self, folder: Path) -> None:
        """Have every folder down to this one hand memory, pids and cpu on to its children."""
        for parent in [self._root, self._root / _PARENT, folder]:
            parent.mkdir(mode=0o755, exist_ok=True)
            (parent / "cgroup.subtree_control").write_text("+memory +pids +cpu", "ascii")


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError as error:  # what has just died is still being counted
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_NAP_SECONDS)


def _limit(group: Group, limits: GroupLimits) -> None:
    quota = max(1_000, int(limits.cpus * _PERIOD_US))
    folder = group.cgroup.unified
    if folder is not None:
        _write(folder / "memory.swap.max", 0)
        _write(folder / "memory.max", limits.memory)
        _write(folder / "memory.oom.group", 1)  # gVisor cannot live on without one of its processes
        _write(folder / "pids.max", limits.tasks)
        (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}", "ascii")
        return
    group.set_memory(limits.memory)
    _write(group.cgroup.controllers["pids"] / "pids.max", limits.tasks)
    cpu = group.cgroup.controllers["cpu"]
    _write(cpu / "cpu.cfs_period_us", _PERIOD_US)
    _write(cpu / "cpu.cfs_quota_us", quota)


def _write(file: Path, value: int) -> None:
    """
    Raises:
        GroupProblem: the kernel keeps a larger number.
        OSError: it refuses.
    """
    file.write_text(str(value), "ascii")
    kept = file.read_text("ascii").strip()
    if not kept.isdigit() or int(kept) > value:  # less is possible: memory is counted in pages
        raise GroupProblem(f"{file} keeps {kept[:32]} instead of {value}")
