"""What only level ``namespace`` has: a runner and an agent of ours beside the job, slots that live longer than jobs, neighbours in one container."""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import mmap
import os
import signal
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import act, here, libc, say, syscall, tried, wait, wait_for, wall

_NS = {"mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
_MARK = "of-a-neighbour"
_SO_PEERPIDFD = 77
_SEGMENT = 1 << 20
_SIOCSIFADDR = 0x8916
_kept: list[Any] = []


def _checked(answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _unshare(flags: int) -> None:
    ctypes.set_errno(0)
    _checked(libc.unshare(flags))


@wall
def cell_unshare(_: Job) -> Any:
    """The very calls that the filter lets pass, because our runner makes cells with them."""
    cell = _NS["mnt"] | _NS["ipc"] | _NS["uts"]
    tries = {"cell": cell, "slot": cell | _NS["net"], "pid": _NS["pid"], "user": _NS["user"]}
    return {name: tried(_unshare, flags) for name, flags in tries.items()}


@wall
def cell_mounts(job: Job) -> Any:
    """The same for mounts: every kind that a cell is made with, and taking off what covers a folder."""

    def mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
        ctypes.set_errno(0)
        _checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), None))

    def umount(target: bytes) -> None:
        ctypes.set_errno(0)
        _checked(libc.umount2(target, 2))

    out = str(job.out).encode()
    return {
        "tmpfs": tried(mount, b"x", b"/tmp", b"tmpfs", 2 | 4 | 8),
        "proc": tried(mount, b"x", b"/proc", b"proc", 2 | 4 | 8),
        "cgroup": tried(mount, b"x", b"/tmp", b"cgroup", 2 | 4 | 8),
        "cgroup2": tried(mount, b"x", b"/tmp", b"cgroup2", 2 | 4 | 8),
        "bind": tried(mount, b"/usr", out, None, 4096),
        "deep bind": tried(mount, b"/", out, None, 4096 | 16384),
        "private": tried(mount, b"x", b"/", None, (1 << 18) | 16384),
        "read-only": tried(mount, b"x", b"/", None, 1 | 2 | 4 | 8 | 32 | 4096),
        **{
            f"umount {place.decode()}": tried(umount, place)
            for place in (b"/proc", b"/tmp", b"/dev/shm", b"/job/in", out)
        },
        "root": tried(syscall, here(155, 41), b".", b"."),
        "own pid namespace": tried(_enter_own),
    }


def _enter_own() -> None:
    fd = os.open("/proc/self/ns/pid", os.O_RDONLY)
    try:
        ctypes.set_errno(0)
        _checked(libc.setns(fd, _NS["pid"]))
    finally:
        os.close(fd)


@wall
def cell_filters(_: Job) -> Any:
    """One more filter, and one on a socket; tried with an empty program, so that none is ever made."""
    pair = socket.socketpair()
    program = b"\0" * 16
    return {
        "prctl": tried(syscall, here(157, 167), 22, 2, program),
        "strict": tried(syscall, here(157, 167), 22, 1),
        "seccomp": tried(syscall, here(317, 277), 1, 0, program),
        **{str(option): tried(pair[0].setsockopt, socket.SOL_SOCKET, option, program) for option in (26, 50, 51, 52)},
    }


@wall
def cell_surroundings(_: Job) -> Any:
    """Our own processes from in here: their numbers, signals to everybody, what is open, what is mounted under which name."""
    folders = [f"/proc/{name}/task" for name in os.listdir("/proc") if name.isdigit()]
    numbers = {int(name) for folder in folders for name in os.listdir(folder)}  # of the job's own threads
    seen = [number for number in range(1, 3_000) if os.path.exists(f"/proc/{number}/stat")]
    signals = {str(number): tried(os.kill, number, 0) for number in range(1, 400) if number not in numbers}
    sockets = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            facts = os.fstat(int(name))
        except OSError:
            continue
        if stat.S_ISSOCK(facts.st_mode):
            sockets.add(facts.st_ino)
    mappings = [line.split() for line in Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()]
    return {
        "seen": [number for number in seen if number not in numbers],
        "users": sorted({os.stat(f"/proc/{number}").st_uid for number in numbers if os.path.exists(f"/proc/{number}")}),
        "uid": os.getuid(),
        "signals": sorted(set(signals.values())),
        "proc": sorted(name for name in os.listdir("/proc") if not name.isdigit()),
        "cloche": sorted(str(path) for path in Path("/cloche").iterdir()),
        "slot": sorted(os.listdir("/cloche/slot")),
        "control": os.listdir("/run/cloche"),
        "sockets": len(sockets),
        "shared memory": [" ".join(rights) for _, *rights in mappings if set("ws") <= set(rights[0])],
    }


@wall
def cell_channel(_: Job) -> Any:
    """The channel is a socket: who is behind it, and can it be made to take connections?"""
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                break
        except OSError:
            continue
    channel = socket.socket(fileno=os.dup(number))
    peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return {
        "peer": [int.from_bytes(peer[at : at + 4], "little") for at in (0, 4, 8)],
        "name": [repr(channel.getsockname()), repr(channel.getpeername())],
        "listen": tried(channel.listen),
        "descriptor": tried(channel.getsockopt, socket.SOL_SOCKET, _SO_PEERPIDFD, 4),
    }


