"""Quotas as the database has them: which hold, and counters of what is used.

What is used is the sum of two tables. ``quota_use`` has one row for each user and one for the tenant, which only those change who are about
to add something under a quota: they have to wait for each other. Everybody else, such as an attempt that ends, appends to ``quota_delta``
and waits for nobody; :func:`fold` adds that up. A job counts when ``job.quota_counted`` says so, from the transaction that begins it to the
one that ends it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, String, bindparam, delete, func, insert, literal, select, union_all, update

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.dialect import insert_or
from cloche.db.quota_tables import WHOLE
from cloche.domain.quotas import CODES, Kind, Quotas, Whose, laid_over, next_day_ms, refused
from cloche.domain.states import TERMINAL, State
from cloche.errors import QuotaExceeded

_LIVE = [state.value for state in State if state not in TERMINAL]
_FOLDED = 10_000  # deltas in one go
_SET = select(t.quota)
# What every submission asks: built once, for building takes longer than the database does.
_FOR = select(t.quota.c.user_id, *(t.quota.c[kind.value] for kind in Kind)).where(
    t.quota.c.tenant_id == bindparam("tenant"), t.quota.c.user_id.in_((WHOLE, bindparam("user")))
)
Row = Mapping[str, Any]


def stored(connection: Connection, tenant_id: str, user_id: str = WHOLE) -> dict[str, Any] | None:
    """The quota that somebody has set for the tenant, or for the user in it."""
    mine = (t.quota.c.tenant_id == tenant_id) & (t.quota.c.user_id == user_id)
    found = connection.execute(_SET.where(mine)).mappings().one_or_none()
    return None if found is None else dict(found)


def in_force(connection: Connection, defaults: Quotas, tenant_id: str, user_id: str) -> Quotas:
    """What holds for the user in the tenant."""
    found = connection.execute(_FOR, {"tenant": tenant_id, "user": user_id}).mappings()
    rows = {row["user_id"]: dict(row) for row in found}
    if not rows:
        return defaults
    return Quotas(laid_over(defaults.tenant, rows.get(WHOLE)), laid_over(defaults.user, rows.get(user_id)))


def used(connection: Connection, tenant_id: str, user_id: str) -> dict[Whose, tuple[int, int]]:
    """Counted jobs and stored bytes, of the tenant and of the user, as of one moment."""
    found = {Whose.TENANT: (0, 0), Whose.USER: (0, 0)}
    for name, jobs, size in connection.execute(_sums(tenant_id, user_id)):
        found[Whose.TENANT if name == WHOLE else Whose.USER] = (int(jobs), int(size))
    return found


def check(connection: Connection, quotas: Quotas, kind: Kind, tenant_id: str, user_id: str, more: int) -> None:
    """Look whether ``more`` jobs or bytes would fit now. What is to hold is asked of :func:`enter` or :func:`store`.

    Raises:
        QuotaExceeded: they do not.
    """
    if quotas.any(kind):
        place = 0 if kind is Kind.JOBS else 1
        found = {whose: numbers[place] for whose, numbers in used(connection, tenant_id, user_id).items()}
        over = _over(quotas, kind, {whose: number + more for whose, number in found.items()}, more)
        if over is not None:
            raise over


def enter(connection: Connection, quotas: Quotas, tenant_id: str, user_id: str, count: int) -> bool:
    """Count jobs that are accepted in this transaction. Returns whether they are counted: only where there is a limit.

    The tenant's other submissions wait from here to the transaction's end: call it last.

    Raises:
        QuotaExceeded: they would be too many; nothing is counted.
    """
    if not quotas.any(Kind.JOBS):
        return False
    _grow(connection, quotas, Kind.JOBS, tenant_id, user_id, count)
    return True


def left(connection: Connection, rows: Iterable[Row]) -> None:
    """These jobs have just ended: those that were counted no longer are. ``rows``: columns of ``job``."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        if row["quota_counted"]:
            sums[row["tenant_id"], row["submitted_by"]] -= 1
    _append(connection, [(tenant, user, number, 0) for (tenant, user), number in sums.items()])


def store(connection: Connection, quotas: Quotas, tenant_id: str, user_id: str, size: int) -> None:
    """Count bytes that are stored in this transaction. Where there is a limit, the tenant's other writers wait from here on: call it last.

    Raises:
        QuotaExceeded: they would be too many; nothing is counted.
    """
    if quotas.any(Kind.STORAGE):
        _grow(connection, quotas, Kind.STORAGE, tenant_id, user_id, size)
    elif size:
        _append(connection, [(tenant_id, user_id, 0, size)])


def dropped(connection: Connection, tenant_id: str, user_id: str, size: int) -> None:
    """A stored file was removed."""
    _append(connection, [(tenant_id, user_id, 0, -size)] if size else [])


def fold(connection: Connection, tenant_id: str) -> int:
    """Add the oldest deltas of the tenant to its counters. Returns how many."""
    delta = t.quota_delta
    _add(connection, tenant_id, WHOLE, 0, 0)  # whoever folds waits here for whoever does
    oldest = select(delta.c.id).where(delta.c.tenant_id == tenant_id).order_by(delta.c.id).limit(_FOLDED)
    gone = delete(delta).where(delta.c.id.in_(oldest.scalar_subquery()))
    rows = connection.execute(gone.returning(delta.c.user_id, delta.c.jobs, delta.c.bytes)).all()
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for user_id, jobs, size in rows:
        for name in (WHOLE, user_id):
            sums[name][0] += jobs
            sums[name][1] += size
    for name in sorted(sums):
        _add(connection, tenant_id, name, *sums[name])
    return len(rows)


