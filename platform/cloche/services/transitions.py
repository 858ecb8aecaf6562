"""The only writer of ``job.state``.

Every method is one transaction's work on a connection it is given: a guarded update, its trace and audit rows, and the :class:`Effects` to
apply after the commit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, select

from cloche.db import guarded, scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.guarded import Row
from cloche.domain import states
from cloche.domain.dependencies import Verdict
from cloche.domain.events import Action, Outcome, Trace
from cloche.domain.jobs import RetryPolicy, Success
from cloche.domain.permissions import Actor, system_actor
from cloche.domain.quotas import NO_QUOTAS, Quotas
from cloche.domain.retries import Next, PlatformBudget, after_platform_failure, after_plugin_failure
from cloche.domain.states import WAITING, Reason, State
from cloche.errors import Conflict, JobFailure, NotFound, PluginFailure, StaleAttempt
from cloche.services.afterlife import Afterlife
from cloche.services.dependents import Dependents
from cloche.services.effects import Effects, queue_entry
from cloche.services.records import Records, begins, job_event
from cloche.services.usage_rows import brief, closing, order

_RANDOM = random.SystemRandom()


class Transitions:
    """Stateless but for the audit log and the budget of platform failures; shared by threads.

    ``draw(low, high)`` gives the whole number between its bounds by which a retry's wait is chosen. ``quotas``: the platform's defaults.
    ``feed``: whether extensions are to be told what attempts used.
    """

    def __init__(
        self,
        audit: AuditLog,
        budget: PlatformBudget,
        draw: Callable[[int, int], int] = _RANDOM.randint,
        quotas: Quotas = NO_QUOTAS,
        *,
        feed: bool = False,
    ) -> None:
        self._audit = audit
        self._budget = budget
        self._draw = draw
        self._feed = feed
        self._dependents = Dependents(audit)
        afterlife = Afterlife(audit, self._dependents, quotas)
        self.rerun, self.purge = afterlife.rerun, afterlife.purge
        self.resume_dependents = self._dependents.resume

    def submit(self, connection: Connection, actor: Actor, row: Mapping[str, Any], now: int) -> Effects:
        """Insert an accepted job, in the state in which it begins. ``row`` holds every column but those of the life cycle.

        Raises:
            Invalid: a job that it depends on does not exist in its tenant. Nothing was written.
        """
        verdict, outcomes = self._dependents.admitted(connection, row)
        ready_at = max(now, row.get("scheduled_at") or 0)
        state, reason = begins(verdict, ready_at > now)
        states.check(None, state, reason)
        full = guarded.insert_job(connection, row, state, reason, ready_at, now)
        scope.vouch([row["id"]])
        self._dependents.record(connection, row["id"], outcomes)
        records, effects = Records(now), Effects(events=[job_event(full, now)])
        records.accepted(actor, full)
        if state is State.PENDING:
            records.queued(row["id"])
            effects.ready.append(queue_entry(full))
        records.write(connection, self._audit)
        if verdict is Verdict.CANCEL:
            effects.add(self._dependents.refuse(connection, row["id"], outcomes, now))
        return effects

    def claim(
        self, connection: Connection, job_ids: Sequence[str], worker_id: str, now: int, lease_ms: int
    ) -> tuple[Sequence[Row], Effects]:
        """Give the worker the next attempt of each job that is still pending; the rest are left out."""
        states.check(State.PENDING, State.PROCESSING, Reason.CLAIMED)
        rows = guarded.claim(connection, job_ids, worker_id, now, now + lease_ms)
        again = guarded.previous_ends(connection, rows)
        records, effects = Records(now), Effects()
        for row in rows:
            number = row["attempt"]
            waited_ms = now - max(row["ready_at"], again.get(row["id"], 0))
            records.traced(row["id"], number, Trace.CLAIMED, worker=worker_id, waited_ms=waited_ms)
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
        used, usage = closing(connection, job_id, attempt, outcome.usage, now)
        values = {"result": outcome.result, "error": None, "usage": usage, "finished_at": now}
        row = self._leave(connection, job_id, attempt, worker_id, State.COMPLETED, Reason.SUCCEEDED, values)
        closed = {
            "outcome": "completed",
            "reason": Reason.SUCCEEDED.value,
            "usage": used,
            "finished_at": now,
        }
        guarded.close_attempt(connection, job_id, attempt, closed)
        outputs = [asdict(file) for file in outcome.outputs]
        if outputs:
            connection.execute(insert(t.job_output), [{"job_id": job_id, "attempt": attempt, **out} for out in outputs])
        records = Records(now, feed=self._feed)
        records.used(row, used)
        records.traced(job_id, attempt, Trace.COMPLETED, outputs=len(outputs), **brief(outcome.usage))
        details = {
            "attempt": attempt,
            "plugin_digest": row["plugin_digest"],
            "image": row["image_digest"],
            "outputs": [{key: out[key] for key in ("path", "size", "sha256", "destination")} for out in outputs],
        }
        records.audited(_worker(row, worker_id), Action.JOB_COMPLETE, job_id, row["audit_seq"], details=details)
        records.write(connection, self._audit)
        return self._ended(connection, [row], now, held=True)

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
            following = after_plugin_failure(policy, row["retries_used"], reason, self._draw)
        else:
            following = self._after_platform_failure(row, reason)
        error = {"reason": reason.value, "message": failure.message, "attempt": attempt, "details": failure.details}
        return self._end_attempt(connection, row, now, following, reason, error, usage)

    def release(
        self, connection: Connection, rows: Sequence[Row], reason: Reason, actor_name: str, now: int
    ) -> Effects:
        """Take attempts from a worker that died or stopped. Each job runs again at once, unless its budget is spent."""
        effects = Effects()
        for row in sorted(rows, key=order):
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
            effects.ready.append(queue_entry(row))
            effects.events.append(job_event(row, now))
        records.write(connection, self._audit)
        return effects

    def expire(self, connection: Connection, now: int, limit: int) -> Effects:
        """Cancel jobs that nobody has begun by the time their submitters set."""
        for source in WAITING:
            states.check(source, State.CANCELED, Reason.EXPIRED)
        rows = guarded.expire(connection, now, limit)
        records, effects = Records(now), Effects(gone=[(row["queue"], row["tenant_id"], row["id"]) for row in rows])
        for row in rows:
            reason, actor = Reason.EXPIRED.value, system_actor(row["tenant_id"])
            records.traced(row["id"], row["attempt"], Trace.CANCELED, reason=reason)
            records.audited(actor, Action.JOB_CANCEL, row["id"], row["audit_seq"], reason=reason)
        records.write(connection, self._audit)
        effects.add(self._ended(connection, rows, now))
        return effects

    def cancel(self, connection: Connection, actor: Actor, job_id: str, now: int) -> Effects:
        """Cancel a waiting job, or ask the worker of a running one to.

        Raises:
            Conflict: the job has already ended.
            NotFound: it is gone.
        """
        for source in WAITING:
            states.check(source, State.CANCELED, Reason.CANCELED_BY_USER)
        records, effects = Records(now), Effects()
        guarded.hold_still(connection, job_id)
        row = guarded.cancel_waiting(connection, job_id, now)
        if row is not None:
            records.traced(job_id, row["attempt"], Trace.CANCELED)
            records.audited(actor, Action.JOB_CANCEL, job_id, row["audit_seq"], details={"was": "waiting"})
            effects.gone.append((row["queue"], row["tenant_id"], job_id))
        else:
            row, first = guarded.ask_cancel(connection, job_id, now)
            if row is None:
                state = connection.execute(select(t.job.c.state).where(t.job.c.id == job_id)).scalar()
                if state is None:
                    raise NotFound("there is no such job")
                raise Conflict(f"the job is already {state}", code="job-ended")
            if first:
                records.traced(job_id, row["attempt"], Trace.CANCEL_REQUESTED)
                records.audited(actor, Action.JOB_CANCEL, job_id, row["audit_seq"], details={"was": "running"})
            asked = {"type": "cancel", "id": job_id, "tenant": row["tenant_id"], "attempt": row["attempt"], "at": now}
            effects.events.append(asked)
        records.write(connection, self._audit)
        if row["state"] == State.CANCELED.value:
            effects.add(self._ended(connection, [row], now))
        else:
            effects.events.append(job_event(row, now))
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

    def revealed(self, connection: Connection, actor: Actor, job_id: str, what: str, now: int) -> None:
        """Record that somebody reads what a sensitive job holds. Changes nothing of the job but the number of its audit events.

        Raises:
            NotFound: it was removed since it was looked up.
        """
        row = guarded.count_event(connection, job_id)
        if row is None:
            raise NotFound("there is no such job")
        records = Records(now)
        records.audited(actor, Action.JOB_REVEAL, job_id, row["audit_seq"], details={"what": what})
        records.write(connection, self._audit)

    def delivered(
        self, connection: Connection, tenant_id: str, held: tuple[str, int, str], details: Mapping[str, Any], now: int
    ) -> None:
        """Record that an attempt, ``held`` as (job, attempt, worker), gets secrets. Raises StaleAttempt: it is no longer that worker's."""
        job_id, attempt, worker_id = held
        row = guarded.count_event(connection, job_id, (attempt, worker_id))
        if row is None:
            raise StaleAttempt(f"job {job_id}: attempt {attempt} is no longer held by {worker_id}")
        records, actor = Records(now), system_actor(tenant_id, f"worker:{worker_id}")
        records.audited(actor, Action.SECRET_DELIVER, job_id, row["audit_seq"], details=details)
        records.write(connection, self._audit)

    def stale_write(self, connection: Connection, tenant_id: str, job_id: str, attempt: int, worker_id: str) -> None:
        """Record that a worker tried to write for an attempt it no longer held. Changes nothing of the job."""
        actor, held = system_actor(tenant_id, f"worker:{worker_id}"), f"attempt:{job_id}/{attempt}"
        self._audit.record(connection, AuditEntry(actor, Action.JOB_STALE_WRITE, held, Outcome.DENIED))

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
        used, total = closing(connection, job_id, attempt, usage, now)
        values: dict[str, Any] = {**following.counters, "error": error, "usage": total}
        if following.state is State.FAILED:
            values["finished_at"] = now
        if (
            following.state is State.SCHEDULED
        ):  # one that is pending again keeps its place: it does not wait behind those that came later
            values["ready_at"] = now + following.delay_ms
        changed = self._leave(connection, job_id, attempt, worker_id, following.state, following.reason, values)
        abandoned = actor_name is not None
        outcome = "abandoned" if abandoned else "failed"
        closed = {"outcome": outcome, "reason": reason.value, "error": error, "usage": used, "finished_at": now}
        guarded.close_attempt(connection, job_id, attempt, closed)
        effects = Effects(events=[job_event(changed, now)], freed=[(row["queue"], job_id)])
        records = Records(now, feed=self._feed)
        records.used(changed, used)
        seen = {"reason": reason.value, "message": error["message"]}
        if following.state is State.FAILED:
            records.ended(changed)
            records.traced(job_id, attempt, Trace.FAILED, **seen, **brief(usage))
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
            effects.ready.append(queue_entry(row))
        records.write(connection, self._audit)
        if following.state is State.FAILED:
            effects.add(self._dependents.settle(connection, [changed], now))
        return effects

    def _canceled(self, connection: Connection, row: Row, now: int, usage: Mapping[str, Any] | None) -> Effects:
        job_id, attempt, worker_id = row["id"], row["attempt"], row["lease_owner"]
        reason = Reason.CANCELED_BY_USER
        used, total = closing(connection, job_id, attempt, usage, now)
        values = {"usage": total, "finished_at": now}
        changed = self._leave(connection, job_id, attempt, worker_id, State.CANCELED, reason, values)
        closed = {"outcome": "canceled", "reason": reason.value, "usage": used, "finished_at": now}
        guarded.close_attempt(connection, job_id, attempt, closed)
        records = Records(now, feed=self._feed)
        records.used(changed, used)
        records.traced(job_id, attempt, Trace.CANCELED, **brief(usage))
        details = {"attempt": attempt, "was": "stopped"}
        records.audited(_worker(row, worker_id), Action.JOB_CANCEL, job_id, changed["audit_seq"], details=details)
        records.write(connection, self._audit)
        return self._ended(connection, [changed], now, held=True)

    def _ended(self, connection: Connection, rows: Sequence[Row], now: int, *, held: bool = False) -> Effects:
        """What follows from the end of these jobs, which has been written: others are told of it. ``held``: by a worker until now."""
        records = Records(now)
        for row in rows:
            records.ended(row)
        records.write(connection, self._audit)
        effects = Effects(events=[job_event(row, now) for row in rows])
        effects.freed += [(row["queue"], row["id"]) for row in rows if held]
        effects.add(self._dependents.settle(connection, rows, now))
        return effects

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
