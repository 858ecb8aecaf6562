"""What the probes share: registers of what can be tried, and how an attempt is named."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloche_guest import Job

Act = Callable[[Job], Any]
WALLS: dict[str, Act] = {}  # each runs in a forked child of one shared sandbox, and answers with what it found
ACTS: dict[str, Act] = {}  # each has a sandbox of its own, which it may ruin
_SECONDS = 15.0

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"


def wall(function: Act) -> Act:
    WALLS[function.__name__] = function
    return function


def act(function: Act) -> Act:
    ACTS[function.__name__] = function
    return function


def tried(call: Callable[..., Any], *args: Any) -> str:
    """The error's name (``EPERM``), or ``DONE`` when the call went through."""
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "DONE"


def syscall(number: int, *args: int | bytes | None) -> int:
    """
    Raises:
        OSError: what the kernel answered.
    """
    ctypes.set_errno(0)
    given = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a or 0) for a in args]
    answer = int(libc.syscall(ctypes.c_long(number), *given))
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def here(x86: int, arm: int) -> int:
    """A system call's number on this machine."""
    return x86 if X86 else arm


def apart(function: Act, job: Job) -> Any:
    """What the function answers in a child of its own, so that a probe which dies, hangs or breaks its process spoils no other."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = function(job)
        except BaseException as error:  # noqa: BLE001 - the answer says so
            answer = {"raised": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(answer).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    try:
        text = _read(reader)
    finally:
        os.close(reader)
        with contextlib.suppress(PermissionError):  # gVisor's word for a child that is dead and not yet awaited
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"died": os.waitstatus_to_exitcode(status)}


def _read(reader: int) -> bytes:
    text, deadline = b"", time.monotonic() + _SECONDS
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, 65_536)
        if not part:
            return text
        text += part
    return b'{"raised": "it took too long"}'


def say(text: str) -> None:
    """A line of log at once, by which the host knows how far an act is."""
    os.write(1, text.encode() + b"\n")


def begun(job: Job) -> None:
    """Tell the host that the act is going on, where a line of log would not arrive: as a file, which it sees at once."""
    (job.out / "begun").touch()


def wait_for(file: str, word: str) -> None:
    """Say where we are, and go on when the host has put an input there."""
    say(word)
    while not Path("/job/in", file).exists():
        time.sleep(0.02)


def wait() -> None:
    """Until the host ends it."""
    while True:
        time.sleep(60)
