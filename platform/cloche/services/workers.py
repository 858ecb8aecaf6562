"""Workers: their registration, heartbeats and what they hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from cloche import __version__
from cloche.clock import now_ms, to_rfc3339
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.permissions import Actor
from cloche.domain.states import State

STALE_MS = 15_000  # a worker unheard of for a lease's length is as good as dead
_FORGET_MS = 3_600_000
Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class


class WorkerService:
    """The worker calls ``register``, then ``beat`` every few seconds, then ``leave``; everybody else reads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def register(
        self, worker_id: str, host: str, pid: int, queues: Sequence[str], slots: int, reason: str | None = None
    ) -> None:
        """``reason``: why it takes no jobs yet, or None."""
        now = now_ms()
        row = {
            "id": worker_id,
            "host": host,
            "pid": pid,
            "version": __version__,
            "status": "alive",
            "status_reason": reason,
            "queues": list(queues),
            "slots": slots,
            "started_at": now,
            "last_heartbeat_at": now,
        }

        def unit(connection: Connection) -> None:
            old = (t.worker.c.status == "dead") & (t.worker.c.last_heartbeat_at < now - _FORGET_MS)
            connection.execute(t.worker.delete().where(old))
            connection.execute(insert(t.worker), row)

        self._db.write(unit)

    def beat(self, connection: Connection, worker_id: str, status: str, reason: str | None, now: int) -> None:
        """``reason``: why it takes no jobs, or None. Runs in the transaction that renews its leases."""
        changed = {"status": status, "status_reason": reason, "last_heartbeat_at": now}
        connection.execute(update(t.worker).where(t.worker.c.id == worker_id).values(**changed))

    def leave(self, worker_id: str, reason: str) -> None:
        """Mark a worker as dead: it has stopped, or its process is gone."""
        changed = {"status": "dead", "status_reason": reason}
        self._db.write(lambda c: c.execute(update(t.worker).where(t.worker.c.id == worker_id).values(**changed)))

    def mark_stale(self, now: int) -> Sequence[str]:
        """Mark workers unheard of as dead; returns their ids."""
        silent = (t.worker.c.status != "dead") & (t.worker.c.last_heartbeat_at < now - STALE_MS)
        if not self._db.read(lambda c: c.execute(select(t.worker.c.id).where(silent)).first()):
            return []
        statement = (
            update(t.worker).where(silent).values(status="dead", status_reason="no heartbeat").returning(t.worker.c.id)
        )
        return self._db.write(lambda c: c.execute(statement).scalars().all())

    def list(self, actor: Actor) -> Items:
        """DESIGN §11's shape, newest first; workers gone for an hour are forgotten.

        ``busy`` counts every tenant's jobs, ``current_job_ids`` names the actor's tenant's alone. ``pools`` are those of its host.
        """

        def unit(connection: Connection) -> Items:
            busy: Counter[str] = Counter()
            mine: dict[str, list[str]] = defaultdict(list)
            columns = (t.job.c.lease_owner, t.job.c.id, t.job.c.tenant_id)
            held = select(*columns).where(t.job.c.state == State.PROCESSING.value)
            for owner, job_id, tenant_id in connection.execute(held):
                busy[owner] += 1
                if tenant_id == actor.tenant_id:
                    mine[owner].append(job_id)
            rows = connection.execute(select(t.worker).order_by(t.worker.c.started_at.desc()).limit(200)).mappings()
            return [_view(row, busy[row["id"]], mine[row["id"]]) for row in rows]

        return self._db.read(unit)

    def alive_ids(self) -> set[str]:
        """Workers heard of lately."""
        fresh = (t.worker.c.status != "dead") & (t.worker.c.last_heartbeat_at > now_ms() - STALE_MS)
        return set(self._db.read(lambda c: c.execute(select(t.worker.c.id).where(fresh)).scalars().all()))

    def summary(self) -> dict[str, Any]:
        """``{"running": bool, "count": n, "ready": n, "reasons": [...]}`` for health checks."""
        fresh = (t.worker.c.status == "alive") & (t.worker.c.last_heartbeat_at > now_ms() - STALE_MS)
        rows = self._db.read(lambda c: c.execute(select(t.worker.c.status_reason).where(fresh)).all())
        reasons = sorted({row[0] for row in rows if row[0]})
        return {
            "running": bool(rows),
            "count": len(rows),
            "ready": sum(1 for row in rows if row[0] is None),
            "reasons": reasons,
        }

    def pools(self) -> dict[str, Items]:
        """Each host's pools, as the worker heard of last reports them."""
        fresh = (t.worker.c.status != "dead") & (t.worker.c.last_heartbeat_at > now_ms() - STALE_MS)
        query = select(t.worker.c.host, t.worker.c.pools).where(fresh & t.worker.c.pools.is_not(None))
        rows = self._db.read(lambda c: c.execute(query.order_by(t.worker.c.last_heartbeat_at)).all())
        return {row[0]: row[1] or [] for row in rows}

    def counts(self) -> dict[str, int]:
        """Jobs by state over all tenants, for metrics."""
        query = select(t.job.c.state, func.count()).group_by(t.job.c.state)
        return dict(self._db.read(lambda c: [(row[0], row[1]) for row in c.execute(query)]))


def _view(row: Any, busy: int, job_ids: list[str]) -> dict[str, Any]:
    alive = row["status"] != "dead" and row["last_heartbeat_at"] > now_ms() - STALE_MS
    return {
        "id": row["id"],
        "host": row["host"],
        "pid": row["pid"],
        "version": row["version"],
        "status": row["status"] if alive else "dead",
        "status_reason": row["status_reason"],
        "queues": row["queues"],
        "slots": row["slots"],
        "busy": busy,
        "pools": (row["pools"] or []) if alive else [],
        "current_job_ids": job_ids,
        "started_at": to_rfc3339(row["started_at"]),
        "last_heartbeat": to_rfc3339(row["last_heartbeat_at"]),
    }
