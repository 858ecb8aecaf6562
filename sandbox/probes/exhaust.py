"""Too much of everything. Each act has a sandbox of its own, and says what stopped it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import act, here, libc, say, syscall, tried, wait

MIB = 1 << 20


def _until_refused(step: Any, most: int) -> dict[str, Any]:
    """Do it again and again: how often it went well, and the error that ended it."""
    for number in range(most):
        try:
            step(number)
        except OSError as error:
            return {"made": number, "error": errno.errorcode.get(error.errno or 0, str(error))}
        except RuntimeError as error:  # threading: can't start new thread
            return {"made": number, "error": str(error)}
    return {"made": most, "error": None}


@act
def fill_disk(job: Job) -> Any:
    """Many files, so that the size of one file is not what stops it."""
    return _until_refused(lambda n: (Path(job.payload["folder"]) / f"f{n}").write_bytes(b"x" * 65_536), 4_096)


@act
def fill_inodes(job: Job) -> Any:
    return _until_refused(lambda n: (Path(job.payload["folder"]) / f"f{n}").touch(), 200_000)


@act
def sparse(job: Job) -> Any:
    """1 TB that takes no room, by length, by seeking and by allocation."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fd = os.open(job.out / "sparse", os.O_RDWR | os.O_CREAT)
    return {
        "truncate": tried(os.ftruncate, fd, 1 << 40),
        "seek": tried(os.pwrite, fd, b"x", 1 << 40),
        "allocate": tried(os.posix_fallocate, fd, 0, 1 << 40),
    }


@act
def memory(_: Job) -> Any:
    kept = []
    while True:
        kept.append(bytearray(MIB))


@act
def memory_of_a_child(_: Job) -> Any:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", "kept = [bytearray(1 << 20) for _ in range(8192)]"], check=False
    ).returncode


@act
def memory_by_memfd(_: Job) -> Any:
    """Memory that is a file nobody sees: counted like any other."""
    while True:
        os.write(os.memfd_create("hidden"), b"x" * MIB)


@act
def memory_by_sysv(_: Job) -> Any:
    libc.shmat.restype = ctypes.c_void_p
    while True:
        number = libc.shmget(0, 16 * MIB, 0o1600)
        if number == -1:
            return {"error": errno.errorcode.get(ctypes.get_errno())}
        address = libc.shmat(number, None, 0)
        ctypes.memset(address, 1, 16 * MIB)


@act
def memory_of_first(job: Job) -> Any:
    """Become a small program, the least of all victims, and fill memory that belongs to no process: process 1 is the largest one left."""
    Path("/proc/self/oom_score_adj").write_text("0")
    for _number in range(job.payload["megabytes"]):
        fd = os.memfd_create("kept", 0)  # stays open over the exec
        os.write(fd, b"x" * MIB)
    os.execv("/bin/sh", ["/bin/sh", "-c", "v=xxxxxxxx; while :; do v=$v$v; done"])


