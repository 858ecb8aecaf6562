"""Who the job is, and whether it can become somebody else."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import act, here, libc, syscall, tried, wait_for, wall

_kept: list[int] = []


def _status() -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)


@wall
def capabilities(_: Job) -> Any:
    return {name: value for name, value in _status().items() if name.startswith("Cap")}


@wall
def no_new_privileges(_: Job) -> Any:
    return {"status": _status().get("NoNewPrivs"), "undo": tried(_prctl, 38, 0)}  # PR_SET_NO_NEW_PRIVS


def _prctl(option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "")


@wall
def seccomp_filter(_: Job) -> Any:
    return {
        "mode": _status()["Seccomp"],
        "off": tried(syscall, here(157, 167), 22, 0),
    }  # prctl(PR_SET_SECCOMP, disabled)


@wall
def user(_: Job) -> Any:
    return {"uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups()}


@wall
def become_root(_: Job) -> Any:
    calls: dict[str, tuple[Any, ...]] = {
        "setuid": (os.setuid, 0),
        "setgid": (os.setgid, 0),
        "setresuid": (os.setresuid, 0, 0, 0),
        "setresgid": (os.setresgid, 0, 0, 0),
        "setgroups": (os.setgroups, [0]),
        "capset": (_prctl, 24, 0),  # PR_CAPBSET_DROP needs a capability too
        "ambient": (lambda: syscall(here(157, 167), 47, 2, 21, 0, 0),),  # PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN
    }
    return {name: tried(*call) for name, call in calls.items()}


@wall
def root_programs(_: Job) -> Any:
    """What su and its like make of us. Where an image has them, no-new-privileges makes their set-uid bit mean nothing."""
    found = {}
    for name, *words in (
        ("su", "-c", "id -u"),
        ("sudo", "-n", "id", "-u"),
        ("pkexec", "id", "-u"),
        ("newgrp", "root"),
        ("mount", "-t", "tmpfs", "x", "/tmp"),
        ("newuidmap", str(os.getpid()), "0", "0", "1"),
        ("ping", "-c", "1", "192.0.2.1"),
    ):
        path = shutil.which(name)
        if path is None:
            found[name] = "absent"
            continue
        done = subprocess.run(
            [path, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=False
        )
        found[name] = "refused" if done.returncode != 0 and done.stdout.strip() != "0" else f"ran: {done.stdout[:40]}"
    return found


@wall
def setuid_bits(job: Job) -> Any:
    """A set-uid copy of the interpreter, made by ourselves: owned by us, on file systems that ignore the bit."""
    found = {}
    for folder in ("/tmp", "/dev/shm", str(job.out)):
        path = Path(folder, "suid")
        path.write_bytes(b"#!/bin/sh\nid -u\n")
        path.chmod(0o6755)
        found[folder] = [bool(os.statvfs(folder).f_flag & os.ST_NOSUID), tried(os.chown, path, 0, 0)]
        path.unlink()
    return found


@wall
def file_capabilities(job: Job) -> Any:
    path = job.out / "capable"
    path.touch()
    value = b"\x01\x00\x00\x02" + b"\xff" * 16
    try:
        return {
            "set": tried(os.setxattr, path, "security.capability", value),
            "trusted": tried(os.setxattr, path, "trusted.x", b"x"),
        }
    finally:
        path.unlink()


@wall
def scheduling(_: Job) -> Any:
    return {
        "nice": tried(os.setpriority, os.PRIO_PROCESS, 0, -20),
        "fifo": tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50)),
        "ioprio": tried(syscall, here(251, 30), 1, 0, 1 << 13),
    }


@act
def take_ranks(job: Job) -> Any:
    """Everything at once that a kernel of the sandbox's own may grant: priority, spared memory, a terminal; held while the host looks."""
    wait_for("go", "before")
    found = {
        **scheduling(job),
        "score": tried(lambda: Path("/proc/self/oom_score_adj").write_text("-1000")),
        "terminal": tried(lambda: _kept.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))),
    }
    wait_for("end", "taken")
    return found


@wall
def raise_limits(_: Job) -> Any:
    found = {}
    for name in ("NOFILE", "CORE", "FSIZE"):
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        try:
            resource.setrlimit(number, (hard + 1, hard + 1))
            found[name] = "DONE"
        except (OSError, ValueError, OverflowError) as error:
            found[name] = str(error)
    return {"raised": found, "core": resource.getrlimit(resource.RLIMIT_CORE)}


@wall
def spare_from_oom(_: Job) -> Any:
    return {
        str(score): tried(lambda s=score: Path("/proc/self/oom_score_adj").write_text(str(s)))
        for score in (-1, -500, -1000)
    }


@wall
def environment(_: Job) -> Any:
    """The agent's as Python has it and as the kernel keeps it, and process 1's."""
    return {"own": sorted(os.environ), "kept": _names("self"), "first": _names("1")}


def _names(process: str) -> list[str] | str:
    """The names in its environment, or the error of who wants to read them."""
    try:
        text = Path(f"/proc/{process}/environ").read_text("utf-8", "replace")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return sorted(item.split("=")[0] for item in text.split("\0") if item)


@wall
def hostname(_: Job) -> Any:
    return {
        "name": os.uname().nodename,
        "set": tried(syscall, here(170, 161), b"x", 1),
        "domain": tried(syscall, here(171, 162), b"x", 1),
    }
