"""What must happen by itself: due times, lapsed leases, silent workers, an index that lost something, keys that are too old.

Safe to run in several processes at once: every change is a guarded update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, select

from cloche import logs
from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.states import Reason, State
from cloche.queueing.broker import Broker, Ready
from cloche.services import effects
from cloche.services.effects import ready
from cloche.services.jobs import IDEMPOTENCY_MS
from cloche.services.leases import Leases, lapsed
from cloche.services.transitions import Transitions
from cloche.services.workers import WorkerService

_log = logs.get(__name__)
_REPUSH_EVERY_S = 5.0
_REPUSH_AGE_MS = 5_000
_REPUSH_LIMIT = 500
_PURGE_EVERY_S = 600.0
_REBUILD_PAGE = 5_000

Confirm = Callable[[str], None]


class Sweeper:
    """``confirm_dead(worker_id)`` returns once no sandbox of that worker is alive on this host; it may raise Unavailable when nobody
    can tell. A lapsed lease is released all the same then: its worker has killed its own sandboxes well before (lease 15 s, self-fence 10 s).
    """

    def __init__(
        self,
        db: Database,
        broker: Broker,
        transitions: Transitions,
        workers: WorkerService,
        confirm_dead: Confirm,
        name: str,
    ) -> None:
        self._db = db
        self._broker = broker
        self._transitions = transitions
        self._workers = workers
        self._leases = Leases(db, broker, transitions)
        self._confirm_dead = confirm_dead
        self._name = name
        self._next_repush = 0.0
        self._next_purge = 0.0

    def run_once(self, limit: int) -> int:
        """One round. Returns 0: what is left over waits for the next.

        Raises:
            Unavailable: a store does not answer; the next round goes on.
        """
        self._due(limit)
        self._lapsed(limit)
        self._workers.mark_stale(now_ms())
        now = time.monotonic()
        if now >= self._next_purge:
            self._next_purge = now + _PURGE_EVERY_S
            self._purge()
        if not self._broker.whole():
            _log.warning("the queue index is missing; rebuilding it from the database")
            self._broker.rebuild(self._pending())
        elif now >= self._next_repush:
            self._next_repush = now + _REPUSH_EVERY_S
            self._broker.push(self._overdue())
        return 0

    def _due(self, limit: int) -> None:
        job = t.job
        waiting = select(job.c.id).where(job.c.state == State.SCHEDULED.value, job.c.ready_at <= now_ms()).limit(1)
        if self._db.read(lambda c: c.execute(waiting).first()):
            effects.apply(self._broker, self._db.write(lambda c: self._transitions.due(c, now_ms(), limit)))

    def _lapsed(self, limit: int) -> None:
        rows = self._db.read(lambda c: lapsed(c, now_ms(), limit))
        for owner in {row["lease_owner"] for row in rows}:
            self._confirm_dead(owner)
        if rows:
            count = self._leases.take_back_lapsed(limit, self._name)
            _log.warning("leases lapsed", count=count, reason=Reason.LEASE_LAPSED)

    def _overdue(self) -> list[Ready]:
        """The longest-waiting pending jobs; those that are in the index already stay where they are."""
        job = t.job
        columns = (job.c.id, job.c.queue, job.c.ready_at, job.c.priority)
        late = (job.c.state == State.PENDING.value) & (job.c.ready_at < now_ms() - _REPUSH_AGE_MS)
        query = select(*columns).where(late).order_by(job.c.ready_at).limit(_REPUSH_LIMIT)
        return [ready(*row) for row in self._db.read(_all(query))]

    def _pending(self) -> list[Ready]:
        job = t.job
        found: list[Ready] = []
        last = ""
        while True:
            query = (
                select(job.c.id, job.c.queue, job.c.ready_at, job.c.priority)
                .where(job.c.state == State.PENDING.value, job.c.id > last)
                .order_by(job.c.id)
                .limit(_REBUILD_PAGE)
            )
            page = self._db.read(_all(query))
            found += [ready(*row) for row in page]
            if len(page) < _REBUILD_PAGE:
                return found
            last = page[-1].id

    def _purge(self) -> None:
        old = t.idempotency.c.created_at < now_ms() - IDEMPOTENCY_MS

        def unit(connection: Connection) -> None:
            connection.execute(t.idempotency.delete().where(old))

        self._db.write(unit)


def _all(query: Select[Any]) -> Callable[[Connection], Sequence[Any]]:
    return lambda connection: connection.execute(query).all()