def unfolded(connection: Connection, limit: int) -> Sequence[str]:
    """Tenants that have deltas."""
    return connection.scalars(select(t.quota_delta.c.tenant_id).distinct().limit(limit)).all()


def count_live(connection: Connection, tenant_id: str, limit: int) -> int:
    """Count live jobs that are not: those that were accepted before there was a quota. Returns how many, at most ``limit``."""
    job = t.job
    live = (job.c.tenant_id == tenant_id) & job.c.state.in_(_LIVE) & ~job.c.quota_counted
    chosen = (
        select(job.c.id).where(live).order_by(job.c.id).limit(limit).with_for_update(skip_locked=True).cte("chosen")
    )
    marked = update(job).where(job.c.id.in_(select(chosen.c.id)), live).values(quota_counted=True)
    sums: dict[str, int] = defaultdict(int)
    for user_id in connection.scalars(marked.returning(job.c.submitted_by)):
        sums[user_id] += 1
    if sums:
        _append(connection, [(tenant_id, user_id, number, 0) for user_id, number in sums.items()])
        fold(connection, tenant_id)
    return sum(sums.values())


def count_refusal(connection: Connection, kind: str, number: int) -> None:
    statement = insert_or(connection, t.quota_refusal).values(kind=kind, count=number)
    added = {"count": t.quota_refusal.c.count + statement.excluded["count"]}
    connection.execute(statement.on_conflict_do_update(index_elements=["kind"], set_=added))


def refusals(connection: Connection) -> dict[str, int]:
    """How many requests were refused, by kind."""
    return {
        kind: number for kind, number in connection.execute(select(t.quota_refusal.c.kind, t.quota_refusal.c.count))
    }


def exceeded(kind: Kind, whose: Whose, limit: int, number: int, asked: int, until: str | None = None) -> QuotaExceeded:
    return QuotaExceeded(refused(kind, whose, limit, number, asked, until), code=CODES[kind])


def check_cpu(quotas: Quotas, spent_ms: Mapping[Whose, int], now: int) -> None:
    """
    Raises:
        QuotaExceeded: the day's CPU-seconds are used up.
    """
    for whose, limit in quotas.limits(Kind.CPU):
        if limit is not None and spent_ms[whose] >= limit * 1000:
            raise exceeded(Kind.CPU, whose, limit, spent_ms[whose] // 1000, 0, to_rfc3339(next_day_ms(now)))


def _grow(connection: Connection, quotas: Quotas, kind: Kind, tenant_id: str, user_id: str, more: int) -> None:
    place = 0 if kind is Kind.JOBS else 1
    names = ((Whose.TENANT, WHOLE), (Whose.USER, user_id))  # always in this order: others wait at the first

    def added(number: int) -> dict[Whose, int]:
        both = (number, 0) if kind is Kind.JOBS else (0, number)
        return {whose: _add(connection, tenant_id, name, *both)[place] for whose, name in names}

    # Deltas of jobs that wait to be added up take away: without them the counter says too much, never too little.
    over = _over(quotas, kind, added(more), more)
    if over is None and kind is Kind.JOBS:
        return
    while fold(connection, tenant_id) == _FOLDED:
        pass
    over = _over(quotas, kind, added(0), more)
    if over is not None:
        added(-more)  # the transaction may go on with something else
        raise over


def _over(quotas: Quotas, kind: Kind, after: Mapping[Whose, int], more: int) -> QuotaExceeded | None:
    for whose, limit in quotas.limits(kind):
        if limit is not None and after[whose] > limit:
            return exceeded(kind, whose, limit, after[whose] - more, more)
    return None


def _add(connection: Connection, tenant_id: str, name: str, jobs: int, size: int) -> tuple[int, int]:
    """Add to one counter, which stays as it is until the transaction ends; what it is now."""
    use = t.quota_use
    statement = insert_or(connection, use).values(tenant_id=tenant_id, user_id=name, jobs=jobs, bytes=size)
    added = {"jobs": use.c.jobs + statement.excluded.jobs, "bytes": use.c.bytes + statement.excluded.bytes}
    changed = statement.on_conflict_do_update(index_elements=["tenant_id", "user_id"], set_=added)
    row = connection.execute(changed.returning(use.c.jobs, use.c.bytes)).one()
    return row[0], row[1]


def _append(connection: Connection, rows: Sequence[tuple[str, str, int, int]]) -> None:
    if rows:
        names = ("tenant_id", "user_id", "jobs", "bytes")
        connection.execute(insert(t.quota_delta), [dict(zip(names, row, strict=True)) for row in rows])


def _sums(tenant_id: str, user_id: str) -> Select[Any]:
    """One statement, so that a fold beside it is seen whole or not at all."""
    use, delta = t.quota_use.c, t.quota_delta.c
    of = delta.tenant_id == tenant_id
    counters = select(use.user_id, use.jobs, use.bytes).where(
        use.tenant_id == tenant_id, use.user_id.in_((WHOLE, user_id))
    )
    whole = select(literal(WHOLE, String).label("user_id"), delta.jobs, delta.bytes).where(of)
    own = select(delta.user_id, delta.jobs, delta.bytes).where(of, delta.user_id == user_id)
    every = union_all(counters, whole, own).subquery()
    return select(every.c.user_id, func.sum(every.c.jobs), func.sum(every.c.bytes)).group_by(every.c.user_id)
