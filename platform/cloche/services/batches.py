"""Batches: many jobs accepted in one transaction, all of them or none, and looked at, canceled and counted together.

A batch has no state of its own: how far it is, its jobs say. Each of them is a job like any other, with its own trace and audit events.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, select
from sqlalchemy.exc import IntegrityError

from cloche import failpoints
from cloche.clock import to_rfc3339, uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import TERMINAL, Reason, State
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from cloche.failpoints import Point
from cloche.queueing.broker import Broker
from cloche.services import effects, version_rows
from cloche.services.actors import refuse_suspended
from cloche.services.admission import Admission
from cloche.services.asked import Defaults
from cloche.services.batch_acts import Act, Acted, Asked, acting, require_queues
from cloche.services.batch_refs import MAX_PROBLEMS, Plan, planned
from cloche.services.bulk_submit import Prepared, introduced, prepare
from cloche.services.cursors import decode_cursor, encode_cursor
from cloche.services.egress import EgressService
from cloche.services.idempotency import remember, replayed
from cloche.services.job_pages import joined
from cloche.services.plugins import PluginService
from cloche.services.queue_rows import MISSING, held
from cloche.services.quota_gate import QuotaGate
from cloche.services.records import chunks
from cloche.services.sealing import JobVault
from cloche.services.transitions import Transitions
from cloche.services.views import job_view

Rows = list[dict[str, Any]]  # an alias, because the service's own `list` hides the built-in one inside the class
MAX_WAITING = 1_000  # jobs of one batch that wait for others: each takes several times as long as one that does not
_ANSWER: dict[str, Any] = {"warnings": []}  # what an answer kept by an older version does not say
_TOGETHER = 100  # jobs canceled in one transaction: between two of them others have their turn


class BatchService:
    """Thread-safe. Every method is scoped to the actor's tenant: what is not yours is NotFound."""

    def __init__(
        self,
        db: Database,
        broker: Broker,
        audit: AuditLog,
        plugins: PluginService,
        transitions: Transitions,
        defaults: Defaults,
        egress: EgressService,
        vault: JobVault,
        gate: QuotaGate,
    ) -> None:
        self._db = db
        self._gate = gate
        self._broker = broker
        self._audit = audit
        self._plugins = plugins
        self._transitions = transitions
        self._defaults = defaults
        self._egress = egress
        self._vault = vault

    def submit(
        self,
        actor: Actor,
        name: str | None,
        bodies: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Accept all of the jobs: they are in the database, each with its audit event, when this returns the batch. Or none of them.

        Raises:
            Invalid: with a pointer (``/jobs/17/payload/width``) to each fault, the first 100 of them; or the key was used with another body.
            Forbidden: a job names a remote and the actor may not use remotes.
            QuotaExceeded, QuotaPace: so many are more than the actor, or the tenant, may have or submit.
            Unavailable: the database does not answer; nothing was stored, or as an OutcomeUnknown: all of it or nothing.
        """
        digests = self._digests(actor, idempotency_key, name, bodies)
        earlier = self._db.read(lambda c: replayed(c, actor, idempotency_key, digests))
        if earlier is not None:
            return _ANSWER | earlier
        plan = planned(bodies)
        rows, quota = self._db.read(lambda c: (self._admitted(c, actor, plan), self._gate.ask(c, actor, len(bodies))))
        self._gate.pace(quota)
        now = self._db.now_ms()
        batch = _new(actor, name, len(rows), now)
        rows = [{**row, "batch_id": batch["id"], "quota_counted": quota.counted} for row in rows]
        # Those that wait for other jobs are stored one by one: what their upstreams are is only known in the transaction.
        waiting = [(number, row) for number, row in zip(plan.numbers, rows, strict=True) if row.get("depends_on")]
        prepared = self._prepared(actor, batch, rows, now)
        answer = _answer(batch, rows, plan)

        def unit(connection: Connection) -> tuple[dict[str, Any], effects.Effects]:
            before = replayed(connection, actor, idempotency_key, digests)
            if before is not None:
                return _ANSWER | before, effects.Effects()
            _hold_queues(connection, plan.numbers, rows)
            prepared.write(connection)
            done = effects.Effects(ready=list(prepared.ready), events=[_event(batch)])
            for number, row in waiting:
                try:
                    done.add(self._transitions.submit(connection, actor, row, now))
                except Invalid as error:
                    raise _placed(number, error) from None
            self._gate.take(connection, quota)
            if idempotency_key is not None:
                remember(connection, actor, idempotency_key, digests[0], answer, now)
            return answer, done

        try:
            shown, done = self._db.write(unit)
        except IntegrityError:
            # Where writers do not wait for each other, another request with this key was stored in between.
            earlier = self._db.read(lambda c: replayed(c, actor, idempotency_key, digests))
            if earlier is not None:
                return _ANSWER | earlier
            raise
        failpoints.hit(Point.BATCH_COMMITTED)
        effects.apply(self._broker, done)
        failpoints.hit(Point.BATCH_PUSHED)
        return shown

    def get(self, actor: Actor, batch_id: str) -> dict[str, Any]:
        """The batch with how far it is; ``jobs`` counts its jobs by state."""
        return self._db.read(lambda connection: self._view(connection, actor, batch_id))

    def list(self, actor: Actor, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
        """Newest first, without their counts. Returns ``{"items", "next_cursor"}``."""
        query = _named(select(t.batch)).where(t.batch.c.tenant_id == actor.tenant_id)
        if cursor is not None:
            query = query.where(t.batch.c.id < decode_cursor(cursor))
        query = query.order_by(t.batch.c.id.desc()).limit(limit + 1)
        items = self._db.read(lambda c: [_head(row) for row in c.execute(query).mappings()])
        following = encode_cursor(items[limit - 1]["id"]) if len(items) > limit else None
        return {"items": items[:limit], "next_cursor": following}

    def jobs(
        self, actor: Actor, batch_id: str, status: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """The batch's jobs in the order in which they were submitted, all or those in one state. Returns ``{"items", "next_cursor"}``."""
        job = t.job
        ids = select(job.c.id).where(job.c.batch_id == batch_id)  # answered by the index on (batch_id, state, id) alone
        if status is not None:
            ids = ids.where(job.c.state == status)
        if cursor is not None:
            ids = ids.where(job.c.id > decode_cursor(cursor))
        query = joined(select(job)).where(job.c.id.in_(ids.order_by(job.c.id).limit(limit + 1))).order_by(job.c.id)

        def unit(connection: Connection) -> Rows:
            self._row(connection, actor, batch_id)
            return [job_view(dict(row), row["username"], row["tenant"]) for row in connection.execute(query).mappings()]

        items = self._db.read(unit)
        following = encode_cursor(items[limit - 1]["id"]) if len(items) > limit else None
        return {"items": items[:limit], "next_cursor": following}

    def cancel(self, actor: Actor, batch_id: str) -> dict[str, Any]:
        """Cancel every job of the batch that has not ended: waiting ones at once, running ones by their workers. Returns the batch.

        Raises:
            Conflict: all have ended.
            Forbidden: it is somebody else's and the actor may cancel only their own.
        """
        live = t.job.c.state.not_in([state.value for state in TERMINAL])
        nothing = Conflict("every job of this batch has already ended", code="batch-ended")
        asked = Asked(live, Permission.JOB_CANCEL_ANY, "canceling", Action.BATCH_CANCEL, "live", nothing)
        self._each(actor, batch_id, asked, self._transitions.cancel)
        return self.get(actor, batch_id)

    def retry(self, actor: Actor, batch_id: str) -> dict[str, Any]:
        """Begin the next run of every job of the batch that has failed, and of those that were canceled because of it: their ids are
        greater than their upstreams', so that they find them at work again. Returns the batch, with ``retried`` and ``skipped_count``, how
        many were and were not, and ``skipped``, the first that were not and why.

        Raises:
            QuotaExceeded: no job was retried, and there is no room for one of them.
            Conflict: none has failed, the queue of one that has is gone (``queue-gone``) or its version disabled (``version-disabled``), or
                the tenant is suspended.
            Forbidden: it is somebody else's and the actor may retry only their own.
        """
        refuse_suspended(actor)
        nothing = Conflict("no job of this batch has failed", code="nothing-failed")
        state, reason = t.job.c.state, t.job.c.reason
        hindered = (state == State.CANCELED.value) & (reason == Reason.UPSTREAM_FAILED.value)
        failed = (state == State.FAILED.value) | hindered
        permission, action = Permission.JOB_RETRY_ANY, Action.BATCH_RETRY
        asked = Asked(failed, permission, "retrying", action, "failed", nothing, queued=True)
        acted = self._each(actor, batch_id, asked, self._transitions.rerun)
        if acted.over is not None and not acted.done:
            raise acted.over
        told = {"retried": acted.done, "skipped_count": acted.left, "skipped": acted.skipped}
        return self.get(actor, batch_id) | told

    def _each(self, actor: Actor, batch_id: str, asked: Asked, act: Act) -> Acted:
        """Do ``act`` to each of these jobs of the batch, some in one transaction."""
        query = select(t.job.c.id).where(t.job.c.batch_id == batch_id, asked.which).order_by(t.job.c.id)

        def record(connection: Connection) -> Sequence[str]:
            row = self._row(connection, actor, batch_id)
            if row["submitted_by"] != actor.user_id and not actor.may(asked.permission):
                raise Forbidden(f"this is somebody else's batch; {asked.doing} it needs {asked.permission}")
            ids = connection.scalars(query).all()
            if not ids:
                raise asked.nothing
            scope.vouch(ids)
            if asked.queued:
                require_queues(connection, t.job.c.batch_id == batch_id, asked.which)
                version_rows.refuse_disabled_jobs(connection, t.job.c.batch_id == batch_id, asked.which)
            entry = AuditEntry(actor, asked.action, f"batch:{batch_id}", details={asked.counted: len(ids)})
            self._audit.record(connection, entry)
            return ids

        found = self._db.write(record)
        failpoints.hit(Point.BATCH_ASKED)
        acted = Acted()
        for ids in chunks(found, _TOGETHER):
            some, done = self._db.write(acting(actor, ids, act))
            effects.apply(self._broker, done)
            acted.add(some)
        return acted

    def _digests(
        self, actor: Actor, key: str | None, name: str | None, bodies: Sequence[Mapping[str, Any]]
    ) -> Sequence[str]:
        return () if key is None else self._vault.request_digests(actor, key, {"name": name, "jobs": list(bodies)})

    def _admitted(self, connection: Connection, actor: Actor, plan: Plan) -> Rows:
        """The jobs' rows, in the order of the plan."""
        admission = Admission(connection, actor, self._plugins, self._egress, self._defaults, self._vault, plan.ids)
        admission.prefetch(plan.bodies)
        rows: Rows = []
        problems: list[Problem] = []
        for number, job_id, body in zip(plan.numbers, plan.ids, plan.bodies, strict=True):
            try:
                rows.append(admission.admit(body, job_id))
            except Invalid as error:
                problems += _placed(number, error).problems
                if len(problems) >= MAX_PROBLEMS:
                    break
        if sum(1 for row in rows if row.get("depends_on")) > MAX_WAITING:
            problems.append(Problem("/jobs", f"more than {MAX_WAITING} of them have depends_on; send several batches"))
        if problems:
            raise Invalid("the batch was not accepted; nothing was stored", problems=problems[:MAX_PROBLEMS])
        return rows

    def _prepared(
        self, actor: Actor, batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], now: int
    ) -> Prepared:
        introduced(self._db, self._audit, actor)
        entry = AuditEntry(actor, Action.BATCH_SUBMIT, f"batch:{batch['id']}", details=_summary(batch, rows))
        free = [row for row in rows if not row.get("depends_on")]
        return self._db.read(lambda c: prepare(c, self._audit, actor, batch, free, entry, now))

    def _view(self, connection: Connection, actor: Actor, batch_id: str) -> dict[str, Any]:
        row = self._row(connection, actor, batch_id)
        job = t.job
        counted = select(job.c.state, func.count(), func.min(job.c.started_at), func.max(job.c.finished_at))
        found = connection.execute(counted.where(job.c.batch_id == batch_id).group_by(job.c.state)).all()
        return _head(row) | _progress(row["count"], found)

    def _row(self, connection: Connection, actor: Actor, batch_id: str) -> RowMapping:
        mine = (t.batch.c.id == batch_id) & (t.batch.c.tenant_id == actor.tenant_id)
        row = connection.execute(_named(select(t.batch)).where(mine)).mappings().one_or_none()
        if row is None:
            raise NotFound("there is no such batch")
        scope.vouch([batch_id])
        return row


