"""A job for a cell, and the platform's own processes in a slot. They are told apart by whose children they are: numbers wrap around."""

from __future__ import annotations

from pathlib import Path

from cloche.clock import uuid7
from cloche.domain.limits import Limits
from cloche.isolation.backend import SandboxSpec
from cloche.sandboxd.cells.cell import RunningCell

SPEC = SandboxSpec(
    job_id=uuid7(),
    attempt=1,
    bundle="a" * 64,
    wheels=None,
    limits=Limits(),
    lease_until=1,
    level="namespace",
    tenant=uuid7(),
)


def runner(running: RunningCell) -> int:
    """The slot's runner: alone there in being no child of another there, since its parent is the container's first process."""
    parents = _parents(running)
    (found,) = [pid for pid, parent in parents.items() if parent not in parents]
    return found


def preloader(running: RunningCell) -> int:
    """The slot's preloader: the runner's child with a filter more than the runner, which only the preloader's own children have too."""
    parents = _parents(running)
    (found,) = [pid for pid, parent in parents.items() if parent == runner(running) and _filters(pid) == 3]
    return found


def _parents(running: RunningCell) -> dict[int, int]:
    """The slot's processes, each with its parent."""
    found = {}
    for pid in running.slot_cgroup.processes():
        try:
            found[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return found


def _filters(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Seccomp_filters:"))
