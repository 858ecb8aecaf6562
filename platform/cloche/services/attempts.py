"""What a worker writes while an attempt runs: phases, trace events, logs, progress. Never ``job.state``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Executable, and_, bindparam, select, update

from cloche.db import tables as t
from cloche.db.dialect import insert_or
from cloche.db.engine import Database
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob
from cloche.domain.states import State
from cloche.errors import StaleAttempt
from cloche.isolation.egress import EgressReport
from cloche.services import egress
from cloche.services.records import TRACE, trace_row


class AttemptRecorder:
    """One worker's pen. Every write is refused with StaleAttempt once the attempt is no longer the worker's."""

    def __init__(self, db: Database, worker_id: str) -> None:
        self._db = db
        self._worker_id = worker_id

    def now_ms(self) -> int:
        """The time that everything told of attempts is dated by: the database's, so that the hosts' clocks do not matter."""
        return self._db.now_ms()

    def told(self, job: ClaimedJob, events: Sequence[tuple[Trace, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Rows for :meth:`write`. The events happened now, whenever they are written."""
        at = self._db.now_ms()
        return [trace_row(job.id, job.attempt, event, at, dict(details)) for event, details in events]

    def write(
        self,
        connection: Connection,
        job: ClaimedJob,
        rows: Sequence[Mapping[str, Any]],
        phase: str | None,
        image: str | None,
    ) -> None:
        """Add trace events, and enter ``phase`` (None: stay), in the caller's transaction. ``image`` is noted on the job (None: leave it)."""
        # The update also takes the row, so that a phase is never written for an attempt that was taken away meanwhile.
        self._guard(connection, job, _TOUCH if image is None else _IMAGE, {} if image is None else {"image": image})
        if phase is not None:
            connection.execute(_PHASE, {"of_job": job.id, "of_attempt": job.attempt, "new_phase": phase})
        TRACE.execute(connection, TRACE.spell(rows))

    def writing(
        self, job: ClaimedJob, rows: Sequence[Mapping[str, Any]], phase: str | None, image: str | None
    ) -> Future[None]:
        """As ``write``, in a transaction of its own, without waiting for the disk."""
        return self._db.submit(lambda connection: self.write(connection, job, rows, phase, image))

    def connected(self, job: ClaimedJob, report: EgressReport) -> None:
        """Add a trace event for each connection that is told of, one more for their sums, and add those to the platform's.

        A sensitive job's host may come from its payload, and is not written.
        """
        hidden = {"host": None, "address": None} if job.sensitive else {}
        events = [(Trace.EGRESS_CONNECTION, {**asdict(one), **hidden}) for one in report.connections]
        sums = {"connections": report.total, "bytes_up": report.bytes_up, "bytes_down": report.bytes_down}
        events.append((Trace.EGRESS_CLOSED, {**sums, "verdicts": dict(report.verdicts)}))

        rows = self.told(job, events)

        def unit(connection: Connection) -> None:
            self._guard(connection, job, _TOUCH)
            TRACE.execute(connection, TRACE.spell(rows))
            egress.count(connection, report)

        self._db.write(unit)

    def logged(
        self, job: ClaimedJob, pieces: Sequence[Mapping[str, Any]], progress: Mapping[str, Any] | None
    ) -> Future[None]:
        """Append log pieces (``seq``, ``at``, ``stream``, ``text``) and set the job's progress when given. Does not wait for the disk.

        A piece that is there already is left as it is: whoever was not told whether it was stored may send it again.
        """

        def unit(connection: Connection) -> None:
            self._guard(
                connection, job, _PROGRESS if progress else _TOUCH, {"done": dict(progress)} if progress else {}
            )
            if pieces:
                rows = [{"job_id": job.id, "attempt": job.attempt, **piece} for piece in pieces]
                connection.execute(insert_or(connection, t.job_log).on_conflict_do_nothing(), rows)

        return self._db.submit(unit)

    def ended(self, job: ClaimedJob) -> bool:
        """Whether this worker has written the attempt's end: not what another wrote of one that was taken away.

        Raises:
            Unavailable: the database does not answer.
        """
        attempt = t.attempt
        mine = and_(attempt.c.job_id == job.id, attempt.c.number == job.attempt, attempt.c.worker_id == self._worker_id)
        query = select(attempt.c.outcome).where(mine)
        outcome = self._db.read(lambda connection: connection.execute(query).scalar_one_or_none())
        return outcome in ("completed", "failed", "canceled")

    def _guard(
        self, connection: Connection, job: ClaimedJob, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> None:
        mine = {"of_job": job.id, "of_attempt": job.attempt, "of_worker": self._worker_id}
        changed = connection.execute(statement, {**mine, **(values or {})})
        if changed.rowcount != 1:
            raise StaleAttempt(f"job {job.id}: attempt {job.attempt} is no longer held by {self._worker_id}")


# Built once: every attempt runs them, and building takes longer than the database does.
_MINE = and_(
    t.job.c.id == bindparam("of_job"),
    t.job.c.state == State.PROCESSING.value,
    t.job.c.attempt == bindparam("of_attempt"),
    t.job.c.lease_owner == bindparam("of_worker"),
)
_TOUCH = update(t.job).where(_MINE).values(attempt=bindparam("of_attempt"))
_IMAGE = update(t.job).where(_MINE).values(image_digest=bindparam("image"))
_PROGRESS = update(t.job).where(_MINE).values(progress=bindparam("done", type_=t.job.c.progress.type))
_OF = and_(t.attempt.c.job_id == bindparam("of_job"), t.attempt.c.number == bindparam("of_attempt"))
_PHASE = update(t.attempt).where(_OF).values(phase=bindparam("new_phase"))
