"""Frames: strict both ways, bounded, and the same on both sides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_guest import protocol
from cloche_guest.protocol import FrameReader, ProtocolError, check_value, decode, encode, parse

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(10**60), max_value=10**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values, st.integers(min_value=1, max_value=7))
def test_what_is_encoded_is_decoded_however_it_is_cut(value: Any, step: int) -> None:
    data = encode({"value": value}) * 2
    reader = FrameReader()
    found = []
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        while (frame := reader.next()) is not None:
            found.append(frame)
    assert found == [{"value": value}] * 2


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_give_a_frame_or_a_protocol_error(data: bytes) -> None:
    reader = FrameReader(limit=64)
    reader.feed(data)
    try:
        while reader.next() is not None:
            continue
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        '{"x": {"a": 1, "\\u0061": 2}}',
        '{"a": "\\ud800"}',
        '{"\\udfff": 1}',
        '{"a": ' + "9" * (protocol.MAX_DIGITS + 1) + "}",
        '{"a": -' + "9" * (protocol.MAX_DIGITS + 1) + "}",
        '{"a": ' + "9" * 10_000 + "}",
        "[" * 100_000,
        '{"a": ' + "[" * 70 + "]" * 70 + "}",
        '{"a": 1} {"b": 2}',
        '{"a": 1,}',
        "{'a': 1}",
        '{"a": "\x01"}',
        '{"a": 01}',
        "",
        "\ufeff{}",
    ],
)
def test_json_that_others_might_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode(text.encode("utf-8"))


@pytest.mark.parametrize("data", [b"\xff{}", b'{"a": "\xc3"}', b'{"a": "\xed\xa0\x80"}'])
def test_bytes_that_are_not_utf8_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null", "true"])
def test_a_frame_is_an_object(text: str) -> None:
    assert parse(text.encode()) is not None or text == "null"
    with pytest.raises(ProtocolError):
        decode(text.encode())


def test_what_lies_within_the_caps_is_taken() -> None:
    depth = protocol.MAX_DEPTH - 1
    assert decode(('{"a": ' + "[" * (depth) + "]" * (depth) + "}").encode())
    assert decode(('{"a": ' + "9" * protocol.MAX_DIGITS + "}").encode()) == {"a": int("9" * protocol.MAX_DIGITS)}
    assert decode('{"a": "\\ud83d\\ude00"}'.encode("ascii")) == {"a": "😀"}


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1: "a"},
        {"a": {None: 1}},
        {1, 2},
        b"bytes",
        object(),
        "\ud800",
        {"\ud800": 1},
        10**70,
        1j,
    ],
)
def test_what_is_not_plain_json_is_not_sent(value: Any) -> None:
    with pytest.raises(ProtocolError):
        encode({"value": value})


def test_a_value_within_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ProtocolError):
        check_value(loop)


def test_tuples_are_arrays() -> None:
    assert decode(encode({"a": (1, 2)})[4:]) == {"a": [1, 2]}


def test_sizes_are_capped_on_both_sides() -> None:
    data = encode({"a": "x" * 100})
    with pytest.raises(ProtocolError, match="over the limit"):
        encode({"a": "x" * 100}, limit=50)
    reader = FrameReader(limit=50)
    reader.feed(data[:4])  # the announcement is enough
    with pytest.raises(ProtocolError, match="over the limit"):
        reader.next()


def test_an_error_never_quotes_the_frame() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(b'{"password": "hunter2", }')
    assert "hunter2" not in str(caught.value)


def test_text_goes_as_utf8() -> None:
    assert json.loads(encode({"a": "ü"})[4:].decode("utf-8")) == {"a": "ü"}
    assert "ü".encode() in encode({"a": "ü"})
