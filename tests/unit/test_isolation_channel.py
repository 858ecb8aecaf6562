"""The host's end of a channel, against a guest that may send anything in any pieces."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.isolation import channel as module
from cloche.isolation import stream as stream_module
from cloche.isolation.channel import GuestChannel
from cloche_guest.protocol import EXIT_LINE, encode


class Guest:
    """The engine's side: writes what a container would."""

    def __init__(self, limits: Limits) -> None:
        host, self.stream = socket.socketpair()
        self.channel = GuestChannel(host, limits)

    def out(self, data: bytes, stream: int = 1) -> None:
        self.stream.sendall(struct.pack(">BxxxI", stream, len(data)) + data)

    def frame(self, **fields: Any) -> None:
        self.out(encode(fields))

    def read_to_the_end(self) -> None:
        while True:
            self.channel.receive(5)

    def flood(self, text: str, count: int) -> None:
        """Log frames until the host closes."""
        with contextlib.suppress(OSError):
            for _ in range(count):
                self.frame(type="log", stream="stdout", text=text)


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest(Limits(log=1_000, result=100))
    yield made
    made.channel.close()
    made.stream.close()


def test_frames_arrive_whatever_the_pieces(guest: Guest) -> None:
    data = encode({"type": "ready", "protocol": 1, "python": "3.11"}) + encode({"type": "result", "value": [1]})
    pieces = [data[start : start + 3] for start in range(0, len(data), 3)]
    raw = b"".join(struct.pack(">BxxxI", 1, len(piece)) + piece for piece in pieces)
    threading.Thread(target=lambda: [guest.stream.send(bytes([byte])) for byte in raw], daemon=True).start()
    assert guest.channel.receive(5) == {"type": "ready", "protocol": 1, "python": "3.11"}
    assert guest.channel.receive(5) == {"type": "result", "value": [1]}
    assert guest.channel.receive(0.01) is None


def test_a_piece_of_the_engine_need_not_be_whole_to_give_its_frames(guest: Guest) -> None:
    data = encode({"type": "result", "value": 1})
    guest.stream.sendall(struct.pack(">BxxxI", 1, len(data) + 1_000) + data)
    assert guest.channel.receive(5) == {"type": "result", "value": 1}


def test_only_known_fields_come_through(guest: Guest) -> None:
    guest.frame(type="log", stream="stdout", text="a\0b", id="somebody else's", attempt=7)
    assert guest.channel.receive(5) == {"type": "log", "stream": "stdout", "text": "a\ufffdb"}
    guest.frame(type="progress", current=1, total=None, message=None, job="x")
    assert guest.channel.receive(5) == {"type": "progress", "current": 1, "total": None, "message": None}
    guest.frame(type="error", reason="bad_result", message="m", traceback="t", status=200)
    assert guest.channel.receive(5) == {"type": "error", "reason": Reason.BAD_RESULT, "message": "m", "traceback": "t"}
    guest.frame(type="error", reason="result_too_large", message="m", traceback="", used=101)
    frame = guest.channel.receive(5)
    assert frame is not None
    assert frame["used"] == 101


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"type": None},
        {"type": []},
        {"type": "job"},
        {"type": "ready"},
        {"type": "ready", "protocol": 2, "python": "3.11"},
        {"type": "ready", "protocol": 1, "python": "3" * 17},
        {"type": "log", "stream": "stdin", "text": "x"},
        {"type": "log", "stream": "stdout", "text": 7},
        {"type": "log", "stream": "stdout", "text": "x" * (64 * 1024 + 1)},
        {"type": "progress", "current": "1", "total": None, "message": None},
        {"type": "progress", "current": True, "total": None, "message": None},
        {"type": "progress", "current": 1, "total": [], "message": None},
        {"type": "progress", "current": 1, "total": None, "message": {}},
        {"type": "progress", "current": 1e301, "total": None, "message": None},
        {"type": "result"},
        {"type": "error", "reason": "lease_lapsed", "message": "", "traceback": ""},
        {"type": "error", "reason": [], "message": "", "traceback": ""},
        *(
            {"type": "error", "reason": "result_too_large", "message": "", "traceback": "", "used": used}
            for used in (-1, 1.5, True, None, "9", 1 << 54)
        ),
        {"type": "error", "reason": "plugin_failed", "message": None, "traceback": ""},
        {"type": "error", "reason": "plugin_failed", "message": "", "traceback": "x" * (64 * 1024 + 1)},
    ],
)
def test_malformed_frames_are_the_plugins_fault(guest: Guest, frame: dict[str, Any]) -> None:
    guest.out(encode(frame))
    with pytest.raises(PluginFailure) as caught:
        guest.channel.receive(5)
    assert caught.value.reason == Reason.BAD_RESULT


