"""What follows a failed attempt: another try, when, and on whose budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cloche.domain.jobs import RetryPolicy
from cloche.domain.states import Reason, State

_DELAY_MS = 1_000  # doubled with each platform failure after the first, which is retried at once
_DELAY_MAX_MS = 60_000


@dataclass(frozen=True)
class Next:
    """The job's next state with the reason shown there, the wait in ms, and the counters that change."""

    state: State
    reason: Reason
    delay_ms: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PlatformBudget:
    """How many platform failures, and how many lost workers, one job survives."""

    failures: int
    worker_deaths: int


def after_plugin_failure(
    policy: RetryPolicy, retries_used: int, reason: Reason, draw: Callable[[int, int], int]
) -> Next:
    """Charged to the job: full jitter, so that jobs which failed together do not come back together.

    ``draw(low, high)`` returns a whole number between its bounds, both included.
    """
    if retries_used >= policy.max_retries:
        return Next(State.FAILED, reason)
    delay = draw(0, policy.ceiling_ms(retries_used))
    return Next(State.SCHEDULED, Reason.RETRY_BACKOFF, delay, {"retries_used": retries_used + 1})


def after_platform_failure(budget: PlatformBudget, failures: int, deaths: int, reason: Reason) -> Next:
    """Charged to the platform. ``failures`` and ``deaths`` are the counts before this one."""
    if reason is Reason.WORKER_STOPPED:  # a planned stop is nobody's failure
        return Next(State.PENDING, reason)
    failures += 1
    deaths += 1 if reason is Reason.LEASE_LAPSED else 0
    counters = {"platform_failures": failures, "worker_deaths": deaths}
    if failures >= budget.failures or deaths >= budget.worker_deaths:
        return Next(State.FAILED, reason, 0, counters)
    if failures == 1 or reason is Reason.LEASE_LAPSED:
        return Next(State.PENDING, reason, 0, counters)
    delay = min(_DELAY_MAX_MS, _DELAY_MS * 2 ** min(failures - 2, 20))
    return Next(State.SCHEDULED, Reason.RETRY_BACKOFF, delay, counters)
