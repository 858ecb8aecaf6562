"""What must happen by itself: due times, expiry, dependents not told yet, lapsed leases, silent workers, an index that lost something,
jobs and keys that are too old.

Safe to run in several processes at once: every change is a guarded update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, TextClause, and_, select, text, tuple_

from cloche import failpoints, logs
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.states import Reason, State
from cloche.failpoints import Point
from cloche.queueing.broker import Broker, Ready
from cloche.services import callback_store, effects, index
from cloche.services.effects import ready
from cloche.services.idempotency import IDEMPOTENCY_MS
from cloche.services.leases import Leases, lapsed
from cloche.services.transitions import Transitions
from cloche.services.workers import WorkerService

_log = logs.get(__name__)
_REPUSH_EVERY_S = 5.0
_REPUSH_AGE_MS = 5_000
_PURGE_EVERY_S = 600.0
_REBUILD_PAGE = 5_000
_BATCH_PAGE = 500

_START = (-1, "")  # before every (ready_at, id)

_RETAIN_EVERY_S = 30.0
_RETAIN_STEP = 50  # jobs removed in one transaction
_KEYS_STEP = 1_000  # idempotency keys forgotten in one transaction
# How long one round removes what is old. Then all that must happen by itself has its turn, and it goes on at once.
_REMOVE_S = 0.25
_TELL_STEPS = 20

Confirm = Callable[[str], None]


@dataclass(frozen=True)
class Retention:
    """How long after their end jobs are kept, in ms: completed and canceled ones, and failed ones. 0 is for ever.

    ``told_first``: callbacks are delivered here, so a job stays until the last of its own is settled.
    """

    jobs: int = 0
    dead_letters: int = 0
    told_first: bool = True


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
        retention: Retention | None = None,
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
        self._next_retain = 0.0
        self._retention = retention or Retention()
        self._kind = 0  # whose turn it is to be removed
        self._without = 0  # kinds in a row of which nothing was to be removed
        self._unclaimed: set[str] = set()  # in flight and still pending, as the last look had it
        self._walked = _START  # how far the walk over all pending jobs has come
        self._batches = ""  # and the one over all batches

    def run_once(self, limit: int) -> int:
        """One round. Returns how many jobs the busiest part of it handled: ``limit`` or more means that there may be more to do.

        Raises:
            Unavailable: a store does not answer; the next round goes on.
        """
        handled = max(self._due(limit), self._expire(limit), self._tell(limit))
        self._workers.mark_stale()
        now = time.monotonic()
        if now >= self._next_purge:
            self._next_purge = now if self._purge() else now + _PURGE_EVERY_S
        if now >= self._next_retain:
            self._next_retain = now if self._retain() else now + _RETAIN_EVERY_S
        if not self._broker.whole():
            _log.warning("the queue index is missing; rebuilding it from the database")
            index.rebuild(self._db, self._broker, self._pending())
        elif now >= self._next_repush:
            self._next_repush = now + _REPUSH_EVERY_S
            self._unclaimed = index.refresh(self._db, self._broker, self._unclaimed)
            self._broker.push(self._overdue())
        return handled

    def _due(self, limit: int) -> int:
        scheduled = t.job.c.state == State.SCHEDULED.value
        return self._moved(scheduled, t.job.c.ready_at, lambda c: self._transitions.due(c, now_ms(c), limit))

    def _expire(self, limit: int) -> int:
        mortal = text(t.MAY_EXPIRE)
        return self._moved(mortal, t.job.c.expires_at, lambda c: self._transitions.expire(c, now_ms(c), limit))

    def _moved(
        self,
        which: ColumnElement[bool] | TextClause,
        at: ColumnElement[int],
        move: Callable[[Connection], effects.Effects],
    ) -> int:
        """Make the move where there is a job whose time ``at`` has come; a round that finds none writes nothing."""
        first = select(t.job.c.id).where(which).limit(1)
        if not self._db.read(lambda c: c.execute(first.where(at <= now_ms(c))).first()):
            return 0
        done = self._db.write(move)
        failpoints.hit(Point.SWEEPER_DUE)
        effects.apply(self._broker, done)
        return len(done.events)

    def _tell(self, limit: int) -> int:
        """Tell dependents of ends that one transaction could not tell to all of them."""
        for _ in range(_TELL_STEPS):
            if not self._db.read(lambda c: c.execute(select(t.job_release.c.upstream_id).limit(1)).first()):
                return 0
            done = self._db.write(lambda c: self._transitions.resume_dependents(c, now_ms(c)))
            failpoints.hit(Point.SWEEPER_TOLD)
            effects.apply(self._broker, done)
        return limit

    def _retain(self) -> bool:
        """Remove jobs whose time after their end is over: of each kind in turn the oldest. Whether there may be more."""
        kinds, end = self._kinds(), time.monotonic() + _REMOVE_S
        while self._without < len(kinds):
            removed = self._remove_some(*kinds[self._kind % len(kinds)])
            self._without = 0 if removed else self._without + 1
            self._kind += 1
            if time.monotonic() >= end:
                break
        more = self._without < len(kinds)
        if not more:
            self._without = 0
        return more

    def _kinds(self) -> list[tuple[ColumnElement[bool], int]]:
        """What is removed, and how many ms after its end: completed and canceled jobs, and each tenant's dead letters."""
        job, kept = t.job.c, self._retention
        # No "in": the index on the time answers this.
        kinds: list[tuple[ColumnElement[bool], int]] = (
            [(job.state != State.FAILED.value, kept.jobs)] if kept.jobs else []
        )
        if kept.dead_letters:
            tenants = self._db.read(_all(select(t.tenant.c.id).order_by(t.tenant.c.id)))
            kinds += [(and_(job.tenant_id == one.id, text(t.DEAD_LETTER)), kept.dead_letters) for one in tenants]
        return kinds

    def _remove_some(self, which: ColumnElement[bool], age_ms: int) -> int:
        settled: list[ColumnElement[bool]] = [t.job.c.id.not_in(select(t.job_release.c.upstream_id))]
        if self._retention.told_first:
            settled.append(~callback_store.pending_of(t.job.c.id))
        old = t.job.c.finished_at < self._db.now_ms() - age_ms
        query = select(t.job.c.id).where(which, old, *settled).order_by(t.job.c.finished_at).limit(_RETAIN_STEP)
        ids = [row.id for row in self._db.read(_all(query))]
        if not ids:
            return 0
        gone = self._db.write(lambda c: self._transitions.purge(c, None, ids, now_ms(c)))
        _log.info("removed jobs that ended long ago", count=len(gone))
        return len(gone)

    def take_back_lapsed(self, limit: int) -> int:
        """Release leases that are over, each worker's once its sandboxes are dead. Slow where sandboxd is: a round of its own.

        Raises:
            Unavailable: the database does not answer.
        """
        rows = self._db.read(lambda c: lapsed(c, now_ms(c), limit))
        taken = 0
        for owner in {row["lease_owner"] for row in rows}:
            self._confirm_dead(owner)
            failpoints.hit(Point.SWEEPER_CONFIRMED)
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
        before = self._db.now_ms() - _REPUSH_AGE_MS
        front = self._db.read(lambda connection: index.front(connection, before))
        late = index.PENDING.where(job.c.ready_at < before)
        walked = self._db.read(_all(late.where(_behind(*self._walked)).limit(index.PAGE)))
        self._walked = (walked[-1].ready_at, walked[-1].id) if len(walked) == index.PAGE else _START
        return [ready(*row) for row in {row.id: row for row in (*front, *walked)}.values()]

    def _pending(self) -> list[Ready]:
        found: list[Ready] = []
        last = _START
        while True:
            page = self._db.read(_all(index.PENDING.where(_behind(*last)).limit(_REBUILD_PAGE)))
            found += [ready(*row) for row in page]
            if len(page) < _REBUILD_PAGE:
                return found
            last = (page[-1].ready_at, page[-1].id)

    def _purge(self) -> bool:
        """Whether there may be more."""
        end = time.monotonic() + _REMOVE_S
        while self._db.write(_forget_keys) == _KEYS_STEP:
            if time.monotonic() >= end:
                return True
        self._forget_batches()
        return False

    def _forget_batches(self) -> None:
        """Remove batches without jobs from the next page of a walk over all. A purge takes them along; releases before it did have left some."""
        batch, left = t.batch.c, select(t.job.c.id).where(t.job.c.batch_id == t.batch.c.id).exists()
        query = select(batch.id, left).where(batch.id > self._batches).order_by(batch.id).limit(_BATCH_PAGE)
        page = self._db.read(_all(query))
        self._batches = page[-1][0] if len(page) == _BATCH_PAGE else ""
        empty = [batch_id for batch_id, alive in page if not alive]
        if empty:
            self._db.write(lambda c: c.execute(t.batch.delete().where(batch.id.in_(empty), ~left)))


def _forget_keys(connection: Connection) -> int:
    """How many idempotency keys too old to count were removed: one transaction would take as long as there are many of them."""
    seen = t.idempotency.c
    key, old = tuple_(seen.tenant_id, seen.user_id, seen.key), seen.created_at < now_ms(connection) - IDEMPOTENCY_MS
    oldest = select(seen.tenant_id, seen.user_id, seen.key).where(old).order_by(seen.created_at).limit(_KEYS_STEP)
    return connection.execute(t.idempotency.delete().where(key.in_(oldest))).rowcount


def _behind(ready_at: int, job_id: str) -> ColumnElement[bool]:
    return tuple_(t.job.c.ready_at, t.job.c.id) > tuple_(ready_at, job_id)


def _all(query: Select[Any]) -> Callable[[Connection], Sequence[Any]]:
    return lambda connection: connection.execute(query).all()
