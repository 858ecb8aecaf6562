"""Takes ids from the queue, claims them in the database, and gives each to a slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloche import logs
from cloche.clock import now_ms
from cloche.domain.jobs import DEFAULT_PRIORITY, DEFAULT_QUEUE, ClaimedJob, InputSpec, OutputSpec, RetryPolicy
from cloche.domain.states import Reason
from cloche.errors import Unavailable
from cloche.queueing.broker import NoIndex
from cloche.services import effects
from cloche.services.leases import Leases
from cloche.worker.execute import Execution, Tools
from cloche.worker.holds import Hold, Holds

_log = logs.get(__name__)
_HEALTH_S = 2.0
_BACKOFF_S = 0.5


class WorkerLoop:
    """``run`` blocks until ``stop``; then it waits ``grace_ms`` for running jobs and hands the rest back."""

    def __init__(
        self,
        tools: Tools,
        holds: Holds,
        *,
        slots: int,
        lease_ms: int,
        poll_ms: int,
        grace_ms: int,
        queue: str = DEFAULT_QUEUE,
    ) -> None:
        self._tools = tools
        self._holds = holds
        self._slots = slots
        self._lease_ms = lease_ms
        self._poll_s = poll_ms / 1000
        self._grace_s = grace_ms / 1000
        self._queue = queue
        self._stop = threading.Event()
        self._free = threading.Semaphore(slots)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._looked = 0.0

    def stop(self) -> None:
        """Claim nothing more. Safe from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        while not self._stop.is_set():
            if self._unable():
                self._stop.wait(_BACKOFF_S)
                continue
            free = self._acquire()
            if free == 0:
                continue
            started = 0
            try:
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

    def _unable(self) -> bool:
        """Whether jobs cannot be run here now, asked every few seconds; the reason goes out with the heartbeat."""
        now = time.monotonic()
        if now - self._looked >= _HEALTH_S or self._holds.reason is not None:
            self._looked = now
            reason = self._tools.backend.health()
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
        ids = self._tools.broker.take(self._queue, free)
        if not ids:
            self._tools.broker.wait(self._queue, self._poll_s)
            return 0
        tools = self._tools
        try:
            with self._holds.claiming:
                rows, done = tools.db.write(
                    lambda c: tools.transitions.claim(c, ids, tools.worker_id, now_ms(), self._lease_ms)
                )
                holds = [self._holds.add(claimed(row)) for row in rows]
        except BaseException:
            # Taken and not claimed: back into the index, where the sweeper would put them later.
            lost = effects.Effects(
                ready=[effects.ready(job_id, self._queue, now_ms(), DEFAULT_PRIORITY) for job_id in ids]
            )
            effects.apply(tools.broker, lost)
            raise
        for hold in holds:
            self._pool.submit(self._execute, hold)
        effects.apply(tools.broker, done)
        return len(holds)

    def _execute(self, hold: Hold) -> None:
        try:
            Execution(self._tools, hold).run()
        finally:
            self._holds.remove(hold)
            self._free.release()

    def _drain(self) -> None:
        self._holds.status = "draining"
        deadline = time.monotonic() + self._grace_s
        while self._holds.all() and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        rest: Sequence[Hold] = self._holds.all()
        for hold in rest:
            _log.warning("handing back", job_id=hold.job.id, attempt=hold.job.attempt)
            hold.interrupt(hold.handed_back)
        self._pool.shutdown(wait=True)
        self._tools.backend.close()  # every sandbox is dead before its lease is given back
        leases = Leases(self._tools.db, self._tools.broker, self._tools.transitions)
        name = f"worker:{self._tools.worker_id}"
        count = leases.take_back(self._tools.worker_id, Reason.WORKER_STOPPED, name)
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
    )
