"""``[retry]`` of a manifest: the policy of jobs that name none of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloche.domain.jobs import RetryPolicy
from cloche.domain.retries import BACKOFFS, MAX_RETRIES, delay_ms, fitted, retried_reason
from cloche.registry.tables import ManifestError, Section

KEYS = ("max_retries", "backoff", "initial_delay", "max_delay", "retry_on")


def parse_retry(section: Section) -> dict[str, Any]:
    """The fields of :class:`RetryPolicy` that the manifest names; those it leaves out are the operator's or the job's.

    Raises:
        ManifestError: a value is not one that a policy can have.
    """
    named: dict[str, Any] = {}
    most = section.count("max_retries", None, low=0, high=MAX_RETRIES)
    if most is not None:
        named["max_retries"] = most
    backoff = section.value("backoff", str, None)
    if backoff is not None:
        if backoff not in BACKOFFS:
            raise ManifestError(section.key("backoff"), f"is '{backoff[:40]}'; write one of {', '.join(BACKOFFS)}")
        named["backoff"] = backoff
    for name in ("initial_delay", "max_delay"):
        if name in section:
            named[f"{name}_ms"] = _checked(section.key(name), delay_ms, section.value(name, object))
    if "retry_on" in section:
        reasons = section.texts("retry_on")
        if not reasons:
            raise ManifestError(section.key("retry_on"), "is empty; write max_retries = 0 where nothing is retried")
        key = section.key("retry_on")
        named["retry_on"] = [_checked(f"{key}[{n}]", retried_reason, text) for n, text in enumerate(reasons)]
    try:
        fitted(RetryPolicy(), named)
    except ValueError as error:
        raise ManifestError(section.key("initial_delay"), str(error)) from None
    return named


def _checked(key: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except (ValueError, TypeError) as error:
        raise ManifestError(key, str(error)) from None
