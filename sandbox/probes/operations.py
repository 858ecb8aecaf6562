"""Calls with many operations, and what no limit of a container counts. Each is tried once or a few times: some would hurt a kernel in number."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from cloche_guest import Job

from .base import act, here, libc, say, syscall, tried, wait, wall

_ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
_buffer = ctypes.create_string_buffer(_ALLOW_ALL, len(_ALLOW_ALL))
_PROGRAM = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(_buffer))  # struct sock_fprog
_kept: list[Any] = []


def _libc(name: str, *args: Any) -> None:
    if getattr(libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@wall
def own_filters(_: Job) -> Any:
    """One filter by each way there is; never more."""
    option = socket.SOL_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one, socket.socket() as two:
        return {
            "seccomp": tried(syscall, here(317, 277), 1, 0, _PROGRAM),
            "seccomp, listening": tried(syscall, here(317, 277), 1, 8, _PROGRAM),
            "prctl": tried(syscall, here(157, 167), 22, 2, _PROGRAM),
            "prctl, strict": tried(syscall, here(157, 167), 22, 1, 0),
            **{
                name: tried(one.setsockopt, option, value, _PROGRAM)
                for name, value in (("attach", 26), ("attach bpf", 50), ("lock", 44))
            },
            **{
                name: tried(two.setsockopt, option, value, _PROGRAM)
                for name, value in (("reuseport", 51), ("ebpf", 52))
            },
        }


@wall
def socket_options(_: Job) -> Any:
    """Options that load modules, skip copying, or forge."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        return {
            "upper protocol": tried(tcp.setsockopt, 6, 31, b"tls"),
            "congestion": tried(tcp.setsockopt, 6, 13, b"reno"),
            "md5": tried(tcp.setsockopt, 6, 14, b"\0" * 216),
            "repair": tried(tcp.setsockopt, 6, 19, 1),
            "zero copy": tried(tcp.setsockopt, 1, 60, 1),
            "bind to device": tried(udp.setsockopt, 1, 25, b"lo"),
            "multicast": tried(udp.setsockopt, 0, 35, b"\0" * 8),
            "tables": tried(udp.setsockopt, 0, 64, b"\0" * 96),
            "encapsulation": tried(udp.setsockopt, 17, 100, 2),
        }


@wall
def odd_operations(job: Job) -> Any:
    """Operations of prctl, fcntl and ioctl that no plugin needs."""
    path = job.out / "operations"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    numbers = {"terminal type": 0x5412, "terminal set": 0x5402, "flags": 0x40086602, "clone": 0x40049409, "freeze": 0xC0045877,
               "encrypt": 0x800C6613, "defragment": 0xC028660F, "resize": 0x40086610, "bridge": 0x89A0, "tunnel": 0x400454CA,
               "block size": 0x1260}  # fmt: skip
    prctl = {"speculation": 53, "memory map": 35, "names of memory": 0x53564D41, "tracer": 0x59616D61, "core scheduling": 62, "time stamps": 26,
             "dispatch": 59, "ambient": 47}  # fmt: skip
    try:
        return {
            **{f"ioctl {name}": tried(_libc, "ioctl", fd, ctypes.c_ulong(n), 0) for name, n in numbers.items()},
            **{f"prctl {name}": tried(_libc, "prctl", n, 0, 0, 0, 0) for name, n in prctl.items()},
            "lease": tried(fcntl.fcntl, fd, 1024, 0),
            "watch": tried(fcntl.fcntl, fd, 1026, 0),
            "write hint": tried(fcntl.fcntl, fd, 1036, b"\0" * 8),
        }
    finally:
        os.close(fd)
        path.unlink()


@wall
def foreign_locks(job: Job) -> Any:
    """Record locks that name no process, or that outlive the process they name."""
    path = job.out / "locked"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    lock = struct.pack("hhqqixxxx", fcntl.F_WRLCK, 0, 0, 1, 0)
    try:
        return {
            "of an open file": tried(fcntl.fcntl, fd, 37, lock),
            "of an open file, waiting": tried(fcntl.fcntl, fd, 38, lock),
            "table of descriptors shared": tried(_clone, 0x400),
            "thread with a table of its own": tried(_clone, 0x10900),
        }
    finally:
        os.close(fd)
        path.unlink()


