"""sandboxd's end of the short messages with its own processes in a container. They are ours, and are still held to a form and a time."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Sequence
from typing import Any

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche_guest import control

ANSWER_SECONDS = 10.0


class Talk:
    """One thread at a time. ``close`` tells the other side to end."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def say(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """
        Raises:
            PlatformFailure: the other side is gone.
        """
        try:
            control.send(self._stream, message, fds)
        except OSError as error:
            raise _lost(error.strerror or "gone") from None

    def hear(self, kind: str, fds: int = 0, seconds: float = ANSWER_SECONDS) -> tuple[dict[str, Any], list[int]]:
        """The next message, which has to be of this kind and bring so many descriptors; the caller closes them.

        Raises:
            PlatformFailure: it does not come in time, or another one does.
        """
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        if not poll.poll(seconds * 1_000):
            raise _lost(f"no answer within {seconds:g} s")
        try:
            message, found = control.receive(self._stream)
        except (OSError, EOFError, ValueError) as error:
            raise _lost(str(error) or "gone") from None
        if message.get("type") != kind or len(found) != fds:
            for fd in found:
                os.close(fd)
            raise _lost(f"a message {str(message.get('type'))[:40]!r} where {kind!r} was due")
        return message, found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def _lost(why: str) -> PlatformFailure:
    return PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the container of cells does not answer as it should: {why}")
