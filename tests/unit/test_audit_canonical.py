from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.audit import canonical

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(_JSON)
def test_what_is_written_reads_back_equal_and_writes_the_same(value):
    spelled = canonical.text(value)
    assert json.loads(spelled) == value
    assert canonical.text(json.loads(spelled)) == spelled


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert (
        canonical.text({"b": (1, 2), "a": None}) == canonical.text({"a": None, "b": [1, 2]}) == '{"a":null,"b":[1,2]}'
    )


def test_text_is_utf8_not_escapes():
    assert canonical.text({"ü": "→"}) == '{"ü":"→"}'


@pytest.mark.parametrize(
    ("value", "spelled"), [(2.0, "2"), (-0.0, "0"), (1e15, "1000000000000000"), (0.1, "0.1"), (1e300, "1e+300")]
)
def test_a_whole_float_is_the_integer_it_equals(value, spelled):
    assert canonical.text(value) == spelled


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": "\ud800"}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError):
        canonical.text(value)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": b"bytes"}, {"a", "b"}, object()])
def test_what_json_has_no_word_for_is_refused(value):
    with pytest.raises(TypeError):
        canonical.text(value)


def test_a_bottomless_value_is_refused():
    value: list[object] = []
    value.append(value)
    with pytest.raises(ValueError, match="deeper"):
        canonical.text(value)


def test_digest_is_sha256_of_the_text():
    assert canonical.digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
