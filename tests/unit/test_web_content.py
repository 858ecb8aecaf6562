"""File names chosen by users in headers, and long polls kept below the threads."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.http import parse_options_header

from cloche.web.content import disposition
from cloche.web.slots import Slots


@pytest.mark.parametrize(
    "name",
    ['a"b.txt', "a\r\nSet-Cookie: x=1.txt", "größe.csv", "\u202egnp.exe", "a;b=c.txt", "", "\x00", "日本.png", "a\\b"],
)
def test_a_name_never_leaves_its_header(name):
    value = disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()
    kind, options = parse_options_header(value)
    assert kind == "attachment"
    assert set(options) == {"filename"}


def test_the_exact_name_is_kept():
    value = disposition("inline", 'Jahr "2026" größe.csv')
    assert parse_options_header(value)[1]["filename"] == 'Jahr "2026" größe.csv'


@given(st.text(max_size=60))
def test_any_text_makes_one_line(name):
    value = disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()


def test_slots_are_bounded_and_given_back_once():
    slots = Slots(2, threading.Event())
    first, second = slots.take(), slots.take()
    assert first is not None
    assert second is not None
    assert slots.take() is None
    first.release()
    first.release()
    with slots.maybe() as free:
        assert free
        with slots.maybe() as another:
            assert not another
    second.release()
