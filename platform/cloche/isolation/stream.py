"""What comes out of one guest, cut into checked frames. Pure: bytes in, frames out. Everything in it is untrusted."""

from __future__ import annotations

import contextlib
import math
import re
import struct
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
_MAX_NOTE = 4 << 10  # bytes kept of what the container writes to standard error outside the frames
_FRAME_BURST = 20_000.0  # frames at once, and
_FRAME_RATE = 500.0  # frames a second after that; an honest guest stays below 200
# Parsing what a guest sends shall cost the worker a small part of one CPU: so many bytes at once, beyond the largest frame and the whole
# log, and so many a second after that.
_BYTE_BURST = 64.0 * (1 << 20)
_BYTE_RATE = 10.0 * (1 << 20)
# A frame says its type first, so that its length is judged before it is parsed. Escapes can make a text six times as long.
_TYPE = re.compile(rb'\s*\{\s*"type"\s*:\s*"([a-z]{1,16})"')
_LARGEST = {
    b"ready": 1_024,
    b"progress": 6 * 4 * MAX_MESSAGE + 1_024,
    b"log": 6 * MAX_LOG_TEXT + 1_024,
    b"error": 6 * (MAX_TRACEBACK + 4 * MAX_MESSAGE) + 1_024,
}
_MAX_USED = 1 << 53  # every JSON reader keeps integers up to here
_ENVELOPE = len(encode({"value": None})) - len("null")  # bytes around a result's JSON
_ERROR_REASONS = frozenset({Reason.PLUGIN_FAILED, Reason.BAD_RESULT, Reason.NO_RESULT, Reason.RESULT_TOO_LARGE})


class GuestStream:
    """One guest's output, in the engine's multiplexed form or (``framed`` false) as its frames alone.

    ``feed`` what came, then call ``next`` until it answers None.

    ``exit_code``: what process 1 said of the agent's end, when it has ended; minus the signal's number for a signal.
    """

    def __init__(self, limits: Limits, framed: bool = True) -> None:
        self._limits = limits
        self._framed = framed
        # A result's own limit counts its JSON.
        self._largest = _LARGEST | {b"result": max(limits.result, 6 * MAX_LOG_TEXT) + 1_024}
        largest = max(self._largest.values())
        self._frames = FrameReader(largest, self._admit)
        self._raw = bytearray()
        self._note = bytearray()
        self._log_left = limits.log + MAX_LOG_TEXT  # the guest's own budgets: before the job, and for it
        self._frame_allowance = frame_allowance()
        self._byte_allowance = Allowance(_BYTE_BURST + largest + 6 * limits.log, _BYTE_RATE)

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
    def note(self) -> str:
        """The end of what the container itself wrote to standard error, such as a crash of the interpreter."""
        lines = self._note.decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if line and not line.startswith(EXIT_LINE))

    def feed(self, data: bytes) -> None:
        """
        Raises:
            PluginFailure: ``bad_result``: more than it may send.
        """
        if not self._byte_allowance.take(len(data)):
            raise PluginFailure(Reason.BAD_RESULT, "the guest sent too many bytes")
        self._take(data)

    def next(self) -> Mapping[str, Any] | None:
        """The next frame with exactly its known fields; an empty one for a log line too many; None when no whole one is there.

        Raises:
            PluginFailure: ``bad_result``: it broke the protocol.
        """
        try:
            frame = self._frames.next()
        except ProtocolError as error:
            raise PluginFailure(Reason.BAD_RESULT, f"the guest broke the protocol: {error}") from None
        return None if frame is None else self._checked(frame) or {}

    def _admit(self, data: bytes) -> None:
        found = _TYPE.match(data[:128])
        if found is None:
            raise ProtocolError("a frame begins with its type")
        largest = self._largest.get(found[1])
        if largest is None:
            raise ProtocolError("a frame of an unknown type")
        if len(data) > largest:
            raise ProtocolError(f"a {found[1].decode()} frame of {len(data)} bytes is over the limit of {largest}")

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


def frame_allowance() -> Allowance:
    """How many frames one guest may send."""
    return Allowance(_FRAME_BURST, _FRAME_RATE)


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
    checked = {"type": "error", "reason": Reason(reason), **clean}
    if "used" not in frame:
        return checked
    used = frame["used"]
    if isinstance(used, bool) or not isinstance(used, int) or not 0 <= used <= _MAX_USED:
        return None
    return {**checked, "used": used}


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
