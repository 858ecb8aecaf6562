"""Whatever comes out of a sandbox: a frame, the end, or the plugin's fault. Never another error, never without bound."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloche.domain.limits import Limits
from cloche.errors import PluginFailure
from cloche.isolation.channel import GuestChannel
from cloche_guest.protocol import EXIT_LINE, MAX_LOG_TEXT, encode

FRAMES: list[dict[str, Any]] = [
    {"type": "ready", "protocol": 1, "python": "3.11"},
    {"type": "log", "stream": "stdout", "text": "grüße\n"},
    {"type": "progress", "current": 1, "total": 2.5, "message": "half"},
    {"type": "error", "reason": "plugin_failed", "message": "m", "traceback": "t"},
    {"type": "result", "value": {"deep": [[[1, None, True, -0.5]]], "": "\u2028"}},
]
LIMITS = Limits(log=1_000, result=1_000)
# What makes a parser stumble, to be put anywhere into a valid stream.
TOKENS = [
    b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"NaN", b"1e999", b"9" * 5_000, b"[" * 2_000, b'{"a":' * 500,
    b'"type":"result",', b'"\\ud800"', b"\\u0000", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"{}", b"null", b"\n" + EXIT_LINE.encode() + b"-9\n",
    struct.pack(">BxxxI", 1, 0xFFFFFFFF), struct.pack(">BxxxI", 2, 3), struct.pack(">BxxxI", 9, 0),
]  # fmt: skip


def piece(data: bytes, stream: int = 1) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


def everything(raw: bytes) -> list[Mapping[str, Any]]:
    """All frames that the host makes of these bytes, checked for form; stops at the end or at the plugin's fault."""
    host, guest = socket.socketpair()
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    channel = GuestChannel(host, LIMITS)
    found: list[Mapping[str, Any]] = []
    try:
        guest.sendall(raw)
        guest.shutdown(socket.SHUT_WR)
        while True:
            frame = channel.receive(5)
            assert frame is not None, "the stream has ended, and yet the host waits"
            assert frame["type"] in {"ready", "log", "progress", "error", "result"}
            encode(frame)  # plain JSON through and through
            found.append(frame)
    except PluginFailure as failure:
        ending = (failure.reason, len(failure.message))
    except EOFError as end:
        ending = (None, len(str(end)))
    finally:
        channel.close()
        guest.close()
    assert ending[0] in {None, "bad_result", "result_too_large"}
    assert ending[1] <= 4_096
    assert channel.exit_code is None or -64 <= channel.exit_code <= 255
    return found


@given(st.binary(max_size=2_000))
@example(b"")
@example(struct.pack(">BxxxI", 1, 0xFFFFFFFF))
def test_bytes_of_any_kind_instead_of_the_engines_stream(raw: bytes) -> None:
    everything(raw)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 2, 3, 255]), st.binary(max_size=300)), max_size=8))
def test_pieces_of_any_kind(pieces: list[tuple[int, bytes]]) -> None:
    everything(b"".join(piece(data, stream) for stream, data in pieces))


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_frames_with_any_content(contents: list[bytes]) -> None:
    everything(piece(b"".join(struct.pack(">I", len(content)) + content for content in contents)))


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """The valid bytes with some of them changed, cut out, doubled, or with a token put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), start + draw(st.integers(1, 40)))
        match draw(st.sampled_from(["flip", "cut", "double", "token", "end"])):
            case "flip":
                if data:
                    data[start] ^= draw(st.integers(1, 255))
            case "cut":
                del data[start:end]
            case "double":
                data[start:start] = data[start:end]
            case "token":
                data[start:start] = draw(st.sampled_from(TOKENS))
            case "end":
                del data[end:]
    return bytes(data)


GUESTS_STREAM = b"".join(encode(frame) for frame in FRAMES)
ENGINES_STREAM = b"".join(piece(encode(frame)) for frame in FRAMES) + piece(f"\n{EXIT_LINE}1\n".encode(), 2)


@settings(max_examples=300)
@given(mutated(GUESTS_STREAM))
def test_a_guests_stream_with_faults(data: bytes) -> None:
    everything(piece(data))


@settings(max_examples=300)
@given(mutated(ENGINES_STREAM))
def test_an_engines_stream_with_faults(raw: bytes) -> None:
    everything(raw)


def test_a_stream_cut_at_every_boundary() -> None:
    for raw in (ENGINES_STREAM, b"".join(piece(GUESTS_STREAM[at : at + 7]) for at in range(0, len(GUESTS_STREAM), 7))):
        for cut in range(len(raw)):
            host, guest = socket.socketpair()
            channel = GuestChannel(host, LIMITS)
            found = []
            for part in (raw[:cut], raw[cut:]):
                guest.sendall(part)
                while len(found) < len(FRAMES) and (frame := channel.receive(0)) is not None:
                    found.append(frame)
            assert found == FRAMES, cut
            channel.close()
            guest.close()


def test_a_half_frame_is_waited_for_no_longer_than_asked() -> None:
    host, guest = socket.socketpair()
    channel = GuestChannel(host, LIMITS)
    guest.sendall(piece(struct.pack(">I", 5 * MAX_LOG_TEXT)))
    for _ in range(4):
        guest.sendall(piece(b" " * MAX_LOG_TEXT))
        assert channel.receive(0) is None
    channel.close()
    guest.close()


def test_a_frame_announced_too_long_is_refused_before_its_bytes_are_read() -> None:
    host, guest = socket.socketpair()
    channel = GuestChannel(host, LIMITS)
    guest.sendall(piece(struct.pack(">I", 8 << 20)))
    with pytest.raises(PluginFailure, match="over the limit"):
        channel.receive(5)
    channel.close()
    guest.close()
