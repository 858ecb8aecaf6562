"""What a running stack and the host hold, as numbers: whatever a job could leave behind.

Rows of the host count what everybody does there; two counts of them compare only on a machine that does nothing else in between.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.engine import address
from bench.stack import Stack
from cloche.isolation.spec import LABEL
from cloche.sandboxd import cgroups, syscalls, uids
from cloche.sandboxd.places import home_digest

ROLES = ("worker", "sandboxd", "web", "scheduler", "egress", "valkey")
SLABS = {
    "pid_namespace": "pid namespaces",
    "net_namespace": "network namespaces",
    "user_namespace": "user namespaces",
    "uts_namespace": "uts namespaces",
    "mnt_cache": "mounts",
    "task_struct": "threads",
    "filp": "open files",
    "sock_inode_cache": "sockets",
}
"""The kernel's own counts, by the name of the cache that the objects come from."""
_CONTAINER = re.compile(r"[0-9a-f]{64}")


def processes(running: Stack) -> dict[str, int]:
    """The stack's processes by role; its one worker."""
    found = {}
    for pid in children(running.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        found |= {role: pid for role in ROLES if role in words or f"/{role}-server " in words[0]}
    return {role: found[role] for role in ROLES}


def children(pid: int) -> list[int]:
    return [int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def of_everything(running: Stack) -> dict[str, int]:
    return {**of_processes(running), **of_home(running), **of_host(), **of_kernel()}


def of_processes(running: Stack) -> dict[str, int]:
    """Memory in kB, descriptors and threads of each process."""
    found = {}
    for role, pid in processes(running).items():
        members = [pid, *below(pid)]  # the web server has a process of its own for its work
        found[f"{role}: memory, kB"] = sum(map(memory_kb, members))
        found[f"{role}: memory of its own, kB"] = sum(map(_anonymous_kb, members))
        found[f"{role}: descriptors"] = sum(len(open_files(member)) for member in members)
        found[f"{role}: threads"] = sum(len(os.listdir(f"/proc/{member}/task")) for member in members)
    return found


def of_home(running: Stack) -> dict[str, int]:
    """What belongs to this home, wherever it is."""
    home = running.home
    command = [
        "docker",
        "--host",
        address(),
        "ps",
        "--all",
        "--quiet",
        "--filter",
        f"label={LABEL}.home={home_digest(home)}",
    ]
    locks = {uids.LOCKS, uids.LOCKS.with_name("uid-blocks")}
    folders = [Path(folder) for folder, _, _ in os.walk(home)]
    return {
        "processes of the stack": len(below(running.pid)),
        "containers": len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()),
        "mounts below the home": len(syscalls.mounts_below(home)),
        "loop devices of the home": len(loops(home)),
        "user ids held": len([path for path in open_files(processes(running)["sandboxd"]) if path.parent in locks]),
        "folders in the home": len([path for path in folders if home / "artifacts" not in path.parents]),
        "cgroups of the home": len(
            [place for place in _groups() if place.parts[-3:-1] == ("cloche", home_digest(home))]
        ),
    }


def of_host() -> dict[str, int]:
    """Of everybody on this machine."""
    return {
        "host: mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "host: loop devices": len(list(Path("/sys/block").glob("loop*/loop/backing_file"))),
        "host: cgroup folders, all controllers": len(_groups()),
        "host: cgroups of containers that are gone": len(orphaned_cgroups()),
        "host: namespaces that something holds": len(namespaces()),
        "host: dead processes that nobody waits for": zombies(),
    }


def of_kernel() -> dict[str, int]:
    """Objects in the kernel's caches (a few of them are free ones kept for the next), and memory in kB that it cannot give back."""
    caches = {line.split()[0]: int(line.split()[1]) for line in Path("/proc/slabinfo").read_text().splitlines()[2:]}
    memory = Path("/proc/meminfo").read_text()
    found = {f"kernel: {what}": caches[name] for name, what in SLABS.items() if name in caches}
    kept = sum(_number(memory, f"{name}:") for name in ("SUnreclaim", "KernelStack", "Percpu", "PageTables"))
    groups = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()]
    alive = {words[0]: int(words[2]) for words in groups if words[0] in ("memory", "pids")}
    found |= {f"kernel: {name} cgroups, dying ones too": count for name, count in alive.items()}
    return {**found, "kernel: memory that stays, kB": kept}


def loops(home: Path) -> list[str]:
    """Loop devices whose file is below the home."""
    found = []
    for place in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if place.read_text().startswith(str(home)):
                found.append(place.parts[3])
        except OSError:
            continue  # freed while we looked
    return found


def orphaned_cgroups() -> set[str]:
    """Groups of containers without a container or a process, of which only the name is left; under either version and either driver."""
    places = [place for place in _groups() if _is_engines(place) and not _has_processes(place)]
    names = {place.name.removeprefix("docker-").removesuffix(".scope") for place in places}
    command = ["docker", "--host", address(), "ps", "-aq", "--no-trunc"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name for name in names if _CONTAINER.fullmatch(name)} - set(known.split())


def _groups() -> list[Path]:
    """Every folder of every hierarchy. Unlike a pattern, a walk passes over those that go meanwhile."""
    return [Path(folder) for folder, _, _ in os.walk(cgroups.ROOT)]


def _is_engines(place: Path) -> bool:
    return place.parent.name == "docker" or (place.parent.name == "system.slice" and place.name.startswith("docker-"))


def _has_processes(group: Path) -> bool:
    try:
        return bool((group / "cgroup.procs").read_text())
    except OSError:
        return False  # it is gone


def namespaces() -> set[str]:
    """Every namespace in which a process is, of which one has a descriptor, or that is mounted somewhere."""
    found = set()
    for pid in _pids():
        for link in _links(Path(f"/proc/{pid}/ns")) | _links(Path(f"/proc/{pid}/fd")):
            if re.fullmatch(r"[a-z]+:\[\d+\]", link):
                found.add(link)
    mounted = [line.split()[3] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " nsfs " in line]
    return found | set(mounted)


def zombies() -> int:
    found = 0
    for pid in _pids():
        try:
            found += Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z"
        except OSError:
            continue  # gone while we looked
    return found


def open_files(pid: int) -> list[Path]:
    """What its descriptors lead to."""
    return [Path(link) for link in _each(Path(f"/proc/{pid}/fd"))]


def memory_kb(pid: int) -> int:
    return _number(Path(f"/proc/{pid}/status").read_text(), "VmRSS:")


def _anonymous_kb(pid: int) -> int:
    """Without pages of files: how much of those counts as whose changes with other processes of the host that have them too."""
    return _number(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss_Anon:")


def _number(text: str, name: str) -> int:
    """Of the line that begins with the name; 0 when there is none."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def below(pid: int) -> list[int]:
    """Numbers of all its children, and theirs."""
    direct = children(pid)
    return direct + [deeper for child in direct for deeper in below(child)]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _links(folder: Path) -> set[str]:
    return set(_each(folder))


def _each(folder: Path) -> Iterator[str]:
    try:
        names = os.listdir(folder)
    except OSError:  # the process is gone
        return
    for name in names:
        try:
            yield os.readlink(folder / name)
        except OSError:
            continue  # closed while we looked
