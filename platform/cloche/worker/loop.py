"""Takes ids from the queue, claims them in the database, and gives each to a slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection

from cloche import failpoints, logs
from cloche.db.engine import now_ms
from cloche.domain.jobs import QUEUES, ClaimedJob, InputSpec, OutputSpec, RetryPolicy
from cloche.domain.states import Reason
from cloche.errors import OutcomeUnknown, Unavailable
from cloche.failpoints import Point
from cloche.queueing.broker import LINGER_MS, NoIndex
from cloche.services import effects, queue_rows
from cloche.services.leases import Leases
from cloche.worker.execute import Execution, Tools
from cloche.worker.holds import Hold, Holds
from cloche.worker.turns import Turns

_log = logs.get(__name__)
_HEALTH_S = 2.0
_UNABLE_S = 0.1  # a look at a socket; what was interrupted waits for the answer
_BACKOFF_S = 0.5
_HELD_S = 0.02  # how long a row is left to whoever holds it, such as a heartbeat that came as its attempt ended
Row = Mapping[str, Any]  # columns of `job` by name


class WorkerLoop:
    """``run`` blocks until ``stop``; then it waits ``grace_ms`` for running jobs and hands the rest back. Asked to drain (by ``holds``), it
    takes nothing more and waits for running jobs as long as they take, or until ``stop``."""

    def __init__(
        self,
        tools: Tools,
        holds: Holds,
        *,
        slots: int,
        lease_ms: int,
        poll_ms: int,
        grace_ms: int,
        queues: Sequence[str] = QUEUES,
    ) -> None:
        self._tools = tools
        self._holds = holds
        self._slots = slots
        self._lease_ms = lease_ms
        self._poll_s = poll_ms / 1000
        self._grace_s = grace_ms / 1000
        self._queues = Turns(queues)
        self._stop = threading.Event()
        self._free = threading.Semaphore(slots)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._looked = -_HEALTH_S

    def stop(self) -> None:
        """Claim nothing more. Safe from a signal handler."""
        self._stop.set()

    def run(self) -> bool:
        """Whether it ended because it was asked to drain."""
        drain = self._holds.drain_asked
        while not (self._stop.is_set() or drain.is_set()):
            if self._unable():
                self._stop.wait(_UNABLE_S)
                continue
            free = self._acquire()
            if free == 0:
                continue
            started = 0
            try:
                if not self._unable():  # asked again: what held the slot may have met an engine that is away
                    started = self._fill(free)
            except NoIndex:
                self._stop.wait(_BACKOFF_S)  # the sweeper rebuilds it
            except Unavailable as error:
                _log.warning("nothing can be claimed", error=str(error))
                self._stop.wait(_BACKOFF_S)
            finally:
                if free > started:
                    self._free.release(free - started)
        self._drain()
        return drain.is_set()

    def _unable(self) -> bool:
        """Whether jobs cannot be run here now, asked every few seconds; the reason goes out with the heartbeat."""
        now = time.monotonic()
        if now - self._looked >= _HEALTH_S or self._holds.reason is not None:
            self._looked = now
            reason = self._holds.outdated or self._tools.backend.health()
            if reason != self._holds.reason:
                _log.warning("taking no jobs" if reason else "taking jobs again", reason=reason)
            self._holds.unable(reason)
        return self._holds.reason is not None

    def _acquire(self) -> int:
        """Take hold of every free slot, waiting a moment for the first."""
        if not self._free.acquire(timeout=self._poll_s):
            return 0
        free = 1
        while self._free.acquire(blocking=False):
            free += 1
        return free

    def _fill(self, free: int) -> int:
        taken = self._queues.take(self._tools.broker, free, self._lease_ms + LINGER_MS)
        if not taken:
            self._tools.broker.wait(self._queues.names, self._poll_s)
            return 0
        tools, ids = self._tools, [one.job_id for one in taken]
        try:
            failpoints.hit(Point.WORKER_TAKEN)
            with self._holds.claiming:
                rows, left, done = tools.db.write(lambda c: self._claim(c, ids))
                holds = [self._holds.add(claimed(row)) for row in rows]
        except BaseException as error:
            # Taken and not claimed: back into the index, each at its place, where the sweeper would put them later.
            effects.apply(tools.broker, effects.Effects(returned=list(taken)))
            if isinstance(error, OutcomeUnknown):
                self._holds.unsure()
            raise
        failpoints.hit(Point.WORKER_CLAIMED)
        for hold in holds:
            self._pool.submit(self._execute, hold)
        mine = {hold.job.id for hold in holds}
        done.returned += [one for one in taken if one.job_id in left]
        gone = [one for one in taken if one.fresh and one.job_id not in mine | left]
        done.freed += [(one.queue, one.job_id) for one in gone]
        effects.apply(tools.broker, done)
        if left and not holds:
            self._stop.wait(_HELD_S)
        return len(holds)

    def _claim(self, connection: Connection, ids: Sequence[str]) -> tuple[Sequence[Row], set[str], effects.Effects]:
        """The rows that are claimed now; ids that still wait, because somebody's transaction holds their row just now."""
        now = now_ms(connection)
        rows, done = self._tools.transitions.claim(connection, ids, self._tools.worker_id, now, self._lease_ms)
        missed = set(ids) - {row["id"] for row in rows}
        return rows, queue_rows.waiting(connection, missed, now), done

    def _execute(self, hold: Hold) -> None:
        try:
            Execution(self._tools, hold).run()
        finally:
            if hold.engine_failed:
                self._looked = -_HEALTH_S  # before the next claim: what is claimed without an engine only fails again
            self._holds.remove(hold)
            self._free.release()

    def _drain(self) -> None:
        drained = self._holds.drain_asked.is_set()
        self._holds.draining("it was asked to drain" if drained else "it is stopping")
        _log.info("draining: finishing what runs" if drained else "stopping", running=len(self._holds.all()))
        deadline = None
        while self._holds.all():
            if deadline is None and self._stop.is_set():
                deadline = time.monotonic() + self._grace_s
            if deadline is not None and time.monotonic() >= deadline:
                break
            threading.Event().wait(0.05)
        rest: Sequence[Hold] = self._holds.all()
        for hold in rest:
            _log.warning("handing back", job_id=hold.job.id, attempt=hold.job.attempt)
            hold.interrupt(hold.handed_back)
        self._pool.shutdown(wait=True)
        self._tools.backend.close()  # every sandbox is dead before its lease is given back
        leases = Leases(self._tools.db, self._tools.broker, self._tools.transitions)
        name = f"worker:{self._tools.worker_id}"
        try:
            count = leases.take_back(self._tools.worker_id, Reason.WORKER_STOPPED, name)
        except Unavailable as error:
            _log.warning("leases cannot be handed back; they lapse", error=str(error))
            return
        if count:
            _log.info("leases handed back", count=count)


def claimed(row: Mapping[str, Any]) -> ClaimedJob:
    """A row of ``job`` as the worker's pieces use it."""
    return ClaimedJob(
        id=row["id"],
        tenant_id=row["tenant_id"],
        type=row["type"],
        plugin_version=row["plugin_version"],
        plugin_digest=row["plugin_digest"],
        payload=row["payload"],
        inputs=tuple(InputSpec(entry["from"], entry.get("to")) for entry in row["inputs"]),
        outputs=tuple(OutputSpec(entry["match"], entry.get("to")) for entry in row["outputs"]),
        limits=row["limits"],
        retry=RetryPolicy(**row["retry"]),
        attempt=row["attempt"],
        lease_until=row["lease_until"],
        submitted_by=row["submitted_by"],
        name=row["name"],
        priority=row["priority"],
        sensitive=bool(row["sensitive"]),
        queue=row["queue"],
    )
