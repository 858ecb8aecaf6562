"""The worker process: builds its tools, runs its loop, and leaves in good order."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from functools import partial

from cloche import logs
from cloche.audit.keys import KeyRing
from cloche.clock import is_uuid7, uuid7
from cloche.config import Settings
from cloche.db import migrate
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.egress import Endpoint, platform_egress
from cloche.domain.jobs import ClaimedJob
from cloche.domain.retries import PlatformBudget
from cloche.errors import SettingsError, Unavailable
from cloche.isolation.client import SandboxdBackend
from cloche.queueing.redis_broker import RedisBroker
from cloche.registry.catalog import Catalog
from cloche.registry.store import BundleStore
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder
from cloche.services.egress import EgressService
from cloche.services.quotas import default_quotas
from cloche.services.remotes import RemoteService
from cloche.services.sealing import JobVault
from cloche.services.secret_delivery import SecretDelivery
from cloche.services.secret_vault import vault_of
from cloche.services.transitions import Transitions
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.rclone import RcloneDaemon, rclone_binary
from cloche.staging.stager import Stager
from cloche.staging.vault import OptionVault
from cloche.worker import exits, resources
from cloche.worker.execute import Tools
from cloche.worker.files import JobFiles
from cloche.worker.holds import STARTING, Holds
from cloche.worker.loop import WorkerLoop
from cloche.worker.pools import PoolReport
from cloche.worker.renewal import Renewal
from cloche.worker.secrets import JobSecrets
from cloche.worker.tools import Outbound
from cloche.worker.workfolder import WorkFolder

_log = logs.get(__name__)


def run(settings: Settings, worker_id: str | None = None) -> int:
    """Run until SIGTERM, SIGINT or a drain, and return one of :mod:`cloche.worker.exits`. ``worker_id``: chosen by a supervisor, else made
    here.

    Raises:
        EnvironmentProblem: the database's schema is another program's, or the id is another worker's.
        SettingsError: the id is no UUIDv7.
    """
    worker_id = worker_id or uuid7()
    if not is_uuid7(worker_id):
        raise SettingsError("--id is no UUIDv7 in lower case; leave it out and one is made")
    schema = migrate.patiently(lambda: migrate.check(settings.database_url))
    with ExitStack() as opened:
        tools, holds, report = _build(settings, worker_id, schema, opened)
        workers = WorkerService(tools.db)
        loop = WorkerLoop(
            tools,
            holds,
            slots=settings.worker.slots,
            lease_ms=settings.worker.lease,
            poll_ms=settings.worker.poll_interval,
            grace_ms=settings.worker.grace,
            queues=settings.worker.queue_names,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.stop())
        slots, queues, labels = settings.worker.slots, settings.worker.queue_names, settings.worker.label_map
        me = (worker_id, socket.gethostname(), os.getpid(), queues, slots, STARTING, labels)
        migrate.patiently(lambda: workers.register(*me))
        _log.info("worker started", worker_id=worker_id, slots=slots)
        holds.on_forgotten = partial(workers.register, *me)
        try:
            holds.start()
            report.start()
            drained = loop.run()
            holds.close()  # no heartbeat may follow our leave
            _leave(workers, worker_id, "drained" if drained else "stopped")
        except Exception:  # noqa: BLE001 - see below
            # A worker that cannot go on must not linger with its slots' threads and no heartbeat: its sandboxes die, then it does,
            # and whoever started it starts another.
            _log.exception("the worker failed", worker_id=worker_id)
            tools.backend.close()
            os._exit(1)
    _log.info("worker drained" if drained else "worker stopped", worker_id=worker_id)
    return exits.DRAINED if drained else exits.STOPPED


def _leave(workers: WorkerService, worker_id: str, reason: str) -> None:
    try:
        workers.leave(worker_id, reason)
    except Unavailable as error:
        _log.warning("the database does not hear that this worker stops; it will find out", error=str(error))


def _build(settings: Settings, worker_id: str, schema: str, opened: ExitStack) -> tuple[Tools, Holds, PoolReport]:
    """Everything a worker uses; ``opened`` closes it, newest first."""
    home = settings.home
    db = Database(settings.database_url, pool=settings.database.pool_size)
    opened.callback(db.close)
    broker = RedisBroker(settings.redis_url)
    opened.callback(broker.close)
    hub = EventHub(broker)
    opened.callback(hub.close)
    audit = AuditLog(KeyRing.load_or_create(home / "keys").current_hmac_key)
    budget = PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths)
    transitions = Transitions(audit, budget, feed=bool(settings.extension.names))
    rclone = RcloneDaemon(rclone_binary(), home / "run" / "rclone", allow_addresses=settings.remote.allow_private)
    opened.callback(rclone.close)
    remotes = RemoteService(db, audit, OptionVault.load_or_create(home / "keys" / "remotes.key"), rclone)
    work = WorkFolder(home / "work", worker_id)
    opened.callback(work.close)
    stager = Stager(ArtifactStore(home / "artifacts"), rclone, remotes.config_for, work=work.path)
    bundles = BundleStore(home, Catalog(settings.plugin_folders), wheel_cache=settings.plugin.wheel_cache)
    backend = SandboxdBackend(settings.sandboxd_socket, owner=worker_id)
    files = JobFiles(db, bundles, backend.image_python, stager, work.path)
    opened.callback(files.close)
    opened.callback(backend.close)
    times = {"lease_ms": settings.worker.lease, "heartbeat_ms": settings.worker.heartbeat}
    holds = Holds(db, hub, transitions, WorkerService(db), worker_id, schema=schema, **times)
    holds.on_effects = partial(effects.apply, broker)
    watch = resources.ResourceWatch(partial(resources.read, work.path), settings.worker.heartbeat / 1000)
    opened.callback(watch.close)
    watch.start()
    holds.resources = watch.latest
    opened.callback(holds.close)
    renewal = Renewal(broker, holds, settings.worker.lease, settings.worker.heartbeat / 1000)
    opened.callback(renewal.close)
    renewal.start()
    report = PoolReport(db, backend, worker_id, settings.worker.heartbeat / 1000)
    opened.callback(report.close)
    outbound = _outbound(settings, db, audit, files)
    recorder = AttemptRecorder(db, worker_id)
    vault = JobVault(home / "keys", db)
    secrets = JobSecrets(files.manifest, SecretDelivery(db, transitions, vault_of(settings, db), worker_id))
    tools = Tools(
        db,
        broker,
        backend,
        transitions,
        recorder,
        files,
        worker_id,
        outbound,
        report.retired,
        vault,
        secrets,
        default_quotas(settings.quota),
    )
    return tools, holds, report


def _outbound(settings: Settings, db: Database, audit: AuditLog, files: JobFiles) -> Outbound:
    platform = platform_egress(settings.egress.enabled, settings.egress.allow, settings.egress.private)
    egress = EgressService(db, audit, platform)

    def outbound(job: ClaimedJob) -> tuple[Endpoint, ...]:
        return egress.for_attempt(job.tenant_id, files.manifest(job), job.payload)

    return outbound
