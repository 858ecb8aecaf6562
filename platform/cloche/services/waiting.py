"""What a job is asked to wait for: a time, other jobs; and how long anybody waits for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from cloche.clock import from_rfc3339, parse_duration
from cloche.db import tables as t
from cloche.domain.dependencies import DEFAULT_ON_FAILURE, MAX_UPSTREAMS, Condition
from cloche.errors import Problem
from cloche.services.dependents import unknown

_DAY_MS = 86_400_000
MAX_AHEAD_MS = 366 * _DAY_MS
MAX_EXPIRY_MS = 2 * MAX_AHEAD_MS  # later than the latest start


def waiting(
    connection: Connection, tenant_id: str, body: Mapping[str, Any], now: int, beside: Collection[str] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """The job's columns for it, and what is wrong with the body's fields. ``beside``: ids of jobs that are accepted together with it."""
    problems: list[Problem] = []
    scheduled_at = _time(body, "schedule_at", problems)
    if scheduled_at is not None and scheduled_at > now + MAX_AHEAD_MS:
        problems.append(Problem("/schedule_at", f"is more than {MAX_AHEAD_MS // _DAY_MS} days ahead"))
    columns = {
        "scheduled_at": scheduled_at,
        "expires_at": _expiry(body, scheduled_at, now, problems),
        **_dependencies(connection, tenant_id, body, problems, beside),
    }
    return columns, problems


def _time(body: Mapping[str, Any], name: str, problems: list[Problem]) -> int | None:
    if body.get(name) is None:
        return None
    try:
        return from_rfc3339(body[name])
    except ValueError as error:
        problems.append(Problem(f"/{name}", str(error)))
        return None


def _expiry(body: Mapping[str, Any], scheduled_at: int | None, now: int, problems: list[Problem]) -> int | None:
    pointer, expires_at = "/expires_at", _time(body, "expires_at", problems)
    if body.get("expires_in") is not None:
        if body.get("expires_at") is not None:
            problems.append(Problem("/expires_in", "give either this or expires_at"))
            return None
        pointer = "/expires_in"
        try:
            length = parse_duration(body["expires_in"])
        except ValueError as error:
            problems.append(Problem(pointer, str(error)))
            return None
        if length < 1:
            problems.append(Problem(pointer, "is at least 1ms"))
            return None
        expires_at = now + length
    if expires_at is None:
        return None
    if expires_at <= now:
        problems.append(Problem(pointer, "has already passed"))
    elif expires_at > now + MAX_EXPIRY_MS:
        problems.append(Problem(pointer, f"is more than {MAX_EXPIRY_MS // _DAY_MS} days ahead"))
    elif scheduled_at is not None and expires_at <= scheduled_at:
        problems.append(Problem(pointer, "is not after schedule_at: the job could never start"))
    return expires_at


def _dependencies(
    connection: Connection, tenant_id: str, body: Mapping[str, Any], problems: list[Problem], beside: Collection[str]
) -> dict[str, Any]:
    upstreams: Sequence[str] = body.get("depends_on") or []
    if not upstreams:
        problems += [
            Problem(f"/{name}", "is only for a job with depends_on")
            for name in ("depends_on_condition", "on_upstream_failure")
            if body.get(name) is not None
        ]
        return {"depends_on": None, "depends_on_condition": None, "on_upstream_failure": None}
    if len(upstreams) > MAX_UPSTREAMS:
        problems.append(Problem("/depends_on", f"at most {MAX_UPSTREAMS} jobs"))
        upstreams = upstreams[:MAX_UPSTREAMS]
    seen: set[str] = set()
    for n, one in enumerate(upstreams):
        if one in seen:
            problems.append(Problem(f"/depends_on/{n}", "is named twice"))
        seen.add(one)
    job = t.job.c
    together = {one for one in seen if one in beside}
    mine = select(job.id).where(job.id.in_(seen - together), job.tenant_id == tenant_id)
    # Looked at again when the job is stored: between the two an upstream may end, or be removed.
    stored = connection.execute(mine).scalars() if seen - together else ()
    problems += unknown(upstreams, {*stored, *together})
    condition = Condition(body.get("depends_on_condition") or Condition.ALL_COMPLETED)
    return {
        "depends_on": list(upstreams),
        "depends_on_condition": condition.value,
        "on_upstream_failure": body.get("on_upstream_failure") or DEFAULT_ON_FAILURE[condition].value,
    }
