"""What follows a failed attempt: another try, when, and on whose budget. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloche.clock import parse_duration
from cloche.domain.jobs import RetryPolicy
from cloche.domain.states import PLATFORM_REASONS, PLUGIN_REASONS, Reason, State

BACKOFFS = ("fixed", "linear", "exponential")
MAX_RETRIES = 100
MAX_DELAY_MS = 7 * 86_400_000
_DELAY_MS = 1_000  # doubled with each platform failure after the first, which is retried at once
_DELAY_MAX_MS = 60_000
_DOUBLINGS = 40  # more than any maximum; keeps the numbers small


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


def ceiling_ms(policy: RetryPolicy, retries_used: int) -> int:
    """The longest wait before the next try; the actual one is drawn evenly from 0 to it (full jitter).

    ``fixed``: always ``initial_delay``; ``linear``: 1, 2, 3 … times that; ``exponential``: 1, 2, 4 … times that; never more than ``max_delay``.

    Raises:
        ValueError: the policy's back-off is none of :data:`BACKOFFS`.
    """
    factors = {"fixed": 1, "linear": retries_used + 1, "exponential": 2 ** min(retries_used, _DOUBLINGS)}
    if policy.backoff not in factors:
        raise ValueError(f"'{policy.backoff}' is no back-off: {', '.join(BACKOFFS)}")
    return min(policy.max_delay_ms, policy.initial_delay_ms * factors[policy.backoff])


def after_plugin_failure(
    policy: RetryPolicy, retries_used: int, reason: Reason, draw: Callable[[int, int], int]
) -> Next:
    """Charged to the job: full jitter, so that jobs which failed together do not come back together.

    ``draw(low, high)`` returns a whole number between its bounds, both included.
    """
    # A quota that is used up is not waited out, unless the job asks for it: the plugin would run again for nothing.
    refused = reason is Reason.STORAGE_QUOTA if policy.retry_on is None else reason.value not in policy.retry_on
    if retries_used >= policy.max_retries or refused:
        return Next(State.FAILED, reason)
    delay = draw(0, ceiling_ms(policy, retries_used))
    return Next(State.SCHEDULED, Reason.RETRY_BACKOFF, delay, {"retries_used": retries_used + 1})


def after_platform_failure(budget: PlatformBudget, failures: int, deaths: int, reason: Reason) -> Next:
    """Charged to the platform. ``failures`` and ``deaths`` are the counts before this one."""
    if reason is Reason.WORKER_STOPPED:  # a planned stop is nobody's failure
        return Next(State.PENDING, reason)
    failures += 1
    deaths += 1 if reason is Reason.LEASE_LAPSED else 0
    counters = {"platform_failures": failures, "worker_deaths": deaths}
    if deaths >= budget.worker_deaths:
        return Next(State.FAILED, Reason.QUARANTINED, 0, counters)
    if failures >= budget.failures:
        return Next(State.FAILED, reason, 0, counters)
    if failures == 1 or reason is Reason.LEASE_LAPSED:
        return Next(State.PENDING, reason, 0, counters)
    delay = min(_DELAY_MAX_MS, _DELAY_MS * 2 ** min(failures - 2, 20))
    return Next(State.SCHEDULED, Reason.RETRY_BACKOFF, delay, counters)


def delay_ms(value: str | int | float) -> int:
    """A retry's delay as people write it, in milliseconds.

    Raises:
        ValueError: not a duration, less than a millisecond, or longer than seven days.
    """
    found = parse_duration(value)
    if found < 1:
        raise ValueError("is at least 1ms")
    if found > MAX_DELAY_MS:
        raise ValueError("is longer than 7 days")
    return found


def retried_reason(text: str) -> str:
    """The text, when it names a failure that a policy may retry.

    Raises:
        ValueError: it does not; the message says which do.
    """
    if text in {reason.value for reason in PLATFORM_REASONS}:
        raise ValueError(
            f"'{text}' is a failure of the platform: those are always retried, and never charged to the job"
        )
    if text not in {reason.value for reason in PLUGIN_REASONS}:
        known = ", ".join(sorted(reason.value for reason in PLUGIN_REASONS))
        raise ValueError(f"'{text[:40]}' is no reason that a job can be retried on; these are: {known}")
    return text


def fitted(defaults: RetryPolicy, named: Mapping[str, Any]) -> RetryPolicy:
    """``defaults`` with what was ``named`` laid over. Of the two delays, the one that was not named gives way to the one that was.

    Raises:
        ValueError: both were named, and the first delay is longer than the longest.
    """
    values = {
        "max_retries": defaults.max_retries,
        "backoff": defaults.backoff,
        "initial_delay_ms": defaults.initial_delay_ms,
        "max_delay_ms": defaults.max_delay_ms,
        "retry_on": defaults.retry_on,
        **named,
    }
    if values["initial_delay_ms"] > values["max_delay_ms"]:
        if {"initial_delay_ms", "max_delay_ms"} <= named.keys():
            raise ValueError("is longer than max_delay")
        given = "initial_delay_ms" if "initial_delay_ms" in named else "max_delay_ms"
        values["initial_delay_ms"] = values["max_delay_ms"] = values[given]
    return RetryPolicy(**values)
