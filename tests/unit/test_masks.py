"""A job's secrets in what it says: every spelling, split anywhere, at the price of one look at each letter."""

from __future__ import annotations

import base64
import html
import json
import random
import urllib.parse
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.masks import LEAST, PIECE, Masks
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure, PluginFailure
from cloche.redact import MASK

VALUE = 'pa&ss/w"ö rd+<é>\\9'
PEM = "-----BEGIN KEY-----\n" + "\n".join(f"{n}kH7mQ2xV9" * 6 for n in range(30)) + "\n-----END KEY-----\n"


def streamed(masks: Masks, parts: Iterable[str], name: str = "stdout") -> str:
    shown = "".join(masks.stream(name, part) for part in parts)
    return shown + "".join(text for stream, text in masks.rest() if stream == name)


@pytest.mark.parametrize(
    "spelling",
    [
        VALUE,
        json.dumps(VALUE),
        json.dumps(VALUE, ensure_ascii=False),
        repr(VALUE),
        html.escape(VALUE),
        urllib.parse.quote(VALUE),
        urllib.parse.quote(VALUE, safe=""),
        urllib.parse.quote_plus(VALUE),
        urllib.parse.quote_plus(VALUE).lower().replace("9", "9"),
        VALUE.encode().hex(),
        VALUE.encode().hex().upper(),
    ],
)
def test_every_spelling_is_found(spelling: str) -> None:
    shown = Masks([VALUE]).text(f"<{spelling}>")
    assert MASK in shown
    assert spelling.strip("\"'") not in shown
    assert shown[0] == "<"
    assert shown[-1] == ">"


@pytest.mark.parametrize("before", ["", "u", "us", "user:", "another"])
def test_base64_is_found_at_every_offset(before: str) -> None:
    value = "correct-horse-battery??>>"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(f"{before}{value}:after".encode()).decode()
        shown = Masks([value]).text(f"Basic {text}")
        assert MASK in shown
        at = len(before)
        inside = encode(f"{before}{value}".encode()).decode()[(at * 8 + 5) // 6 : (at + len(value)) * 8 // 6]
        assert inside not in shown


def test_what_is_short_is_left_alone() -> None:
    masks = Masks(["a", "12345", "", "     "])
    assert not masks
    assert masks.text("a 12345") == "a 12345"
    assert Masks(["123456"]).value({"a": 12, "b": 123456, "c": True, "d": None}) == {
        "a": 12,
        "b": MASK,
        "c": True,
        "d": None,
    }


def test_json_is_masked_all_the_way_down() -> None:
    masks = Masks(["hunter2-long"])
    found = masks.value({"a": [{"hunter2-long": "x hunter2-long y"}], "n": [1, 2.5]})
    assert found == {"a": [{MASK: f"x {MASK} y"}], "n": [1, 2.5]}


def test_an_end_that_somebody_cut_is_masked_too() -> None:
    assert Masks(["hunter2-long-and-longer"]).text("it was hunter2-long") == f"it was {MASK}"
    assert Masks(["hunter2-long-and-longer"]).text("it was hunt") == "it was hunt"


def test_lines_of_a_longer_value_are_found_by_themselves() -> None:
    masks = Masks([PEM])
    for line in PEM.splitlines():
        assert masks.text(f"  {line}  ") == f"  {MASK}  "
    assert masks.text(PEM) == f"{MASK}\n"


def test_a_failure_keeps_its_kind_its_reason_and_its_numbers() -> None:
    masks = Masks(["268435456"])
    for kind in (PluginFailure, PlatformFailure):
        failure = kind(Reason.PLUGIN_FAILED, "no 268435456", {"traceback": "x 268435456", "limit": 268435456})
        shown = masks.failure(failure)
        assert type(shown) is kind
        assert shown.message == f"no {MASK}"
        assert shown.details == {"traceback": f"x {MASK}", "limit": 268435456}


def test_each_stream_is_looked_at_by_itself_and_nothing_is_lost() -> None:
    masks = Masks(["hunter2-long"])
    assert masks.stream("stdout", "a hunter2") == "a "
    assert masks.stream("stderr", "-long\n") == "-long\n"
    assert masks.stream("stdout", "-long!") == f"{MASK}!"
    assert masks.stream("stdout", "hunt") == ""
    assert masks.rest() == [("stdout", "hunt")]
    assert masks.rest() == []


def test_ordinary_lines_are_not_held_back() -> None:
    masks = Masks(["hunter2-long"])
    assert masks.stream("stdout", "line one\n") == "line one\n"


def test_a_value_within_a_longer_one_does_not_uncover_the_rest() -> None:
    masks = Masks(["hunter2", "hunter2-and-more"])
    for parts in (["x hunter2-and-more y"], ["x hunter2", "-and-more y"], list("x hunter2-and-more y")):
        shown = streamed(masks, parts)
        assert "more" not in shown
        assert shown.startswith("x ")
        assert shown.endswith(" y")
    assert streamed(masks, ["x hunter2", " y"]) == f"x {MASK} y"


def test_overlapping_values_are_covered_whole() -> None:
    masks = Masks(["abcdefgh", "efghijkl"])
    for size in (1, 3, 50):
        text = "-abcdefghijkl-"
        assert set(streamed(masks, [text[at : at + size] for at in range(0, len(text), size)])) <= {*MASK, "-"}


@pytest.mark.parametrize("size", [1, 7, 127, 128, 5_000])
def test_what_repeats_itself_is_held_back_no_longer_than_a_piece(size: int) -> None:
    masks = Masks(["a" * 1_000])
    text = "b" + "a" * 20_000 + "b"
    shown, given_ = "", 0
    for at in range(0, len(text), size):
        shown += masks.stream("stdout", text[at : at + size])
        tail, _ = masks._tails["stdout"]
        given_ += size
        assert len(tail) < PIECE
    shown += "".join(part for _, part in masks.rest())
    assert set(shown) <= {"b", *MASK}


def test_thousands_of_pieces_that_begin_alike_cost_no_more() -> None:
    masks = Masks(["".join(f"aaaaaa{n:0122d}" for n in range(200))])
    assert max(len(alike) for alike in masks._index.values()) <= 64
    assert masks.text("x aaaaaa y") == f"x {MASK} y"


@given(
    st.text(min_size=LEAST, max_size=400), st.text(max_size=60), st.integers(1, 40), st.randoms(use_true_random=False)
)
def test_however_a_value_is_split_it_does_not_come_out(value: str, around: str, size: int, rng: random.Random) -> None:
    value = value.strip()
    if len(value) < LEAST or value in around or MASK in value or MASK in around:
        return
    text = around + value + around
    parts, at = [], 0
    while at < len(text):
        step = rng.randint(1, size)
        parts.append(text[at : at + step])
        at += step
    shown = streamed(Masks([value]), parts)
    assert value not in shown
    assert MASK in shown


@given(st.lists(st.text(max_size=20), max_size=20))
def test_without_values_everything_passes_at_once(parts: list[str]) -> None:
    masks = Masks()
    assert [masks.stream("stdout", part) for part in parts] == parts
    assert masks.rest() == []
