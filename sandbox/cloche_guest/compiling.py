"""Compiles a plugin's entry module once for all cells of a slot, in a process of its own that has no rights.

The runner gets bytes, does not look into them, and hands them to its cells: what the compiler could be made to do by a hostile source it
does to the plugin's own code, and to nothing else.
"""

from __future__ import annotations

import marshal
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cloche_guest import kernel

_MAX_SOURCE = 1 << 20  # bytes
_MAX_CODE = 8 << 20
_SECONDS = 4  # well below what sandboxd gives the slot's first answer, which waits for this
_CHUNK = 1 << 16
_WHOLE = b"."  # the last byte of a whole answer


def compiled(source: Path, give_up_rights: Callable[[], None]) -> bytes | None:
    """The marshalled code of a file; None when it does not compile, or not within bounds. ``give_up_rights``: called in the child.

    Raises:
        OSError: there can be no child.
    """
    reader, writer = os.pipe()
    pid = kernel.fork()
    if pid == 0:
        _compile(source, writer, give_up_rights)
    os.close(writer)
    try:
        data = _read(reader)
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)  # it is our child, and waited for below: the number is its own
        os.waitpid(pid, 0)
    return data[:-1] if data[-1:] == _WHOLE else None


def _read(reader: int) -> bytes:
    """Everything until the end; nothing when it is too much, or too late."""
    found, deadline = bytearray(), time.monotonic() + _SECONDS
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1_000):
        if not (piece := os.read(reader, _CHUNK)):
            return bytes(found)
        found += piece
        if len(found) > _MAX_CODE:
            break
    return b""


def _compile(source: Path, writer: int, give_up_rights: Callable[[], None]) -> NoReturn:
    try:
        os.dup2(writer, 3)
        os.closerange(4, 1 << 16)
        give_up_rights()
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # nothing of it outlives it
        with source.open("rb") as file:
            text = file.read(_MAX_SOURCE + 1)
        if len(text) <= _MAX_SOURCE:
            code = marshal.dumps(compile(text, str(source), "exec", dont_inherit=True))
            view = memoryview(code + _WHOLE)
            while view:
                view = view[os.write(3, view) :]
        os._exit(0)
    finally:
        os._exit(1)  # whatever it was, the cells will say it
