"""What follows a failed attempt, and on whose budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.jobs import RetryPolicy
from cloche.domain.retries import (
    BACKOFFS,
    MAX_DELAY_MS,
    MAX_RETRIES,
    PlatformBudget,
    after_platform_failure,
    after_plugin_failure,
    ceiling_ms,
    delay_ms,
    fitted,
    retried_reason,
)
from cloche.domain.states import PLATFORM_REASONS, PLUGIN_REASONS, Reason, State

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


POLICIES = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, MAX_RETRIES),
    backoff=st.sampled_from(BACKOFFS),
    initial_delay_ms=st.integers(1, MAX_DELAY_MS),
    max_delay_ms=st.integers(1, MAX_DELAY_MS),
    retry_on=st.none() | st.lists(st.sampled_from(sorted(r.value for r in PLUGIN_REASONS)), min_size=1),
)
FAILURES = st.sampled_from(sorted(PLUGIN_REASONS))


@given(policy=POLICIES, used=st.integers(0, MAX_RETRIES))
def test_the_wait_never_shrinks_and_never_passes_its_maximum(policy, used):
    waits = [ceiling_ms(policy, n) for n in range(used + 2)]
    assert waits == sorted(waits)
    assert waits[0] == min(policy.initial_delay_ms, policy.max_delay_ms)
    assert waits[-1] <= policy.max_delay_ms


@given(policy=POLICIES, used=st.integers(0, MAX_RETRIES + 5), reason=FAILURES, seed=st.randoms(use_true_random=False))
def test_a_failure_is_retried_while_the_policy_has_a_retry_for_it_and_ends_the_job_else(policy, used, reason, seed):
    following = after_plugin_failure(policy, used, reason, seed.randint)
    wanted = reason is not Reason.STORAGE_QUOTA if policy.retry_on is None else reason.value in policy.retry_on
    if used < policy.max_retries and wanted:
        assert (following.state, following.reason) == (State.SCHEDULED, Reason.RETRY_BACKOFF)
        assert following.counters == {"retries_used": used + 1}
        assert 0 <= following.delay_ms <= ceiling_ms(policy, used)
    else:
        assert (following.state, following.reason, following.delay_ms) == (State.FAILED, reason, 0)


@given(policy=POLICIES, reason=FAILURES)
def test_a_job_that_always_fails_ends_after_its_retries(policy, reason):
    used, tries = 0, 1
    while (following := after_plugin_failure(policy, used, reason, highest)).state is State.SCHEDULED:
        used, tries = following.counters["retries_used"], tries + 1
    assert tries <= policy.max_retries + 1


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [("fixed", [100, 100, 100, 100]), ("linear", [100, 200, 300, 350]), ("exponential", [100, 200, 350, 350])],
)
def test_how_each_back_off_grows(backoff, waits):
    policy = RetryPolicy(backoff=backoff, initial_delay_ms=100, max_delay_ms=350)
    assert [ceiling_ms(policy, n) for n in range(4)] == waits


def test_a_back_off_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no back-off"):
        ceiling_ms(RetryPolicy(backoff="fibonacci"), 0)


@pytest.mark.parametrize(
    "value", [-1, 0, "0s", "0.0001s", "-5s", "8d", 1e300, float("nan"), "5 s", "", "PT", "9" * 400]
)
def test_delays_that_are_none(value):
    with pytest.raises(ValueError):
        delay_ms(value)


def test_delays_as_people_write_them():
    assert [delay_ms(value) for value in ("1ms", "2s", 0.5, "PT1M", "7d")] == [1, 2_000, 500, 60_000, MAX_DELAY_MS]


@pytest.mark.parametrize("reason", Reason)
def test_a_policy_names_the_plugins_failures_alone(reason):
    if reason in PLUGIN_REASONS:
        assert retried_reason(reason.value) == reason.value
    else:
        with pytest.raises(ValueError, match="failure of the platform" if reason in PLATFORM_REASONS else "no reason"):
            retried_reason(reason.value)


def test_of_the_two_delays_the_one_that_was_not_named_gives_way():
    own = RetryPolicy(initial_delay_ms=1_000, max_delay_ms=300_000)
    longer = fitted(own, {"initial_delay_ms": 600_000})
    assert (longer.initial_delay_ms, longer.max_delay_ms) == (600_000, 600_000)
    shorter = fitted(own, {"max_delay_ms": 200})
    assert (shorter.initial_delay_ms, shorter.max_delay_ms) == (200, 200)
    assert fitted(own, {"backoff": "linear"}) == RetryPolicy(3, "linear", 1_000, 300_000)
    with pytest.raises(ValueError, match="longer than max_delay"):
        fitted(own, {"initial_delay_ms": 2, "max_delay_ms": 1})


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
    last = after_platform_failure(BUDGET, 0, 2, Reason.LEASE_LAPSED)
    assert (last.state, last.reason) == (State.FAILED, Reason.QUARANTINED)
    assert after_platform_failure(BUDGET, 4, 2, Reason.LEASE_LAPSED).reason is Reason.QUARANTINED


def test_a_planned_stop_costs_nothing():
    following = after_platform_failure(BUDGET, 4, 2, Reason.WORKER_STOPPED)
    assert (following.state, following.counters) == (State.PENDING, {})
