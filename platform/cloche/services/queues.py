"""Queues: looked at by everybody, paused by tenants for themselves, made and limited by the platform's administrators.

The database says how a queue is taken from; Redis is told after the commit, and again by the sweeper's rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloche import logs
from cloche.clock import to_rfc3339
from cloche.db import scope as scope_of
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.domain.jobs import QUEUES
from cloche.domain.permissions import Actor, Permission
from cloche.domain.queues import MAX_QUEUES, NAME_WORDS, Scope, is_name
from cloche.domain.states import TERMINAL, State
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem, Unavailable
from cloche.queueing.broker import Broker, Rules
from cloche.services import counting, queue_rows
from cloche.services.workers import STALE_MS

_log = logs.get(__name__)
Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class
_OF_TENANT = frozenset({"paused"})  # what a tenant may say of its own share
_NO_SHARE: Mapping[str, Any] = {"paused": False, "weight": 1, "revision": 0, "updated_at": 0}


class QueueService:
    """Thread-safe. Queues are the platform's; depths and shares are shown of the actor's tenant alone."""

    def __init__(self, db: Database, broker: Broker, audit: AuditLog) -> None:
        self._db = db
        self._broker = broker
        self._audit = audit

    def list(self, actor: Actor) -> Items:
        """Those built in, then the others by name. Depths are the actor's tenant's; workers and what runs are the platform's."""
        return self._db.read(lambda connection: _views(connection, actor))

    def get(self, actor: Actor, name: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: there is no such queue.
        """
        return self._db.read(lambda connection: _view_of(connection, actor, name))

    def create(
        self, actor: Actor, name: str, description: str | None, max_concurrency: int | None, *, paused: bool = False
    ) -> dict[str, Any]:
        """A new queue, for every tenant.

        Raises:
            Invalid: it cannot be called so.
            Forbidden: the actor may not manage the platform's queues.
            Conflict: there is one of that name, or there are too many.
        """
        _platform(actor)
        if not is_name(name):
            raise Invalid("the queue was not created", problems=[Problem("/name", NAME_WORDS)])
        said = {"description": description, "max_concurrency": max_concurrency, "paused": paused}

        def unit(connection: Connection) -> tuple[dict[str, Any], list[Rules]]:
            now = now_ms(connection)
            # One at a time, or two could both find room for the last one: the row is always there.
            connection.execute(select(t.queue.c.name).where(t.queue.c.name == QUEUES[0]).with_for_update())
            if len(connection.scalars(select(t.queue.c.name)).all()) >= MAX_QUEUES:
                raise Conflict(
                    f"the platform has at most {MAX_QUEUES} queues; remove one first", code="too-many-queues"
                )
            row = {"name": name, **said, "revision": 1, "rules_version": now, "created_at": now, "updated_at": now}
            try:
                connection.execute(insert(t.queue), row)
            except IntegrityError:
                raise Conflict(f"there is a queue '{name}' already", code="queue-exists") from None
            self._audit.record(
                connection, AuditEntry(actor, Action.QUEUE_CREATE, f"queue:{name}", after=said, details=said)
            )
            return _view_of(connection, actor, name), queue_rows.rules(connection, name)

        return self._told(*self._db.write(unit))

    def custom(self, actor: Actor) -> Sequence[str]:
        """The names of the queues that are not built in, for whoever may see queues; else none."""
        if not actor.may(Permission.QUEUE_READ):
            return []
        named = select(t.queue.c.name).where(t.queue.c.name.not_in(QUEUES)).order_by(t.queue.c.name)
        return self._db.read(lambda connection: connection.scalars(named).all())

    def change(
        self, actor: Actor, name: str, scope: Scope, asked: Mapping[str, Any], version: str | None = None
    ) -> dict[str, Any]:
        """Change what ``asked`` names: ``paused``; and of the platform also ``description``, ``max_concurrency`` (None: no limit) and
        ``weights`` (tenants' names). ``version``: the one that was read; None is whichever there is.

        Raises:
            NotFound: there is no such queue.
            Invalid: nothing is asked for, or what the scope does not have; or a tenant is not there.
            Forbidden: the actor may not say that for everybody.
            Conflict: it is no longer at ``version`` (``queue-changed``).
        """
        _check(actor, scope, asked)

        def unit(connection: Connection) -> tuple[dict[str, Any], list[Rules]]:
            row = (
                # Nobody else changes it; jobs are accepted beside this.
                connection.execute(select(t.queue).where(t.queue.c.name == name).with_for_update(key_share=True))
                .mappings()
                .one_or_none()
            )
            if row is None:
                raise _missing()
            share = _share(connection, actor, name)
            if version is not None and version != _version(row, share):
                raise Conflict("the queue has changed since; read it again", code="queue-changed")
            now = now_ms(connection)
            values: dict[str, Any] = {"rules_version": max(row["rules_version"] + 1, now)}
            weights = asked.get("weights") or {}
            if scope is Scope.PLATFORM:
                said = {key: value for key, value in asked.items() if key != "weights"}
                before = {key: row[key] for key in said}
                if weights:
                    before["weights"] = _weights(connection, name, weights)
                values |= {**said, "revision": row["revision"] + 1, "updated_at": now}
                _set_weights(connection, name, weights, now)
            else:
                said = {"paused": asked["paused"]}
                before = {"paused": share["paused"]}
                _set_share(connection, name, actor.tenant_id, said, now)
            connection.execute(update(t.queue).where(t.queue.c.name == name).values(values))
            after = said | ({"weights": dict(weights)} if weights else {})
            entry = AuditEntry(
                actor,
                Action.QUEUE_UPDATE,
                f"queue:{name}",
                before=before,
                after=after,
                details={"scope": scope.value, **after},
            )
            self._audit.record(connection, entry)
            return _view_of(connection, actor, name), queue_rows.rules(connection, name)

        return self._told(*self._db.write(unit))

    def delete(self, actor: Actor, name: str, version: str | None = None) -> None:
        """Remove a queue that no live job is in. Jobs that have ended keep its name; they can be retried once it is created again.

        Raises:
            NotFound: there is no such queue.
            Forbidden: the actor may not manage the platform's queues.
            Conflict: it is built in, has live jobs, or is no longer at ``version``.
        """
        _platform(actor)
        if name in QUEUES:
            raise Conflict(f"the queue '{name}' is built in and stays; it can be paused", code="queue-built-in")
        live = [state.value for state in State if state not in TERMINAL]

        def unit(connection: Connection) -> int:
            row = (
                connection.execute(select(t.queue).where(t.queue.c.name == name).with_for_update())
                .mappings()
                .one_or_none()
            )
            if row is None:
                raise _missing()
            if version is not None and version != _version(row, _share(connection, actor, name)):
                raise Conflict("the queue has changed since; read it again", code="queue-changed")
            query = select(func.count()).where(t.job.c.state.in_(live), t.job.c.queue == name)
            why = "a queue is every tenant's, and of platform administrators alone"
            if count := connection.scalar(query.execution_options(across_tenants=why)):
                jobs = "1 job that has" if count == 1 else f"{count} jobs that have"
                raise Conflict(
                    f"the queue has {jobs} not ended, over all tenants; cancel or await them", code="queue-busy"
                )
            shares = delete(t.queue_share).where(t.queue_share.c.queue == name)
            connection.execute(shares.execution_options(across_tenants=why))
            connection.execute(delete(t.queue).where(t.queue.c.name == name))
            before = {key: row[key] for key in ("description", "max_concurrency", "paused")}
            self._audit.record(connection, AuditEntry(actor, Action.QUEUE_DELETE, f"queue:{name}", before=before))
            return int(row["rules_version"])

        gone = self._db.write(unit)
        try:
            self._broker.drop(name, gone)
        except Unavailable as error:
            _log.warning("the index is not told that a queue is gone; the sweeper will", queue=name, error=str(error))

    def _told(self, view: dict[str, Any], rules: Sequence[Rules]) -> dict[str, Any]:
        """Tell the index; where it does not answer, the sweeper's next round does."""
        try:
            self._broker.set_rules(rules)
        except Unavailable as error:
            _log.warning("the index is not told how a queue is taken from; the sweeper will", error=str(error))
        return view


def _platform(actor: Actor) -> None:
    if not actor.may(Permission.QUEUE_MANAGE):
        raise Forbidden(f"this concerns every tenant and needs the permission {Permission.QUEUE_MANAGE}")


def _check(actor: Actor, scope: Scope, asked: Mapping[str, Any]) -> None:
    if scope is Scope.PLATFORM:
        _platform(actor)
    elif foreign := sorted(asked.keys() - _OF_TENANT):
        detail = 'is said for every tenant: add "scope": "platform", which platform administrators may'
        raise Invalid("the queue was not changed", problems=[Problem(f"/{key}", detail) for key in foreign])
    elif not actor.may(Permission.QUEUE_PAUSE):
        raise Forbidden(f"this needs the permission {Permission.QUEUE_PAUSE}")
    if not asked:
        raise Invalid("the queue was not changed", problems=[Problem("", "name what to change, such as paused")])


def _set_weights(connection: Connection, name: str, weights: Mapping[str, int], now: int) -> None:
    tenants = select(t.tenant.c.name, t.tenant.c.id).where(t.tenant.c.name.in_(list(weights)))
    ids = {row.name: row.id for row in connection.execute(tenants)} if weights else {}
    if strange := sorted(weights.keys() - ids.keys()):
        problems = [Problem(f"/weights/{_pointer(tenant)}", "there is no such tenant") for tenant in strange]
        raise Invalid("the queue was not changed", problems=problems)
    for tenant, weight in weights.items():
        with scope_of.within(ids[tenant], "platform administrators weigh tenants against each other"):
            _set_share(connection, name, ids[tenant], {"weight": weight}, now)


def _weights(connection: Connection, name: str, tenants: Iterable[str]) -> dict[str, int]:
    """What these tenants weigh now, by their names; one that was never weighed has the weight of all."""
    share, named = t.queue_share.c, t.tenant.c
    query = select(named.name, share.weight).join(t.queue_share, share.tenant_id == named.id)
    query = query.where(share.queue == name, named.name.in_(list(tenants)))
    query = query.execution_options(across_tenants="platform administrators weigh tenants against each other")
    found = {row.name: row.weight for row in connection.execute(query)}
    return {tenant: found.get(tenant, _NO_SHARE["weight"]) for tenant in tenants}


def _set_share(connection: Connection, name: str, tenant_id: str, said: Mapping[str, Any], now: int) -> None:
    """Runs while the queue's row is locked."""
    share = t.queue_share.c
    mine = (share.queue == name) & (share.tenant_id == tenant_id)
    values = {**said, "revision": share.revision + 1, "updated_at": now}
    if not connection.execute(update(t.queue_share).where(mine).values(values)).rowcount:
        row = {**_NO_SHARE, **said, "revision": 1, "queue": name, "tenant_id": tenant_id, "updated_at": now}
        connection.execute(insert(t.queue_share), row)


def _share(connection: Connection, actor: Actor, name: str) -> Mapping[str, Any]:
    share = t.queue_share
    query = select(share).where(share.c.queue == name, share.c.tenant_id == actor.tenant_id)
    row = connection.execute(query).mappings().one_or_none()
    return _NO_SHARE if row is None else dict(row)


def _version(row: RowMapping, share: Mapping[str, Any]) -> str:
    """Of the queue and of the tenant's own share: what an answer shows has changed when it has. One of the same name that was removed and
    created again is another."""
    return f"{row['revision']}.{share['revision']}.{row['created_at']:x}"


def _view_of(connection: Connection, actor: Actor, name: str) -> dict[str, Any]:
    found = _views(connection, actor, name) if is_name(name) else []
    if not found:
        raise _missing()
    return found[0]


def _views(connection: Connection, actor: Actor, name: str | None = None) -> Items:
    """DESIGN §11's shape, and what is said of each queue."""
    job, worker, now = t.job, t.worker, now_ms(connection)
    named = select(t.queue).order_by(t.queue.c.name)
    in_it = job.c.queue == name if name is not None else job.c.queue.is_not(None)
    rows = connection.execute(named if name is None else named.where(t.queue.c.name == name)).mappings().all()
    shares = {
        row["queue"]: dict(row)
        for row in connection.execute(
            select(t.queue_share).where(t.queue_share.c.tenant_id == actor.tenant_id)
        ).mappings()
    }
    depths = {row["name"]: counting.depth(connection, actor.tenant_id, row["name"]) for row in rows}
    running = select(job.c.queue, func.count()).where(in_it, job.c.state == State.PROCESSING.value)
    running = running.execution_options(across_tenants="how full a queue is, as a number")
    load = {row[0]: row[1] for row in connection.execute(running.group_by(job.c.queue))}
    alive = (worker.c.status == "alive") & (worker.c.last_heartbeat_at > now - STALE_MS)
    slots = connection.execute(select(worker.c.queues, worker.c.slots).where(alive)).all()
    shown = []
    for row in sorted(rows, key=lambda one: (one["name"] not in QUEUES, one["name"])):
        queue = row["name"]
        serving = [each[1] for each in slots if queue in each[0]]  # each may take from other queues too
        share = shares.get(queue, _NO_SHARE)
        facts = {
            "worker_count": len(serving),
            "max_parallel_jobs": sum(serving),
            "current_load": load.get(queue, 0),
            "depth": {state.value: depths[queue].depth[state.value] for state in State},
            "depth_complete": depths[queue].complete,
            "oldest_age_s": None if (oldest := depths[queue].oldest) is None else max(0, now - oldest) / 1000,
        }
        shown.append({"id": queue, "name": queue, **facts, **_said(row, share)})
    return shown


def _said(row: RowMapping, share: Mapping[str, Any]) -> dict[str, Any]:
    scopes = [scope.value for scope, said in ((Scope.PLATFORM, row), (Scope.TENANT, share)) if said["paused"]]
    return {
        "description": row["description"],
        "built_in": row["name"] in QUEUES,
        "paused": bool(scopes),
        "paused_scopes": scopes,
        "max_concurrency": row["max_concurrency"],
        "weight": share["weight"],
        "version": _version(row, share),
        "created_at": to_rfc3339(row["created_at"]),
        # When others pause their own share is nobody else's business.
        "updated_at": to_rfc3339(max(row["updated_at"], share["updated_at"])),
    }


def _pointer(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")


def _missing() -> NotFound:
    return NotFound("there is no such queue")
