"""The host's end of one guest's channel. Everything that comes out of it is untrusted."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche_guest.protocol import (
    EXIT_LINE,
    MAX_LOG_TEXT,
    MAX_MESSAGE,
    MAX_TRACEBACK,
    PROTOCOL,
    FrameReader,
    ProtocolError,
    encode,
)

_ENGINE_HEADER = struct.Struct(">BxxxI")
_STDOUT, _STDERR = 1, 2
_CHUNK = 64 << 10
_MAX_NOTE = 4 << 10  # bytes kept of what the container writes to standard error outside the frames
_SEND_SECONDS = 30.0  # a guest that does not read its job for this long is given up
_QUIET_SECONDS = 0.1  # after process 1 said that the agent died: how long the other stream may still bring something
_FRAME_BURST = 20_000.0  # frames at once, and
_FRAME_RATE = 500.0  # frames a second after that; an honest guest stays below 200
# Parsing what a guest sends shall cost the worker a small part of one CPU: so many bytes at once, beyond the largest frame and the whole
# log, and so many a second after that.
_BYTE_BURST = 64.0 * (1 << 20)
_BYTE_RATE = 10.0 * (1 << 20)
_ENVELOPE = len(encode({"value": None})) - len("null")  # bytes around a result's JSON
_ERROR_REASONS = frozenset({Reason.PLUGIN_FAILED, Reason.BAD_RESULT, Reason.NO_RESULT, Reason.RESULT_TOO_LARGE})


class GuestChannel:
    """A :class:`cloche.isolation.backend.Channel` over the engine's attached stream, or over a socket of the guest's own (``framed`` false).

    ``exit_code``: what process 1 said of the agent's end, when it has ended; minus the signal's number for a signal.
    """

    def __init__(self, stream: socket.socket, limits: Limits, framed: bool = True) -> None:
        self._stream = stream
        self._framed = framed
        self._stream.setblocking(False)
        self._limits = limits
        # Escapes can make a text six times as long; a result's own limit counts its JSON.
        largest = max(limits.result, 6 * MAX_LOG_TEXT, 6 * (MAX_TRACEBACK + MAX_MESSAGE)) + 1_024
        self._frames = FrameReader(largest)
        self._raw = bytearray()
        self._note = bytearray()
        self._log_left = limits.log + MAX_LOG_TEXT  # the guest's own budgets: before the job, and for it
        self._frame_allowance = Allowance(_FRAME_BURST, _FRAME_RATE)
        self._byte_allowance = Allowance(_BYTE_BURST + largest + 6 * limits.log, _BYTE_RATE)
        self._ended = False
        self._close_lock = threading.Lock()
        self._closed = False

    @property
    def exit_code(self) -> int | None:
        lines = self._note.decode("utf-8", "replace").splitlines()
        for line in reversed(lines):
            if line.startswith(EXIT_LINE):
                with contextlib.suppress(ValueError):
                    code = int(line[len(EXIT_LINE) :])
                    return code if -64 <= code <= 255 else None
        return None

    @property
    def cut_off(self) -> bool:
        """Whether the stream ended without process 1 saying so, and without our closing it."""
        return self._framed and self._ended and self.exit_code is None and not self._closed

    @property
    def note(self) -> str:
        """The end of what the container itself wrote to standard error, such as a crash of the interpreter."""
        lines = self._note.decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if line and not line.startswith(EXIT_LINE))

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
            while (frame := self._next()) is not None:
                if (checked := self._checked(frame)) is not None:
                    return checked
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

    def _next(self) -> dict[str, Any] | None:
        try:
            return self._frames.next()
        except ProtocolError as error:
            raise PluginFailure(Reason.BAD_RESULT, f"the guest broke the protocol: {error}") from None

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
            if not self._byte_allowance.take(len(data)):
                raise PluginFailure(Reason.BAD_RESULT, "the guest sent too many bytes")
            self._take(data)
        else:
            self._ended = True
        return True

    def _take(self, data: bytes) -> None:
        """Cut the engine's own framing, where there is one: 8 bytes of stream and length, then the bytes."""
        if not self._framed:
            self._frames.feed(data)
            return
        self._raw += data
        while len(self._raw) >= _ENGINE_HEADER.size:
            stream, length = _ENGINE_HEADER.unpack_from(self._raw)
            start = _ENGINE_HEADER.size
            have = min(length, len(self._raw) - start)
            part = bytes(self._raw[start : start + have])
            if stream == _STDOUT:
                self._frames.feed(part)
            elif stream == _STDERR:
                self._note = (self._note + part)[-_MAX_NOTE:]
            if have < length:
                # Keep a header for what is still to come, so that nothing is held back until the piece is whole.
                self._raw = bytearray(_ENGINE_HEADER.pack(stream, length - have))
                return
            del self._raw[: start + length]

    def _wait(self, event: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._stream, event)
        return bool(poll.poll(max(0.0, seconds) * 1_000))

    def _checked(self, frame: dict[str, Any]) -> Mapping[str, Any] | None:
        """The frame with exactly its known fields, or None when it is one log line too many."""
        if not self._frame_allowance.take(1):
            raise PluginFailure(Reason.BAD_RESULT, "the guest sent too many frames")
        checker = _CHECKERS.get(frame.get("type")) if isinstance(frame.get("type"), str) else None
        if checker is None:
            raise PluginFailure(Reason.BAD_RESULT, "the guest sent a frame of an unknown type")
        checked = checker(frame)
        if checked is None:
            raise PluginFailure(Reason.BAD_RESULT, f"the guest sent a malformed {frame['type']} frame")
        if checked["type"] == "log":
            size = len(checked["text"].encode("utf-8"))
            if size > self._log_left:
                return None
            self._log_left -= size
        elif checked["type"] == "result":
            self._check_result(checked["value"])
        return checked

    def _check_result(self, value: Any) -> None:
        limit, size = self._limits.result, len(encode({"value": value})) - _ENVELOPE
        if size > limit:
            message = f"the plugin's result has {size} bytes of JSON; its limit is {limit}"
            raise PluginFailure(Reason.RESULT_TOO_LARGE, message, {"limit": limit, "used": size})