@act
def memory_locked(_: Job) -> Any:
    """Locked memory, which cannot be swapped."""
    area = mmap.mmap(-1, 512 * MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return {"lock": tried(syscall, here(149, 228), address, 512 * MIB)}


@act
def fork_bomb(_: Job) -> Any:
    def fork(_number: int) -> None:
        if os.fork() == 0:
            wait()

    return _until_refused(fork, 10_000)


@act
def fork_bomb_for_ever(_: Job) -> Any:
    """Every child forks too, and none gives up."""
    say("forking")
    while True:
        try:
            os.fork()
        except OSError:
            continue


@act
def thread_bomb(_: Job) -> Any:
    threading.stack_size(65_536)
    return _until_refused(lambda _n: threading.Thread(target=wait, daemon=True).start(), 10_000)


@act
def queues(_: Job) -> Any:
    """POSIX message queues live in kernel memory."""
    attributes = (ctypes.c_long * 8)(0, 10, 8192)
    name = "mq_open"

    def make(number: int) -> None:
        fd = int(getattr(libc, name)(f"/q{number}".encode(), os.O_RDWR | os.O_CREAT, 0o600, attributes))
        if fd == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    return _until_refused(make, 20_000)


@act
def open_files(job: Job) -> Any:
    """As many descriptors as there are to be had; the answer leaves some free again."""
    opened: list[int] = []
    found = _until_refused(lambda _n: opened.append(os.open(job.inputs[0], os.O_RDONLY)), 1_000_000)
    for fd in opened[-50:]:
        os.close(fd)
    return found


@act
def hoard(job: Job) -> Any:
    """Take all of what the kernel counts by user: descriptors on their way, pending signals, pipes; then hold it while a neighbour works."""
    opened: list[int] = []
    _bind(job.payload["name"])  # names first: where queues are bound by descriptors alone, none would be left for them
    _kept.append(socket.create_server(("127.0.0.1", job.payload["port"])))
    made = _until_refused(_on_its_way, 4_000)
    if made["error"] == "EMFILE":  # a kernel that does not count them by user gives as many as there are descriptors
        for pair in _kept[-80:]:
            for stream in pair:
                stream.close()
        del _kept[-80:]
    for number in range(64):
        for fd in os.pipe():
            opened.append(fd)
            if number:
                tried(syscall, here(72, 25), fd, 1031, MIB)  # fcntl(F_SETPIPE_SZ)
    queued = _until_refused(_queue_signal(), 200_000)
    queues = _until_refused(_message_queue, 1_000)
    say(f"made {made['made']} {made['error']} {queued['made']} {queues['made']}")
    say("hoarded")
    wait()


@act
def live_beside(job: Job) -> Any:
    """What a neighbour of that one still gets."""
    opened: list[Any] = []

    def take(call: Any, *args: Any) -> str:
        return tried(lambda: opened.extend(call(*args) for _ in range(20)))

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0" + job.payload["name"])

    return {
        "on their way": tried(lambda: [_on_its_way(number) for number in range(4)]),
        "files": take(os.open, job.inputs[0], os.O_RDONLY),
        "pipes": take(os.pipe),
        "signals": tried(_queue_signal(), 0),
        "queues": tried(_message_queue, 0),
        "locked": tried(_lock_a_page),
        "processes": tried(lambda: subprocess.run(["/bin/sh", "-c", "exit"], check=True)),
        "reach": tried(connect),
        "loopback": tried(lambda: socket.create_connection(("127.0.0.1", job.payload["port"]), timeout=3).close()),
        "bind": tried(_bind, job.payload["name"]),
        "uid": os.getuid(),
        "inputs": sorted(os.listdir("/job/in")),
    }


_kept: list[Any] = []


def _queue_signal() -> Any:
    """A call that queues one more signal for this thread, which never takes it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    information = b"\0" * 8 + b"\xff\xff\xff\xff" + b"\0" * 116  # si_code SI_QUEUE
    return lambda _n: syscall(here(297, 240), os.getpid(), threading.get_native_id(), signal.SIGRTMIN, information)


def _message_queue(number: int) -> None:
    ctypes.set_errno(0)
    fd = int(libc.mq_open(f"/hoarded{number}".encode(), os.O_RDWR | os.O_CREAT, 0o600, None))
    if fd == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    _kept.append(fd)


def _lock_a_page() -> None:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    _kept.append(page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    syscall(here(149, 228), address, mmap.PAGESIZE)  # mlock


def _bind(name: str) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0" + name)
    server.listen()
    _kept.append(server)


def _on_its_way(_number: int) -> None:
    """Send a hundred descriptors to nobody."""
    near, far = socket.socketpair()
    _kept.append((near, far))
    socket.send_fds(near, [b"x"], [0] * 100)


@act
def flood_log(_: Job) -> Any:
    """Both streams, lines and no lines, as fast as it goes."""
    for number in range(2_000):
        os.write(1, b"flood %d " % number + b"x" * 1_000 + b"\n")
        os.write(2, b"\xff\x1b[2J" * 200)
    return "done"


@act
def long_line(_: Job) -> Any:
    """100 MB without a newline."""
    block = b"x" * MIB
    for _number in range(100):
        left = memoryview(block)
        while left:
            left = left[os.write(1, left) :]
    return "done"


@act
def flood_progress(job: Job) -> Any:
    for number in range(200_000):
        job.progress(number + 1, 200_000, "x" * 100)
    return "done"
