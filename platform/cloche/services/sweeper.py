"""What must happen by itself: due times, lapsed leases, silent workers, an index that lost something, keys that are too old.

Safe to run in several processes at once: every change is a guarded update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select, tuple_

from cloche import logs
from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.jobs import DEFAULT_PRIORITY
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

_START = (-1, "")  # before every (ready_at, id)
_PENDING = (
    select(t.job.c.id, t.job.c.queue, t.job.c.ready_at, t.job.c.priority)
    .where(t.job.c.state == State.PENDING.value)
    .order_by(t.job.c.ready_at, t.job.c.id)
)

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
        self._walked = _START  # how far the walk over all pending jobs has come

    def run_once(self, limit: int) -> int:
        """One round. Returns 0: what is left over waits for the next.

        Raises:
            Unavailable: a store does not answer; the next round goes on.
        """
        self._due(limit)
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

    def take_back_lapsed(self, limit: int) -> int:
        """Release leases that are over, each worker's once its sandboxes are dead. Slow where sandboxd is: a round of its own.

        Raises:
            Unavailable: the database does not answer.
        """
        rows = self._db.read(lambda c: lapsed(c, now_ms(), limit))
        taken = 0
        for owner in {row["lease_owner"] for row in rows}:
            self._confirm_dead(owner)
            # Only this worker's: another's lease may lapse while this one's sandboxes are being killed.
            count = self._leases.take_back_lapsed(owner, self._name)
            taken += count
            _log.warning("leases lapsed", worker=owner, count=count, reason=Reason.LEASE_LAPSED)

        return taken

    def _overdue(self) -> list[Ready]:
        """Pending jobs that an index which lost something may lack: those whose turn it is, and the next page of a walk over all.

        What is in the index already stays where it is.
        """
        job = t.job
        late = job.c.ready_at < now_ms() - _REPUSH_AGE_MS
        first = self._db.read(_all(_PENDING.where(late).limit(_REPUSH_LIMIT)))
        urgent = self._db.read(_all(_PENDING.where(late, job.c.priority > DEFAULT_PRIORITY).limit(_REPUSH_LIMIT)))
        walked = self._db.read(_all(_PENDING.where(late, _behind(*self._walked)).limit(_REPUSH_LIMIT)))
        self._walked = (walked[-1].ready_at, walked[-1].id) if len(walked) == _REPUSH_LIMIT else _START
        return [ready(*row) for row in {row.id: row for row in (*first, *urgent, *walked)}.values()]

    def _pending(self) -> list[Ready]:
        found: list[Ready] = []
        last = _START
        while True:
            page = self._db.read(_all(_PENDING.where(_behind(*last)).limit(_REBUILD_PAGE)))
            found += [ready(*row) for row in page]
            if len(page) < _REBUILD_PAGE:
                return found
            last = (page[-1].ready_at, page[-1].id)

    def _purge(self) -> None:
        old = t.idempotency.c.created_at < now_ms() - IDEMPOTENCY_MS

        def unit(connection: Connection) -> None:
            connection.execute(t.idempotency.delete().where(old))

        self._db.write(unit)


def _behind(ready_at: int, job_id: str) -> ColumnElement[bool]:
    return tuple_(t.job.c.ready_at, t.job.c.id) > tuple_(ready_at, job_id)


def _all(query: Select[Any]) -> Callable[[Connection], Sequence[Any]]:
    return lambda connection: connection.execute(query).all()
