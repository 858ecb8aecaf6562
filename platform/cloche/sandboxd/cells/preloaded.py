"""A slot's preloader, seen from the host: by the kernel's word, never by its own. It runs a plugin's packages, and may be hostile."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cloche.errors import ClocheError
from cloche.sandboxd import kernel_text
from cloche.sandboxd.cells.slot_cgroup import SlotCgroup
from cloche.sandboxd.cells.talk import Talk

_WAIT_SECONDS = 30.0  # longer than the runner gives the imports
_MOST_SAID = 300  # characters of a package's own words


class PreloadFailed(ClocheError):
    """The plugin's packages cannot be imported beforehand. Its own doing, no anomaly; the message says why, and may have words of the plugin's."""


@dataclass(frozen=True)
class Preloader:
    """``pidfd`` is the slot's to close; ``pid`` as this process sees it. ``held``: see :func:`holds`, when it was ready."""

    pid: int
    pidfd: int
    held: frozenset[str]

    def problem(self, processes: list[int], runner: int) -> str | None:
        """What makes it unfit to fork from, or None. ``processes``: all in the slot while there is no cell."""
        if problem := company(self.pid, processes, runner):
            return problem
        try:
            more = holds(self.pid) - self.held
        except OSError:
            return "its process ended"
        return f"it holds on to {len(more)} thing{'s' if len(more) > 1 else ''} of a cell" if more else None


def company(pid: int, processes: list[int], runner: int) -> str | None:
    """Whether there are other processes or threads than there should be."""
    others = set(processes) - {pid, runner}
    if others:
        return f"it leaves {len(others)} process{'es' if len(others) > 1 else ''} running"
    try:
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        threads = 0
    if pid not in processes or not threads:
        return "its process ended"
    return f"it leaves {threads - 1} thread{'s' if threads > 2 else ''} running" if threads > 1 else None


def holds(pid: int) -> frozenset[str]:
    """What a process could keep a dead cell's files by: descriptors, folders, its namespaces, mapped files. It chooses the names of some.

    Raises:
        OSError: it is dead.
    """
    folder = f"/proc/{pid}"
    found = {
        f"{place} {os.readlink(f'{folder}/{place}')}"
        for place in ("cwd", "root", "ns/mnt", "ns/ipc", "ns/pid_for_children")
    }
    found |= {f"{name} {os.readlink(f'{folder}/fd/{name}')}" for name in os.listdir(f"{folder}/fd")}
    for line in kernel_text.lines(f"{folder}/maps"):
        _, *fields = line.split(" ", 5)
        if len(fields) < 4:
            found.add(line)  # no line of the kernel's: something is held that nobody understands
        elif fields[3] != "0":
            found.add(f"{fields[2]} {fields[3]}")
    return frozenset(found)


def hear(talk: Talk, group: SlotCgroup, runner: int) -> Preloader:
    """Wait for the runner to say that the imports are done, and look at what there is then.

    Raises:
        PreloadFailed: with the reason.
        PlatformFailure, OSError: the runner does not do as it should.
    """
    message, (pidfd,) = talk.hear("preloaded", fds=1, seconds=_WAIT_SECONDS)
    try:
        problem = message.get("problem")
        if group.usage().get("oom_kills", 0) > 0:
            raise PreloadFailed("preload failed: it ran out of memory")
        if problem is not None:
            raise PreloadFailed(f"preload failed: {_printable(str(problem))}")
        pid = pid_of(pidfd)
        problem = company(pid, group.processes(), runner)
        held = frozenset[str]() if problem else holds(pid)
        if not problem and sum(" socket:" in item for item in held) != 1:
            problem = "it leaves sockets open"  # another could hold what it likes, on its way to nobody
        if problem:
            raise PreloadFailed(f"preload failed: {problem}")
        found = Preloader(pid, pidfd, held)
    except BaseException:
        os.close(pidfd)
        raise
    return found


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MOST_SAID])


def pid_of(pidfd: int) -> int:
    """The process' number as this process sees it.

    Raises:
        OSError: it is dead, or of no number here.
    """
    for line in kernel_text.lines(f"/proc/self/fdinfo/{pidfd}"):
        if line.startswith("Pid:"):
            number = int(line.split()[1])
            if number > 0:
                return number
    raise ProcessLookupError("the process has no number here")