@pytest.mark.parametrize("data", [b"\xff" * 100, b"\0\0\0\2[]", b'\0\0\0\x0b{"a": NaN}  '])
def test_garbage_is_the_plugins_fault(guest: Guest, data: bytes) -> None:
    guest.out(data)
    with pytest.raises(PluginFailure) as caught:
        guest.channel.receive(5)
    assert caught.value.reason == Reason.BAD_RESULT


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["protocol", "python", "stream", "text", "current", "total", "message", "value", "reason", "traceback"]


@given(
    st.sampled_from(["ready", "log", "progress", "result", "error"]) | json_values,
    st.dictionaries(st.sampled_from(FIELDS), json_values | st.sampled_from(["stdout", "plugin_failed"]), max_size=6),
)
def test_any_frame_comes_through_whole_or_is_the_plugins_fault(kind: Any, fields: dict[str, Any]) -> None:
    guest = Guest(Limits())
    try:
        guest.frame(**{"type": kind, **fields})
        try:
            frame = guest.channel.receive(5)
        except PluginFailure:
            return
        assert frame is not None
        assert frame["type"] == kind
    finally:
        guest.channel.close()
        guest.stream.close()


def test_a_result_over_its_limit(guest: Guest) -> None:
    guest.frame(type="result", value="x" * 200)
    with pytest.raises(PluginFailure) as caught:
        guest.channel.receive(5)
    assert caught.value.reason == Reason.RESULT_TOO_LARGE


def test_logs_beyond_the_budget_are_dropped(guest: Guest) -> None:
    text = "x" * 60_000
    for _ in range(3):
        guest.frame(type="log", stream="stderr", text=text)
    guest.frame(type="result", value=None)
    frames = [guest.channel.receive(5), guest.channel.receive(5)]
    assert [frame and frame["type"] for frame in frames] == ["log", "result"]


def test_too_many_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_FRAME_RATE", 0.0)
    monkeypatch.setattr(stream_module, "_FRAME_BURST", 10.0)
    guest = Guest(Limits())
    for _ in range(11):
        guest.frame(type="progress", current=1, total=None, message=None)
    for _ in range(10):
        assert guest.channel.receive(5) is not None
    with pytest.raises(PluginFailure, match="too many frames"):
        guest.channel.receive(5)
    guest.channel.close()
    guest.stream.close()


def test_too_many_bytes_in_few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_BYTE_RATE", 0.0)
    monkeypatch.setattr(stream_module, "_BYTE_BURST", 0.0)
    guest = Guest(Limits(result=1, log=0))
    sender = threading.Thread(target=guest.flood, args=("x" * 60_000, 400), daemon=True)
    sender.start()
    with pytest.raises(PluginFailure, match="too many bytes"):
        guest.read_to_the_end()
    guest.channel.close()
    sender.join(10)
    guest.stream.close()


def test_a_flood_of_logs_is_dropped_in_little_memory_and_lets_go_of_the_caller(guest: Guest) -> None:
    sender = threading.Thread(target=guest.flood, args=("x" * 60_000, 200), daemon=True)
    tracemalloc.start()
    try:
        sender.start()
        while sender.is_alive():
            frame = guest.channel.receive(0)  # comes back although there is always one more frame
            assert frame is None or frame["type"] == "log"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("filler", [b"[]", b"[[[[[[[[]]]]]]]]", b"0", b'{"a":0}'])
