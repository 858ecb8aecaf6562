"""What the supervisor does itself on the database: the first start, speaking for a worker that died, and seeing who holds everybody up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from types import TracebackType

from cloche.audit.keys import KeyRing
from cloche.cli.up.loglines import Sink
from cloche.cli.up.standstill import Standstill
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.retries import PlatformBudget
from cloche.domain.states import Reason
from cloche.errors import ClocheError
from cloche.isolation.client import SandboxdBackend
from cloche.queueing.redis_broker import RedisBroker
from cloche.services.access import AccessService
from cloche.services.leases import Leases
from cloche.services.transitions import Transitions
from cloche.services.workers import WorkerService
from cloche.worker import workfolder

_TRY_S = (0.2, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0)  # sandboxd may have died too, and is there again in a moment
_LEASES = 3  # a disk that is slow for once is no standstill


class Aftermath:
    """A context manager; its methods are called from one thread at a time, after the schema is up to date."""

    def __init__(self, settings: Settings, sink: Sink) -> None:
        self._settings = settings
        self._sink = sink
        self._db = Database(settings.database_url)
        self._broker = RedisBroker(settings.redis_url)
        self._audit = AuditLog(KeyRing.load_or_create(settings.home / "keys").current_hmac_key)
        budget = PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths)
        self._leases = Leases(
            self._db, self._broker, Transitions(self._audit, budget, feed=bool(settings.extension.names))
        )
        self._workers = WorkerService(self._db)
        self._standstill: Standstill | None = None
        self._closing = threading.Event()

    def __enter__(self) -> Aftermath:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._standstill is not None:
            self._standstill.stop()
        workfolder.clean(self._settings.home / "work")  # of those that did not stop in time and were killed
        self._broker.close()
        self._db.close()

    def watch(self, kill: Callable[[int, str], None]) -> None:
        """From now on ``kill(pid, why)`` whoever keeps SQLite's write lock for three leases; PostgreSQL ends such a session itself."""
        if self._db.kind == "sqlite":
            limit_s = _LEASES * self._settings.worker.lease / 1000
            said = "has stood still for {:.0f} s in a transaction that keeps everybody from writing"
            self._standstill = Standstill(self._db, limit_s, lambda pid, seconds: kill(pid, said.format(seconds)))
            self._standstill.start()

    def first_start(self) -> str | None:
        """Make the default tenant and its admin unless they exist; the password, if one was generated just now."""
        return AccessService(self._db, self._audit, self._settings).bootstrap().password

    def was_draining(self, worker_id: str) -> bool:
        """Whether it had been asked to drain: whoever asked does not want another one there. No where the database does not answer."""
        try:
            return self._workers.drain_requested(worker_id)
        except ClocheError:
            return False  # it is started again, and what follows says that the database is away

    def worker_gone(self, name: str, worker_id: str) -> None:
        """Kill what the dead worker left in sandboxes, and only then release its leases: no attempt may run twice at once. Then clean up."""
        self._give_back(name, worker_id)
        workfolder.clean(self._settings.home / "work")

    def _give_back(self, name: str, worker_id: str) -> None:
        self._tried(self._leases.put_back_taken)  # first: of what it never claimed there is no sandbox
        problem: ClocheError | None = None
        for wait_s in (0.0, *_TRY_S):
            if self._closing.wait(wait_s):
                return  # the next start finds what is left
            problem = self._tried(lambda: self._release(name, worker_id))
            if problem is None:
                return
        self._sink.say(f"{name}: its jobs come back when their leases lapse ({problem})", level="warning")

    def _tried(self, act: Callable[[], None]) -> ClocheError | None:
        try:
            act()
        except ClocheError as error:
            return error
        return None

    def _release(self, name: str, worker_id: str) -> None:
        with closing(SandboxdBackend(self._settings.sandboxd_socket, "supervisor")) as sandboxd:
            sandboxd.owner_gone(worker_id)
        released = self._leases.take_back(worker_id, Reason.LEASE_LAPSED, "supervisor")
        if released:
            self._sink.say(f"{name}: {released} of its jobs went back to the queue")
        self._workers.leave(worker_id, "its process died")
