"""JSON from outside is read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.web import strictjson
from cloche.web.strictjson import MAX_DEPTH, Malformed, loads


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"a": 1,}', "line 1"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "twice"),
        (b"NaN", "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b"1" * 5_000, "too large"),
        (b'"\\u0000"', "U+0000"),
        (b'{"\\u0000": 1}', "U+0000"),
        (b'"\\ud800"', "surrogate"),
        (b'"\xff"', "UTF-8"),
        (b"\xff\xfe{\x00}\x00", "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep"),
    ],
)
def test_what_is_refused_is_said(raw, word):
    with pytest.raises(Malformed, match=r".*") as caught:
        loads(raw)
    assert word in str(caught.value)


def test_the_deepest_that_is_taken():
    assert loads(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)


def test_a_whole_surrogate_pair_is_one_character():
    assert loads(b'"\\ud83d\\ude00"') == "\U0001f600"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_what_json_writes_is_read_back(value):
    import json

    assert strictjson.loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_no_other_error_ever_rises(raw):
    try:
        loads(raw)
    except Malformed:
        pass
