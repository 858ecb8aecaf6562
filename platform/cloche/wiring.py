"""Builds a process's services from its settings: the only place that knows which store each of them gets."""

from __future__ import annotations

import hmac
from contextlib import ExitStack, closing

from cloche.audit.keys import KeyRing
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.callbacks import parse_reach
from cloche.domain.egress import entries, platform_egress
from cloche.domain.retries import PlatformBudget
from cloche.queueing.broker import Broker
from cloche.queueing.permits import MemoryPermits, RedisPermits
from cloche.queueing.redis_broker import RedisBroker
from cloche.registry.catalog import Catalog
from cloche.services.access import AccessService
from cloche.services.asked import Defaults
from cloche.services.audit_reads import Reads
from cloche.services.auditing import AuditService
from cloche.services.batches import BatchService
from cloche.services.callback_secrets import CallbackSecrets, CallbackVault
from cloche.services.checkpoint_sinks import webhook_target
from cloche.services.container import Services
from cloche.services.drains import Drains
from cloche.services.egress import EgressService
from cloche.services.emptying import Emptying
from cloche.services.ended import EndedService
from cloche.services.files import FileService
from cloche.services.jobs import JobService
from cloche.services.lockout import Lockout
from cloche.services.pace import Pace
from cloche.services.plugins import PluginService
from cloche.services.queues import QueueService
from cloche.services.quota_gate import QuotaGate
from cloche.services.quotas import QuotaService, default_quotas
from cloche.services.rate_limits import RateLimits
from cloche.services.remotes import RemoteService
from cloche.services.reveals import Reveals
from cloche.services.roles import RoleService
from cloche.services.sealing import JobVault
from cloche.services.secret_vault import vault_of
from cloche.services.secrets import SecretService
from cloche.services.statistics import StatisticsService
from cloche.services.tenants import TenantService
from cloche.services.transitions import Transitions
from cloche.services.usage import UsageService
from cloche.services.users import UserService
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService
from cloche.staging.artifacts import ArtifactStore
from cloche.staging.rclone import RcloneDaemon, rclone_binary
from cloche.staging.vault import OptionVault
from cloche.throttle.redis_failures import RedisFailures

__all__ = ["Services", "build"]


def build(settings: Settings, component: str, *, broker: Broker | None = None) -> Services:
    """Everything wired; nothing has connected yet but the database. ``component`` names the process, such as ``web``.

    The home directory has to exist and the schema to be there. ``broker`` replaces Redis, for tests.

    Raises:
        EnvironmentProblem: a key file or a folder cannot be used.
        SettingsError: the database's URL is not one this version takes, or the egress policy or a URL is malformed.
    """
    home = settings.home
    keyring = KeyRing.load_or_create(home / "keys")
    audit = AuditLog(keyring.current_hmac_key)
    catalog = Catalog(settings.plugin_folders)
    # What is opened here is closed again, newest first, when something further down fails.
    with ExitStack() as opened:
        db, redis, hub, rclone = _opened(opened, settings, component, broker)
        egress = _egress(settings, db, audit)
        plugins = PluginService(db, catalog, audit)
        gate = QuotaGate(db, default_quotas(settings.quota), Pace(redis))
        transitions = _transitions(settings, audit, gate)
        sealed = JobVault(home / "keys", db)
        defaults = _defaults(settings)
        files = FileService(db, ArtifactStore(home / "artifacts"), audit, gate)
        access = AccessService(db, audit, settings, lockout=_lockout(keyring, settings, opened, broker))
        jobs = JobService(db, redis, hub, plugins, transitions, defaults, egress, sealed, audit, gate)
        services = Services(
            settings=settings,
            db=db,
            broker=redis,
            hub=hub,
            audit_log=audit,
            keyring=keyring,
            catalog=catalog,
            jobs=jobs,
            ended=EndedService(db, redis, transitions, jobs),
            reveals=Reveals(db, transitions, sealed),
            batches=BatchService(db, redis, audit, plugins, transitions, defaults, egress, sealed, gate),
            callback_secrets=CallbackSecrets(db, audit, CallbackVault.load_or_create(home / "keys" / "callbacks.key")),
            gate=gate,
            quotas=QuotaService(db, audit, gate.defaults),
            usage=UsageService(db),
            files=files,
            remotes=RemoteService(db, audit, OptionVault.load_or_create(home / "keys" / "remotes.key"), rclone),
            secrets=SecretService(db, audit, vault_of(settings, db)),
            egress=egress,
            access=access,
            users=UserService(db, audit, access),
            roles=RoleService(db, audit),
            tenants=TenantService(db, redis, audit),
            emptying=Emptying(db, redis, audit, transitions, files),
            queues=QueueService(db, redis, audit),
            workers=WorkerService(db),
            drains=Drains(db, audit),
            statistics=StatisticsService(db),
            plugins=plugins,
            auditing=AuditService(db, keyring, Reads(db, audit)),
            rates=_rates(opened, settings, broker),
        )
        services.closers.append(opened.pop_all().close)
    return services


def _lockout(keyring: KeyRing, settings: Settings, opened: ExitStack, broker: Broker | None) -> Lockout:
    failures = None if broker is not None else opened.enter_context(closing(RedisFailures(settings.redis_url)))
    # All processes of a home hide names alike, so that they count together.
    return Lockout(failures, key=hmac.digest(keyring.hmac_key, b"cloche: failed sign-ins, version 1", "sha256"))


def _rates(opened: ExitStack, settings: Settings, broker: Broker | None) -> RateLimits:
    permits = MemoryPermits() if broker else RedisPermits(settings.redis_url)
    rates = RateLimits(permits, settings.rate.model_dump())
    opened.callback(rates.close)
    return rates


def _opened(
    opened: ExitStack, settings: Settings, component: str, broker: Broker | None
) -> tuple[Database, Broker, EventHub, RcloneDaemon]:
    """What has to be closed again; nothing is, where a setting that another process needs makes no sense."""
    webhook_target(settings.audit.checkpoint_webhook.get_secret_value())  # the scheduler's: better said at the start
    db = Database(settings.database_url, pool=settings.database.pool_size)
    opened.callback(db.close)
    redis = broker or RedisBroker(settings.redis_url)
    opened.callback(redis.close)
    hub = EventHub(redis)
    opened.callback(hub.close)
    run_dir = settings.home / "run" / f"rclone-{component}"
    rclone = RcloneDaemon(rclone_binary(), run_dir, allow_addresses=settings.remote.allow_private)
    opened.callback(rclone.close)
    return db, redis, hub, rclone


def _egress(settings: Settings, db: Database, audit: AuditLog) -> EgressService:
    asked = settings.egress
    return EgressService(db, audit, platform_egress(asked.enabled, asked.allow, asked.private))


def _defaults(settings: Settings) -> Defaults:
    reach = parse_reach(settings.callbacks.enabled, entries(settings.callbacks.private))
    return Defaults(settings.retry.max_retries, settings.worker.job_timeout, reach, settings.sandbox.runtime)


def _transitions(settings: Settings, audit: AuditLog, gate: QuotaGate) -> Transitions:
    budget = PlatformBudget(settings.retry.platform_budget, settings.retry.worker_deaths)
    return Transitions(audit, budget, quotas=gate.defaults, feed=bool(settings.extension.names))
