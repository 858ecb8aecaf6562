"""Queues as operators see them. This version has one, with priorities."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.jobs import DEFAULT_QUEUE
from cloche.domain.permissions import Actor
from cloche.domain.states import State
from cloche.services.workers import STALE_MS

Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class


class QueueService:
    def __init__(self, db: Database) -> None:
        self._db = db

    def list(self, actor: Actor) -> Items:
        """DESIGN §11's shape. Depths are the actor's tenant's; workers are the platform's."""

        def unit(connection: Connection) -> Items:
            job, worker = t.job, t.worker
            depth = {state.value: 0 for state in State}
            counted = select(job.c.state, func.count()).where(job.c.tenant_id == actor.tenant_id).group_by(job.c.state)
            depth.update({row[0]: row[1] for row in connection.execute(counted)})
            waiting = (job.c.tenant_id == actor.tenant_id) & (job.c.state == State.PENDING.value)
            oldest = connection.execute(select(func.min(job.c.ready_at)).where(waiting)).scalar()
            alive = (worker.c.status == "alive") & (worker.c.last_heartbeat_at > now_ms() - STALE_MS)
            workers, slots = connection.execute(select(func.count(), func.sum(worker.c.slots)).where(alive)).one()
            load = connection.execute(select(func.count()).where(job.c.state == State.PROCESSING.value)).scalar_one()
            return [
                {
                    "id": DEFAULT_QUEUE,
                    "name": DEFAULT_QUEUE,
                    "worker_count": workers,
                    "max_parallel_jobs": int(slots or 0),
                    "current_load": load,
                    "paused": False,
                    "depth": depth,
                    "oldest_age_s": max(0, now_ms() - oldest) / 1000 if oldest is not None else None,
                }
            ]

        return self._db.read(unit)
