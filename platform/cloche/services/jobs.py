"""Jobs as their users know them: submit, look, wait, cancel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, select
from sqlalchemy.exc import IntegrityError

from cloche import failpoints
from cloche.clock import is_uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import TERMINAL
from cloche.errors import Forbidden, Invalid, NotFound, Problem
from cloche.failpoints import Point
from cloche.queueing.broker import Broker
from cloche.services import callback_store, effects, job_pages, job_parts
from cloche.services.admission import admit
from cloche.services.asked import Defaults
from cloche.services.bulk_submit import Prepared, introduced, prepare_one
from cloche.services.cursors import decode_cursor, encode_cursor
from cloche.services.egress import EgressService
from cloche.services.idempotency import remember, replayed
from cloche.services.job_pages import joined
from cloche.services.masking import masked_piece, opened_piece
from cloche.services.plugins import PluginService
from cloche.services.queue_rows import MISSING, beside, held
from cloche.services.quota_gate import Asked as Quota
from cloche.services.quota_gate import QuotaGate
from cloche.services.records import job_event
from cloche.services.sealing import JobSeal, JobVault
from cloche.services.transitions import Transitions
from cloche.services.views import attempt_view, job_view, trace_view
from cloche.services.watch import EventHub

# What an answer that an older version kept beside its Idempotency-Key does not say, because there were no such jobs.
_ANSWER: dict[str, Any] = {
    "sensitive": False,
    "masked": False,
    "batch_id": None,
    "callback": None,
    "run": 1,
    "depends_on": [],
    "depends_on_condition": None,
    "on_upstream_failure": None,
    "schedule_at": None,
    "expires_at": None,
    "waiting_for": None,
    "warnings": [],
}
_RECHECK_S = 2.0  # a waiting reader looks at the database this often even when no event comes
_LOG_PAGE = 5_000
# Aliases, because the service's own `list` hides the built-in one inside the class.
Items = list[dict[str, Any]]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Asked:
    """An admitted job (``row``), and where it waits for no others how it is written, shown and told of."""

    row: Mapping[str, Any]
    quota: Quota
    prepared: Prepared | None = None
    view: dict[str, Any] = field(default_factory=dict)
    done: effects.Effects = field(default_factory=effects.Effects)


class JobService:
    """Thread-safe. Every method is scoped to the actor's tenant: what is not yours is NotFound."""

    def __init__(
        self,
        db: Database,
        broker: Broker,
        hub: EventHub,
        plugins: PluginService,
        transitions: Transitions,
        defaults: Defaults,
        egress: EgressService,
        vault: JobVault,
        audit: AuditLog,
        gate: QuotaGate,
    ) -> None:
        self._db = db
        self._audit = audit
        self._gate = gate
        self._broker = broker
        self._hub = hub
        self._plugins = plugins
        self._transitions = transitions
        self._defaults = defaults
        self._egress = egress
        self._vault = vault

    def submit(
        self, actor: Actor, body: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Accept a job: it is in the database, with its audit event, when this returns ``(202, job)``.

        With an idempotency key the same body within 24 h returns the first answer and makes no second job.

        Raises:
            Invalid, Forbidden: see ``admission.admit``; nothing was stored. Also for a key used with another body.
            QuotaExceeded, QuotaPace: the actor, or the tenant, has used up what it may use; nothing was stored.
            Unavailable: the database does not answer, or the job is sensitive and its key is not here; nothing was stored.
            OutcomeUnknown: the job was stored, or not; with its key the same body may be sent again.
        """
        digests: tuple[str, ...] = ()
        if idempotency_key is not None:
            digests = self._vault.request_digests(actor, idempotency_key, body)
            row = self._db.read(lambda c: replayed(c, actor, idempotency_key, digests))
            if row is not None:
                return 202, _ANSWER | row
        introduced(self._db, self._audit, actor)
        asked = self._db.read(lambda c: self._asked(c, actor, body))
        self._gate.pace(asked.quota)

        def unit(connection: Connection) -> tuple[dict[str, Any], effects.Effects]:
            earlier = replayed(connection, actor, idempotency_key, digests)
            if earlier is not None:
                return _ANSWER | earlier, effects.Effects()
            view, done = self._accept(connection, actor, asked)
            if idempotency_key is not None:
                remember(connection, actor, idempotency_key, digests[0], view, now_ms(connection))
            return view, done

        try:
            view, done = self._db.write(unit)
        except IntegrityError:
            # Where writers do not wait for each other, another request with this key was stored in between.
            row = self._db.read(lambda c: replayed(c, actor, idempotency_key, digests))
            if row is None:
                raise
            return 202, _ANSWER | row
        failpoints.hit(Point.WEB_COMMITTED)
        effects.apply(self._broker, done)
        failpoints.hit(Point.WEB_PUSHED)
        return 202, view

    def _asked(self, connection: Connection, actor: Actor, body: Mapping[str, Any]) -> _Asked:
        """The admitted job. All that can be done for it before the transaction that stores it is done here, beside other requests."""
        row = admit(connection, actor, body, self._plugins, self._egress, self._defaults, self._vault)
        quota = self._gate.ask(connection, actor, 1)
        if quota.counted:
            row["quota_counted"] = True
        if row.get("depends_on"):  # what its upstreams are is only known in the transaction
            return _Asked(row, quota)
        now = now_ms(connection)
        prepared, full = prepare_one(connection, self._audit, actor, row, now)
        tenant, waiting_for = beside(connection, actor.tenant_id, full)
        done = effects.Effects(ready=list(prepared.ready), events=[job_event(full, now)])
        return _Asked(
            row,
            quota,
            prepared,
            job_view({"batch_id": None, "waiting_for": waiting_for, **full}, actor.username, tenant),
            done,
        )

    def _accept(self, connection: Connection, actor: Actor, asked: _Asked) -> tuple[dict[str, Any], effects.Effects]:
        if not held(connection, [asked.row["queue"]]):  # it was removed since
            gone = Problem("/queue", MISSING.format(name=asked.row["queue"]))
            raise Invalid("the job was not accepted; nothing was stored", problems=[gone])
        if asked.prepared is not None:
            asked.prepared.write(connection)
            self._gate.take(connection, asked.quota)
            return asked.view, asked.done
        done = self._transitions.submit(connection, actor, asked.row, now_ms(connection))
        self._gate.take(connection, asked.quota)
        return self._view(connection, self._scoped(actor, asked.row["id"])), done

    def get(self, actor: Actor, job_id: str) -> dict[str, Any]:
        """One job; what a sensitive one holds is left out: see :class:`cloche.services.reveals.Reveals`."""
        return self._db.read(lambda c: self._view(c, self._scoped(actor, job_id)))

    def list(
        self, actor: Actor, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """Newest first, by when they were stored. ``filters``: status, queue, type, version, label (``key=value`` or ``key``), priority,
        submitted_by (user name), since and until (RFC 3339). Returns ``{"items", "next_cursor"}``; see :func:`job_pages.page`."""
        items, following = self._db.read(lambda c: job_pages.page(c, actor, filters, cursor, limit))
        return {"items": items, "next_cursor": following}

    def wait(self, actor: Actor, job_id: str, timeout_s: float) -> dict[str, Any]:
        """The job, masked as by :meth:`get`, once it has ended, or as it is after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        with self._hub.subscribe(
            lambda event: event.get("id") == job_id and event.get("type") == "job" and event.get("status") in TERMINAL
        ) as subscription:
            while True:
                job = self.get(actor, job_id)
                left = deadline - time.monotonic()
                if job["status"] in TERMINAL or left <= 0:
                    return job
                subscription.get(min(left, _RECHECK_S))

    def cancel(self, actor: Actor, job_id: str) -> dict[str, Any]:
        """Cancel a waiting job at once; ask the worker of a running one to kill it.

        Raises:
            Conflict: it has already ended.
            Forbidden: it is somebody else's and the actor may cancel only their own.
        """

        def unit(connection: Connection) -> tuple[dict[str, Any], effects.Effects]:
            job = connection.execute(self._scoped(actor, job_id)).mappings().one_or_none()
            if job is None:
                raise missing()
            if job["submitted_by"] != actor.user_id and not actor.may(Permission.JOB_CANCEL_ANY):
                raise Forbidden(f"this is somebody else's job; canceling it needs {Permission.JOB_CANCEL_ANY}")
            scope.vouch([job_id])
            done = self._transitions.cancel(connection, actor, job_id, now_ms(connection))
            return self._view(connection, self._scoped(actor, job_id)), done

        view, done = self._db.write(unit)
        effects.apply(self._broker, done)
        return view

    def attempts(self, actor: Actor, job_id: str, cursor: str | None = None, limit: int = 100) -> dict[str, Any]:
        """Every try of the job, the first one first. Returns ``{"items", "next_cursor"}``."""
        rows = self._rows(actor, job_id, job_parts.attempts(job_id, cursor, limit))
        return {
            "items": [attempt_view(row) for row in rows[:limit]],
            "next_cursor": job_parts.after_attempt(rows, limit),
        }

    def trace(self, actor: Actor, job_id: str, cursor: str | None = None, limit: int = 1_000) -> dict[str, Any]:
        """What happened to the job, in order. Returns ``{"items", "next_cursor"}``."""
        rows = self._rows(actor, job_id, job_parts.events(job_id, cursor, limit))
        return {"items": [trace_view(row) for row in rows[:limit]], "next_cursor": job_parts.after_event(rows, limit)}

    def latest(self, actor: Actor, job_id: str, limit: int) -> tuple[Items, Items]:
        """The job's last ``limit`` attempts and trace events, each in its order; one more where there are more."""

        def unit(connection: Connection) -> tuple[Rows, Rows]:
            self._known(connection, actor, job_id)
            return job_parts.latest(connection, job_id, limit)

        tries, happened = self._db.read(unit)
        return [attempt_view(row) for row in tries], [trace_view(row) for row in happened]

    def callbacks(self, actor: Actor, job_id: str) -> Items:
        """What has been, is and will be told of the job's ends."""
        query = select(t.callback_delivery).where(t.callback_delivery.c.job_id == job_id)
        return [
            callback_store.shown(row) for row in self._rows(actor, job_id, query.order_by(t.callback_delivery.c.number))
        ]

    def deliveries(
        self, actor: Actor, status: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """What all jobs of the tenant have told and will, newest first, each with its ``job_id``. Returns ``{"items", "next_cursor"}``."""
        before = None if cursor is None else decode_cursor(cursor)
        rows, last = self._db.read(lambda c: callback_store.newest(c, actor.tenant_id, status, before, limit))
        items = [{"job_id": row["job_id"], **callback_store.shown(dict(row))} for row in rows]
        return {"items": items, "next_cursor": None if last is None else encode_cursor(last)}

    def outputs(self, actor: Actor, job_id: str) -> Items:
        """The accepted attempt's files; an abandoned attempt's are never shown."""
        out = t.job_output
        query = select(out.c.path, out.c.size, out.c.sha256, out.c.artifact_id, out.c.destination)
        query = query.where(out.c.job_id == job_id).order_by(out.c.path)
        return [dict(row) for row in self._rows(actor, job_id, query)]

    def logs(
        self,
        actor: Actor,
        job_id: str,
        attempt: int | None = None,
        after: int | None = None,
        *,
        seal: JobSeal | None = None,
    ) -> Items:
        """Pieces of what the job printed, in order: ``attempt`` (None: all), those after sequence number ``after``.

        Those of a sensitive job say only that they are there, unless ``seal`` (of :meth:`Reveals.log`) opens them.
        """
        log = t.job_log
        columns = (log.c.attempt, log.c.seq, log.c.at, log.c.stream, log.c.text)
        query = (
            select(*columns, t.job.c.sensitive).join(t.job, t.job.c.id == log.c.job_id).where(log.c.job_id == job_id)
        )
        if attempt is not None:
            query = query.where(log.c.attempt == attempt)
        if after is not None:
            query = query.where(log.c.seq > after)
        rows = self._rows(actor, job_id, query.order_by(log.c.attempt, log.c.seq).limit(_LOG_PAGE))
        return _pieces(rows, seal)

    def _rows(self, actor: Actor, job_id: str, query: Select[Any]) -> Rows:
        def unit(connection: Connection) -> Rows:
            self._known(connection, actor, job_id)
            return [dict(row) for row in connection.execute(query).mappings()]

        return self._db.read(unit)

    def _known(self, connection: Connection, actor: Actor, job_id: str) -> None:
        if connection.execute(self._scoped(actor, job_id)).first() is None:
            raise missing()
        scope.vouch([job_id])

    def _scoped(self, actor: Actor, job_id: str) -> Select[Any]:
        return scoped(actor, job_id)

    def _view(self, connection: Connection, query: Select[Any]) -> dict[str, Any]:
        row = connection.execute(joined(query)).mappings().one_or_none()
        if row is None:
            raise missing()
        return job_view(dict(row), row["username"], row["tenant"])


def scoped(actor: Actor, job_id: str) -> Select[Any]:
    """The query of one job, in the actor's tenant.

    Raises:
        NotFound: the text is no id. It goes to no database: PostgreSQL takes some characters for an error.
    """
    if not is_uuid7(job_id):
        raise missing()
    return select(t.job).where(t.job.c.id == job_id, t.job.c.tenant_id == actor.tenant_id)


def _pieces(rows: Rows, seal: JobSeal | None) -> Items:
    shown = []
    for row in rows:
        piece = {name: part for name, part in row.items() if name != "sensitive"}
        if row["sensitive"]:
            piece = masked_piece(piece) if seal is None else opened_piece(piece, seal)
        shown.append(piece)
    return shown


def missing() -> NotFound:
    return NotFound("there is no such job")