def _clone(flags: int) -> None:
    if syscall(here(56, 220), flags | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


@wall
def asynchronous_io(_: Job) -> Any:
    """Contexts come out of one number for the whole host (fs.aio-max-nr)."""
    place = ctypes.create_string_buffer(8)
    return {
        "setup": tried(syscall, here(206, 0), 1, ctypes.addressof(place)),
        "submit": tried(syscall, here(209, 2), 0, 0, 0),
    }


@wall
def watches(job: Job) -> Any:
    """A watch on the plugin's files, which jobs of one version share: it would tell when a neighbour opens them."""
    return {
        "make": tried(_libc, "inotify_init1", 0),
        "add": tried(_libc, "inotify_add_watch", 0, b"/cloche/plugin", 0xFFF),
    }


@wall
def pseudo_terminals(_: Job) -> Any:
    """The host has a fixed number, and typing into one is older than most filters."""
    return {
        path: tried(lambda p=path: os.close(os.open(p, os.O_RDWR | os.O_NOCTTY)))
        for path in ("/dev/ptmx", "/dev/pts/ptmx")
    }


@wall
def huge_pages(_: Job) -> Any:
    """The host's pool, which no limit of a container counts."""
    return {
        "map": tried(lambda: mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000).close()),
        "file": tried(syscall, here(319, 279), b"x", 4),
        "segment": tried(syscall, here(29, 194), 0, 2 << 20, 0o1000 | 0o4000 | 0o600),
    }


@wall
def sync_host(job: Job) -> Any:
    """Write the whole file system out that the inputs lie on, which is the host's."""
    fd = os.open(job.inputs[0], os.O_RDONLY)
    try:
        return {"syncfs": tried(syscall, here(306, 267), fd), "sync": tried(syscall, here(162, 81))}
    finally:
        os.close(fd)


@wall
def core_handler(_: Job) -> Any:
    """A core limit of 0 starts a handler that the host pipes cores to, as root; only a limit of one byte does not."""
    limits = {f"{soft}, {hard}": tried(_set_core, soft, hard) for soft, hard in ((0, 0), (0, 1), (1, 1), (-1, -1))}
    return {"now": list(resource.getrlimit(resource.RLIMIT_CORE)), **limits}


def _set_core(soft: int, hard: int) -> None:
    pair = struct.pack("qq", soft, hard)
    syscall(here(302, 261), 0, resource.RLIMIT_CORE, pair, 0)


@wall
def priorities(_: Job) -> Any:
    """Deadlines and other classes of the scheduler, which would come before every neighbour."""
    deadline = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8)
    fifo = struct.pack("IIQiIQQQ", 48, 1, 0, 0, 50, 0, 0, 0)
    return {
        name: tried(syscall, here(314, 274), 0, value, 0) for name, value in (("deadline", deadline), ("fifo", fifo))
    }


@act
def signals_by_files(_: Job) -> Any:
    """Have the kernel itself send process 1 a signal, for a file that is ready: the sender is then nobody of this sandbox."""
    found = {}
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGIO):
        reader, writer = os.pipe()
        found[number.name] = tried(_arm, reader, number)
        os.write(writer, b"x")
    return found


def _arm(fd: int, number: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETOWN, 1)
    fcntl.fcntl(fd, fcntl.F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)


@act
def odd_streams(_: Job) -> Any:
    """Make what is shared with process 1 non-blocking and asynchronous, eat what is in it, then die."""
    for fd in range(3, 16):
        for flags in (os.O_NONBLOCK, os.O_NONBLOCK | os.O_ASYNC):
            tried(fcntl.fcntl, fd, fcntl.F_SETFL, flags)
        tried(os.read, fd, 1 << 16)
    os.kill(os.getpid(), signal.SIGKILL)


@act
def record_locks(job: Job) -> Any:
    """Locks on single bytes, many files with few each: the kernel counts them to nobody. A little more than the limit, then hold them."""
    made = 0
    for number in range(job.payload["files"]):
        fd = os.open(f"/tmp/locks{number}", os.O_RDWR | os.O_CREAT)
        _kept.append(fd)
        for place in range(job.payload["each"]):
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX, 1, 2 * place)
            except OSError as error:
                return {"made": made, "error": errno.errorcode.get(error.errno or 0)}
            made += 1
    if not job.payload.get("end"):
        say(f"locked {made}")
        wait()
    return {"made": made, "error": None}


@act
def socket_memory(job: Job) -> Any:
    """Fill the buffers of connections over the sandbox's own loopback."""
    sent = 0
    server = socket.create_server(("127.0.0.1", 0))
    for _ in range(job.payload["connections"]):
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        near.setblocking(False)
        _kept.append((near, far))
        sent += _fill(near.send)
    say(f"sent {sent}")
    say("filled")
    wait()


def _fill(send: Callable[[bytes], int]) -> int:
    sent = 0
    try:
        while True:
            sent += send(b"x" * 65_536)
    except OSError:
        return sent
