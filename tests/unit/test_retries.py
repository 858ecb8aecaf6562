"""What follows a failed attempt, and on whose budget."""

from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.jobs import RetryPolicy
from cloche.domain.retries import PlatformBudget, after_platform_failure, after_plugin_failure
from cloche.domain.states import Reason, State

BUDGET = PlatformBudget(failures=5, worker_deaths=3)


def highest(_low: int, high: int) -> int:
    return high


def test_the_jobs_own_retries_are_spent_one_by_one():
    policy = RetryPolicy(max_retries=2, initial_delay_ms=100)
    first = after_plugin_failure(policy, 0, Reason.PLUGIN_FAILED, highest)
    assert (first.state, first.reason, first.delay_ms, first.counters) == (
        State.SCHEDULED,
        Reason.RETRY_BACKOFF,
        100,
        {"retries_used": 1},
    )
    assert after_plugin_failure(policy, 1, Reason.PLUGIN_FAILED, highest).delay_ms == 200
    last = after_plugin_failure(policy, 2, Reason.TIMED_OUT, highest)
    assert (last.state, last.reason) == (State.FAILED, Reason.TIMED_OUT)


@given(used=st.integers(0, 99), initial=st.integers(0, 10**6), longest=st.integers(0, 10**7))
def test_the_wait_never_passes_its_maximum(used, initial, longest):
    policy = RetryPolicy(max_retries=100, initial_delay_ms=initial, max_delay_ms=longest)
    assert 0 <= after_plugin_failure(policy, used, Reason.PLUGIN_FAILED, highest).delay_ms <= longest


def test_the_first_platform_failure_is_retried_at_once_and_never_charged_to_the_job():
    following = after_platform_failure(BUDGET, 0, 0, Reason.ENGINE_UNAVAILABLE)
    assert (following.state, following.delay_ms) == (State.PENDING, 0)
    assert "retries_used" not in following.counters


def test_later_platform_failures_wait_longer_and_longer_until_the_budget_is_spent():
    delays = [after_platform_failure(BUDGET, n, 0, Reason.ENGINE_UNAVAILABLE).delay_ms for n in (1, 2, 3)]
    assert delays == [1_000, 2_000, 4_000]
    assert after_platform_failure(BUDGET, 4, 0, Reason.ENGINE_UNAVAILABLE).state is State.FAILED


def test_a_job_that_takes_three_workers_down_is_set_aside():
    assert after_platform_failure(BUDGET, 0, 1, Reason.LEASE_LAPSED).state is State.PENDING
    assert after_platform_failure(BUDGET, 0, 2, Reason.LEASE_LAPSED).state is State.FAILED


def test_a_planned_stop_costs_nothing():
    following = after_platform_failure(BUDGET, 4, 2, Reason.WORKER_STOPPED)
    assert (following.state, following.counters) == (State.PENDING, {})
