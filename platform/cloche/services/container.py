"""Everything a process has been wired with, as one value to hand on. Made by ``cloche.wiring.build`` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloche.audit.keys import KeyRing
from cloche.config import Settings
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.queueing.broker import Broker
from cloche.registry.catalog import Catalog
from cloche.services.access import AccessService
from cloche.services.auditing import AuditService
from cloche.services.batches import BatchService
from cloche.services.callback_secrets import CallbackSecrets
from cloche.services.drains import Drains
from cloche.services.egress import EgressService
from cloche.services.emptying import Emptying
from cloche.services.ended import EndedService
from cloche.services.files import FileService
from cloche.services.jobs import JobService
from cloche.services.plugins import PluginService
from cloche.services.queues import QueueService
from cloche.services.quota_gate import QuotaGate
from cloche.services.quotas import QuotaService
from cloche.services.rate_limits import RateLimits
from cloche.services.remotes import RemoteService
from cloche.services.reveals import Reveals
from cloche.services.roles import RoleService
from cloche.services.secrets import SecretService
from cloche.services.statistics import StatisticsService
from cloche.services.tenants import TenantService
from cloche.services.usage import UsageService
from cloche.services.users import UserService
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService


@dataclass(frozen=True)
class Services:
    """One per process. ``close`` ends what runs behind the services, newest first; safe to call twice."""

    settings: Settings
    db: Database
    broker: Broker
    hub: EventHub
    audit_log: AuditLog
    keyring: KeyRing
    catalog: Catalog
    jobs: JobService
    ended: EndedService
    reveals: Reveals
    batches: BatchService
    callback_secrets: CallbackSecrets
    gate: QuotaGate
    quotas: QuotaService
    usage: UsageService
    files: FileService
    remotes: RemoteService
    secrets: SecretService
    egress: EgressService
    access: AccessService
    users: UserService
    roles: RoleService
    tenants: TenantService
    emptying: Emptying
    queues: QueueService
    workers: WorkerService
    drains: Drains
    statistics: StatisticsService
    plugins: PluginService
    auditing: AuditService
    rates: RateLimits
    closers: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        while self.closers:
            self.closers.pop()()