class Allowance:
    """So much at once, and so much a second after that."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = burst
        self._filled = time.monotonic()

    def take(self, amount: float) -> bool:
        """Whether so much was left."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._filled) * self._rate) - amount
        self._filled = now
        return self._left >= 0


def _ready(frame: dict[str, Any]) -> Mapping[str, Any] | None:
    if frame.get("protocol") != PROTOCOL or not _text(frame.get("python"), 16):
        return None
    return {"type": "ready", "protocol": PROTOCOL, "python": frame["python"]}


def _log(frame: dict[str, Any]) -> Mapping[str, Any] | None:
    text = frame.get("text")
    if frame.get("stream") not in ("stdout", "stderr") or not _text(text, MAX_LOG_TEXT):
        return None
    # NUL is legal JSON and illegal in the text columns of databases.
    return {"type": "log", "stream": frame["stream"], "text": str(text).replace("\0", "\ufffd")}


def _progress(frame: dict[str, Any]) -> Mapping[str, Any] | None:
    current, total, message = frame.get("current"), frame.get("total"), frame.get("message")
    if not _number(current) or not (total is None or _number(total)):
        return None
    if message is not None and not _text(message, 4 * MAX_MESSAGE):
        return None
    shown = None if message is None else message.replace("\0", "\ufffd")
    return {"type": "progress", "current": current, "total": total, "message": shown}


def _result(frame: dict[str, Any]) -> Mapping[str, Any] | None:
    return {"type": "result", "value": frame["value"]} if "value" in frame else None


def _error(frame: dict[str, Any]) -> Mapping[str, Any] | None:
    reason, message, trace = frame.get("reason"), frame.get("message"), frame.get("traceback")
    if (
        not isinstance(reason, str)
        or reason not in _ERROR_REASONS
        or not _text(message, 4 * MAX_MESSAGE)
        or not _text(trace, MAX_TRACEBACK)
    ):
        return None
    clean = {"message": str(message).replace("\0", "\ufffd"), "traceback": str(trace).replace("\0", "\ufffd")}
    return {"type": "error", "reason": Reason(reason), **clean}


def _text(value: Any, limit: int) -> bool:
    return isinstance(value, str) and len(value.encode("utf-8")) <= limit


def _number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e300
    )


_CHECKERS: Mapping[Any, Callable[[dict[str, Any]], Mapping[str, Any] | None]] = {
    "ready": _ready,
    "log": _log,
    "progress": _progress,
    "result": _result,
    "error": _error,
}
