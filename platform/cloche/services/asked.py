"""What a job's body may ask for beside its payload and files: limits, retries, a callback. Pure; the plugin and the operator bound it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cloche.clock import parse_duration
from cloche.domain.callbacks import EVENTS, Reach, parse_url
from cloche.domain.jobs import RetryPolicy
from cloche.domain.limits import FLOORS, Limits, parse_size, violations
from cloche.domain.retries import delay_ms, fitted
from cloche.domain.runtimes import AS_ASKED
from cloche.errors import Problem
from cloche.registry.catalog import Bundle

_TIGHTEN: dict[str, Callable[[Any], float | int]] = {
    "cpu": float,
    "memory": parse_size,
    "pids": int,
    "output": parse_size,
}


@dataclass(frozen=True)
class Defaults:
    """What the operator set for jobs whose plugin and body say nothing."""

    max_retries: int
    timeout_ms: int
    reach: Reach = field(default_factory=Reach)  # of callbacks
    runtime: str = AS_ASKED  # the policy: see :func:`cloche.domain.runtimes.decided`


def limits_of(body: Mapping[str, Any], bundle: Bundle, defaults: Defaults) -> tuple[Limits, list[Problem]]:
    """The plugin's limits, tightened by the job where it asks; a job cannot widen them."""
    limits, problems = bundle.manifest.limits, []
    asked: dict[str, Any] = {}
    for name, value in (body.get("limits") or {}).items():
        try:
            asked[name] = _TIGHTEN[name](value)
        except (ValueError, KeyError) as error:
            problems.append(Problem(f"/limits/{name}", str(error)))
    if body.get("timeout") is not None:
        try:
            asked["time_ms"] = parse_duration(body["timeout"])
        except ValueError as error:
            problems.append(Problem("/timeout", str(error)))
        if asked.get("time_ms", FLOORS.time_ms) < FLOORS.time_ms:
            problems.append(Problem("/timeout", f"is at least {FLOORS.time_ms}ms"))
    elif not bundle.manifest.names_time:
        asked["time_ms"] = min(defaults.timeout_ms, limits.time_ms)
    for name, value in asked.items():
        if value > getattr(limits, name):
            where = "/timeout" if name == "time_ms" else f"/limits/{name}"
            problems.append(
                Problem(where, f"{bundle.manifest.name} allows at most {getattr(limits, name)}; a job may only tighten")
            )
    limits = replace(limits, **asked)
    problems += [Problem("/limits", text) for text in violations(limits)] if not problems else []
    return limits, problems


def retry_of(asked: Mapping[str, Any], bundle: Bundle, defaults: Defaults) -> tuple[RetryPolicy, list[Problem]]:
    """What the job names, over what its plugin names, over the operator's and our own defaults."""
    problems: list[Problem] = []
    named = {key: asked[key] for key in ("max_retries", "backoff", "retry_on") if asked.get(key) is not None}
    for name in ("initial_delay", "max_delay"):
        if asked.get(name) is not None:
            try:
                named[f"{name}_ms"] = delay_ms(asked[name])
            except ValueError as error:
                problems.append(Problem(f"/retry/{name}", str(error)))
    policy = fitted(RetryPolicy(max_retries=defaults.max_retries), bundle.manifest.retry)
    try:
        return fitted(policy, named), problems
    except ValueError as error:
        return policy, [*problems, Problem("/retry/initial_delay", str(error))]


def callback_of(asked: Mapping[str, Any] | None, reach: Reach) -> tuple[dict[str, Any] | None, list[Problem]]:
    if asked is None:
        return None, []
    if not reach.enabled:
        return None, [Problem("/callback", "this platform delivers no callbacks (CLOCHE_CALLBACKS_ENABLED)")]
    try:
        refusal = reach.refusal(parse_url(asked["url"]))
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        return None, [Problem("/callback/url", refusal)]
    wanted = set(asked.get("events") or EVENTS)
    return {"url": asked["url"], "events": [event for event in EVENTS if event in wanted]}, []
