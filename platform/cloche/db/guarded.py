"""The guarded updates of ``job`` and ``attempt``: every WHERE names the states that may be left, and whose attempt it is.

Only ``services.transitions`` and the pieces it is made of call these (an import contract says so); each returns the changed rows, and no row
means that nothing was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    and_,
    bindparam,
    case,
    delete,
    insert,
    null,
    or_,
    select,
    text,
    update,
)

from cloche.db import scope
from cloche.db import tables as t
from cloche.db.bulk import BulkInsert
from cloche.db.tables import attempt as attempt_table
from cloche.db.tables import job
from cloche.domain.jobs import SEALED
from cloche.domain.states import RETRIABLE, TERMINAL, WAITING, Reason, State

Row = dict[str, Any]  # columns of `job` by name


def first_row(row: Mapping[str, Any], state: State, reason: Reason, ready_at: int, now: int) -> Row:
    """A new job in its first state; ``row`` holds every column but those of the life cycle.

    Raises:
        ValueError: it is sensitive, and its payload was not sealed.
    """
    if row.get("sensitive") and list(row["payload"]) != [SEALED]:
        raise ValueError("the payload of a sensitive job is sealed before it is stored")
    return {
        **row,
        "state": state.value,
        "reason": reason.value,
        "attempt": 0,
        "retries_used": 0,
        "platform_failures": 0,
        "worker_deaths": 0,
        "ready_at": ready_at,
        "run": 1,
        "has_dependents": False,
        "created_at": now,
        "audit_seq": 1,
    }


def insert_job(
    connection: Connection, row: Mapping[str, Any], state: State, reason: Reason, ready_at: int, now: int
) -> Row:
    """Write a job's :func:`first_row`."""
    full = first_row(row, state, reason, ready_at, now)
    absent = {name: null() for name in ("callback", "warnings") if full.get(name) is None}
    connection.execute(insert(job), {**full, **absent})
    return full


def claim(connection: Connection, job_ids: Sequence[str], worker_id: str, now: int, lease_until: int) -> list[Row]:
    """Pending → processing for those of the ids that are still pending and due, have not expired, and are of no suspended tenant. One that
    another worker is claiming just now is left to it."""
    values = {"ids": list(job_ids), "worker": worker_id, "now": now, "until": lease_until}
    rows = _all(connection, _CLAIM, values)
    opened = [(r["id"], r["attempt"], r["run"], worker_id, "staging_in", now) for r in rows]
    _OPEN.execute(connection, opened)
    return rows


def previous_ends(connection: Connection, rows: Sequence[Row]) -> dict[str, int]:
    """When the attempt before the one just claimed ended (ms), by job id; of those that had one."""
    again = {row["id"]: row["attempt"] - 1 for row in rows if row["attempt"] > 1}
    if not again:
        return {}
    columns = attempt_table.c.job_id, attempt_table.c.number, attempt_table.c.finished_at
    found = connection.execute(select(*columns).where(attempt_table.c.job_id.in_(again)))
    return {job_id: ended for job_id, number, ended in found if again[job_id] == number and ended is not None}


def renew(connection: Connection, job_ids: Iterable[str], worker_id: str, until: int) -> list[Row]:
    """Extend the worker's leases; returns id, attempt and cancel_requested_at of those it still holds."""
    statement = (
        update(job)
        .where(job.c.id.in_(list(job_ids)), job.c.state == State.PROCESSING.value, job.c.lease_owner == worker_id)
        .values(lease_until=until)
        .returning(job.c.id, job.c.attempt, job.c.cancel_requested_at)
    )
    return _all(connection, statement)


def held(connection: Connection, job_id: str, attempt: int, worker_id: str) -> Row | None:
    """The job's row while the attempt is the worker's; it stays as it is until the transaction ends."""
    return _one(connection, _HELD, mine(job_id, attempt, worker_id))


def leave_processing(
    connection: Connection,
    job_id: str,
    attempt: int,
    worker_id: str,
    state: State,
    reason: Reason,
    values: Mapping[str, Any],
) -> Row | None:
    """Processing → ``state``, giving up the lease, while the attempt is the worker's. Returns :data:`cloche.db.tables.JOB_BRIEF`."""
    changed = {f"new_{name}": value for name, value in values.items()}
    changed |= {"new_state": state.value, "new_reason": reason.value, **mine(job_id, attempt, worker_id)}
    return _one(connection, _leaving(frozenset(values)), changed)


def close_attempt(connection: Connection, job_id: str, attempt: int, values: Mapping[str, Any]) -> None:
    """Write how an attempt ended."""
    changed = {f"new_{name}": value for name, value in values.items()}
    connection.execute(_closing(frozenset(values)), changed | {"of_job": job_id, "of_attempt": attempt})


