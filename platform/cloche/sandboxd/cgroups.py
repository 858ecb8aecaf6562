"""Reads what a sandbox used from its cgroup, version 1 or 2, while the cgroup is alive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.sandboxd import kernel_text

ROOT = Path("/sys/fs/cgroup")
SOCKET_LIMIT = "memory.kmem.tcp.limit_in_bytes"
SOCKET_MEMORY = 16 << 20
"""Bytes of buffers of a sandbox's connections to itself, where the kernel does not count them as its memory."""


@dataclass(frozen=True)
class Cgroup:
    """Folders of one process' cgroup. ``unified`` for version 2; by controller for version 1."""

    unified: Path | None
    controllers: Mapping[str, Path]

    def usage(self) -> dict[str, int]:
        """``cpu_ms``, ``memory_peak`` (bytes), ``oom_kills``, ``pids_denied`` (forks refused), ``pids_peak``. What cannot be read is absent."""
        return self._version2(self.unified) if self.unified is not None else self._version1()

    def memory_used(self) -> int:
        """Bytes of memory in use, 0 when that cannot be read."""
        memory = self.controllers.get("memory")
        path = (
            self.unified / "memory.current" if self.unified is not None else (memory or ROOT) / "memory.usage_in_bytes"
        )
        return _number(path) or 0

    def forget_peak(self) -> None:
        """Start ``memory_peak`` anew. Version 2 lets nobody do so for every reader: its peak stays the highest since the start."""
        if memory := self.controllers.get("memory"):
            with contextlib.suppress(OSError):  # then the peak is the higher one, which is no wrong limit
                (memory / "memory.max_usage_in_bytes").write_text("0", "ascii")

    def memory_now(self) -> int | None:
        """Bytes of memory in use. Version 2 kills for a limit below it, where version 1 refuses to set one; then None."""
        return None if self.unified is None else _number(self.unified / "memory.current")

    def lift_cpu(self) -> None:
        """No bound of CPU time from now on: what takes memory apart when it dies shall not be slowed down at that."""
        with contextlib.suppress(OSError):  # gone already, or the kernel refuses: then it dies as slowly as before
            if self.unified is not None:
                (self.unified / "cpu.max").write_text("max", "ascii")
            elif (cpu := self.controllers.get("cpu")) is not None:
                (cpu / "cpu.cfs_quota_us").write_text("-1", "ascii")

    def processes(self) -> list[int]:
        """Numbers of the processes in it; empty once it is gone."""
        folder = self.unified or self.controllers.get("pids")
        if folder is None:
            return []
        try:
            return [int(line) for line in (folder / "cgroup.procs").read_text("ascii").split()]
        except OSError:
            return []

    def bound_sockets(self, size: int) -> None:
        """Count the memory of sockets to it, and let it have ``size`` bytes of that. Version 2 counts it as memory already.

        A kernel of version 1 that cannot leaves it uncounted; ``cloche doctor`` says so.

        Raises:
            OSError: the kernel refused.
        """
        if self.unified is None and (memory := self.controllers.get("memory")):
            limit = memory / SOCKET_LIMIT
            if limit.exists():
                limit.write_text(str(size), "ascii")

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory; 0 when that cannot be read."""
        if self.unified is not None:
            return _table(f"{self.unified}/memory.events").get("oom_kill", 0)
        return _table(f"{self.controllers.get('memory', ROOT)}/memory.oom_control").get("oom_kill", 0)

    def _version1(self) -> dict[str, int]:
        found: dict[str, int | None] = {}
        if cpu := self.controllers.get("cpuacct"):
            ns = _number(f"{cpu}/cpuacct.usage")
            found["cpu_ms"] = None if ns is None else ns // 1_000_000
        if memory := self.controllers.get("memory"):
            found["memory_peak"] = _number(f"{memory}/memory.max_usage_in_bytes")
            found["oom_kills"] = _table(f"{memory}/memory.oom_control").get("oom_kill")
        if pids := self.controllers.get("pids"):
            found["pids_denied"] = _table(f"{pids}/pids.events").get("max")
            found["pids_peak"] = _number(f"{pids}/pids.peak")  # Linux 6.11 and newer
        return {name: value for name, value in found.items() if value is not None}

    def _version2(self, folder: Path) -> dict[str, int]:
        us = _table(f"{folder}/cpu.stat").get("usage_usec")
        found = {
            "cpu_ms": None if us is None else us // 1_000,
            "memory_peak": _number(f"{folder}/memory.peak"),  # Linux 5.19 and newer
            "oom_kills": _table(f"{folder}/memory.events").get("oom_kill"),
            "pids_denied": _table(f"{folder}/pids.events").get("max"),
            "pids_peak": _number(f"{folder}/pids.peak"),  # Linux 6.1 and newer
        }
        return {name: value for name, value in found.items() if value is not None}


def of_process(pid: int, root: Path = ROOT, proc: Path = Path("/proc")) -> Cgroup:
    """The cgroup a process is in.

    Raises:
        OSError: there is no such process.
    """
    controllers: dict[str, Path] = {}
    unified = None
    for line in kernel_text.lines(proc / str(pid) / "cgroup"):
        _, names, path = line.split(":", 2)
        inside = path.lstrip("/")
        if names == "":
            unified = root / inside
        else:
            for name in names.split(","):
                controllers[name] = _controller_root(root, names, name) / inside
    # With version 1 (also hybrid) the controllers have folders of their own, and the unified one carries none of them.
    return Cgroup(None, controllers) if "memory" in controllers else Cgroup(unified, {})


def version(root: Path = ROOT) -> int:
    return 2 if (root / "cgroup.controllers").exists() else 1


def swap_areas(proc: Path = Path("/proc")) -> int:
    """How many swap areas this host uses now; a kernel without swap has no such file."""
    try:
        return len(kernel_text.lines(proc / "swaps")[1:])
    except FileNotFoundError:
        return 0


def uncounted_swap(info: Mapping[str, Any], proc: Path = Path("/proc")) -> str | None:
    """Why no job may run: the engine cannot count swap (``info`` of it), and there is some. None: all is well."""
    if info.get("SwapLimit") or not (areas := swap_areas(proc)):
        return None
    what = "a swap area" if areas == 1 else f"{areas} swap areas"
    return f"the engine cannot count swap, and this host uses {what}: `swapoff -a`, boot with swapaccount=1, or use cgroup version 2"


def _controller_root(root: Path, names: str, name: str) -> Path:
    joined = root / names
    return joined if joined.is_dir() else root / name


def _number(path: Path | str) -> int | None:
    try:
        return int(_content(path))
    except (OSError, ValueError):
        return None


def _table(path: str) -> dict[str, int]:
    try:
        pairs = [line.split() for line in _content(path).splitlines()]
        return {pair[0].decode("ascii"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    except (OSError, ValueError):
        return {}


def _content(path: Path | str) -> bytes:
    """What such a file holds, which is far less than a page. Read several times for each job: without a file object."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4_096)
    finally:
        os.close(fd)
