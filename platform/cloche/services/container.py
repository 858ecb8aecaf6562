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
from cloche.services.egress import EgressService
from cloche.services.files import FileService
from cloche.services.jobs import JobService
from cloche.services.plugins import PluginService
from cloche.services.queues import QueueService
from cloche.services.remotes import RemoteService
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
    files: FileService
    remotes: RemoteService
    egress: EgressService
    access: AccessService
    queues: QueueService
    workers: WorkerService
    plugins: PluginService
    auditing: AuditService
    closers: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        while self.closers:
            self.closers.pop()()