def due(connection: Connection, now: int, limit: int) -> list[Row]:
    """Scheduled → pending for those whose time has come, the longest due first."""
    scheduled = job.c.state == State.SCHEDULED.value
    late = select(job.c.id).where(scheduled, job.c.ready_at <= now).order_by(job.c.ready_at).limit(limit)
    chosen = late.with_for_update(skip_locked=True).cte("chosen")
    statement = (
        update(job)
        .where(job.c.id.in_(select(chosen.c.id)), scheduled)
        .values(state=State.PENDING.value, reason=Reason.DUE.value)
        .returning(job)
    )
    return _all(connection, statement)


def hold_still(connection: Connection, job_id: str) -> None:
    """Keep everybody else from changing the job until the transaction ends, for what takes more than one look."""
    connection.execute(select(job.c.id).where(job.c.id == job_id).with_for_update())


def cancel_waiting(connection: Connection, job_id: str, now: int) -> Row | None:
    """Blocked, scheduled or pending → canceled."""
    statement = (
        update(job)
        .where(job.c.id == job_id, job.c.state.in_(_names(WAITING)))
        .values(**_ended(Reason.CANCELED_BY_USER, now), cancel_requested_at=now)
        .returning(job)
    )
    return _one(connection, statement)


def expire(connection: Connection, now: int, limit: int) -> list[Row]:
    """Blocked, scheduled or pending → canceled for those that were not started in their time."""
    late = and_(text(t.MAY_EXPIRE), job.c.expires_at <= now)
    first = select(job.c.id).where(late).order_by(job.c.expires_at).limit(limit)
    chosen = first.with_for_update(skip_locked=True).cte("chosen")
    waiting = and_(job.c.id.in_(select(chosen.c.id)), late, job.c.state.in_(_names(WAITING)))
    return _all(connection, update(job).where(waiting).values(**_ended(Reason.EXPIRED, now)).returning(job))


def rerun(
    connection: Connection, job_id: str, state: State, reason: Reason, now: int, *, counted: bool = False
) -> Row | None:
    """Failed or canceled → pending or blocked: the next run, with budgets and times of its own. Attempts count on. ``counted``: by a quota."""
    emptied = ("started_at", "finished_at", "expires_at", "cancel_requested_at")
    emptied_json = ("progress", "result", "error", "usage")
    statement = (
        update(job)
        .where(job.c.id == job_id, job.c.state.in_(_names(RETRIABLE)))
        .values(
            state=state.value,
            reason=reason.value,
            run=job.c.run + 1,
            ready_at=now,
            retries_used=0,
            platform_failures=0,
            worker_deaths=0,
            audit_seq=job.c.audit_seq + 1,
            quota_counted=counted,
            **{name: null() for name in (*emptied, *emptied_json)},
        )
        .returning(job)
    )
    return _one(connection, statement)


def purge(connection: Connection, job_ids: Sequence[str]) -> list[Row]:
    """Remove those of the jobs that have ended, with all that hangs on them but their audit events and their stored files.

    One whose dependents have not all been told of its end is left. A batch goes with the last of its jobs.
    """
    untold = select(t.job_release.c.upstream_id)
    ended = and_(job.c.id.in_(job_ids), job.c.state.in_(_names(TERMINAL)), job.c.id.not_in(untold))
    names = ("id", "tenant_id", "batch_id", "state", "reason", "audit_seq", "started_at", "finished_at")
    shown = [job.c[name] for name in names]
    rows = _all(connection, select(*shown).where(ended).order_by(job.c.id).with_for_update())
    gone = [row["id"] for row in rows]
    if gone:
        for table in (t.job_log, t.job_output, t.trace_event, t.job_dependency, t.callback_delivery, attempt_table):
            connection.execute(delete(table).where(table.c.job_id.in_(gone)))
        connection.execute(delete(job).where(job.c.id.in_(gone)))
        batches = sorted({row["batch_id"] for row in rows if row["batch_id"] is not None})
        scope.vouch(batches)
        _purge_batches(connection, batches)
    return rows


def _purge_batches(connection: Connection, ids: Sequence[str]) -> None:
    if not ids:
        return
    # Locked before it is asked what is left of them: two that remove the last jobs of one batch would each see the other's job.
    connection.execute(select(t.batch.c.id).where(t.batch.c.id.in_(ids)).order_by(t.batch.c.id).with_for_update())
    left = select(job.c.id).where(job.c.batch_id == t.batch.c.id).exists()
    connection.execute(delete(t.batch).where(t.batch.c.id.in_(ids), ~left))


