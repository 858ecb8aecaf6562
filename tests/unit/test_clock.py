"""Ids that sort, times that round-trip, durations as people write them."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche import clock


def test_ids_are_uuid7_and_sort_as_they_were_made():
    made = [clock.uuid7() for _ in range(5_000)]
    assert made == sorted(set(made))
    assert all(clock.is_uuid7(one) for one in made)


def test_ids_of_many_threads_do_not_collide():
    made, lock = set(), threading.Lock()

    def make():
        mine = {clock.uuid7() for _ in range(2_000)}
        with lock:
            made.update(mine)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8_000


@pytest.mark.parametrize(
    "text", ["", "x", "01a201a1-8a2f-408e-8cd6-7c52cb44148e", "01A201A1-8A2F-708E-8CD6-7C52CB44148E"]
)
def test_what_is_no_uuid7(text):
    assert not clock.is_uuid7(text)


@given(st.integers(0, 4_102_444_800_000))
def test_times_round_trip(ms):
    assert clock.from_rfc3339(clock.to_rfc3339(ms)) == ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("5s", 5_000),
        ("500ms", 500),
        ("1.5m", 90_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("PT5M", 300_000),
        ("P1DT1S", 86_401_000),
        (2, 2_000),
        (0.25, 250),
    ],
)
def test_durations(text, ms):
    assert clock.parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "5", "5 s", "-1s", "P", "PT", "1e3s", True, -1, float("inf"), float("nan")])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="duration"):
        clock.parse_duration(text)


def test_a_time_without_an_offset_is_refused():
    with pytest.raises(ValueError, match="offset"):
        clock.from_rfc3339("2026-01-31T12:00:00")
