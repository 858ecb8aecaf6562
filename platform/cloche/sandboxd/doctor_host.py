"""What the kernel of this host has and lacks for sandboxes, and what follows from each lack."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.sandboxd import cgroups, disk, kernel_text

_LOW_DISK = 2 << 30  # bytes
_LOW_INODES = 50_000
_RELEASED = 1_735_689_600  # 2025-01-01T00:00:00Z: no clock of a host that runs this can be before it
_WANTED = ("cpu", "cpuacct", "memory", "pids")
_STA_UNSYNC = 0x40  # of adjtimex(2)


@dataclass(frozen=True)
class Check:
    """``status``: ``ok``, ``warn`` (works, with a lack) or ``fail`` (jobs do not run). ``advice`` is empty when all is well."""

    name: str
    status: str
    detail: str
    advice: str = ""


def cgroup(root: Path = cgroups.ROOT) -> Check:
    """Version and controllers."""
    if not root.is_dir():
        return Check("cgroups", "fail", "no cgroup file system", "Mount one: memory and process limits need it.")
    version = cgroups.version(root)
    if version == 2:
        found = set((root / "cgroup.controllers").read_text("ascii").split())
        wanted = {"cpu", "memory", "pids"}
    else:
        found = {path.name for path in root.iterdir() if path.is_dir()} | {
            name for path in root.iterdir() for name in path.name.split(",")
        }
        wanted = set(_WANTED)
    if missing := sorted(wanted - found):
        advice = "Without them limits do not hold: enable them (kernel command line cgroup_enable=…)."
        return Check("cgroups", "fail", f"version {version} without {', '.join(missing)}", advice)
    if version == 1 and not (root / "memory" / cgroups.SOCKET_LIMIT).exists():
        advice = "A job's connections to itself use memory that nothing counts: boot without cgroup.memory=nokmem, or use cgroup version 2."
        return Check("cgroups", "warn", "version 1, without a limit for the memory of sockets", advice)
    return Check("cgroups", "ok", f"version {version} with {', '.join(sorted(wanted))}")


def swap(info: Mapping[str, Any], proc: Path = Path("/proc")) -> Check:
    """Whether a job's swap can be limited, and whether there is any."""
    areas = cgroups.swap_areas(proc)
    used = f"{areas} swap area{'s' if areas != 1 else ''}" if areas else "no swap"
    if info.get("SwapLimit"):
        return Check("swap", "ok", f"{used}; a job's swap is counted, and is none")
    if areas:
        advice = "A job could use swap beyond its memory limit, so none is run: boot with swapaccount=1, use cgroup version 2, or `swapoff -a`."
        return Check("swap", "fail", f"{used}, not counted by job", advice)
    advice = "Jobs run, and no longer once there is swap: before you add any, boot with swapaccount=1."
    return Check("swap", "warn", "no swap, and none could be counted", advice)


def apparmor(info: Mapping[str, Any]) -> Check:
    """A second wall behind the system call filter, where the host has it."""
    options = " ".join(info.get("SecurityOptions") or [])
    for name in ("apparmor", "selinux"):
        if f"name={name}" in options:
            return Check("apparmor", "ok", f"the engine confines containers with {name}")
    advice = "Jobs are confined by namespaces, capabilities and seccomp alone; a kernel with AppArmor or SELinux adds a wall."
    return Check("apparmor", "warn", "neither AppArmor nor SELinux confines containers", advice)


def user_namespaces(info: Mapping[str, Any], proc: Path = Path("/proc")) -> Check:
    """Level ``namespace`` needs them, for an ordinary user and with the right to mount; level ``container`` refuses them to jobs in any case."""
    limit = _number(proc / "sys/user/max_user_namespaces")
    options = " ".join(info.get("SecurityOptions") or [])
    if not limit:
        lack = "off"
    elif _is_zero(proc / "sys/kernel/unprivileged_userns_clone"):
        lack = "off for ordinary users (kernel.unprivileged_userns_clone is 0)"
    elif "name=userns" in options:
        lack = "the engine remaps users, so that cells could not have ranges of their own"
    elif "name=apparmor" in options:
        lack = "the engine's AppArmor profile lets nobody in a container mount"
    else:
        return Check("user namespaces", "ok", f"up to {limit}; jobs at level `container` cannot make any")
    return Check(
        "user namespaces",
        "warn",
        f"level `namespace` cannot be had: {lack}",
        "Nothing to do: plugins that ask for it run at level `container`, with everything else as it is.",
    )


