"""Looks for the host's files, processes and devices. When there is nothing to be had it raises, saying so; finds are ``leaked``.

So a job of this type that *completes* is an alarm.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
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
KERNEL_FILES = ("/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda")
KERNEL_SWITCHES = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper")
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY", "CLOCHE_", "DOCKER_", "AWS_")


@hookimpl
def run(job: Job) -> dict[str, Any]:
    attempts: list[tuple[str, Callable[[], str]]] = []
    attempts += [(f"read {name}", partial(read, name)) for name in HOST_FILES + KERNEL_FILES]
    attempts += [(f"list {name}", partial(listed, name)) for name in HOST_FOLDERS]
    attempts += [(f"open {name}", partial(connect, name)) for name in ENGINE_SOCKETS]
    attempts += [(f"write {name}", partial(write, name)) for name in KERNEL_SWITCHES]
    attempts += [(f"list the host's {name}", partial(listed, name)) for name in host_paths()]
    attempts += [
        ("read the environment of process 1", first_environment),
        ("see processes of others", foreign_processes),
        ("leave through /proc/1/root", partial(listed, "/proc/1/root/root")),
        ("write to the root file system", partial(write, "/probe")),
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
        found = os.read(descriptor, 64)
    finally:
        os.close(descriptor)
    if not found:  # masked files read as empty
        raise NothingFound("it is empty")
    return f"{len(found)} bytes were read"


def write(name: str) -> str:
    """Open for writing; nothing is written."""
    os.close(os.open(name, os.O_WRONLY | (os.O_CREAT if name == "/probe" else 0), 0o600))
    return "could be opened for writing"


def listed(name: str) -> str:
    names = os.listdir(name)
    if not names:
        raise NothingFound("it is empty")
    return f"{len(names)} entries: {', '.join(sorted(names)[:5])}"


def connect(name: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.0)
        connection.connect(name)
    return "it answers"


def host_paths() -> list[str]:
    """Where on the host our own mounts come from: those names can be seen, but nothing that lies there may be reached by them."""
    found: set[str] = set()
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        root, place = line.split()[3:5]
        if place.startswith(("/job", "/cloche", "/run/cloche", "/etc")):
            found.update(str(path) for path in (Path(root), *Path(root).parents[:2]) if len(path.parts) > 2)
    return sorted(found)


def first_environment() -> str:
    if is_own("1"):
        raise NothingFound("process 1 is the sandbox's own")
    return read("/proc/1/environ")


def foreign_processes() -> str:
    others = [name for name in os.listdir("/proc") if name.isdigit() and not is_own(name)]
    if not others:
        raise NothingFound("there are only the sandbox's own")
    return f"pids {', '.join(others[:5])}"


def is_own(pid: str) -> bool:
    """Whether a process is the sandbox's agent: it was forked from the same command as we were."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True  # gone meanwhile


def environment() -> str:
    found = [name for name in os.environ if any(word in name.upper() for word in SECRET_WORDS)]
    if not found:
        raise NothingFound("none is set")
    return ", ".join(sorted(found))


class NothingFound(OSError):
    """It could be looked at, and nothing was there."""
