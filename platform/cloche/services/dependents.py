"""Jobs that wait for jobs: what an upstream's end means for them, and for those that wait for them in turn.

Everything happens in the transaction in which the upstream ends, up to a number of jobs; whoever is left is told by the sweeper, in
transactions of the same size. So a job with very many dependents, or a very long chain, never holds the database for long.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from cloche.db import dependents as table
from cloche.db import scope
from cloche.db.audit_log import AuditLog
from cloche.domain import states
from cloche.domain.dependencies import Condition, OnFailure, Verdict, decide
from cloche.domain.events import Action, Trace
from cloche.domain.permissions import system_actor
from cloche.domain.states import TERMINAL, Reason, State
from cloche.errors import Conflict, Invalid, Problem
from cloche.services.effects import Effects, queue_entry
from cloche.services.records import Records, job_event

Row = dict[str, Any]
PER_TRANSACTION = 500  # jobs told of an end in one transaction
_UPSTREAMS = 100  # ends told in one transaction: each costs some statements, also where it has one dependent


class Dependents:
    """Stateless but for the audit log; part of :class:`cloche.services.transitions.Transitions`."""

    def __init__(self, audit: AuditLog, per_transaction: int = PER_TRANSACTION) -> None:
        self._audit = audit
        self._most = per_transaction

    def admitted(self, connection: Connection, row: Mapping[str, Any]) -> tuple[Verdict, dict[str, State | None]]:
        """How a new job begins, and what has become of its upstreams. They cannot end behind its back any more.

        Raises:
            Invalid: one of them does not exist in the tenant.
        """
        upstreams: Sequence[str] = row.get("depends_on") or ()
        if not upstreams:
            return Verdict.RUN, {}
        found = table.lock_upstreams(connection, row["tenant_id"], upstreams)
        if missing := unknown(upstreams, found):
            raise Invalid("the job was not accepted; nothing was stored", problems=missing)
        outcomes = {one: found[one] if found[one] in TERMINAL else None for one in upstreams}
        return _verdict(row, outcomes), outcomes

    def resumed(self, connection: Connection, row: Mapping[str, Any]) -> Verdict:
        """How a job that is retried by hand begins: its upstreams are looked at anew, as they are now.

        Raises:
            Conflict: one of them stands in the way.
        """
        upstreams: Sequence[str] = row["depends_on"] or ()
        if not upstreams:
            return Verdict.RUN
        found = table.lock_upstreams(connection, row["tenant_id"], upstreams)
        told = table.outcomes(connection, row["id"])
        outcomes: dict[str, State | None] = {}
        for one in upstreams:
            state = found.get(one, told.get(one))
            if state is None:
                raise Conflict(f"it depends on job {one}, which was removed before it ended", code="upstream-gone")
            outcomes[one] = state if state in TERMINAL else None
        verdict = _verdict(row, outcomes)
        if verdict is Verdict.CANCEL:
            failed = next(one for one, state in outcomes.items() if state in (State.FAILED, State.CANCELED))
            raise Conflict(
                f"it depends on job {failed}, which is {outcomes[failed]}; retry that one first", code="upstream-failed"
            )
        table.record(connection, row["id"], outcomes)
        return verdict

    def record(self, connection: Connection, job_id: str, outcomes: Mapping[str, State | None]) -> None:
        if outcomes:
            table.record(connection, job_id, outcomes)

    def refuse(self, connection: Connection, job_id: str, outcomes: Mapping[str, State | None], now: int) -> Effects:
        """Cancel a job that has just been accepted: an upstream of it has already failed."""
        failed = next(one for one, state in outcomes.items() if state in (State.FAILED, State.CANCELED))
        records, effects = Records(now), Effects()
        self._cancel(connection, [job_id], failed, outcomes[failed] or State.FAILED, records, effects)
        records.write(connection, self._audit)
        return effects

    def settle(self, connection: Connection, ended: Sequence[Mapping[str, Any]], now: int) -> Effects:
        """Tell the dependents of jobs that have just ended (rows of ``job``): they run, go on waiting, or are canceled."""
        upstreams = deque((row["id"], row["tenant_id"], State(row["state"])) for row in ended if row["has_dependents"])
        effects = Effects()
        if not upstreams:
            return effects
        records, left, ends = Records(now), self._most, _UPSTREAMS
        unfinished: list[str] = []
        while upstreams:
            upstream, tenant_id, state = upstreams.popleft()
            if ends == 0 or left == 0:
                unfinished.append(upstream)
                continue
            ends -= 1
            told = table.lock_untold(connection, upstream, tenant_id, state, left)
            if len(told) == left:  # perhaps there are more
                unfinished.append(upstream)
            left -= len(told)
            if told:
                canceled = self._tell(connection, upstream, state, told, records, effects)
                upstreams += [(row["id"], tenant_id, State.CANCELED) for row in canceled if row["has_dependents"]]
        table.keep(connection, unfinished, now)
        records.write(connection, self._audit)
        return effects

    def resume(self, connection: Connection, now: int) -> Effects:
        """Tell more dependents of one job whose end not all have been told yet, if there is such a job."""
        for upstream in table.kept(connection, 1):
            row = table.lock_ended(connection, upstream)
            table.forget(connection, [upstream])
            if row is not None:  # else it was retried since, and its next end will tell
                return self.settle(connection, [row], now)
        return Effects()

    def _tell(
        self,
        connection: Connection,
        upstream: str,
        state: State,
        told: Sequence[Row],
        records: Records,
        effects: Effects,
    ) -> list[Row]:
        """Note the end with each dependent and do what follows from it. Returns those that are canceled by it."""
        ids = [row["id"] for row in told]
        scope.vouch(ids)  # they were found by the tenant of the job that they wait for
        table.tell(connection, upstream, state, ids)
        counts = table.counts(connection, ids)
        chosen: dict[Verdict, list[str]] = defaultdict(list)
        later: list[str] = []
        for row in told:
            waiting, failed = counts[row["id"]]
            verdict = _decide(row, waiting, failed)
            if verdict is Verdict.RUN and row["ready_at"] > records.now:
                later.append(row["id"])
            else:
                chosen[verdict].append(row["id"])
        self._free(connection, chosen[Verdict.RUN], State.PENDING, Reason.DEPENDENCIES_MET, records, effects)
        self._free(connection, later, State.SCHEDULED, Reason.WAITS_FOR_TIME, records, effects)
        return self._cancel(connection, chosen[Verdict.CANCEL], upstream, state, records, effects)

    @staticmethod
    def _free(
        connection: Connection, ids: Sequence[str], state: State, reason: Reason, records: Records, effects: Effects
    ) -> None:
        if not ids:
            return
        states.check(State.BLOCKED, state, reason)
        for row in table.unblock(connection, ids, state, reason, records.now):
            records.traced(row["id"], row["attempt"], Trace.DEPENDENCIES_MET)
            if state is State.PENDING:
                records.queued(row["id"])
                effects.ready.append(queue_entry(row))
            effects.events.append(job_event(row, records.now))

    @staticmethod
    def _cancel(
        connection: Connection, ids: Sequence[str], upstream: str, state: State, records: Records, effects: Effects
    ) -> list[Row]:
        if not ids:
            return []
        reason = Reason.UPSTREAM_FAILED
        states.check(State.BLOCKED, State.CANCELED, reason)
        message = {State.FAILED: f"job {upstream} failed", State.CANCELED: f"job {upstream} was canceled"}.get(
            state, "one of the jobs did not complete"
        )
        error = {"reason": reason.value, "message": message, "attempt": 0, "details": {"upstream": upstream}}
        rows = table.unblock(connection, ids, State.CANCELED, reason, records.now, error)
        for row in rows:
            records.traced(row["id"], row["attempt"], Trace.CANCELED, reason=reason.value, upstream=upstream)
            records.audited(
                system_actor(row["tenant_id"]),
                Action.JOB_CANCEL,
                row["id"],
                row["audit_seq"],
                reason=reason.value,
                details={"was": State.BLOCKED.value, "upstream": upstream},
            )
            records.ended(row)
            effects.events.append(job_event(row, records.now))
        return rows


def unknown(asked: Sequence[str], found: Collection[str]) -> list[Problem]:
    """A problem for each asked upstream that was not found; the same words whether it never was, is gone, or is another tenant's."""
    return [
        Problem(f"/depends_on/{n}", "there is no such job to depend on")
        for n, one in enumerate(asked)
        if one not in found
    ]


def _verdict(row: Mapping[str, Any], outcomes: Mapping[str, State | None]) -> Verdict:
    ends = list(outcomes.values())
    return _decide(row, ends.count(None), ends.count(State.FAILED) + ends.count(State.CANCELED))


def _decide(row: Mapping[str, Any], waiting: int, failed: int) -> Verdict:
    condition, on_failure = Condition(row["depends_on_condition"]), OnFailure(row["on_upstream_failure"])
    return decide(condition, on_failure, waiting=waiting, failed=failed)
