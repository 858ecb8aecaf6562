"""What statistics are made of: windows, percentiles, rates of what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.db import tables as t
from cloche.domain.states import TERMINAL, State
from cloche.domain.statistics import (
    MOST_COUNTED,
    Counted,
    Flow,
    Timed,
    counted,
    flow_view,
    parse_window,
    percentiles,
    times_view,
)


@pytest.mark.parametrize(
    ("text", "ms"), [("5m", 300_000), ("10s", 10_000), ("24h", 86_400_000), ("PT1M", 60_000), ("90", 90_000)]
)
def test_a_window_is_a_duration(text, ms):
    assert parse_window(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9s",
        "0",
        "25h",
        "86401",
        "-5m",
        "5",
        "5 m",
        "m",
        "1e9",
        "inf",
        "nan",
        "9" * 400,
        "٣٠",
        "5m\n",
        "5m; DROP",
        "P1D1",
    ],
)
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ValueError):
        parse_window(text)


def test_percentiles_by_nearest_rank():
    assert percentiles([]) is None
    assert percentiles([7]) == {"p50": 0.007, "p95": 0.007, "p99": 0.007}
    assert percentiles(list(range(1_000, 101_000, 1_000))) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300))
def test_percentiles_are_values_that_were_there_in_order(times):
    found = percentiles(times)
    assert found["p50"] <= found["p95"] <= found["p99"] <= max(times) / 1000
    assert set(found.values()) <= {time / 1000 for time in times}


def test_a_rate_is_that_of_the_time_that_was_looked_at():
    now = 1_000_000
    assert counted(30, 30, now - 500, now, 60_000) == Counted(30, 60_000)
    assert counted(30, 30, None, now, 60_000).rate == 0.5
    stopped = counted(MOST_COUNTED, MOST_COUNTED, now - 2_000, now, 60_000)
    assert (stopped.complete, stopped.rate) == (False, MOST_COUNTED / 2)
    # Looking stopped, and not within this window.
    assert counted(3, MOST_COUNTED, now - 90_000, now, 60_000) == Counted(3, 60_000)
    assert counted(MOST_COUNTED, MOST_COUNTED, now, now, 60_000).rate > 0, "all in one millisecond"


def test_flows_of_queues_add_up():
    slow = Flow(Counted(60, 60_000), Counted(3, 60_000), {"completed": 2, "failed": 1, "canceled": 0})
    fast = Flow(Counted(100, 1_000, complete=False), Counted(0, 60_000), {})
    assert flow_view([slow]) == {
        "arrived": 60,
        "completed": 2,
        "failed": 1,
        "canceled": 0,
        "arrival_rate": 1.0,
        "completion_rate": 0.05,
        "failure_share": 0.3333,
        "complete": True,
    }
    both = flow_view(iter([slow, fast]))
    assert (both["arrived"], both["arrival_rate"], both["complete"]) == (160, 101.0, False)
    assert flow_view([])["failure_share"] is None


def test_waits_and_runs_of_those_that_have_them():
    jobs = [
        Timed("completed", 1_000, 1_500, 3_500),
        Timed("failed", 9_000, 1_500, 9_500),  # retried: when it could run first is not known any more
        Timed("canceled", 1_000, 1_200, 9_000),
        Timed("canceled", 1_000, None, 2_000),
    ]
    assert [(job.wait_ms, job.run_ms) for job in jobs] == [(500, 2_000), (None, 8_000), (200, None), (None, None)]
    found = times_view(jobs, complete=True)
    assert found["jobs_looked_at"] == 4
    assert (found["wait_s"]["p50"], found["wait_s"]["p99"]) == (0.2, 0.5)
    assert (found["run_s"]["p50"], found["run_s"]["p99"]) == (2.0, 8.0)
    assert times_view([], complete=True) == {"jobs_looked_at": 0, "complete": True, "wait_s": None, "run_s": None}


def test_the_index_of_what_has_not_ended_holds_these_states():
    assert "state IN ({})".format(", ".join(f"'{state.value}'" for state in State if state not in TERMINAL)) == t.LIVE
