"""Builds a process's services from its settings: the only place that knows which store each of them gets."""

from __future__ import annotations

from contextlib import ExitStack

from cloche.audit.keys import KeyRing
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.egress import platform_egress
from cloche.domain.retries import PlatformBudget
from cloche.queueing.broker import Broker
from cloche.queueing.redis_broker import RedisBroker
from cloche.registry.catalog import Catalog
from cloche.services.access import AccessService
from cloche.services.admission import Defaults
from cloche.services.auditing import AuditService
from cloche.services.container import Services
from cloche.services.egress import EgressService
from cloche.services.files import FileService
from cloche.services.jobs import JobService
from cloche.services.plugins import PluginService
from cloche.services.queues import QueueService
from cloche.services.remotes import RemoteService
from cloche.services.transitions import Transitions
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.rclone import RcloneDaemon, rclone_binary
from cloche.staging.vault import OptionVault

__all__ = ["Services", "build"]


def build(settings: Settings, component: str, *, broker: Broker | None = None) -> Services:
    """Everything wired; nothing has connected yet but the database. ``component`` names the process, such as ``web``.

    The home directory has to exist and the schema to be there. ``broker`` replaces Redis, for tests.

    Raises:
        EnvironmentProblem: a key file or a folder cannot be used.
        SettingsError: the database's URL is not one this version takes, or the egress policy is malformed.
    """
    home = settings.home
    keyring = KeyRing.load_or_create(home / "keys")
    audit = AuditLog(keyring.hmac_key)
    vault = OptionVault.load_or_create(home / "keys" / "remotes.key")
    catalog = Catalog(settings.plugin_folders)
    platform = platform_egress(settings.egress.enabled, settings.egress.allow, settings.egress.private)
    # What is opened here is closed again, newest first, when something further down fails.
    with ExitStack() as opened:
        db = Database(settings.database_url)
        opened.callback(db.close)
        redis = broker or RedisBroker(settings.redis_url)
        opened.callback(redis.close)
        hub = EventHub(redis)
        opened.callback(hub.close)
        run_dir = home / "run" / f"rclone-{component}"
        rclone = RcloneDaemon(rclone_binary(), run_dir, allow_addresses=settings.remote.allow_private)
        opened.callback(rclone.close)
        egress = EgressService(db, audit, platform)
        plugins = PluginService(db, catalog, audit)
        transitions = Transitions(audit, PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths))
        defaults = Defaults(settings.retry.max_retries, settings.worker.job_timeout)
        services = Services(
            settings=settings,
            db=db,
            broker=redis,
            hub=hub,
            audit_log=audit,
            keyring=keyring,
            catalog=catalog,
            jobs=JobService(db, redis, hub, plugins, transitions, defaults, egress),
            files=FileService(db, ArtifactStore(home / "artifacts"), audit),
            remotes=RemoteService(db, audit, vault, rclone),
            egress=egress,
            access=AccessService(db, audit, settings),
            queues=QueueService(db),
            workers=WorkerService(db),
            plugins=plugins,
            auditing=AuditService(db, keyring),
        )
        services.closers.append(opened.pop_all().close)
    return services