@wall
def cell_maps(_: Job) -> Any:
    """The maps of the user namespace, which is the whole container's: what a cell could write, cells of later jobs could read."""

    def write(name: str, text: str) -> None:
        Path("/proc/self", name).write_text(text)

    maps = {name: tried(write, name, "0 0 1\n") for name in ("uid_map", "gid_map", "projid_map")}
    return {**maps, "setgroups": tried(write, "setgroups", "allow")}


@act
def mark(job: Job) -> Any:
    """Names and contents in every place of one's own that another cell might see; then wait."""
    for folder in ("/tmp", "/dev/shm", str(job.out)):
        Path(folder, _MARK).write_text(_MARK)
    _kept.append(socket.create_server(("127.0.0.1", 47_112)))
    say("marked")
    wait()


@act
def look_for_marks(job: Job) -> Any:
    """The same places, every other folder, every process."""
    found = []
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if folder != "/" or name not in ("usr", "lib", "lib64", "opt")]
        found += [os.path.join(folder, name) for name in (*names, *files) if name == _MARK]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "found": found,
        "tmpfs": sorted(
            line.split(" ")[4] for line in mounts if " - tmpfs " in line and not line.split(" ")[4].startswith("/dev/")
        ),
        "slots": [line.split(" ")[4] for line in mounts if line.split(" ")[4].startswith(("/cloche/slot", "/sys"))],
        "port": tried(lambda: socket.create_connection(("127.0.0.1", 47_112), timeout=3).close()),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "inputs": sorted(os.listdir("/job/in")),
    }


@act
def take_port(_: Job) -> Any:
    """A port used to its full by a job of before can be used by the next: listen, connect, and leave both halves open."""
    server = socket.create_server(("127.0.0.1", 47_113))
    client = socket.create_connection(("127.0.0.1", 47_113))
    accepted, _ = server.accept()
    _kept.extend((server, client, accepted))
    return "taken"


@act
def use_network(_: Job) -> Any:
    """Everything that a slot's network takes, once the host has seen it before; left open. And tries to leave an address and settings."""
    wait_for("go", "here")
    done = {}
    for family, host, name in ((socket.AF_INET, "127.0.0.1", "4"), (socket.AF_INET6, "::1", "6")):
        done[f"tcp{name}"] = tried(_talk, family, host)
        done[f"udp{name}"] = tried(_send, family, host)
    done["unix"] = tried(_name)
    request = struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton("192.0.2.9"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        done["address"] = tried(fcntl.ioctl, asking, _SIOCSIFADDR, request)
    for name in ("ipv4/tcp_max_tw_buckets", "ipv4/ip_forward", "core/somaxconn"):
        done[name] = tried(Path("/proc/sys/net", name).write_text, "1")
    wait_for("end", "in use")
    return done


def _talk(family: int, host: str) -> None:
    server = socket.create_server((host, 47_114), family=family)
    client = socket.create_connection((host, 47_114))
    accepted, _ = server.accept()
    client.sendall(b"unread")
    _kept.extend((server, client, accepted))


def _send(family: int, host: str) -> None:
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    receiver.bind((host, 47_115))
    receiver.sendto(b"unread", (host, 47_115))
    _kept.append(receiver)


def _name() -> None:
    for name in ("\0cloche-left", "/tmp/left.sock"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(name)
        server.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(name)  # and is never accepted
        _kept.extend((server, client))


@act
def compute(job: Job) -> Any:
    """So many seconds of CPU time, in one process, from when the host says so."""
    wait_for("go", "here")
    end = time.process_time() + job.payload["seconds"]
    while time.process_time() < end:
        pass
    return "computed"


@act
def beforehand(_: Job) -> Any:
    """What a package found out while the slot's preloader imported it; see ``beforehand.py``."""
    return importlib.import_module("beforehand").found


@act
def leave_memory(job: Job) -> Any:
    """Memory that the kernel frees only some time after the death of the last process: System V segments."""
    libc.shmat.restype = ctypes.c_void_p
    for _ in range(job.payload["megabytes"]):
        segment = syscall(here(29, 194), 0, _SEGMENT, 0o1600)
        ctypes.memset(libc.shmat(segment, None, 0), 1, _SEGMENT)
    return "left"


@act
def use_memory(job: Job) -> Any:
    """So much of one's own, at once."""
    area = mmap.mmap(-1, job.payload["megabytes"] << 20)
    for page in range(0, len(area), mmap.PAGESIZE):
        area[page] = 1
    return len(area) >> 20


@act
def smaller_than_the_runner(_: Job) -> Any:
    """Memory in files that no process maps, filled by a program smaller than all of ours. The channel stays open, so the end is waited for."""
    for number in range(3, 64):
        try:
            os.set_inheritable(number, True)
        except OSError:
            continue
    Path("/proc/self/oom_score_adj").write_text("0")
    files = [os.memfd_create("kept", 0) for _ in range(60)]
    for file in files:
        os.write(file, b"x" * (300 << 10))
    double = "v=xxxxxxxxxxxxxxxx; for i in 1 2 3 4 5 6 7 8; do v=$v$v; done; "
    fill = f"for f in {' '.join(map(str, files))}; do while echo $v >>/proc/self/fd/$f; do :; done; done; exit 9"
    os.execv("/bin/sh", ["/bin/sh", "-c", double + fill])


@act
def outlive(_: Job) -> Any:
    """Processes that hold the channel and everything else open, in sessions of their own, and answer to nothing; the job itself ends."""
    for _number in range(3):
        if os.fork() == 0:
            os.setsid()
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    continue
            wait()
    os._exit(7)
