"""The guest's end of the channel: private descriptors that used to be standard input and output."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Mapping
from typing import Any

from cloche_guest.protocol import MAX_FRAME, FrameReader, encode

_CHUNK = 64 << 10


class Link:
    """Sends from any thread, receives in one."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._frames = FrameReader()
        self._lock = threading.Lock()

    def send(self, frame: Mapping[str, Any], limit: int = MAX_FRAME) -> None:
        """
        Raises:
            ProtocolError: the frame is not plain JSON or too large; nothing was sent.
            OSError: the host is gone.
        """
        data = memoryview(encode(frame, limit))
        with self._lock:
            while data:
                data = data[os.write(self._write_fd, data) :]

    def receive(self) -> dict[str, Any]:
        """The next frame; waits for it.

        Raises:
            EOFError: the host closed its side.
            ProtocolError: malformed.
        """
        while (frame := self._frames.next()) is None:
            data = os.read(self._read_fd, _CHUNK)
            if not data:
                raise EOFError
            self._frames.feed(data)
        return frame


def take_standard_streams() -> tuple[Link, int, int]:
    """Make standard input and output private, and pipes of what the plugin will see as its standard output and error.

    Returns the link and the two pipes' reading ends (stdout, stderr), non-blocking. Standard input becomes ``/dev/null``.
    """
    read_fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    write_fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    readers = []
    for number in (1, 2):
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        os.set_blocking(reader, False)
        readers.append(reader)
    return Link(read_fd, write_fd), readers[0], readers[1]
