"""What a worker writes while an attempt runs: phases, trace events, logs, progress. Never ``job.state``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, insert, update

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob
from cloche.domain.states import State
from cloche.errors import StaleAttempt
from cloche.isolation.egress import EgressReport
from cloche.services import egress


class AttemptRecorder:
    """One worker's pen. Every write is refused with StaleAttempt once the attempt is no longer the worker's."""

    def __init__(self, db: Database, worker_id: str) -> None:
        self._db = db
        self._worker_id = worker_id

    def traced(
        self,
        job: ClaimedJob,
        phase: str | None,
        events: Sequence[tuple[Trace, Mapping[str, Any]]],
        image: str | None = None,
    ) -> None:
        """Add trace events, and enter ``phase`` (None: stay). ``image`` is noted on the job."""
        self.tracing(job, phase, events, image).result()

    def tracing(
        self,
        job: ClaimedJob,
        phase: str | None,
        events: Sequence[tuple[Trace, Mapping[str, Any]]],
        image: str | None = None,
    ) -> Future[None]:
        """As ``traced``, without waiting for the disk. The events happened now, whenever they are written."""
        at = now_ms()
        rows = [_trace_row(job, event, details, at) for event, details in events]

        def unit(connection: Connection) -> None:
            # The update also takes the row, so that a phase is never written for an attempt that was taken away meanwhile.
            values: dict[str, Any] = {"image_digest": image} if image is not None else {"attempt": job.attempt}
            self._guard(connection, job, values)
            if phase is not None:
                mine = and_(t.attempt.c.job_id == job.id, t.attempt.c.number == job.attempt)
                connection.execute(update(t.attempt).where(mine).values(phase=phase))
            if rows:
                connection.execute(insert(t.trace_event), rows)

        return self._db.submit(unit)

    def connected(self, job: ClaimedJob, report: EgressReport) -> None:
        """Add a trace event for each connection that is told of, one more for their sums, and add those to the platform's."""
        events = [(Trace.EGRESS_CONNECTION, asdict(one)) for one in report.connections]
        sums = {"connections": report.total, "bytes_up": report.bytes_up, "bytes_down": report.bytes_down}
        events.append((Trace.EGRESS_CLOSED, {**sums, "verdicts": dict(report.verdicts)}))

        at = now_ms()
        rows = [_trace_row(job, event, details, at) for event, details in events]

        def unit(connection: Connection) -> None:
            self._guard(connection, job, {"attempt": job.attempt})
            connection.execute(insert(t.trace_event), rows)
            egress.count(connection, report)

        self._db.write(unit)

    def logged(
        self, job: ClaimedJob, pieces: Sequence[Mapping[str, Any]], progress: Mapping[str, Any] | None
    ) -> Future[None]:
        """Append log pieces (``seq``, ``at``, ``stream``, ``text``) and set the job's progress when given. Does not wait for the disk."""

        def unit(connection: Connection) -> None:
            self._guard(connection, job, {"progress": dict(progress)} if progress else {"attempt": job.attempt})
            if pieces:
                rows = [{"job_id": job.id, "attempt": job.attempt, **piece} for piece in pieces]
                connection.execute(insert(t.job_log), rows)

        return self._db.submit(unit)

    def _guard(self, connection: Connection, job: ClaimedJob, values: Mapping[str, Any]) -> None:
        changed = connection.execute(update(t.job).where(self._mine(job)).values(**values))
        if changed.rowcount != 1:
            raise StaleAttempt(f"job {job.id}: attempt {job.attempt} is no longer held by {self._worker_id}")

    def _mine(self, job: ClaimedJob) -> ColumnElement[bool]:
        return and_(
            t.job.c.id == job.id,
            t.job.c.state == State.PROCESSING.value,
            t.job.c.attempt == job.attempt,
            t.job.c.lease_owner == self._worker_id,
        )


def _trace_row(job: ClaimedJob, event: Trace, details: Mapping[str, Any], at: int) -> dict[str, Any]:
    return {
        "id": uuid7(),
        "job_id": job.id,
        "attempt": job.attempt,
        "event_type": event.value,
        "at": at,
        "details": dict(details),
    }
