"""What can still happen to a job that has ended: a retry by hand begins its next run; a purge removes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from cloche.clock import to_rfc3339
from cloche.db import guarded
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain import states
from cloche.domain.dependencies import Verdict
from cloche.domain.events import Action, Trace
from cloche.domain.permissions import Actor, system_actor
from cloche.domain.quotas import Kind, Quotas
from cloche.domain.states import RETRIABLE, TERMINAL, Reason, State
from cloche.errors import Conflict, NotFound, RequestError
from cloche.services import past, quota_rows, usage_rows, version_rows
from cloche.services.actors import refuse_suspended
from cloche.services.dependents import Dependents
from cloche.services.effects import Effects, queue_entry
from cloche.services.queue_rows import held
from cloche.services.records import Records, job_event

_RETRY_REFUSED = {
    State.COMPLETED: "the job has completed and its result stands; submit a new job to run it again",
    State.PROCESSING: "the job is running; it can be retried once it has failed or was canceled",
    State.PENDING: "the job waits in its queue; it can be retried once it has failed or was canceled",
    State.SCHEDULED: "the job waits for its time; it can be retried once it has failed or was canceled",
    State.BLOCKED: "the job waits for other jobs; it can be retried once it has failed or was canceled",
}


class Afterlife:
    """Stateless but for the audit log; part of :class:`cloche.services.transitions.Transitions`. ``quotas``: the platform's defaults."""

    def __init__(self, audit: AuditLog, dependents: Dependents, quotas: Quotas) -> None:
        self._audit = audit
        self._quotas = quotas
        self._dependents = dependents

    def rerun(self, connection: Connection, actor: Actor, job_id: str, now: int) -> Effects:
        """Begin the next run of a failed or canceled job: at once, or when the jobs it depends on have ended.

        Raises:
            NotFound: no such job in the actor's tenant.
            Conflict: it has not ended, has completed, its plugin's version is disabled, a job it depends on stands in the way, or the tenant
                is suspended.
            QuotaExceeded: whoever submitted it, or the tenant, has as many jobs in flight as may be, or has used up the day's CPU-seconds.
                Nothing was written.
        """
        refuse_suspended(actor)
        mine = (t.job.c.id == job_id) & (t.job.c.tenant_id == actor.tenant_id)
        found = connection.execute(select(t.job).where(mine)).mappings().one_or_none()
        if found is None:
            raise NotFound("there is no such job")
        before = dict(found)
        if State(before["state"]) not in RETRIABLE:
            raise _refused(State(before["state"]))
        version_rows.refuse_disabled(connection, [(before["type"], before["plugin_version"])])
        tenant, owner = before["tenant_id"], before["submitted_by"]
        quotas = quota_rows.in_force(connection, self._quotas, tenant, owner)
        if quotas.any(Kind.CPU):
            quota_rows.check_cpu(quotas, usage_rows.cpu_ms(connection, tenant, owner, now), now)
        counted = quota_rows.enter(connection, quotas, tenant, owner, 1)
        try:
            return self._begin(connection, actor, before, now, counted=counted)
        except RequestError:
            quota_rows.left(connection, [{**before, "quota_counted": counted}])  # the transaction may go on with others
            raise

    def _begin(
        self, connection: Connection, actor: Actor, before: dict[str, Any], now: int, *, counted: bool
    ) -> Effects:
        job_id = before["id"]
        blocked = self._dependents.resumed(connection, before) is Verdict.WAIT
        state, reason = (State.BLOCKED, Reason.WAITS_FOR_JOBS) if blocked else (State.PENDING, Reason.RETRIED)
        states.check(State(before["state"]), state, reason)
        if not held(connection, [before["queue"]]):
            gone = f"its queue '{before['queue']}' is gone: create it again, or submit a new job"
            raise Conflict(gone, code="queue-gone")
        row = guarded.rerun(connection, job_id, state, reason, now, counted=counted)
        if row is None:  # somebody was faster
            now_is = connection.execute(select(t.job.c.state).where(t.job.c.id == job_id)).scalar()
            raise NotFound("there is no such job") if now_is is None else _refused(State(now_is))
        past.add(connection, [before])
        records, effects = Records(now), Effects(events=[job_event(row, now)])
        was = {"run": row["run"], "was": before["state"], "reason": before["reason"]}
        records.traced(job_id, row["attempt"], Trace.RETRIED, **was)
        records.audited(actor, Action.JOB_RERUN, job_id, row["audit_seq"], details=was)
        if state is State.PENDING:
            records.queued(job_id)
            effects.ready.append(queue_entry(row))
        records.write(connection, self._audit)
        return effects

    def purge(self, connection: Connection, actor: Actor | None, job_ids: Sequence[str], now: int) -> list[str]:
        """Remove those of the jobs that have ended, with attempts, logs, trace and lists of outputs; returns which went.

        Their audit events stay, and this adds the last one. ``actor`` None: the platform's retention does it.
        """
        rows = guarded.purge(connection, job_ids)
        past.add(connection, rows)
        records = Records(now)
        for row in rows:
            details = {"was": row["state"], "reason": row["reason"], "finished_at": to_rfc3339(row["finished_at"])}
            by = actor or system_actor(row["tenant_id"])
            records.audited(by, Action.JOB_PURGE, row["id"], row["audit_seq"] + 1, details=details)
        records.write(connection, self._audit)
        return [row["id"] for row in rows]


def refuse_purge(state: str) -> Conflict | None:
    """Why a job in this state cannot be removed; None when it can."""
    if State(state) in TERMINAL:
        return None
    return Conflict(f"the job is {state}: only one that has ended can be removed; cancel it first", code="job-live")


def _refused(state: State) -> Conflict:
    code = "job-completed" if state is State.COMPLETED else "job-not-ended"
    return Conflict(_RETRY_REFUSED.get(state, f"the job is {state}"), code=code)
