"""The scheduler process: relay, sweeper, sealer, callbacks and the sweep of files, each in a thread of its own so that none waits for another."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

from cloche import logs
from cloche.audit.keys import KeyRing
from cloche.clock import uuid7
from cloche.config import Settings
from cloche.db import migrate
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.callbacks import Target, parse_reach
from cloche.domain.egress import entries
from cloche.domain.retries import PlatformBudget
from cloche.errors import ClocheError
from cloche.isolation.client import SandboxdBackend
from cloche.queueing.redis_broker import RedisBroker
from cloche.services import extensions
from cloche.services.callback_secrets import CallbackSecrets, CallbackVault
from cloche.services.checkpoint_sinks import (
    CheckpointSender,
    Sink,
    default_tenant,
    file_sink,
    remote_sink,
    webhook_sink,
    webhook_target,
)
from cloche.services.deliverer import Deliverer, Limits
from cloche.services.files import FileService
from cloche.services.quotas import QuotaService, default_quotas
from cloche.services.relay import Relay
from cloche.services.remotes import RemoteService
from cloche.services.sealer import Sealer
from cloche.services.sweeper import Retention, Sweeper
from cloche.services.transitions import Transitions
from cloche.services.usage_feed import UsageFeed
from cloche.services.workers import WorkerService
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.rclone import RcloneDaemon, rclone_binary
from cloche.staging.transfer import RemoteFiles
from cloche.staging.vault import OptionVault, load_or_create_key
from cloche.webhooks.client import Sender

_log = logs.get(__name__)
Rounds = dict[str, tuple[Callable[[], int], float]]
_BACKOFF_MAX_S = 5.0
_FILES_EVERY_S = 3_600.0
_QUOTAS_EVERY_S = 5.0
_UNCOUNTED_EVERY_S = 60.0
_LAST_CALLBACKS_S = 2.0  # at a stop, for those under way; what is not settled by then is sent again


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop."""
    owner = uuid7()
    migrate.patiently(lambda: migrate.check(settings.database_url))
    db = Database(settings.database_url, pool=settings.database.pool_size)
    broker = RedisBroker(settings.redis_url)
    keyring = KeyRing.load_or_create(settings.home / "keys")
    audit = AuditLog(keyring.current_hmac_key)
    budget = PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths)
    transitions = Transitions(audit, budget, feed=bool(settings.extension.names))
    workers = WorkerService(db)
    backend = SandboxdBackend(settings.sandboxd_socket, owner=f"scheduler:{owner}")
    retention = Retention(settings.retention.jobs, settings.retention.dead_letters, settings.callbacks.enabled)
    sweeper = Sweeper(db, broker, transitions, workers, _confirming(backend), f"scheduler:{owner}", retention)
    relay = Relay(db, broker)
    files = FileService(db, ArtifactStore(settings.home / "artifacts"), audit)
    sealer = Sealer(db, keyring, owner)
    deliverer = _deliverer(settings, db, audit, owner)
    batch, pause_s = settings.scheduler.batch_size, settings.scheduler.poll_interval / 1000
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    rounds: Rounds = {
        "sweeper": (lambda: sweeper.run_once(batch), pause_s),
        "leases": (lambda: sweeper.take_back_lapsed(batch), pause_s),
        "relay": (lambda: relay.run_once(batch), pause_s),
        "sealer": (sealer.run_once, pause_s),
        "files": (files.sweep, _FILES_EVERY_S),
        **_quota_rounds(settings, db, audit),
    }
    rclone = RcloneDaemon(
        rclone_binary(), settings.home / "run" / "rclone-scheduler", allow_addresses=settings.remote.allow_private
    )
    rounds["checkpoints"] = (_checkpoints(settings, db, audit, rclone, stop).run_once, pause_s)
    if settings.callbacks.enabled:
        rounds["callbacks"] = (lambda: deliverer.run_once(stop), pause_s)
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
    deliverer.idle(_LAST_CALLBACKS_S)
    _last_seal(sealer)
    rclone.close()
    backend.close()
    db.close()
    broker.close()
    return 0


def _confirming(backend: SandboxdBackend) -> Callable[[str], None]:
    def confirm_dead(worker_id: str) -> None:
        try:
            backend.owner_gone(worker_id)
        except ClocheError as error:
            _log.warning("sandboxd cannot confirm that a lost worker's sandboxes are dead", error=str(error))

    return confirm_dead


def _quota_rounds(settings: Settings, db: Database, audit: AuditLog) -> Rounds:
    quotas = QuotaService(db, audit, default_quotas(settings.quota))
    rounds: Rounds = {
        "quotas": (quotas.fold, _QUOTAS_EVERY_S),
        "uncounted jobs": (quotas.count_live, _UNCOUNTED_EVERY_S),
    }
    if settings.extension.names:
        feed, batch = UsageFeed(db, extensions.load(settings.extension.names)), settings.scheduler.batch_size
        rounds["usage records"] = (lambda: feed.run_once(batch), settings.scheduler.poll_interval / 1000)
    return rounds


def _checkpoints(
    settings: Settings, db: Database, audit: AuditLog, rclone: RcloneDaemon, stop: threading.Event
) -> CheckpointSender:
    """Also where the settings name no place: it clears away what an earlier start knew, which would stay behind for ever."""
    asked = settings.audit
    sinks = [file_sink(asked.checkpoint_file)] if asked.checkpoint_file else []
    if asked.checkpoint_remote:
        vault = OptionVault.load_or_create(settings.home / "keys" / "remotes.key")
        tenant_id = migrate.patiently(lambda: db.read(default_tenant))
        remotes = RemoteService(db, audit, vault, rclone)
        files = RemoteFiles(rclone, remotes.config_for, tenant_id, stop.is_set)
        sinks.append(remote_sink(asked.checkpoint_remote, files))
    if target := webhook_target(asked.checkpoint_webhook.get_secret_value()):
        sinks.append(_webhook(target, settings))
    key = load_or_create_key(settings.home / "keys" / "callbacks.key")
    return CheckpointSender(db, audit, sinks, asked.checkpoint_interval, key)


def _webhook(target: Target, settings: Settings) -> Sink:
    # Its address is the operator's own choice, public or not.
    reach = parse_reach(True, [target.host if ":" in target.host else target.authority])
    return webhook_sink(target, Sender(reach, settings.callbacks.timeout / 1000, settings.callbacks.ca_file))


def _deliverer(settings: Settings, db: Database, audit: AuditLog, owner: str) -> Deliverer:
    asked = settings.callbacks
    reach = parse_reach(asked.enabled, entries(asked.private))
    vault = CallbackVault.load_or_create(settings.home / "keys" / "callbacks.key")
    limits = Limits(asked.concurrency, asked.receiver_concurrency, asked.timeout, asked.give_up)
    sender = Sender(reach, asked.timeout / 1000, asked.ca_file)
    return Deliverer(db, CallbackSecrets(db, audit, vault), sender, owner, limits)


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
        sealer.close()
    except ClocheError as error:
        _log.warning("the last seal failed", error=str(error))
