"""The only writer of ``job.state``.

Every method is one transaction's work on a connection it is given: a guarded update, its trace and audit rows, and the :class:`Effects` to
apply after the commit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, select

from cloche.db import guarded
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.guarded import Row
from cloche.domain import states
from cloche.domain.events import Action, Outcome, Trace
from cloche.domain.jobs import RetryPolicy, Success
from cloche.domain.permissions import Actor, system_actor
from cloche.domain.retries import Next, PlatformBudget, after_platform_failure, after_plugin_failure
from cloche.domain.states import Reason, State
from cloche.errors import Conflict, JobFailure, PluginFailure, StaleAttempt
from cloche.services.effects import Effects, ready
from cloche.services.records import Records, job_event

_RANDOM = random.SystemRandom()


class Transitions:
    """Stateless but for the audit log and the budget of platform failures; shared by threads."""

    def __init__(self, audit: AuditLog, budget: PlatformBudget) -> None:
        self._audit = audit
        self._budget = budget

    def submit(self, connection: Connection, actor: Actor, row: Mapping[str, Any], now: int) -> Effects:
        """Insert an accepted job as ``pending``. ``row`` holds every column but those of the life cycle."""
        states.check(None, State.PENDING, Reason.SUBMITTED)
        full = guarded.insert_job(connection, row, State.PENDING, Reason.SUBMITTED, now)
        records = Records(now)
        records.traced(row["id"], 0, Trace.ACCEPTED, type=row["type"], version=row["plugin_version"])
        shown = ("type", "plugin_version", "plugin_digest", "payload_sha256", "inputs", "outputs")
        records.audited(actor, Action.JOB_SUBMIT, row["id"], 1, details={key: row[key] for key in shown})
        records.queued(row["id"])
        records.write(connection, self._audit)
        return Effects(ready=[ready(row["id"], row["queue"], now, row["priority"])], events=[job_event(full, now)])

    def claim(
        self, connection: Connection, job_ids: Sequence[str], worker_id: str, now: int, lease_ms: int
    ) -> tuple[Sequence[Row], Effects]:
        """Give the worker the next attempt of each job that is still pending; the rest are left out."""
        states.check(State.PENDING, State.PROCESSING, Reason.CLAIMED)
        rows = guarded.claim(connection, job_ids, worker_id, now, now + lease_ms)
        records, effects = Records(now), Effects()
        for row in rows:
            number = row["attempt"]
            records.traced(row["id"], number, Trace.CLAIMED, worker=worker_id, waited_ms=now - row["ready_at"])
            actor = _worker(row, worker_id)
            records.audited(actor, Action.JOB_START, row["id"], row["audit_seq"], details={"attempt": number})
            effects.events.append(job_event(row, now))
        records.write(connection, self._audit)
        return rows, effects

    def renew(self, connection: Connection, held: Mapping[str, int], worker_id: str, until: int) -> dict[str, bool]:
        """Extend the leases of ``{job id: attempt}``. Returns those still held, each with whether its cancel is asked for."""
        rows = guarded.renew(connection, held, worker_id, until)
        return {r["id"]: r["cancel_requested_at"] is not None for r in rows if held.get(r["id"]) == r["attempt"]}

    def succeed(
        self, connection: Connection, job_id: str, attempt: int, worker_id: str, outcome: Success, now: int
    ) -> Effects:
        """The attempt's accepted result.

        Raises:
            StaleAttempt: the attempt is no longer the worker's; nothing was written.
        """
        values = {"result": outcome.result, "error": None, "usage": dict(outcome.usage), "finished_at": now}
        row = self._leave(connection, job_id, attempt, worker_id, State.COMPLETED, Reason.SUCCEEDED, values)
        closed = {
            "outcome": "completed",
            "reason": Reason.SUCCEEDED.value,
            "usage": dict(outcome.usage),
            "finished_at": now,
        }
        guarded.close_attempt(connection, job_id, attempt, closed)
        outputs = [asdict(file) for file in outcome.outputs]
        if outputs:
            connection.execute(insert(t.job_output), [{"job_id": job_id, "attempt": attempt, **out} for out in outputs])
        records = Records(now)
        records.traced(job_id, attempt, Trace.COMPLETED, outputs=len(outputs), **_brief(outcome.usage))
        details = {
            "attempt": attempt,
            "plugin_digest": row["plugin_digest"],
            "image": row["image_digest"],
            "outputs": [{key: out[key] for key in ("path", "size", "sha256", "destination")} for out in outputs],
        }
        records.audited(_worker(row, worker_id), Action.JOB_COMPLETE, job_id, row["audit_seq"], details=details)
        records.write(connection, self._audit)
        return Effects(events=[job_event(row, now)])

    def fail(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        worker_id: str,
        failure: JobFailure,
        now: int,
        usage: Mapping[str, Any] | None = None,
    ) -> Effects:
        """The attempt failed: retry it, or end the job as a dead letter, by the budget that the failure's kind draws on.

        Raises:
            StaleAttempt: the attempt is no longer the worker's; nothing was written.
        """
        row = self._held(connection, job_id, attempt, worker_id)
        if row["cancel_requested_at"] is not None:
            return self._canceled(connection, row, now, usage)
        reason = Reason(failure.reason)
        if isinstance(failure, PluginFailure):
            policy = RetryPolicy(**row["retry"])
            following = after_plugin_failure(policy, row["retries_used"], reason, _RANDOM.randint)
        else:
            following = self._after_platform_failure(row, reason)
        error = {"reason": reason.value, "message": failure.message, "attempt": attempt, "details": failure.details}
        return self._end_attempt(connection, row, now, following, reason, error, usage)

    def release(
        self, connection: Connection, rows: Sequence[Row], reason: Reason, actor_name: str, now: int
    ) -> Effects:
        """Take attempts from a worker that died or stopped. Each job runs again at once, unless its budget is spent."""
        effects = Effects()
        for row in rows:
            if row["cancel_requested_at"] is not None:
                effects.add(self._canceled(connection, row, now, None))
                continue
            message = states.REASON_TEXT[reason]
            error = {"reason": reason.value, "message": message, "attempt": row["attempt"], "details": {}}
            following = self._after_platform_failure(row, reason)
            effects.add(self._end_attempt(connection, row, now, following, reason, error, None, actor_name=actor_name))
        return effects

    def due(self, connection: Connection, now: int, limit: int) -> Effects:
        """Move scheduled jobs whose time has come into their queue."""
        states.check(State.SCHEDULED, State.PENDING, Reason.DUE)
        records, effects = Records(now), Effects()
        for row in guarded.due(connection, now, limit):
            records.traced(row["id"], row["attempt"], Trace.DUE)
            records.queued(row["id"])
            effects.ready.append(ready(row["id"], row["queue"], row["ready_at"], row["priority"]))
            effects.events.append(job_event(row, now))
        records.write(connection, self._audit)
        return effects

    def cancel(self, connection: Connection, actor: Actor, job_id: str, now: int) -> Effects:
        """Cancel a waiting job, or ask the worker of a running one to.

        Raises:
            Conflict: the job has already ended.
        """
        for source in (State.PENDING, State.SCHEDULED):
            states.check(source, State.CANCELED, Reason.CANCELED_BY_USER)
        records, effects = Records(now), Effects()
        row = guarded.cancel_waiting(connection, job_id, now)
        if row is not None:
            records.traced(job_id, row["attempt"], Trace.CANCELED)
            records.audited(actor, Action.JOB_CANCEL, job_id, row["audit_seq"], details={"was": "waiting"})
            effects.gone.append((row["queue"], job_id))
        else:
            row, first = guarded.ask_cancel(connection, job_id, now)
            if row is None:
                state = connection.execute(select(t.job.c.state).where(t.job.c.id == job_id)).scalar_one()
                raise Conflict(f"the job is already {state}", code="job-ended")
            if first:
                records.traced(job_id, row["attempt"], Trace.CANCEL_REQUESTED)
                records.audited(actor, Action.JOB_CANCEL, job_id, row["audit_seq"], details={"was": "running"})
            asked = {"type": "cancel", "id": job_id, "tenant": row["tenant_id"], "attempt": row["attempt"], "at": now}
            effects.events.append(asked)
        effects.events.append(job_event(row, now))
        records.write(connection, self._audit)
        return effects

    def canceled(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        worker_id: str,
        now: int,
        usage: Mapping[str, Any] | None,
    ) -> Effects:
        """The worker has killed the sandbox of a job whose cancel was asked for."""
        return self._canceled(connection, self._held(connection, job_id, attempt, worker_id), now, usage)

    def stale_write(self, connection: Connection, tenant_id: str, job_id: str, attempt: int, worker_id: str) -> None:
        """Record that a worker tried to write for an attempt it no longer held. Changes nothing of the job."""
        actor = system_actor(tenant_id, f"worker:{worker_id}")
        held = f"attempt:{job_id}/{attempt}"
        entry = AuditEntry(actor=actor, action=Action.JOB_STALE_WRITE, object=held, outcome=Outcome.DENIED)
        self._audit.record(connection, entry)

    def _after_platform_failure(self, row: Row, reason: Reason) -> Next:
        return after_platform_failure(self._budget, row["platform_failures"], row["worker_deaths"], reason)

    def _end_attempt(
        self,
        connection: Connection,
        row: Row,
        now: int,
        following: Next,
        reason: Reason,
        error: dict[str, Any],
        usage: Mapping[str, Any] | None,
        *,
        actor_name: str | None = None,
    ) -> Effects:
        """Close the attempt that ``row`` shows. ``actor_name`` is given when another than its worker does so."""
        job_id, attempt, worker_id = row["id"], row["attempt"], row["lease_owner"]
        values: dict[str, Any] = {
            **following.counters,
            "error": error,
            "usage": usage,
            "ready_at": now + following.delay_ms,
        }
        if following.state is State.FAILED:
            values["finished_at"] = now
        changed = self._leave(connection, job_id, attempt, worker_id, following.state, following.reason, values)
        abandoned = actor_name is not None
        outcome = "abandoned" if abandoned else "failed"
        closed = {"outcome": outcome, "reason": reason.value, "error": error, "usage": usage, "finished_at": now}
        guarded.close_attempt(connection, job_id, attempt, closed)
        records, effects = Records(now), Effects(events=[job_event(changed, now)])
        seen = {"reason": reason.value, "message": error["message"]}
        if following.state is State.FAILED:
            records.traced(job_id, attempt, Trace.FAILED, **seen, **_brief(usage))
            action, verdict = Action.JOB_FAIL, Outcome.FAILED
        else:
            event = Trace.ATTEMPT_ABANDONED if abandoned else Trace.RETRY_SCHEDULED
            records.traced(job_id, attempt, event, **seen, delay_ms=following.delay_ms)
            action, verdict = (Action.JOB_RELEASE if abandoned else Action.JOB_RETRY), Outcome.ALLOWED
        records.audited(
            system_actor(row["tenant_id"], actor_name or f"worker:{worker_id}"),
            action,
            job_id,
            changed["audit_seq"],
            outcome=verdict,
            reason=reason.value,
            details={"attempt": attempt, "next": following.state.value},
        )
        if following.state is State.PENDING:
            records.queued(job_id)
            effects.ready.append(ready(job_id, row["queue"], now, row["priority"]))
        records.write(connection, self._audit)
        return effects

    def _canceled(self, connection: Connection, row: Row, now: int, usage: Mapping[str, Any] | None) -> Effects:
        job_id, attempt, worker_id = row["id"], row["attempt"], row["lease_owner"]
        reason = Reason.CANCELED_BY_USER
        values = {"usage": usage, "finished_at": now}
        changed = self._leave(connection, job_id, attempt, worker_id, State.CANCELED, reason, values)
        closed = {"outcome": "canceled", "reason": reason.value, "usage": usage, "finished_at": now}
        guarded.close_attempt(connection, job_id, attempt, closed)
        records = Records(now)
        records.traced(job_id, attempt, Trace.CANCELED, **_brief(usage))
        details = {"attempt": attempt, "was": "stopped"}
        records.audited(_worker(row, worker_id), Action.JOB_CANCEL, job_id, changed["audit_seq"], details=details)
        records.write(connection, self._audit)
        return Effects(events=[job_event(changed, now)])

    @staticmethod
    def _held(connection: Connection, job_id: str, attempt: int, worker_id: str) -> Row:
        row = guarded.held(connection, job_id, attempt, worker_id)
        if row is None:
            raise StaleAttempt(f"job {job_id}: attempt {attempt} is no longer held by {worker_id}")
        return row

    @staticmethod
    def _leave(
        connection: Connection,
        job_id: str,
        attempt: int,
        worker_id: str,
        state: State,
        reason: Reason,
        values: Mapping[str, Any],
    ) -> Row:
        states.check(State.PROCESSING, state, reason)
        row = guarded.leave_processing(connection, job_id, attempt, worker_id, state, reason, values)
        if row is None:
            raise StaleAttempt(f"job {job_id}: attempt {attempt} is no longer held by {worker_id}")
        return row


def _worker(row: Mapping[str, Any], worker_id: str) -> Actor:
    return system_actor(row["tenant_id"], f"worker:{worker_id}")


def _brief(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: usage[key] for key in ("cpu_ms", "memory_peak") if usage and key in usage}
