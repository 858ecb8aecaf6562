"""Looks for the host's files, processes and devices. When there is nothing to be had it raises, saying so; finds are ``leaked``.

So a job of this type that *completes* is an alarm.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloche_guest import Job, hookimpl

HOST_FILES = ("/etc/shadow", "/etc/sudoers", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/var/log/syslog")
HOST_FOLDERS = (
    "/root",
    "/home",
    "/host",
    "/mnt",
    "/srv",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/run/containerd",
    "/sys/fs/cgroup/memory/docker",
)
ENGINE_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
KERNEL_FILES = ("/proc/kcore", "/proc/kmsg", "/proc/1/mem", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda")
KERNEL_SWITCHES = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper")
OWN_PROGRAMS = ("cloche_guest", "cloche-guest", "python")


@hookimpl
def run(job: Job) -> dict[str, Any]:
    attempts: list[tuple[str, Callable[[], str]]] = []
    attempts += [(f"read {name}", lambda name=name: read(name)) for name in HOST_FILES + KERNEL_FILES]
    attempts += [(f"list {name}", lambda name=name: listed(name)) for name in HOST_FOLDERS]
    attempts += [(f"open {name}", lambda name=name: connect(name)) for name in ENGINE_SOCKETS]
    attempts += [(f"write {name}", lambda name=name: write(name)) for name in KERNEL_SWITCHES]
    attempts += [(f"list the host's {name}", lambda name=name: listed(name)) for name in host_paths()]
    attempts += [
        ("read the environment of process 1", first_environment),
        ("see processes of others", foreign_processes),
        ("leave through /proc/1/root", lambda: listed("/proc/1/root/root")),
        ("write to the root file system", lambda: write("/probe")),
        ("find keys or passwords in the environment", environment),
    ]
    refused, leaked = [], []
    for number, (name, attempt) in enumerate(attempts, start=1):
        try:
            leaked.append(f"{name}: {attempt()}"[:300])
        except OSError as error:
            refused.append(f"{name}: {error.strerror or error}")
            print(f"refused: {refused[-1]}")
        job.progress(number, len(attempts), name)
    if leaked:
        return {"leaked": leaked, "refused": refused}
    raise PermissionError(
        f"nothing of the host: all {len(refused)} attempts were refused ({'; '.join(refused[:3])}; …)"
    )


def read(name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return f"{len(os.read(descriptor, 64))} bytes were read"
    finally:
        os.close(descriptor)


def write(name: str) -> str:
    """Open for writing; nothing is written."""
    os.close(os.open(name, os.O_WRONLY | (os.O_CREAT if name == "/probe" else 0), 0o600))
    return "could be opened for writing"


def listed(name: str) -> str:
    names = os.listdir(name)
    if not names:
        raise FileNotFoundError(f"{name} is empty")
    return f"{len(names)} entries: {', '.join(sorted(names)[:5])}"


def connect(name: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.0)
        connection.connect(name)
    return "it answers"


def host_paths() -> list[str]:
    """Where on the host our own mounts come from: their names are visible, and what lies beside them must not be."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        fields = line.split()
        root, place = Path(fields[3]), fields[4]
        if place.startswith(("/job", "/cloche", "/run/cloche", "/etc")) and len(root.parts) > 2:
            found.update(str(parent) for parent in (root, *root.parents) if len(parent.parts) > 2)
    return sorted(found)


def first_environment() -> str:
    """Process 1 is the sandbox's own; anything else there would be the host's."""
    if is_own(1):
        raise PermissionError("process 1 is the sandbox's own")
    return read("/proc/1/environ")


def foreign_processes() -> str:
    others = [name for name in os.listdir("/proc") if name.isdigit() and not is_own(int(name))]
    if not others:
        raise ProcessLookupError("there are only the sandbox's own")
    return f"pids {', '.join(others[:5])}"


def is_own(pid: int) -> bool:
    """Whether a process runs the sandbox's agent, as far as one may look."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except FileNotFoundError:
        return True  # gone meanwhile
    return any(program in command for program in OWN_PROGRAMS)


def environment() -> str:
    words = ("TOKEN", "SECRET", "PASSWORD", "KEY", "CREDENTIAL", "CLOCHE_", "DOCKER_", "AWS_")
    found = [name for name in os.environ if any(word in name.upper() for word in words)]
    if not found:
        raise KeyLookupError
    return ", ".join(sorted(found))


class KeyLookupError(OSError):
    """Nothing of the kind is set."""

    def __str__(self) -> str:
        return "none is set"
