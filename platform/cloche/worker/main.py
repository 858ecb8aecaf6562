"""The worker process: builds its tools, runs its loop, and leaves in good order."""

from __future__ import annotations

import os
import signal
import socket
import threading

from cloche import logs
from cloche.audit.keys import KeyRing
from cloche.clock import uuid7
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.jobs import DEFAULT_QUEUE
from cloche.domain.retries import PlatformBudget
from cloche.isolation.client import SandboxdBackend
from cloche.queueing.redis_broker import RedisBroker
from cloche.registry.catalog import Catalog
from cloche.registry.store import BundleStore
from cloche.services.attempts import AttemptRecorder
from cloche.services.remotes import RemoteService
from cloche.services.transitions import Transitions
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.rclone import RcloneDaemon, rclone_binary
from cloche.staging.stager import Stager
from cloche.staging.vault import OptionVault
from cloche.worker.execute import Tools
from cloche.worker.files import JobFiles
from cloche.worker.holds import STARTING, Holds
from cloche.worker.loop import WorkerLoop

_log = logs.get(__name__)


def run(settings: Settings, worker_id: str | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop. ``worker_id``: chosen by a supervisor, else made here."""
    worker_id = worker_id or uuid7()
    db = Database(settings.database_url)
    broker = RedisBroker(settings.redis_url)
    hub = EventHub(broker)
    audit = AuditLog(KeyRing.load_or_create(settings.home / "keys").hmac_key)
    budget = PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths)
    transitions = Transitions(audit, budget)
    workers = WorkerService(db)
    backend = SandboxdBackend(settings.sandboxd_socket, owner=worker_id)
    catalog = Catalog(settings.plugin_folders)
    rclone = RcloneDaemon(
        rclone_binary(), settings.home / "run" / "rclone", allow_addresses=settings.remote.allow_private
    )
    remotes = RemoteService(db, audit, OptionVault.load_or_create(settings.home / "keys" / "remotes.key"), rclone)
    work = settings.home / "work" / worker_id
    stager = Stager(ArtifactStore(settings.home / "artifacts"), rclone, remotes.config_for, work=work)
    files = JobFiles(
        db,
        BundleStore(settings.home, catalog, wheel_cache=settings.plugin.wheel_cache),
        backend.image_python,
        stager,
        work,
    )
    recorder = AttemptRecorder(db, worker_id)
    tools = Tools(db, broker, backend, transitions, recorder, files, worker_id)
    lease_ms = settings.worker.lease
    holds = Holds(db, hub, transitions, workers, worker_id, lease_ms=lease_ms, heartbeat_ms=settings.worker.heartbeat)
    loop = WorkerLoop(
        tools,
        holds,
        slots=settings.worker.slots,
        lease_ms=lease_ms,
        poll_ms=settings.worker.poll_interval,
        grace_ms=settings.worker.grace,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    _log.info("worker started", worker_id=worker_id, slots=settings.worker.slots)
    try:
        workers.register(worker_id, socket.gethostname(), os.getpid(), [DEFAULT_QUEUE], settings.worker.slots, STARTING)
        holds.start()
        loop.run()
        workers.leave(worker_id, "stopped")
    except Exception:  # noqa: BLE001 - see below
        # A worker that cannot go on must not linger with its slots' threads and no heartbeat: its sandboxes die, then it does, and whoever
        # started it starts another.
        _log.exception("the worker failed", worker_id=worker_id)
        backend.close()
        os._exit(1)
    finally:
        holds.close()
        backend.close()
        rclone.close()
        files.close()
        hub.close()
        db.close()
        broker.close()
    _log.info("worker stopped", worker_id=worker_id, threads=threading.active_count())
    return 0
