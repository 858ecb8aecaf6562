"""The guarded updates of ``job`` and ``attempt``: every WHERE names the states that may be left, and whose attempt it is.

Only ``services.transitions`` calls these (an import contract says so); each returns the changed rows, and no row means nothing was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Executable, and_, case, insert, null, select, update

from cloche.db.tables import attempt as attempt_table
from cloche.db.tables import job
from cloche.domain.states import Reason, State

Row = dict[str, Any]  # columns of `job` by name


def insert_job(connection: Connection, row: Mapping[str, Any], state: State, reason: Reason, now: int) -> Row:
    """A new job in its first state; ``row`` holds every column but those of the life cycle."""
    full = {
        **row,
        "state": state.value,
        "reason": reason.value,
        "attempt": 0,
        "retries_used": 0,
        "platform_failures": 0,
        "worker_deaths": 0,
        "ready_at": now,
        "created_at": now,
        "audit_seq": 1,
    }
    connection.execute(insert(job), full)
    return full


def claim(connection: Connection, job_ids: Sequence[str], worker_id: str, now: int, lease_until: int) -> list[Row]:
    """Pending → processing for those of the ids that are still pending and due."""
    statement = (
        update(job)
        .where(job.c.id.in_(job_ids), job.c.state == State.PENDING.value, job.c.ready_at <= now)
        .values(
            state=State.PROCESSING.value,
            reason=Reason.CLAIMED.value,
            attempt=job.c.attempt + 1,
            lease_owner=worker_id,
            lease_until=lease_until,
            started_at=case((job.c.started_at.is_(None), now), else_=job.c.started_at),
            progress=null(),
            audit_seq=job.c.audit_seq + 1,
        )
        .returning(job)
    )
    rows = _all(connection, statement)
    if rows:
        opened = [
            {
                "job_id": r["id"],
                "number": r["attempt"],
                "worker_id": worker_id,
                "phase": "staging_in",
                "started_at": now,
            }
            for r in rows
        ]
        connection.execute(insert(attempt_table), opened)
    return rows


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
    """The job's row while the attempt is the worker's."""
    return _one(connection, select(job).where(_mine(job_id, attempt, worker_id)))


def leave_processing(
    connection: Connection,
    job_id: str,
    attempt: int,
    worker_id: str,
    state: State,
    reason: Reason,
    values: Mapping[str, Any],
) -> Row | None:
    """Processing → ``state``, giving up the lease, while the attempt is the worker's."""
    statement = (
        update(job)
        .where(_mine(job_id, attempt, worker_id))
        .values(
            {
                "state": state.value,
                "reason": reason.value,
                "lease_owner": null(),
                "lease_until": null(),
                "audit_seq": job.c.audit_seq + 1,
                **values,
            }
        )
        .returning(job)
    )
    return _one(connection, statement)


def close_attempt(connection: Connection, job_id: str, attempt: int, values: Mapping[str, Any]) -> None:
    """Write how an attempt ended."""
    mine = and_(attempt_table.c.job_id == job_id, attempt_table.c.number == attempt)
    connection.execute(update(attempt_table).where(mine).values(dict(values)))


def due(connection: Connection, now: int, limit: int) -> list[Row]:
    """Scheduled → pending for those whose time has come."""
    chosen = select(job.c.id).where(job.c.state == State.SCHEDULED.value, job.c.ready_at <= now).limit(limit)
    statement = (
        update(job)
        .where(job.c.id.in_(chosen), job.c.state == State.SCHEDULED.value)
        .values(state=State.PENDING.value, reason=Reason.DUE.value)
        .returning(job)
    )
    return _all(connection, statement)


def cancel_waiting(connection: Connection, job_id: str, now: int) -> Row | None:
    """Pending or scheduled → canceled."""
    statement = (
        update(job)
        .where(job.c.id == job_id, job.c.state.in_([State.PENDING.value, State.SCHEDULED.value]))
        .values(
            state=State.CANCELED.value,
            reason=Reason.CANCELED_BY_USER.value,
            cancel_requested_at=now,
            finished_at=now,
            audit_seq=job.c.audit_seq + 1,
        )
        .returning(job)
    )
    return _one(connection, statement)


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


def _all(connection: Connection, statement: Executable) -> list[Row]:
    return [dict(row) for row in connection.execute(statement).mappings()]


def _one(connection: Connection, statement: Executable) -> Row | None:
    row = connection.execute(statement).mappings().one_or_none()
    return dict(row) if row is not None else None


def _mine(job_id: str, attempt: int, worker_id: str) -> ColumnElement[bool]:
    return and_(
        job.c.id == job_id,
        job.c.state == State.PROCESSING.value,
        job.c.attempt == attempt,
        job.c.lease_owner == worker_id,
    )
