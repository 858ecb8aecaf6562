"""sandboxd's end of the short messages with its own processes in a container. They are ours, and are still held to a form and a time."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import Any

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche_guest import control

ANSWER_SECONDS = 10.0


class Talk:
    """One conversation, by one thread at a time. ``close`` tells the other side to end, and may come from any thread at any time."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._lock = threading.Lock()  # the descriptor's number is not another socket's while it is used here
        self._closed = False

    def say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """
        Raises:
            PlatformFailure: the other side is gone.
        """
        with self._lock:
            if self._closed:
                raise _lost("gone")
            try:
                control.send(self._stream, message, fds)
            except OSError as error:
                raise _lost(error.strerror or "gone") from None

    def hear(self, kind: str, fds: int = 0, seconds: float = ANSWER_SECONDS) -> tuple[dict[str, Any], list[int]]:
        """The next message, which has to be of this kind and bring so many descriptors; the caller closes them.

        Raises:
            PlatformFailure: it does not come in time, or another one does.
        """
        with self._lock:
            message, found = self._next(seconds)
        if message.get("type") != kind or len(found) != fds:
            for fd in found:
                os.close(fd)
            raise _lost(f"a message {str(message.get('type'))[:40]!r} where {kind!r} was due")
        return message, found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)  # and whoever waits for it wakes up
        with self._lock:
            self._closed = True
            self._stream.close()

    def _next(self, seconds: float) -> tuple[dict[str, Any], list[int]]:
        if self._closed:
            raise _lost("gone")
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        if not poll.poll(seconds * 1_000):
            raise _lost(f"no answer within {seconds:g} s")
        try:
            return control.receive(self._stream)
        except (OSError, EOFError, ValueError) as error:
            raise _lost(str(error) or "gone") from None


def _lost(why: str) -> PlatformFailure:
    return PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the container of cells does not answer as it should: {why}")