def test_frames_that_take_long_to_read_have_a_budget(monkeypatch: pytest.MonkeyPatch, filler: bytes) -> None:
    """Within a log frame, whose text is cheap, members that nobody asked for."""
    monkeypatch.setattr(module, "_CPU_BURST", 0.2)
    monkeypatch.setattr(module, "_CPU_RATE", 0.0)
    guest = Guest(Limits())
    junk = b",".join([filler] * (300_000 // (len(filler) + 1)))
    data = b'{"type":"log","stream":"stdout","text":"","junk":[' + junk + b"]}"
    framed = struct.pack(">I", len(data)) + data
    sender = threading.Thread(target=_until_closed, args=(guest, framed), daemon=True)
    sender.start()
    with pytest.raises(PluginFailure, match="too long to read"):
        guest.read_to_the_end()
    guest.channel.close()
    guest.stream.close()
    sender.join(10)


def _until_closed(guest: Guest, data: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            guest.out(data)


def test_a_result_of_any_shape_within_its_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_BURST", 0.0)
    monkeypatch.setattr(module, "_CPU_RATE", 0.0)
    guest = Guest(Limits(result=1 << 20))
    sender = threading.Thread(target=guest.frame, kwargs={"type": "result", "value": [[]] * 300_000}, daemon=True)
    sender.start()
    with contextlib.suppress(PluginFailure):  # waiting costs something too, of which there is none here
        frame = guest.channel.receive(20)
        assert frame is not None
        assert len(frame["value"]) == 300_000
    sender.join(10)
    guest.channel.close()
    guest.stream.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"stream":"stdout","type":"log","text":""}', "begins with its type"),
        (b'[{"type":"log"}]', "begins with its type"),
        (b'{"type":"secret"}', "unknown type"),
        (b'{"type":"LOG","stream":"stdout","text":""}', "begins with its type"),
        (b'{"type":"ready","protocol":1,"python":"3.11","more":[' + b"0," * 10_000 + b"0]}", "over the limit"),
        (b'{"type":"progress","current":1,"more":[' + b"0," * 50_000 + b"0]}", "over the limit"),
        (b'{"type":"log","type":"result","value":1}', "twice"),
    ],
)
def test_a_frame_says_its_type_first_and_is_judged_by_it(guest: Guest, data: bytes, message: str) -> None:
    guest.out(struct.pack(">I", len(data)) + data)
    with pytest.raises(PluginFailure, match=message):
        guest.channel.receive(5)


def test_what_cannot_be_sent_is_the_jobs_fault(guest: Guest) -> None:
    with pytest.raises(PluginFailure) as caught:
        guest.channel.send({"type": "job", "payload": "x" * (9 << 20)})
    assert caught.value.reason == Reason.INPUT_UNAVAILABLE


def test_the_end_and_the_exit_code(guest: Guest) -> None:
    guest.out(b"Fatal Python error: something\n", stream=2)
    guest.out(f"\n{EXIT_LINE}-11\n".encode(), stream=2)
    guest.frame(type="log", stream="stdout", text="last words")  # the other stream may be late
    assert guest.channel.receive(5) == {"type": "log", "stream": "stdout", "text": "last words"}
    with pytest.raises(EOFError, match="Fatal Python error"):
        guest.channel.receive(5)
    assert guest.channel.exit_code == -11


@pytest.mark.parametrize("text", ["", "cloche-guest: exited x", "cloche-guest: exited 999", "exited 3"])
def test_no_exit_code_without_its_line(guest: Guest, text: str) -> None:
    guest.out(text.encode(), stream=2)
    guest.stream.close()
    with pytest.raises(EOFError):
        guest.channel.receive(5)
    assert guest.channel.exit_code is None


def test_sending_to_a_guest_that_is_gone(guest: Guest) -> None:
    guest.stream.close()
    with pytest.raises(PluginFailure) as caught:
        guest.channel.send({"type": "job"})
    assert caught.value.reason == Reason.PLUGIN_CRASHED


def test_a_guest_that_never_reads(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEND_SECONDS", 0.05)
    with pytest.raises(PluginFailure, match="does not read"):
        guest.channel.send({"type": "job", "payload": "x" * (4 << 20)})


def test_a_sender_can_give_up_and_nothing_is_sent_after_half_a_frame(guest: Guest) -> None:
    asked = []
    assert not guest.channel.send(
        {"type": "job", "payload": "x" * (4 << 20)}, lambda: len(asked) < 2 and not asked.append(1)
    )
    assert len(asked) == 2
    with pytest.raises(PluginFailure, match="did not read"):
        guest.channel.send({"type": "cancel"})


def test_a_guest_that_reads_slowly_gets_all_of_it(guest: Guest) -> None:
    read = bytearray()
    reader = threading.Thread(target=_read_all, args=(guest.stream, read), daemon=True)
    reader.start()
    assert guest.channel.send({"type": "job", "payload": "x" * 500_000}, lambda: True)
    assert guest.channel.send({"type": "cancel"})
    guest.channel.close()
    reader.join(10)
    assert read.endswith(encode({"type": "cancel"}))


def _read_all(stream: socket.socket, into: bytearray) -> None:
    while data := stream.recv(16_384):
        into += data


def test_close_from_another_thread_ends_a_wait(guest: Guest) -> None:
    threading.Timer(0.05, guest.channel.close).start()
    with pytest.raises(EOFError):
        guest.channel.receive(20)
    guest.channel.close()
    with pytest.raises(PluginFailure):
        guest.channel.send({"type": "cancel"})
