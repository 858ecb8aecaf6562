"""What this worker holds: its attempts, their cancel flags, and the heartbeat that keeps them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from cloche import logs
from cloche.db import migrate
from cloche.db.engine import Database, now_ms
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
_MISSED = 1_000  # the latest cancels of what other workers hold, and of what this one is about to


@dataclass
class Hold:
    """One attempt in this worker's hands. ``interrupt`` is set with ``cancel`` and with ``lost``."""

    job: ClaimedJob
    cancel: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)
    handed_back: threading.Event = field(default_factory=threading.Event)
    engine_failed: bool = False  # it ended because no engine answered
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
        schema: str | None = None,
    ) -> None:
        """``schema``: the revision this program is of; on another one it takes no jobs. None looks at none."""
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
        # Attempts that were to be canceled while nobody here held them: perhaps not yet, for a claim is stored before its hold is made.
        self._missed: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._strays = False  # whether the database may say that we hold what we do not run
        self._schema = schema
        self.outdated: str | None = None  # why this program must not take jobs from the database as it is now
        self.claiming = threading.Lock()  # a claim and its holds are one step to whoever looks at both
        self.on_effects: Callable[[Effects], None] = lambda _done: (
            None
        )  # what follows a give-back; set before ``start``
        # Both set before ``start``: what this worker's host has left, to be shown; and registering again, when nobody knows us any more.
        self.resources: Callable[[], Mapping[str, Any] | None] = lambda: None
        self.on_forgotten: Callable[[], None] = lambda: None
        self.drain_asked = threading.Event()  # an operator wants this worker to finish what it runs and leave
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

    def draining(self, reason: str) -> None:
        """Say that this worker takes nothing more and why, at once."""
        self.status, self.reason = "draining", reason
        self._now.set()

    def add(self, job: ClaimedJob) -> Hold:
        hold = Hold(job)
        with self._lock:
            self._holds[job.id] = hold
            if (job.id, job.attempt) in self._missed:  # asked for between the claim and now
                hold.cancel.set()
        return hold

    def unsure(self) -> None:
        """A claim may have been stored without anybody here knowing what it took: with the next heartbeat it is given back."""
        self._strays = True

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
        began = time.monotonic()  # before the write: the lease counts from there on, by the database's clock

        resources = self.resources()

        def unit(connection: Connection) -> tuple[dict[str, bool], bool | None]:
            now = now_ms(connection)
            self._look_at_schema(connection)
            asked = self._workers.beat(connection, self._worker_id, self.status, self.reason, now, resources)
            if not held:
                return {}, asked
            return self._transitions.renew(connection, held, self._worker_id, now + self._lease_ms), asked

        kept, asked = self._db.write(unit)
        self._renewed = began
        if asked is None:  # we were silent for so long that our row was removed
            self.on_forgotten()
        elif asked:
            self.drain_asked.set()
        if self._strays:
            self._give_back_abandoned()
        for hold in self.all():
            if held.get(hold.job.id) != hold.job.attempt:
                continue  # claimed after this beat began, perhaps again
            if hold.job.id not in kept:
                if hold.settled.is_set():
                    continue  # it ended while this beat was on its way
                _log.warning("the attempt was taken from this worker", job_id=hold.job.id, attempt=hold.job.attempt)
                hold.interrupt(hold.lost)
            elif kept[hold.job.id]:
                hold.interrupt(hold.cancel)

    def _look_at_schema(self, connection: Connection) -> None:
        """A newer program may have changed the schema since this one started."""
        if self._schema is not None and (at := migrate.seen(connection)) != self._schema:
            self.outdated = (
                f"the database's schema is {at} and this worker's {self._schema}: update it, and start it again"
            )
        else:
            self.outdated = None

    def _give_back_abandoned(self) -> None:
        """What the database says is ours, and we killed, or never knew of. Left alone, it would lapse, and take our new sandboxes along."""
        with self.claiming:
            mine = {(hold.job.id, hold.job.attempt) for hold in self.all()}

            def unit(connection: Connection) -> Effects:
                rows = [row for row in held_by(connection, self._worker_id) if (row["id"], row["attempt"]) not in mine]
                name = f"worker:{self._worker_id}"
                return self._transitions.release(connection, rows, Reason.PLATFORM_FAILED, name, now_ms(connection))

            self.on_effects(self._db.write(unit))
        self._strays = False

    def _fence(self) -> None:
        if time.monotonic() - self._renewed > self._lease_ms / 1000 * _FENCE_SHARE:
            for hold in self.all():
                if not hold.lost.is_set():
                    _log.error("leases too old; killing the sandbox", job_id=hold.job.id)
                    self._strays = True
                    hold.interrupt(hold.lost)

    def _listen(self) -> None:
        with self._hub.subscribe(lambda event: event.get("type") == "cancel") as subscription:
            while not self._stop.is_set():
                item = subscription.get(1.0)
                self._fence()  # here too: the heartbeat's thread may be waiting for the database
                if item is None or item[1].get("type") != "cancel":
                    continue  # a missed cancel comes with the next heartbeat
                self._cancel(item[1].get("id", ""), item[1].get("attempt", 0))

    def _cancel(self, job_id: str, attempt: int) -> None:
        """One that is not held is kept for :meth:`add`; nobody waits here to know whether it comes, for this thread fences too."""
        with self._lock:
            hold = self._holds.get(job_id)
            if hold is None or hold.job.attempt < attempt:
                self._missed[job_id, attempt] = None
                if len(self._missed) > _MISSED:
                    self._missed.popitem(last=False)
        if hold is not None and hold.job.attempt == attempt:
            hold.interrupt(hold.cancel)
