"""Workers: their registration, heartbeats and what they hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, insert, select, update

from cloche import __version__
from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Actor
from cloche.domain.states import State
from cloche.errors import EnvironmentProblem

STALE_MS = 15_000  # a worker unheard of for a lease's length is as good as dead
_FORGET_MS = 3_600_000
_SHOWN = 200
Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class


class WorkerService:
    """The worker calls ``register``, then ``beat`` every few seconds, then ``leave``; everybody else reads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def register(
        self,
        worker_id: str,
        host: str,
        pid: int,
        queues: Sequence[str],
        slots: int,
        reason: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """``reason``: why it takes no jobs yet, or None. Safe to call again by the same process.

        Raises:
            EnvironmentProblem: another process is, or was, the worker of this id.
        """
        row = {
            "host": host,
            "pid": pid,
            "version": __version__,
            "status": "alive",
            "status_reason": _clipped(reason),
            "queues": list(queues),
            "labels": dict(labels or {}),
            "slots": slots,
        }
        mine = t.worker.c.id == worker_id

        def unit(connection: Connection) -> None:
            now = now_ms(connection)
            times = {"started_at": now, "last_heartbeat_at": now}
            old = (t.worker.c.status == "dead") & (t.worker.c.last_heartbeat_at < now - _FORGET_MS)
            connection.execute(t.worker.delete().where(old))
            known = connection.execute(select(t.worker.c.host, t.worker.c.pid).where(mine)).one_or_none()
            if known is None:
                connection.execute(insert(t.worker), {"id": worker_id} | row | times)
            elif tuple(known) == (host, pid):  # our own earlier try, whose answer was lost
                connection.execute(update(t.worker).where(mine).values(**row, **times))
            else:
                raise EnvironmentProblem(
                    f"a worker with the id {worker_id} is there already (host {known.host}, pid {known.pid}): "
                    "an id is used once; leave --id out and one is made"
                )

        self._db.write(unit)

    def beat(
        self,
        connection: Connection,
        worker_id: str,
        status: str,
        reason: str | None,
        now: int,
        resources: Mapping[str, Any] | None = None,
    ) -> bool | None:
        """Whether the worker has been asked to drain; None when nobody knows it any more and it has to register again.

        ``reason``: why it takes no jobs, or None. Runs in the transaction that renews its leases.
        """
        asked = t.worker.c.drain_requested_at
        changed: dict[str, Any] = {
            "status": case((asked.is_not(None), "draining"), else_=status),
            "status_reason": _clipped(reason),
            "last_heartbeat_at": now,
        }
        if resources is not None:
            changed["resources"] = dict(resources)
        beaten = update(t.worker).where(t.worker.c.id == worker_id).values(**changed).returning(asked)
        row = connection.execute(beaten).one_or_none()
        return None if row is None else row[0] is not None

    def leave(self, worker_id: str, reason: str) -> None:
        """Mark a worker as dead: it has stopped, or its process is gone."""
        changed = {"status": "dead", "status_reason": _clipped(reason)}
        self._db.write(lambda c: c.execute(update(t.worker).where(t.worker.c.id == worker_id).values(**changed)))

    def drain_requested(self, worker_id: str) -> bool:
        """Whether somebody asked that worker to drain, alive or not. No of one that nobody knows."""
        asked = select(t.worker.c.drain_requested_at).where(t.worker.c.id == worker_id)
        return self._db.read(lambda c: c.execute(asked).scalar_one_or_none()) is not None

    def mark_stale(self) -> Sequence[str]:
        """Mark workers unheard of as dead; returns their ids."""

        def silent(connection: Connection) -> ColumnElement[bool]:
            return (t.worker.c.status != "dead") & (t.worker.c.last_heartbeat_at < now_ms(connection) - STALE_MS)

        if not self._db.read(lambda c: c.execute(select(t.worker.c.id).where(silent(c))).first()):
            return []
        dead = update(t.worker).values(status="dead", status_reason="no heartbeat").returning(t.worker.c.id)
        return self._db.write(lambda c: c.execute(dead.where(silent(c))).scalars().all())

    def list(self, actor: Actor) -> Items:
        """DESIGN §11's shape, live ones first and each newest first; workers gone for an hour are forgotten.

        ``busy`` counts every tenant's jobs, ``current_job_ids`` names the actor's tenant's alone. ``pools`` are those of its host.
        """

        def unit(connection: Connection) -> Items:
            query = select(t.worker).order_by(*live_first(now_ms(connection))).limit(_SHOWN)
            return worker_views(connection, actor.tenant_id, query)

        return self._db.read(unit)

    def summary(self) -> dict[str, Any]:
        """``{"running": bool, "count": n, "ready": n, "reasons": [...]}`` for health checks."""
        alive = select(t.worker.c.status_reason).where(t.worker.c.status == "alive")
        rows = self._db.read(lambda c: c.execute(alive.where(_heard_of(c))).all())
        reasons = sorted({row[0] for row in rows if row[0]})
        return {
            "running": bool(rows),
            "count": len(rows),
            "ready": sum(1 for row in rows if row[0] is None),
            "reasons": reasons,
        }

    def pools(self) -> dict[str, Items]:
        """Each host's pools, as the worker heard of last reports them."""
        query = select(t.worker.c.host, t.worker.c.pools).where(
            t.worker.c.status != "dead", t.worker.c.pools.is_not(None)
        )
        rows = self._db.read(
            lambda c: c.execute(query.where(_heard_of(c)).order_by(t.worker.c.last_heartbeat_at)).all()
        )
        return {row[0]: row[1] or [] for row in rows}


def _clipped(reason: str | None) -> str | None:
    """As much of it as the column takes: SQLite does not mind, PostgreSQL refuses the row."""
    return reason if reason is None or len(reason) <= 255 else reason[:254] + "…"


def _heard_of(connection: Connection) -> ColumnElement[bool]:
    return t.worker.c.last_heartbeat_at > now_ms(connection) - STALE_MS


def worker_views(connection: Connection, tenant_id: str, query: Select[Any]) -> Items:
    """``GET /workers``' items for the rows of ``worker`` that the query finds, as the tenant may see them."""
    job = t.job.c
    mine: dict[str, list[str]] = defaultdict(list)
    # Bounded by the slots there are; said as the index says it.
    running = job.state == State.PROCESSING.value
    counted = select(job.lease_owner, func.count()).where(running).group_by(job.lease_owner)
    counted = counted.execution_options(across_tenants="how busy a worker is, as a number")
    busy = Counter({owner: number for owner, number in connection.execute(counted)})
    for owner, job_id in connection.execute(select(job.lease_owner, job.id).where(running, job.tenant_id == tenant_id)):
        mine[owner].append(job_id)
    now = now_ms(connection)
    rows = connection.execute(query).mappings()
    return [_view(row, busy[row["id"]], mine[row["id"]], now) for row in rows]


def live_first(now: int) -> tuple[ColumnElement[Any], ...]:
    """The order of a list that is cut: workers that die as often as they start push no live one off it."""
    worker = t.worker.c
    live = (worker.status != "dead") & (worker.last_heartbeat_at > now - STALE_MS)
    return case((live, 0), else_=1), worker.started_at.desc()


def status_of(row: Any, now: int) -> str:
    """``alive``, ``draining`` or ``dead``, whoever noticed it first."""
    return row["status"] if row["last_heartbeat_at"] > now - STALE_MS else "dead"


def _view(row: Any, busy: int, job_ids: list[str], now: int) -> dict[str, Any]:
    status = status_of(row, now)
    return {
        "id": row["id"],
        "host": row["host"],
        "pid": row["pid"],
        "version": row["version"],
        "status": status,
        "status_reason": row["status_reason"],
        "drain_requested": row["drain_requested_at"] is not None,
        "queues": row["queues"],
        "labels": row["labels"] or {},
        "slots": row["slots"],
        "busy": busy,
        "free": max(0, row["slots"] - busy) if status == "alive" else 0,
        "resources": row["resources"],
        "pools": (row["pools"] or []) if status != "dead" else [],
        "current_job_ids": job_ids,
        "started_at": to_rfc3339(row["started_at"]),
        "last_heartbeat": to_rfc3339(row["last_heartbeat_at"]),
    }
