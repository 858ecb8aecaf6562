"""Who waits for whom: the statements over ``job_dependency``, and the guarded updates of the jobs that are told of an upstream's end.

Locks are taken downstream: an upstream's row before its dependents', and rows of one kind in the order of their ids, which is the order in
which jobs were accepted. Only ``services.dependents`` calls these (an import contract says so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, case, delete, func, insert, or_, select, update

from cloche.db import scope
from cloche.db.tables import JOB_BRIEF, job, job_dependency, job_release
from cloche.domain.states import TERMINAL, Reason, State

Row = dict[str, Any]
_dep = job_dependency.c


def lock_upstreams(connection: Connection, tenant_id: str, ids: Sequence[str]) -> dict[str, State]:
    """The states of those of the jobs that exist in the tenant. None of them can end before this transaction does, without its knowing."""
    mine = and_(job.c.id.in_(ids), job.c.tenant_id == tenant_id)
    rows = connection.execute(
        select(job.c.id, job.c.state, job.c.has_dependents).where(mine).order_by(job.c.id).with_for_update()
    )
    found = list(rows)
    scope.vouch(row.id for row in found)
    unmarked = [row.id for row in found if not row.has_dependents]
    if unmarked:
        connection.execute(update(job).where(job.c.id.in_(unmarked)).values(has_dependents=True))
    return {row.id: State(row.state) for row in found}


def record(connection: Connection, job_id: str, outcomes: Mapping[str, State | None]) -> None:
    """The job's dependencies with what each has come to (None: it has not ended), in place of those it had."""
    connection.execute(delete(job_dependency).where(_dep.job_id == job_id))
    rows = [
        {"job_id": job_id, "upstream_id": upstream, "outcome": state.value if state else None}
        for upstream, state in outcomes.items()
    ]
    if rows:
        connection.execute(insert(job_dependency), rows)


def outcomes(connection: Connection, job_id: str) -> dict[str, State | None]:
    """What the job was told of its upstreams' ends."""
    rows = connection.execute(select(_dep.upstream_id, _dep.outcome).where(_dep.job_id == job_id))
    return {row.upstream_id: State(row.outcome) if row.outcome else None for row in rows}


def lock_untold(connection: Connection, upstream_id: str, tenant_id: str, ended: State, limit: int) -> list[Row]:
    """The tenant's blocked jobs that have not been told that this upstream of theirs has ended so, with their rows locked."""
    untold = or_(_dep.outcome.is_(None), _dep.outcome != ended.value)
    query = (
        select(*JOB_BRIEF)
        .join(job_dependency, _dep.job_id == job.c.id)
        .where(_dep.upstream_id == upstream_id, untold)
        .where(job.c.tenant_id == tenant_id, job.c.state == State.BLOCKED.value)
        .order_by(job.c.id)
        .limit(limit)
        .with_for_update(of=job)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def tell(connection: Connection, upstream_id: str, ended: State, job_ids: Sequence[str]) -> None:
    """Note the upstream's end with these of its dependents."""
    theirs = and_(_dep.upstream_id == upstream_id, _dep.job_id.in_(job_ids))
    connection.execute(update(job_dependency).where(theirs).values(outcome=ended.value))


def counts(connection: Connection, job_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """By job: how many of its upstreams have not ended, and how many have without completing."""
    waiting = func.sum(case((_dep.outcome.is_(None), 1), else_=0))
    failed = func.sum(case((_dep.outcome.in_([State.FAILED.value, State.CANCELED.value]), 1), else_=0))
    query = select(_dep.job_id, waiting, failed).where(_dep.job_id.in_(job_ids)).group_by(_dep.job_id)
    return {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(query)}


def unblock(
    connection: Connection, job_ids: Sequence[str], state: State, reason: Reason, now: int, error: Any = None
) -> list[Row]:
    """Blocked → pending, scheduled or canceled."""
    values: dict[str, Any] = {"state": state.value, "reason": reason.value}
    if state is State.PENDING:
        values["ready_at"] = now
    elif state is State.CANCELED:
        values |= {"finished_at": now, "error": error, "audit_seq": job.c.audit_seq + 1}
    blocked = and_(job.c.id.in_(job_ids), job.c.state == State.BLOCKED.value)
    return [
        dict(row)
        for row in connection.execute(update(job).where(blocked).values(values).returning(*JOB_BRIEF)).mappings()
    ]


def keep(connection: Connection, upstream_ids: Sequence[str], now: int) -> None:
    """Remember that more dependents of these are to be told. Their rows are the caller's."""
    if upstream_ids:
        forget(connection, upstream_ids)
        connection.execute(insert(job_release), [{"upstream_id": one, "created_at": now} for one in upstream_ids])


def forget(connection: Connection, upstream_ids: Sequence[str]) -> None:
    connection.execute(delete(job_release).where(job_release.c.upstream_id.in_(upstream_ids)))


def kept(connection: Connection, limit: int) -> list[str]:
    """Upstreams that have ended, with dependents who have not been told, the longest waiting first."""
    query = select(job_release.c.upstream_id).order_by(job_release.c.created_at).limit(limit)
    return list(connection.execute(query).scalars())


def lock_ended(connection: Connection, job_id: str) -> Row | None:
    """The job's row, locked, while it has ended; None when it was retried since, or purged."""
    query = select(*JOB_BRIEF).where(job.c.id == job_id, job.c.state.in_([state.value for state in TERMINAL]))
    row = connection.execute(query.with_for_update()).mappings().one_or_none()
    return dict(row) if row is not None else None
