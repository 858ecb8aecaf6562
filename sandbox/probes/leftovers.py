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
    libc.mq_open(b"/left", os.O_RDWR | os.O_CREAT, 0o600, None)
    libc.shmget(0xC10C, 4096, 0o1600)
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0cloche-left")
    server.listen()
    _kept.append(server)
    os.environ["LEFT"] = "of the job before"
    ctypes.set_errno(0)
    if os.fork() == 0:
        os.setsid()
        wait()
    return {"left": left, "uid": os.getuid(), "pid": os.getpid()}


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
        "shm": int(libc.shmget(0xC10C, 4096, 0)),
        "socket": tried(connect),
        "environment": "LEFT" in os.environ,
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "uid": os.getuid(),
    }
