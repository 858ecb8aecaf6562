"""What was used, day by day: written in the transaction that ends an attempt, so that each counts once and none is missing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from cloche.db import tables as t
from cloche.domain.metering import FIELDS, TOTAL, Metered, metered, total_of
from cloche.domain.quotas import Whose, day_of

_SHARDS = 8
_DAY = t.usage_day.c


def closing(
    connection: Connection, job_id: str, attempt: int, usage: Mapping[str, Any] | None, now: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the attempt used, and the same with the sum of its run's attempts, as the job has it.

    ``usage``: what its worker reported. Without it, how long the attempt was held is all that is known.
    """
    own = dict(usage or {})
    before = Metered()
    if attempt > 1 or "wall_ms" not in own:
        tried, job = t.attempt.c, t.job.c
        mine = (job.id == job_id) & (tried.job_id == job.id) & (tried.number == attempt)
        row = connection.execute(select(tried.started_at, job.usage).where(mine)).one_or_none()
        if row is not None:
            before = total_of(row.usage)
            own.setdefault("wall_ms", max(0, now - row.started_at))
    return own, {**own, TOTAL: (before + metered(own)).to_dict()}


def brief(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the trace says of it."""
    return {key: usage[key] for key in ("cpu_ms", "memory_peak") if usage and key in usage}


def add(connection: Connection, tenant_id: str, user_id: str, key: str, used: Metered, now: int) -> None:
    """Add to the day's sums of the user. ``key``: such as a job's id; only spreads the rows."""
    shard = zlib.crc32(key.encode()) % _SHARDS
    row = {"tenant_id": tenant_id, "day": day_of(now), "user_id": user_id, "shard": shard, **used.to_dict()}
    connection.execute(_adding(connection.dialect.name), row)


def tell(connection: Connection, row: Mapping[str, Any], used: Metered, now: int) -> None:
    """Have extensions told of it. ``row``: the columns of ``job``, whose attempt has just ended."""
    named = {
        "tenant_id": row["tenant_id"],
        "user_id": row["submitted_by"],
        "job_id": row["id"],
        "attempt": row["attempt"],
    }
    numbers = {name: number for name, number in used.to_dict().items() if name != "attempts"}
    connection.execute(insert(t.usage_event), {**named, "ended_at": now, **numbers})


def order(row: Mapping[str, Any]) -> tuple[str, str, int]:
    """In which order attempts that end in one transaction are written, so that two of these never wait for each other."""
    return row["tenant_id"], row["submitted_by"], zlib.crc32(row["id"].encode()) % _SHARDS


def cpu_ms(connection: Connection, tenant_id: str, user_id: str, now: int) -> dict[Whose, int]:
    """CPU time of this day so far, of the tenant and of the user."""
    own = func.sum(_DAY.cpu_ms).filter(_DAY.user_id == user_id)
    query = select(func.coalesce(func.sum(_DAY.cpu_ms), 0), func.coalesce(own, 0))
    whole, mine = connection.execute(query.where(_DAY.tenant_id == tenant_id, _DAY.day == day_of(now))).one()
    return {Whose.TENANT: int(whole), Whose.USER: int(mine)}


def sums(
    connection: Connection, tenant_ids: Sequence[str] | None, since: int, until: int, group: Iterable[str], limit: int
) -> list[dict[str, Any]]:
    """Of the days from ``since`` up to but not including ``until``: one row for each value of the ``group``'s columns (``tenant_id``, ``day``,
    ``user_id``), in their order. ``tenant_ids`` None: of every tenant."""
    keys = [_DAY[name] for name in group]
    totals = [func.sum(_DAY[name]).label(name) for name in FIELDS]
    query = select(*keys, *totals).where(_DAY.day >= since, _DAY.day < until)
    if tenant_ids is not None:
        query = query.where(_DAY.tenant_id.in_(tenant_ids))
    else:
        query = query.execution_options(across_tenants="the platform's administrators bill every tenant")
    rows = connection.execute(query.group_by(*keys).order_by(*keys).limit(limit)).mappings()
    return [{**row, **{name: int(row[name] or 0) for name in FIELDS}} for row in rows]


@cache
def _adding(dialect: str) -> Any:
    statement = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(t.usage_day)
    added = {name: _DAY[name] + statement.excluded[name] for name in FIELDS}
    return statement.on_conflict_do_update(index_elements=["tenant_id", "day", "user_id", "shard"], set_=added)
