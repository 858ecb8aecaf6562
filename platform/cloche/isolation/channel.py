"""The host's end of one guest's channel."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.isolation.stream import GuestStream
from cloche_guest.protocol import ProtocolError, encode

_CHUNK = 64 << 10
_SEND_SECONDS = 30.0  # a guest that does not read its job for this long is given up
_QUIET_SECONDS = 0.1  # after process 1 said that the agent died: how long the other stream may still bring something


class GuestChannel:
    """A :class:`cloche.isolation.backend.Channel` over the engine's attached stream.

    ``exit_code``: what process 1 said of the agent's end, when it has ended; minus the signal's number for a signal.
    """

    def __init__(self, stream: socket.socket, limits: Limits) -> None:
        self._stream = stream
        self._stream.setblocking(False)
        self._guest = GuestStream(limits)
        self._ended = False
        self._close_lock = threading.Lock()
        self._closed = False

    @property
    def exit_code(self) -> int | None:
        return self._guest.exit_code

    @property
    def cut_off(self) -> bool:
        """Whether the stream ended without process 1 saying so, and without our closing it."""
        return self._ended and self.exit_code is None and not self._closed

    @property
    def note(self) -> str:
        """See :attr:`GuestStream.note`."""
        return self._guest.note

    def send(self, frame: Mapping[str, Any]) -> None:
        if self._ended:
            raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest is gone")
        try:
            data = memoryview(encode(frame))
        except ProtocolError as error:
            raise PluginFailure(Reason.INPUT_UNAVAILABLE, f"the job cannot be sent to its sandbox: {error}") from None
        deadline = time.monotonic() + _SEND_SECONDS
        try:
            while data:
                try:
                    data = data[self._stream.send(data) :]
                except BlockingIOError:
                    if not self._wait(select.POLLOUT, deadline - time.monotonic()):
                        raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest does not read what it is sent") from None
        except (OSError, ValueError):
            raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest is gone") from None

    def receive(self, timeout_s: float) -> Mapping[str, Any] | None:
        deadline = time.monotonic() + timeout_s
        while True:
            while (frame := self._guest.next()) is not None:
                if frame:
                    return frame
                if time.monotonic() > deadline:
                    return None
            if self._ended:
                raise EOFError(self.note or "the guest is gone")
            if not self._fill(deadline):
                return None

    def close(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def _fill(self, deadline: float) -> bool:
        """Read once more; False when the time is over. Sets ``_ended`` at the end of the stream."""
        exited = self.exit_code is not None
        left = deadline - time.monotonic()
        try:
            ready = self._wait(select.POLLIN, min(left, _QUIET_SECONDS) if exited else left)
            if not ready:
                self._ended = exited
                return exited
            data = self._stream.recv(_CHUNK)
        except BlockingIOError:
            return True
        except (OSError, ValueError):
            data = b""
        if data:
            self._guest.feed(data)
        else:
            self._ended = True
        return True

    def _wait(self, event: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._stream, event)
        return bool(poll.poll(max(0.0, seconds) * 1_000))
