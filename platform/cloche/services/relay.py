"""Pushes to Redis what the process that committed it could not, and forgets what has been pushed.

Every job that becomes ready leaves a row in the outbox, in the same transaction. Its writer pushes it right after the commit; the relay comes a
moment later, pushes once more those that are still pending (harmless: the index keeps one entry a job) and deletes the rows.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from cloche import failpoints
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.states import State
from cloche.failpoints import Point
from cloche.queueing.broker import Broker
from cloche.services.effects import ready

_GRACE_MS = 1_000  # time for the writer's own push, so that the relay rarely repeats one


class Relay:
    def __init__(self, db: Database, broker: Broker) -> None:
        self._db = db
        self._broker = broker

    def run_once(self, limit: int) -> int:
        """Handle up to ``limit`` rows; returns how many.

        Raises:
            Unavailable: Redis or the database does not answer; the rows stay.
        """
        box, job = t.outbox, t.job

        def find(connection: Connection) -> tuple[list[int], list[tuple[str, str, str, int, int]]]:
            old = (
                select(box.c.id, box.c.job_id)
                .where(box.c.created_at < now_ms(connection) - _GRACE_MS)
                .order_by(box.c.id)
                .limit(limit)
            )
            rows = connection.execute(old).all()
            columns = (job.c.id, job.c.queue, job.c.tenant_id, job.c.ready_at, job.c.priority)
            pending = select(*columns).where(
                job.c.id.in_([row.job_id for row in rows]), job.c.state == State.PENDING.value
            )
            return [row.id for row in rows], [tuple(row) for row in connection.execute(pending)] if rows else []

        ids, pending = self._db.read(find)
        if not ids:
            return 0
        self._broker.push(ready(*row) for row in pending)
        failpoints.hit(Point.RELAY_PUSHED)
        self._db.write(lambda connection: connection.execute(box.delete().where(box.c.id.in_(ids))))
        return len(ids)
