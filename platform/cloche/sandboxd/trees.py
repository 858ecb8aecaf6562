"""The host's processes of a sandbox under gVisor: found from the engine's shim, moved into a cgroup of ours."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cloche.sandboxd.groups import Group

PROC = Path("/proc")
_PASSES = 50


class TreeProblem(Exception):
    """The processes are not laid out as expected, or do not hold still."""


def members(pid: int, container: str, proc: Path = PROC) -> set[int]:
    """Every process of the sandbox whose main process is ``pid``: all that descends from the shim which started it, but the shim.

    gVisor's kernel, its file servers and the processes that carry the guest's address spaces all do.

    Raises:
        TreeProblem: the parent is not this container's shim.
    """
    parents = _parents(proc)
    shim = parents.get(pid)
    if shim is None or not _is_shim(proc, shim, container):
        raise TreeProblem("its main process is not a child of the engine's shim")
    found = {child for child, parent in parents.items() if parent == shim}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def move(pid: int, container: str, group: Group, proc: Path = PROC) -> int:
    """Move the whole tree into the group; how many processes it has.

    Repeated until a pass finds nothing outside: what was born of a process before that one was moved is found by the next pass, and what is
    born afterwards is born inside. The guest holds still meanwhile (:data:`cloche.isolation.gvisor.GATE_WORD`).

    Raises:
        TreeProblem: see :func:`members`; or there is no end.
        OSError: the kernel refuses.
    """
    for _ in range(_PASSES):
        outside = {process for process in members(pid, container, proc) if not group.holds(process)}
        if not outside:
            return len(group.members())
        for process in outside:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                group.add(process)
    raise TreeProblem("its processes do not hold still")


def _parents(proc: Path) -> dict[int, int]:
    found = {}
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                fields = (proc / name / "stat").read_bytes().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields and fields[0] not in (b"Z", b"X"):
                found[int(name)] = int(fields[1])
    return found


def _is_shim(proc: Path, pid: int, container: str) -> bool:
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return Path(os.fsdecode(words[0])).name.startswith("containerd-shim") and container.encode() in words
