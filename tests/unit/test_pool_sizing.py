"""How many sandboxes should wait: arithmetic with a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.sandboxd.sizing import MEMORY_TAU_S, Arrivals, Average, Backoff, Bounds, Bucket, target

BOUNDS = Bounds(least=0, most=8, idle_s=600.0)


def steady(per_second: float, seconds: float) -> tuple[Arrivals, float]:
    arrivals = Arrivals()
    now = 0.0
    while now < seconds:
        now += 1 / per_second
        arrivals.note(now)
    return arrivals, now


@pytest.mark.parametrize("rate", [0.5, 2.0, 10.0])
def test_the_rate_of_a_steady_stream(rate: float) -> None:
    arrivals, now = steady(rate, 10 * MEMORY_TAU_S)
    assert arrivals.rate(now) == pytest.approx(rate, rel=0.05)
    assert arrivals.rate(now + MEMORY_TAU_S) == pytest.approx(rate / math.e, rel=0.05)


def test_nobody_ever_came() -> None:
    assert Arrivals().rate(5.0) == 0.0
    assert target(Arrivals(), 0.5, BOUNDS, 5.0) == 0
    assert target(Arrivals(), 0.5, Bounds(least=2), 5.0) == 2


def test_one_waits_as_long_as_somebody_came_lately() -> None:
    arrivals = Arrivals()
    arrivals.note(0.0)
    assert target(arrivals, 0.5, BOUNDS, 1.0) == 1
    assert target(arrivals, 0.5, BOUNDS, 600.0) == 1
    assert target(arrivals, 0.5, BOUNDS, 600.1) == 0


def test_more_wait_when_more_come_or_making_takes_longer() -> None:
    arrivals, now = steady(5.0, 120.0)
    assert target(arrivals, 0.2, BOUNDS, now) == 3  # 1 asked for meanwhile, and two deviations
    assert target(arrivals, 0.8, BOUNDS, now) == 8  # 4 and 4
    assert target(arrivals, 20.0, BOUNDS, now) == BOUNDS.most


@given(st.lists(st.floats(0, 10_000), max_size=50), st.floats(0.01, 60), st.integers(0, 5), st.integers(0, 20))
def test_always_within_the_bounds(times: list[float], fill_s: float, least: int, more: int) -> None:
    arrivals = Arrivals()
    for moment in sorted(times):
        arrivals.note(moment)
    bounds = Bounds(least=least, most=least + more)
    found = target(arrivals, fill_s, bounds, max(times, default=0.0) + 0.1)
    assert bounds.least <= found <= bounds.most


def test_back_off_doubles_to_a_bound_and_ends_with_a_success() -> None:
    backoff = Backoff()
    waits = []
    for _ in range(40):
        backoff.failed(100.0)
        waits.append(backoff.until - 100.0)
    assert waits[:4] == [5.0, 10.0, 20.0, 40.0]
    assert max(waits) == waits[-1] == 600.0
    backoff.succeeded()
    assert backoff.until < 0
    backoff.failed(0.0)
    assert backoff.until == 5.0


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(rate=2.0, burst=3.0)
    for _ in range(3):
        assert bucket.wait_s(10.0) == 0.0
        bucket.take(10.0)
    assert bucket.wait_s(10.0) == 0.5
    assert bucket.wait_s(10.5) == 0.0
    assert bucket.wait_s(1e9) == 0.0
    assert bucket.left == 3.0


def test_an_average_follows() -> None:
    average = Average(1.0)
    for _ in range(30):
        average.note(5.0)
    assert average.value == pytest.approx(5.0, abs=0.01)
