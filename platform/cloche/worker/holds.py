"""What this worker holds: its attempts, their cancel flags, and the heartbeat that keeps them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from cloche import logs
from cloche.clock import now_ms
from cloche.db.engine import Database
from cloche.domain.jobs import ClaimedJob
from cloche.domain.states import Reason
from cloche.services.effects import Effects
from cloche.services.leases import held_by
from cloche.services.transitions import Transitions
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService

STARTING = "the worker is starting"
_log = logs.get(__name__)
# A worker that could not renew for this share of its lease kills its own sandboxes: before anybody else may take the attempt.
_FENCE_SHARE = 2 / 3


@dataclass
class Hold:
    """One attempt in this worker's hands. ``interrupt`` is set with ``cancel`` and with ``lost``."""

    job: ClaimedJob
    cancel: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    handed_back: threading.Event = field(default_factory=threading.Event)
    settled: threading.Event = field(default_factory=threading.Event)  # its end is written
    on_interrupt: Callable[[], None] | None = None  # kills the sandbox; set by the executing thread

    def interrupt(self, event: threading.Event) -> None:
        event.set()
        kill = self.on_interrupt
        if kill is not None and event is not self.cancel:
            kill()


class Holds:
    """All holds, the heartbeat thread and the listener for cancels. ``start`` once, ``close`` once the slots are empty."""

    def __init__(
        self,
        db: Database,
        hub: EventHub,
        transitions: Transitions,
        workers: WorkerService,
        worker_id: str,
        *,
        lease_ms: int,
        heartbeat_ms: int,
    ) -> None:
        self._db = db
        self._hub = hub
        self._transitions = transitions
        self._workers = workers
        self._worker_id = worker_id
        self._lease_ms = lease_ms
        self._heartbeat_s = heartbeat_ms / 1000
        self._holds: dict[str, Hold] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._now = threading.Event()  # beat at once
        self._renewed = time.monotonic()
        self._threads = [
            threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True),
            threading.Thread(target=self._listen, name="cancel-listener", daemon=True),
        ]
        self._fenced = False
        self.claiming = threading.Lock()  # a claim and its holds are one step to whoever looks at both
        self.on_effects: Callable[[Effects], None] = lambda _done: (
            None
        )  # what follows a give-back; set before ``start``
        self.status = "alive"
        self.reason: str | None = STARTING  # why this worker takes no jobs; shown to operators

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def unable(self, reason: str | None) -> None:
        """Say why this worker takes no jobs (None: it does), to operators too, and at once."""
        if reason != self.reason:
            self.reason = reason
            self._now.set()

    def add(self, job: ClaimedJob) -> Hold:
        hold = Hold(job)
        with self._lock:
            self._holds[job.id] = hold
        return hold

    def remove(self, hold: Hold) -> None:
        with self._lock:
            if self._holds.get(hold.job.id) is hold:
                del self._holds[hold.job.id]

    def all(self) -> list[Hold]:
        with self._lock:
            return list(self._holds.values())

    def close(self) -> None:
        self._stop.set()
        self._now.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=5)

    def _beat_forever(self) -> None:
        while True:
            self._now.wait(self._heartbeat_s if self._healthy() else min(1.0, self._heartbeat_s))
            self._now.clear()
            if self._stop.is_set():
                return
            try:
                self._beat()
            except Exception as error:  # noqa: BLE001 - a worker without heartbeat must fence itself, whatever went wrong
                _log.warning("leases could not be renewed", error=str(error), kind=type(error).__name__)
                self._fence()

    def _healthy(self) -> bool:
        return time.monotonic() - self._renewed < self._heartbeat_s * 1.5

    def _beat(self) -> None:
        held = {hold.job.id: hold.job.attempt for hold in self.all()}
        began, now = time.monotonic(), now_ms()  # before the write: the lease counts from here

        def unit(connection: Connection) -> dict[str, bool]:
            self._workers.beat(connection, self._worker_id, self.status, self.reason, now)
            if not held:
                return {}
            return self._transitions.renew(connection, held, self._worker_id, now + self._lease_ms)

        kept = self._db.write(unit)
        self._renewed = began
        if self._fenced:
            self._give_back_abandoned()
        for hold in self.all():
            if hold.job.id not in held:
                continue  # claimed after this beat began
            if hold.job.id not in kept:
                if hold.settled.is_set():
                    continue  # it ended while this beat was on its way
                _log.warning("the attempt was taken from this worker", job_id=hold.job.id, attempt=hold.job.attempt)
                hold.interrupt(hold.lost)
            elif kept[hold.job.id]:
                hold.interrupt(hold.cancel)

    def _give_back_abandoned(self) -> None:
        """After a fence: what the database still says is ours, and we killed. Left alone, it would lapse, and take our new sandboxes along."""
        with self.claiming:
            mine = {(hold.job.id, hold.job.attempt) for hold in self.all()}

            def unit(connection: Connection) -> Effects:
                rows = [row for row in held_by(connection, self._worker_id) if (row["id"], row["attempt"]) not in mine]
                name = f"worker:{self._worker_id}"
                return self._transitions.release(connection, rows, Reason.PLATFORM_FAILED, name, now_ms())

            self.on_effects(self._db.write(unit))
        self._fenced = False

    def _fence(self) -> None:
        if time.monotonic() - self._renewed > self._lease_ms / 1000 * _FENCE_SHARE:
            for hold in self.all():
                if not hold.lost.is_set():
                    _log.error("leases too old; killing the sandbox", job_id=hold.job.id)
                    self._fenced = True
                    hold.interrupt(hold.lost)

    def _listen(self) -> None:
        with self._hub.subscribe(lambda event: event.get("type") == "cancel") as subscription:
            while not self._stop.is_set():
                item = subscription.get(1.0)
                self._fence()  # here too: the heartbeat's thread may be waiting for the database
                if item is None or item[1].get("type") != "cancel":
                    continue  # a missed cancel comes with the next heartbeat
                with self._lock:
                    hold = self._holds.get(item[1].get("id", ""))
                if hold is not None:
                    hold.interrupt(hold.cancel)
