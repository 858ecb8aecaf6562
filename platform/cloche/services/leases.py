"""Who holds what: queries over running attempts, and the taking back of leases from workers that are gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Select, select

from cloche import failpoints
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.states import Reason, State
from cloche.failpoints import Point
from cloche.queueing.broker import Broker
from cloche.services import effects, index
from cloche.services.transitions import Transitions

Row = dict[str, Any]  # columns of `job` by name


def lapsed(connection: Connection, now: int, limit: int) -> list[Row]:
    """Running attempts whose lease is over, oldest first."""
    job = t.job
    query = (
        select(job)
        .where(job.c.state == State.PROCESSING.value, job.c.lease_until < now)
        .order_by(job.c.lease_until)
        .limit(limit)
    )
    return _rows(connection, query)


def held_by(connection: Connection, worker_id: str, limit: int = 1_000) -> list[Row]:
    """Attempts a worker holds, kept as they are until the transaction ends: those that it settles just now are waited for, and left out."""
    job = t.job
    query = select(job).where(job.c.state == State.PROCESSING.value, job.c.lease_owner == worker_id)
    return _rows(connection, query.order_by(job.c.id).limit(limit).with_for_update())


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]


class Leases:
    """Takes leases back. The caller makes sure first that the worker's sandboxes are dead."""

    def __init__(self, db: Database, broker: Broker, transitions: Transitions) -> None:
        self._db = db
        self._broker = broker
        self._transitions = transitions

    def take_back(self, worker_id: str, reason: Reason, actor_name: str) -> int:
        """Release everything the worker holds; returns how many attempts that was."""
        return self._release(lambda connection: held_by(connection, worker_id), reason, actor_name)

    def put_back_taken(self) -> None:
        """A worker has died: what it may have taken out of the index and not claimed goes in again now, and counts against no limit.

        Raises:
            Unavailable: a store does not answer.
        """
        index.settle(self._db, self._broker, self._broker.queues(), None)

    def take_back_lapsed(self, worker_id: str, actor_name: str) -> int:
        """Release those of the worker's attempts whose lease is over."""

        def find(connection: Connection) -> list[Row]:
            now = now_ms(connection)
            return [row for row in held_by(connection, worker_id) if row["lease_until"] < now]

        return self._release(find, Reason.LEASE_LAPSED, actor_name)

    def _release(self, find: Callable[[Connection], list[Row]], reason: Reason, actor_name: str) -> int:
        def unit(connection: Connection) -> tuple[int, effects.Effects]:
            rows = find(connection)
            return len(rows), self._transitions.release(connection, rows, reason, actor_name, now_ms(connection))

        count, done = self._db.write(unit)
        if count:
            failpoints.hit(Point.LEASES_RELEASED)
        effects.apply(self._broker, done)
        return count
