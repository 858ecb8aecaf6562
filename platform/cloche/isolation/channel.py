"""The host's end of one guest's channel."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.isolation.stream import Allowance, GuestStream
from cloche_guest.protocol import ProtocolError, encode

_CHUNK = 64 << 10
_SEND_SECONDS = 30.0  # a guest that does not read its job for this long is given up
_ASK_SECONDS = 0.1  # while it does not read: how often the sender is asked whether to keep on
_QUIET_SECONDS = 0.1  # after process 1 said that the agent died: how long the other stream may still bring something
# CPU seconds of the caller's thread at once, and the share of one CPU after that, for everything but the result: a megabyte of brackets
# takes a second to read, a megabyte of text two milliseconds.
_CPU_BURST = 3.0
_CPU_RATE = 0.05


class GuestChannel:
    """A :class:`cloche.isolation.backend.Channel` over the engine's attached stream, or over a socket of the guest's own (``framed`` false).

    ``exit_code``: what process 1 said of the agent's end, when it has ended; minus the signal's number for a signal.
    """

    def __init__(self, stream: socket.socket, limits: Limits, framed: bool = True) -> None:
        self._stream = stream
        self._framed = framed
        self._stream.setblocking(False)
        self._guest = GuestStream(limits, framed)
        self._cpu_allowance = Allowance(_CPU_BURST, _CPU_RATE)
        self._half_sent = False
        self._ended = False
        self._close_lock = threading.Lock()
        self._closed = False

    @property
    def exit_code(self) -> int | None:
        return self._guest.exit_code

    @property
    def cut_off(self) -> bool:
        """Whether the stream ended without process 1 saying so, and without our closing it."""
        return self._framed and self._ended and self.exit_code is None and not self._closed

    @property
    def note(self) -> str:
        """See :attr:`GuestStream.note`."""
        return self._guest.note

    def send(self, frame: Mapping[str, Any], keep_on: Callable[[], bool] = lambda: True) -> bool:
        if self._ended:
            raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest is gone")
        if self._half_sent:
            raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest did not read what it was sent")
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
                    self._half_sent = True
                    if not keep_on():
                        return False
                    left = deadline - time.monotonic()
                    if not self._wait(select.POLLOUT, min(left, _ASK_SECONDS)) and left <= 0:
                        raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest does not read what it is sent") from None
        except (OSError, ValueError):
            raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest is gone") from None
        self._half_sent = False
        return True

    def receive(self, timeout_s: float) -> Mapping[str, Any] | None:
        began = time.thread_time()
        frame = self._receive(timeout_s)
        # A result is one and the last: however long it takes to read, it is read once.
        if (frame is None or frame["type"] != "result") and not self._cpu_allowance.take(time.thread_time() - began):
            raise PluginFailure(Reason.BAD_RESULT, "the guest sent what takes too long to read")
        return frame

    def _receive(self, timeout_s: float) -> Mapping[str, Any] | None:
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