def runtimes(info: Mapping[str, Any]) -> Check:
    """runc is needed; runsc is what hostile code should get."""
    found = sorted(name for name in info.get("Runtimes") or {} if not name.startswith("io.containerd"))
    if "runc" not in found:
        return Check(
            "runtimes", "fail", f"no runc among {', '.join(found) or 'none'}", "Install runc, and restart the engine."
        )
    if "runsc" not in found:
        known = "installed, but not registered with the engine" if shutil.which("runsc") else "not installed"
        advice = "A container shares this host's kernel: for hostile code install gVisor and register it as a runtime."
        return Check("runtimes", "warn", f"runc; runsc (gVisor) is {known}", advice)
    return Check("runtimes", "ok", "runc and runsc")


def loops() -> Check:
    """Outputs above 64 MB lie on a loop device."""
    problem = disk.problem()
    if problem is None:
        return Check("loop devices", "ok", "outputs above 64 MB can be had, each with a quota of its own")
    return Check(
        "loop devices", "warn", problem, "Plugins that ask for more than 64 MB of output cannot run on this host."
    )


def propagation(mountinfo: Path = Path("/proc/self/mountinfo")) -> Check:
    """Whether mounts of ``/`` are shared. Level ``container`` does not mind; warm sandboxes use a shared folder of our own."""
    for line in kernel_text.lines(mountinfo):
        fields = line.split(" ")
        if fields[4] == "/":
            word = next((field.split(":")[0] for field in fields[6:] if ":" in field), "private")
            return Check("mount propagation", "ok", f"/ is {word}; sandboxes' mounts are private, whatever it is")
    return Check("mount propagation", "warn", "/ is no mount point", "Run outside a chroot.")


def room(home: Path) -> Check:
    """Bytes and inodes of the home's file system, and whether it lies in memory."""
    place = home
    while not place.exists():
        place = place.parent
    facts = os.statvfs(place)
    free, inodes = facts.f_bavail * facts.f_frsize, facts.f_favail
    counted = f", {inodes} inodes" if facts.f_files else ""
    detail = f"{free >> 20} MiB{counted} free for {home}"
    if free < _LOW_DISK or (facts.f_files and inodes < _LOW_INODES):
        return Check("disk", "warn", detail, "Inputs and results need room; free some, or move CLOCHE_HOME.")
    return Check("disk", "ok", detail)


def clock() -> Check:
    """Leases, tokens and the audit trail are dated by the clock: whether it can be right, runs evenly, and is kept in step."""
    now = time.time()
    if now < _RELEASED:
        return Check(
            "clock", "fail", "the clock is in the past", "Set it: leases, tokens and the audit trail are dated by it."
        )
    if time.get_clock_info("monotonic").resolution > 0.001:
        return Check("clock", "warn", "a coarse clock", "Durations are only roughly right on this host.")
    if _unsynchronised():
        return Check(
            "clock",
            "warn",
            "not kept in step by a time service",
            "Run one (chrony, systemd-timesyncd) on every host that shares a database.",
        )
    return Check("clock", "ok", "plausible and kept in step")


def _unsynchronised() -> bool:
    buffer = ctypes.create_string_buffer(256)  # struct timex with modes = 0: only asks
    if ctypes.CDLL(None, use_errno=True).adjtimex(buffer) < 0:
        return True
    # modes (4 bytes, 4 of padding), then offset, freq, maxerror, esterror (8 each), then status
    return bool(int.from_bytes(buffer.raw[40:44], "little", signed=True) & _STA_UNSYNC)


def _is_zero(path: Path) -> bool:
    return path.exists() and _number(path) == 0


def _number(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0