def _new(actor: Actor, name: str | None, count: int, now: int) -> dict[str, Any]:
    """The batch's row."""
    return {
        "id": uuid7(),
        "tenant_id": actor.tenant_id,
        "name": name,
        "count": count,
        "submitted_by": actor.user_id,
        "created_at": now,
    }


def _answer(batch: Mapping[str, Any], rows: Rows, plan: Plan) -> dict[str, Any]:
    warnings = dict.fromkeys(text for row in rows for text in row["warnings"] or ())
    named = {key: batch[key] for key in ("id", "name", "count")}
    return {**named, "created_at": to_rfc3339(batch["created_at"]), "refs": plan.refs, "warnings": list(warnings)}


def _hold_queues(connection: Connection, numbers: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
    """``numbers``: the places of the rows' jobs in the request.

    Raises:
        Invalid: a queue was removed since its job was admitted.
    """
    there = held(connection, {row["queue"] for row in rows})
    for number, row in zip(numbers, rows, strict=True):
        if row["queue"] not in there:
            raise _placed(number, Invalid("", problems=[Problem("/queue", MISSING.format(name=row["queue"]))]))


def _placed(number: int, error: Invalid) -> Invalid:
    """What is wrong with one job, with pointers into the batch."""
    found = error.problems or (Problem("", error.detail),)
    problems = [Problem(f"/jobs/{number}{each.pointer}", each.detail) for each in found]
    return Invalid("the batch was not accepted; nothing was stored", problems=problems)


def _named(query: Select[Any]) -> Select[Any]:
    return (
        query.add_columns(t.user.c.username, t.tenant.c.name.label("tenant"))
        .join(t.user, t.user.c.id == t.batch.c.submitted_by)
        .join(t.tenant, t.tenant.c.id == t.batch.c.tenant_id)
    )


def _head(row: RowMapping) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "count": row["count"],
        "submitted_by": row["username"],
        "tenant": row["tenant"],
        "created_at": to_rfc3339(row["created_at"]),
    }


