"""The worker process: builds its tools, runs its loop, and leaves in good order."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cloche import logs
from cloche.audit.keys import KeyRing
from cloche.clock import uuid7
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.egress import Endpoint, platform_egress
from cloche.domain.jobs import DEFAULT_QUEUE, ClaimedJob
from cloche.domain.retries import PlatformBudget
from cloche.isolation.client import SandboxdBackend
from cloche.queueing.redis_broker import RedisBroker
from cloche.registry.catalog import Catalog
from cloche.registry.store import BundleStore
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder
from cloche.services.egress import EgressService
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
from cloche.worker.pools import PoolReport

_log = logs.get(__name__)


def run(settings: Settings, worker_id: str | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop. ``worker_id``: chosen by a supervisor, else made here."""
    worker_id = worker_id or uuid7()
    with ExitStack() as opened:
        tools, holds, report = _build(settings, worker_id, opened)
        workers = WorkerService(tools.db)
        loop = WorkerLoop(
            tools,
            holds,
            slots=settings.worker.slots,
            lease_ms=settings.worker.lease,
            poll_ms=settings.worker.poll_interval,
            grace_ms=settings.worker.grace,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.stop())
        _log.info("worker started", worker_id=worker_id, slots=settings.worker.slots)
        try:
            slots = settings.worker.slots
            workers.register(worker_id, socket.gethostname(), os.getpid(), [DEFAULT_QUEUE], slots, STARTING)
            _clean(settings.home / "work", workers)
            holds.start()
            report.start()
            loop.run()
            workers.leave(worker_id, "stopped")
        except Exception:  # noqa: BLE001 - see below
            # A worker that cannot go on must not linger with its slots' threads and no heartbeat: its sandboxes die, then it does,
            # and whoever started it starts another.
            _log.exception("the worker failed", worker_id=worker_id)
            tools.backend.close()
            os._exit(1)
    _log.info("worker stopped", worker_id=worker_id)
    return 0


def _build(settings: Settings, worker_id: str, opened: ExitStack) -> tuple[Tools, Holds, PoolReport]:
    """Everything a worker uses; ``opened`` closes it, newest first."""
    home = settings.home
    db = Database(settings.database_url)
    opened.callback(db.close)
    broker = RedisBroker(settings.redis_url)
    opened.callback(broker.close)
    hub = EventHub(broker)
    opened.callback(hub.close)
    audit = AuditLog(KeyRing.load_or_create(home / "keys").hmac_key)
    transitions = Transitions(audit, PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths))
    rclone = RcloneDaemon(rclone_binary(), home / "run" / "rclone", allow_addresses=settings.remote.allow_private)
    opened.callback(rclone.close)
    remotes = RemoteService(db, audit, OptionVault.load_or_create(home / "keys" / "remotes.key"), rclone)
    work = home / "work" / worker_id
    stager = Stager(ArtifactStore(home / "artifacts"), rclone, remotes.config_for, work=work)
    bundles = BundleStore(home, Catalog(settings.plugin_folders), wheel_cache=settings.plugin.wheel_cache)
    backend = SandboxdBackend(settings.sandboxd_socket, owner=worker_id)
    files = JobFiles(db, bundles, backend.image_python, stager, work)
    opened.callback(files.close)
    opened.callback(backend.close)
    holds = Holds(
        db,
        hub,
        transitions,
        WorkerService(db),
        worker_id,
        lease_ms=settings.worker.lease,
        heartbeat_ms=settings.worker.heartbeat,
    )
    holds.on_effects = partial(effects.apply, broker)
    opened.callback(holds.close)
    report = PoolReport(db, backend, worker_id, settings.worker.heartbeat / 1000)
    opened.callback(report.close)
    platform = platform_egress(settings.egress.enabled, settings.egress.allow, settings.egress.private)
    egress = EgressService(db, audit, platform)

    def outbound(job: ClaimedJob) -> tuple[Endpoint, ...]:
        return egress.for_attempt(job.tenant_id, files.manifest(job), job.payload)

    recorder = AttemptRecorder(db, worker_id)
    return Tools(db, broker, backend, transitions, recorder, files, worker_id, outbound, report.retired), holds, report


def _clean(folder: Path, workers: WorkerService) -> None:
    """Remove what workers of this home that are gone left in their folders."""
    alive = workers.alive_ids()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in alive:
            shutil.rmtree(path, ignore_errors=True)
