"""Jobs as their users know them: submit, look, wait, cancel."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, insert, or_, select

from cloche.audit.canonical import digest
from cloche.clock import from_rfc3339, is_uuid7, now_ms
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import TERMINAL
from cloche.errors import Forbidden, Invalid, NotFound, Problem
from cloche.queueing.broker import Broker
from cloche.services import effects
from cloche.services.admission import Defaults, admit
from cloche.services.egress import EgressService
from cloche.services.plugins import PluginService
from cloche.services.transitions import Transitions
from cloche.services.views import attempt_view, job_view, trace_view
from cloche.services.watch import EventHub

IDEMPOTENCY_MS = 24 * 3_600_000
_RECHECK_S = 2.0  # a waiting reader looks at the database this often even when no event comes
_ID_LEAD_MS = 60_000
_LOG_PAGE = 5_000
# Aliases, because the service's own `list` hides the built-in one inside the class.
Items = list[dict[str, Any]]
Rows = list[Mapping[str, Any]]


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
    ) -> None:
        self._db = db
        self._broker = broker
        self._hub = hub
        self._plugins = plugins
        self._transitions = transitions
        self._defaults = defaults
        self._egress = egress

    def submit(
        self, actor: Actor, body: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Accept a job: it is in the database, with its audit event, when this returns ``(202, job)``.

        With an idempotency key the same body within 24 h returns the first answer and makes no second job.

        Raises:
            Invalid, Forbidden: see ``admission.admit``; nothing was stored. Also for a key used with another body.
            Unavailable: the database does not answer; nothing was stored.
        """
        body_sha256 = digest(dict(body))
        row = self._db.read(lambda c: self._replayed(c, actor, idempotency_key, body_sha256))
        if row is not None:
            return 202, row
        admitted = self._db.read(lambda c: admit(c, actor, body, self._plugins, self._egress, self._defaults))

        def unit(connection: Connection) -> tuple[dict[str, Any], effects.Effects]:
            earlier = self._replayed(connection, actor, idempotency_key, body_sha256)
            if earlier is not None:
                return earlier, effects.Effects()
            now = now_ms()
            done = self._transitions.submit(connection, actor, admitted, now)
            view = self._view(connection, select(t.job).where(t.job.c.id == admitted["id"]))
            if idempotency_key is not None:
                self._remember(connection, actor, idempotency_key, body_sha256, view, now)
            return view, done

        view, done = self._db.write(unit)
        effects.apply(self._broker, done)
        return 202, view

    def get(self, actor: Actor, job_id: str) -> dict[str, Any]:
        return self._db.read(lambda c: self._view(c, self._scoped(actor, job_id)))

    def list(
        self, actor: Actor, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """Newest first. ``filters``: status, type, version, label (``key=value`` or ``key``), priority, submitted_by (user name),
        since and until (RFC 3339). Returns ``{"items", "next_cursor"}``."""
        query = self._filtered(actor, filters)
        if cursor is not None:
            query = query.where(t.job.c.id < _decode(cursor))
        query = query.order_by(t.job.c.id.desc()).limit(limit + 1)

        def unit(connection: Connection) -> Items:
            return [job_view(dict(row), row["username"], row["tenant"]) for row in connection.execute(query).mappings()]

        items = self._db.read(unit)
        more = len(items) > limit
        items = items[:limit]
        return {"items": items, "next_cursor": _encode(items[-1]["id"]) if more else None}

    def wait(self, actor: Actor, job_id: str, timeout_s: float) -> dict[str, Any]:
        """The job once it has ended, or as it is after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        with self._hub.subscribe(
            lambda event: event.get("id") == job_id and event.get("type") == "job"
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
                raise _missing()
            if job["submitted_by"] != actor.user_id and not actor.may(Permission.JOB_CANCEL_ANY):
                raise Forbidden(f"this is somebody else's job; canceling it needs {Permission.JOB_CANCEL_ANY}")
            done = self._transitions.cancel(connection, actor, job_id, now_ms())
            return self._view(connection, self._scoped(actor, job_id)), done

        view, done = self._db.write(unit)
        effects.apply(self._broker, done)
        return view

    def attempts(self, actor: Actor, job_id: str) -> Items:
        query = select(t.attempt).where(t.attempt.c.job_id == job_id).order_by(t.attempt.c.number)
        return [attempt_view(row) for row in self._rows(actor, job_id, query)]

    def trace(self, actor: Actor, job_id: str) -> Items:
        query = select(t.trace_event).where(t.trace_event.c.job_id == job_id)
        query = query.order_by(t.trace_event.c.at, t.trace_event.c.id)
        return [trace_view(row) for row in self._rows(actor, job_id, query)]

    def outputs(self, actor: Actor, job_id: str) -> Items:
        """The accepted attempt's files; an abandoned attempt's are never shown."""
        out = t.job_output
        query = select(out.c.path, out.c.size, out.c.sha256, out.c.artifact_id, out.c.destination)
        query = query.where(out.c.job_id == job_id).order_by(out.c.path)
        return [dict(row) for row in self._rows(actor, job_id, query)]

    def logs(self, actor: Actor, job_id: str, attempt: int | None = None, after: int | None = None) -> Items:
        """Pieces of what the job printed, in order: ``attempt`` (None: all), those after sequence number ``after``."""
        log = t.job_log
        query = select(log.c.attempt, log.c.seq, log.c.at, log.c.stream, log.c.text).where(log.c.job_id == job_id)
        if attempt is not None:
            query = query.where(log.c.attempt == attempt)
        if after is not None:
            query = query.where(log.c.seq > after)
        return [
            dict(row) for row in self._rows(actor, job_id, query.order_by(log.c.attempt, log.c.seq).limit(_LOG_PAGE))
        ]

    def _rows(self, actor: Actor, job_id: str, query: Select[Any]) -> Rows:
        def unit(connection: Connection) -> Rows:
            if connection.execute(self._scoped(actor, job_id)).first() is None:
                raise _missing()
            return [dict(row) for row in connection.execute(query).mappings()]

        return self._db.read(unit)

    def _scoped(self, actor: Actor, job_id: str) -> Select[Any]:
        return select(t.job).where(t.job.c.id == job_id, t.job.c.tenant_id == actor.tenant_id)

    def _filtered(self, actor: Actor, filters: Mapping[str, Any]) -> Select[Any]:
        job = t.job
        query = _joined(select(job)).where(job.c.tenant_id == actor.tenant_id)
        columns = {
            "status": job.c.state,
            "type": job.c.type,
            "version": job.c.plugin_version,
            "priority": job.c.priority,
        }
        for name, column in columns.items():
            if filters.get(name) is not None:
                query = query.where(column == filters[name])
        if filters.get("submitted_by"):
            query = query.where(t.user.c.username == filters["submitted_by"])
        for name in ("since", "until"):
            if filters.get(name):
                try:
                    moment = from_rfc3339(filters[name])
                except ValueError as error:
                    raise Invalid("a filter is wrong", problems=[Problem(f"/{name}", str(error))]) from None
                # Ids begin with their time, so the bound on the id lets the index on (tenant, id) answer. An id is made just before its row.
                if name == "since":
                    query = query.where(job.c.created_at >= moment, job.c.id >= _first_id(moment - _ID_LEAD_MS))
                else:
                    query = query.where(job.c.created_at < moment, job.c.id < _first_id(moment))
        if filters.get("label"):
            key, given, value = str(filters["label"]).partition("=")
            label = job.c.labels[key].as_string()
            query = query.where(label == value if given else or_(label.is_not(None)))
        return query

    def _view(self, connection: Connection, query: Select[Any]) -> dict[str, Any]:
        row = connection.execute(_joined(query)).mappings().one_or_none()
        if row is None:
            raise _missing()
        return job_view(dict(row), row["username"], row["tenant"])

    def _replayed(
        self, connection: Connection, actor: Actor, key: str | None, body_sha256: str
    ) -> dict[str, Any] | None:
        if key is None:
            return None
        seen = t.idempotency
        mine = (seen.c.tenant_id == actor.tenant_id) & (seen.c.user_id == actor.user_id) & (seen.c.key == key)
        fresh = seen.c.created_at > now_ms() - IDEMPOTENCY_MS
        row = connection.execute(select(seen).where(mine, fresh)).mappings().one_or_none()
        if row is None:
            return None
        if row["body_sha256"] != body_sha256:
            raise Invalid(
                "this Idempotency-Key was used with another body in the last 24 h; take a new key", code="key-reused"
            )
        return dict(row["response"])

    def _remember(
        self, connection: Connection, actor: Actor, key: str, body_sha256: str, view: Mapping[str, Any], now: int
    ) -> None:
        seen = t.idempotency
        row = {
            "tenant_id": actor.tenant_id,
            "user_id": actor.user_id,
            "key": key,
            "body_sha256": body_sha256,
            "job_id": view["id"],
            "response": dict(view),
            "created_at": now,
        }
        stale = (seen.c.tenant_id == actor.tenant_id) & (seen.c.user_id == actor.user_id) & (seen.c.key == key)
        connection.execute(seen.delete().where(stale))
        connection.execute(insert(seen), row)


def _joined(query: Select[Any]) -> Select[Any]:
    """The query over ``job``, with the submitter's and the tenant's names beside it."""
    return (
        query.add_columns(t.user.c.username, t.tenant.c.name.label("tenant"))
        .join(t.user, t.user.c.id == t.job.c.submitted_by)
        .join(t.tenant, t.tenant.c.id == t.job.c.tenant_id)
    )


def _missing() -> NotFound:
    return NotFound("there is no such job")


def _first_id(ms: int) -> str:
    """Sorts before every id made at or after that millisecond."""
    text = f"{max(0, ms):012x}"
    return f"{text[:8]}-{text[8:12]}"


def _encode(job_id: str) -> str:
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        job_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        job_id = ""
    if not is_uuid7(job_id):
        raise Invalid("the cursor is not one of ours", problems=[Problem("/cursor", "use next_cursor as it came")])
    return job_id