def _progress(count: int, found: Sequence[Any]) -> dict[str, Any]:
    """What the states of its jobs say of a batch. A job that was purged has ended."""
    states = {state.value: 0 for state in State} | {row[0]: row[1] for row in found}
    purged = max(0, count - sum(states.values()))
    ended = purged + sum(states[state.value] for state in TERMINAL)
    started = [row[2] for row in found if row[2] is not None]
    finished = [row[3] for row in found if row[3] is not None]
    return {
        "status": "ended" if ended >= count else "running" if started or purged else "waiting",
        "jobs": states,
        "purged": purged,
        "done": round(ended / count, 4),
        "started_at": to_rfc3339(min(started, default=None)),
        "finished_at": to_rfc3339(max(finished, default=None)) if ended >= count else None,
    }


def _summary(batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For the auditor: how many of what, and a digest over the ids, so that a job which vanishes with all its events is missed."""
    kinds = Counter(f"{row['type']}=={row['plugin_version']}" for row in rows)
    ids = hashlib.sha256("\n".join(row["id"] for row in rows).encode()).hexdigest()
    return {"name": batch["name"], "count": len(rows), "types": dict(kinds.most_common(50)), "job_ids_sha256": ids}


def _event(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the stream says: once for all of its jobs, which would push everything else out of it."""
    row = {key: batch[key] for key in ("id", "count")}
    return {"type": "batch", **row, "tenant": batch["tenant_id"], "at": batch["created_at"]}
