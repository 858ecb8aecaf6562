"""The scheduler process: relay, sweeper, sealer and the sweep of files, each in a thread of its own so that none waits for another."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from cloche import logs
from cloche.audit.keys import KeyRing
from cloche.clock import uuid7
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.retries import PlatformBudget
from cloche.errors import ClocheError
from cloche.isolation.client import SandboxdBackend
from cloche.queueing.redis_broker import RedisBroker
from cloche.services.files import FileService
from cloche.services.relay import Relay
from cloche.services.sealer import Sealer
from cloche.services.sweeper import Sweeper
from cloche.services.transitions import Transitions
from cloche.services.workers import WorkerService
from cloche.staging.artifacts import ArtifactStore

_log = logs.get(__name__)
_BACKOFF_MAX_S = 5.0
_FILES_EVERY_S = 3_600.0


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop."""
    owner = uuid7()
    db = Database(settings.database_url)
    broker = RedisBroker(settings.redis_url)
    keyring = KeyRing.load_or_create(settings.home / "keys")
    audit = AuditLog(keyring.hmac_key)
    budget = PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths)
    transitions = Transitions(audit, budget)
    workers = WorkerService(db)
    backend = SandboxdBackend(settings.sandboxd_socket, owner=f"scheduler:{owner}")

    def confirm_dead(worker_id: str) -> None:
        try:
            backend.owner_gone(worker_id)
        except ClocheError as error:
            _log.warning("sandboxd cannot confirm that a lost worker's sandboxes are dead", error=str(error))

    sweeper = Sweeper(db, broker, transitions, workers, confirm_dead, f"scheduler:{owner}")
    relay = Relay(db, broker)
    files = FileService(db, ArtifactStore(settings.home / "artifacts"), audit)
    sealer = Sealer(db, keyring, owner)
    batch, pause_s = settings.scheduler.batch_size, settings.scheduler.poll_interval / 1000
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    rounds: dict[str, tuple[Callable[[], int], float]] = {
        "sweeper": (lambda: sweeper.run_once(batch), pause_s),
        "leases": (lambda: sweeper.take_back_lapsed(batch), pause_s),
        "relay": (lambda: relay.run_once(batch), pause_s),
        "sealer": (sealer.run_once, pause_s),
        "files": (files.sweep, _FILES_EVERY_S),
    }
    threads = [
        threading.Thread(target=_repeat, args=(name, once, every_s, batch, stop), name=name)
        for name, (once, every_s) in rounds.items()
    ]
    _log.info("scheduler started", owner=owner)
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()
    _last_seal(sealer)
    sealer.close()
    backend.close()
    db.close()
    broker.close()
    return 0


def _repeat(name: str, once: Callable[[], int], pause_s: float, batch: int, stop: threading.Event) -> None:
    wait_s = pause_s
    while not stop.is_set():
        try:
            handled = once()
            wait_s = 0.0 if handled >= batch else pause_s  # a full batch: there is more
        except ClocheError as error:
            wait_s = min(_BACKOFF_MAX_S, max(pause_s, wait_s * 2))
            _log.warning("round failed", part=name, error=str(error), again_in_s=wait_s)
        except Exception:  # noqa: BLE001 - the other parts must go on, and so must this one
            wait_s = _BACKOFF_MAX_S
            _log.exception("round failed in an unexpected way", part=name)
        stop.wait(wait_s)


def _last_seal(sealer: Sealer) -> None:
    """What was recorded while everything stopped is sealed too, so that a verification right after finds no tail."""
    try:
        sealer.run_once()
    except ClocheError as error:
        _log.warning("the last seal failed", error=str(error))
