"""Frames between host and guest: a 4-byte big-endian length, then one JSON object in UTF-8.

The one module of the guest that the host imports too. Parsing is strict both ways: no NaN or Infinity, no duplicate keys, no lone
surrogates, bounded depth, digits and size. What a guest sends is untrusted whatever this module says of its form.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

PROTOCOL = 1
MAX_FRAME = 8 << 20  # bytes of one frame's JSON, whatever the job's limits say
MAX_LOG_TEXT = 64 << 10  # bytes of UTF-8 in one log frame's text
MAX_TRACEBACK = 64 << 10  # bytes of UTF-8
LOG_TRUNCATED = "\n[log truncated: its limit is reached]\n"  # ends the last frame of a log
MAX_MESSAGE = 2_000  # characters of an error's or a progress' message
MAX_DEPTH = 64  # nested arrays and objects
MAX_DIGITS = 64  # decimal digits of one integer
_MAX_BITS = 213  # of an integer of MAX_DIGITS digits
_SCALARS = frozenset((int, bool, float, type(None)))

# The container's process 1 writes this and the agent's exit code to standard error, which no plugin inherits.
EXIT_LINE = "cloche-guest: exited "

HEADER = struct.Struct(">I")


class ProtocolError(Exception):
    """A frame that is malformed or too large. The message never quotes the frame."""


class FrameTooLarge(ProtocolError):
    """``size``: bytes of the frame's JSON."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a frame of {size} bytes is over the limit of {limit}")
        self.size = size


def encode(frame: Mapping[str, Any], limit: int = MAX_FRAME) -> bytes:
    """The frame with its length in front.

    Raises:
        ProtocolError: not plain JSON, or (FrameTooLarge) more than ``limit`` bytes.
    """
    check_value(frame)
    text = json.dumps(frame, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = text.encode("utf-8")
    if len(data) > limit:
        raise FrameTooLarge(len(data), limit)
    return HEADER.pack(len(data)) + data


def decode(data: bytes) -> dict[str, Any]:
    """The object in a frame's JSON (without the length).

    Raises:
        ProtocolError: not strict JSON, or not an object.
    """
    value = parse(data)
    if not isinstance(value, dict):
        raise ProtocolError("a frame is a JSON object")
    return value


def parse(data: bytes) -> Any:
    """Strict JSON.

    Raises:
        ProtocolError: anything that another parser could read otherwise, or that is nested or long beyond the caps.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise ProtocolError("nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise ProtocolError(f"not JSON: {_short(error)}") from None
    check_value(value)
    return value


def check_value(value: Any) -> None:
    """Refuse what is not plain JSON: objects with text keys, arrays (lists or tuples), text, finite numbers, booleans, null.

    Raises:
        ProtocolError: says what was found and, roughly, where.
    """
    stack: list[tuple[Any, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        kind = type(item)
        if kind is str:
            if not item.isascii():
                _check_text(item)
        elif kind in _SCALARS:
            _check_scalar(item)
        elif kind is dict and depth < MAX_DEPTH and all(type(key) is str and key.isascii() for key in item):
            stack += [(part, depth + 1) for part in item.values()]
        elif isinstance(item, (Mapping, list, tuple)):
            if depth >= MAX_DEPTH:
                raise ProtocolError(f"nested more than {MAX_DEPTH} levels deep (or within itself)")
            if isinstance(item, Mapping):
                for key in item:
                    if not isinstance(key, str):
                        raise ProtocolError(f"an object's keys are text, not {type(key).__name__}")
                    _check_text(key)
                stack.extend((part, depth + 1) for part in item.values())
            else:
                stack.extend((part, depth + 1) for part in item)
        else:
            _check_scalar(item)


def _check_scalar(item: Any) -> None:
    if item is None or isinstance(item, bool):
        return
    if isinstance(item, str):
        _check_text(item)
    elif isinstance(item, int):
        if item.bit_length() > _MAX_BITS:
            raise ProtocolError(f"an integer of more than {MAX_DIGITS} digits")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise ProtocolError("a number that is not finite (NaN or Infinity)")
    else:
        raise ProtocolError(f"a value of type {type(item).__name__}, which is not JSON")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ProtocolError("text with a lone surrogate") from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError("an object has a key twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS + 1:
        raise ProtocolError(f"an integer of more than {MAX_DIGITS} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ProtocolError("a number too large for a double")
    return value


def _constant(text: str) -> Any:
    raise ProtocolError(f"{text} is not JSON")


def _short(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "its bytes are not UTF-8"


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_number, parse_constant=_constant, strict=True
)


class FrameReader:
    """Cuts a stream of bytes into frames. ``feed`` what came, then call ``next`` until it answers None."""

    def __init__(self, limit: int = MAX_FRAME, admit: Callable[[bytes], None] = lambda _data: None) -> None:
        """``admit`` sees a whole frame's JSON before it is parsed, and may raise ProtocolError."""
        self._limit = limit
        self._admit = admit
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        self._buffer += data

    def next(self) -> dict[str, Any] | None:
        """The next whole frame, or None.

        Raises:
            ProtocolError: malformed, or announced longer than the limit (known before its bytes are read).
        """
        if len(self._buffer) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self._buffer)
        if length > self._limit:
            raise ProtocolError(f"a frame of {length} bytes is over the limit of {self._limit}")
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        self._admit(data)
        return decode(data)