def count_event(connection: Connection, job_id: str, held: tuple[int, str] | None = None) -> Row | None:
    """One more audit event of this job. No change of state. None when the job is gone, or not held as ``(attempt, worker)`` says."""
    here = job.c.id == job_id
    if held is not None:
        here = and_(here, job.c.state == State.PROCESSING.value, job.c.attempt == held[0], job.c.lease_owner == held[1])
    changed = update(job).where(here).values(audit_seq=job.c.audit_seq + 1).returning(job.c.audit_seq)
    return _one(connection, changed)


def ask_cancel(connection: Connection, job_id: str, now: int) -> tuple[Row | None, bool]:
    """Mark a running job for cancel; the flag says whether this call was the first to ask. No change of state."""
    running = and_(job.c.id == job_id, job.c.state == State.PROCESSING.value)
    first = (
        update(job)
        .where(running, job.c.cancel_requested_at.is_(None))
        .values(cancel_requested_at=now, audit_seq=job.c.audit_seq + 1)
        .returning(job)
    )
    row = _one(connection, first)
    if row is not None:
        return row, True
    return _one(connection, select(job).where(running)), False


def _ended(reason: Reason, now: int) -> dict[str, Any]:
    """Values of a job that is canceled before anybody has begun it."""
    return {
        "state": State.CANCELED.value,
        "reason": reason.value,
        "finished_at": now,
        "audit_seq": job.c.audit_seq + 1,
    }


def _names(states: Iterable[State]) -> list[str]:
    return [state.value for state in states]


def _all(connection: Connection, statement: Executable, values: Mapping[str, Any] | None = None) -> list[Row]:
    found = connection.execute(statement, values)
    names = tuple(found.keys())
    return [dict(zip(names, row, strict=True)) for row in found]


def _one(connection: Connection, statement: Executable, values: Mapping[str, Any] | None = None) -> Row | None:
    rows = _all(connection, statement, values)
    if len(rows) > 1:
        raise RuntimeError("more than one job has this id")
    return rows[0] if rows else None


# --- what every attempt runs: built once, for building takes longer than the database does -----------------------------------------------

MINE = and_(
    job.c.id == bindparam("of_job"),
    job.c.state == State.PROCESSING.value,
    job.c.attempt == bindparam("of_attempt"),
    job.c.lease_owner == bindparam("of_worker"),
)


def mine(job_id: str, attempt: int, worker_id: str) -> dict[str, Any]:
    """The values of :data:`MINE`: the job, while the attempt is the worker's."""
    return {"of_job": job_id, "of_attempt": attempt, "of_worker": worker_id}


def _claiming() -> Executable:
    now = bindparam("now", type_=BigInteger)
    in_time = or_(job.c.expires_at.is_(None), job.c.expires_at > now, job.c.started_at.is_not(None))
    suspended = select(t.tenant.c.id).where(t.tenant.c.suspended)
    pending = and_(
        job.c.state == State.PENDING.value, job.c.ready_at <= now, in_time, job.c.tenant_id.not_in(suspended)
    )
    asked = job.c.id.in_(bindparam("ids", expanding=True))
    chosen = select(job.c.id).where(asked, pending).with_for_update(skip_locked=True).cte("chosen")
    return (
        update(job)
        .where(job.c.id.in_(select(chosen.c.id)), pending)
        .values(
            state=State.PROCESSING.value,
            reason=Reason.CLAIMED.value,
            attempt=job.c.attempt + 1,
            lease_owner=bindparam("worker"),
            lease_until=bindparam("until"),
            started_at=case((job.c.started_at.is_(None), now), else_=job.c.started_at),
            progress=null(),
            audit_seq=job.c.audit_seq + 1,
        )
        .returning(job)
    )


_CLAIM = _claiming()
_OPEN = BulkInsert(attempt_table, ["job_id", "number", "run", "worker_id", "phase", "started_at"])
_HELD = select(job).where(MINE).with_for_update()


@cache
def _leaving(names: frozenset[str]) -> Executable:
    changed = {name: bindparam(f"new_{name}", type_=job.c[name].type) for name in (*names, "state", "reason")}
    freed = {"lease_owner": null(), "lease_until": null(), "audit_seq": job.c.audit_seq + 1}
    return update(job).where(MINE).values({**changed, **freed}).returning(*t.JOB_BRIEF)


@cache
def _closing(names: frozenset[str]) -> Executable:
    of = and_(attempt_table.c.job_id == bindparam("of_job"), attempt_table.c.number == bindparam("of_attempt"))
    changed = {name: bindparam(f"new_{name}", type_=attempt_table.c[name].type) for name in names}
    return update(attempt_table).where(of).values(changed)
