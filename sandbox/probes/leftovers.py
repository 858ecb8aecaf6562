"""What one job leaves for the next one, and what the next one finds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import act, libc, tried, wait

PLACES = ("/tmp", "/dev/shm", "/job/out", "/job/in", "/dev/mqueue", "/run/cloche")
_kept: list[Any] = []


@act
def leave(job: Job) -> Any:
    """A trace in every place there is."""
    left = {}
    for place in PLACES:
        left[place] = tried(lambda p=place: Path(p, "left").write_text("of the job before"))
    made = {"queue": tried(_queue, os.O_RDWR | os.O_CREAT), "segment": tried(_segment, 0o1600)}
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0cloche-left")
    server.listen()
    _kept.append(server)
    os.environ["LEFT"] = "of the job before"
    if os.fork() == 0:
        os.setsid()
        wait()
    return {"left": left, **made, "uid": os.getuid(), "pid": os.getpid()}


def _queue(flags: int) -> None:
    """A POSIX message queue: it belongs to the ipc namespace, also where no file system shows it."""
    _checked(libc.mq_open(b"/left", flags, 0o600, None))


def _segment(flags: int) -> None:
    _checked(libc.shmget(0xC10C, 4096, flags))


def _checked(answer: int) -> None:
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@act
def find(_: Job) -> Any:
    found: dict[str, Any] = {}
    for place in PLACES:
        with contextlib.suppress(OSError):
            found[place] = os.listdir(place)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0cloche-left")

    return {
        "places": found,
        "shm": tried(_segment, 0),
        "queue": tried(_queue, os.O_RDONLY),
        "socket": tried(connect),
        "environment": "LEFT" in os.environ,
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "uid": os.getuid(),
    }
