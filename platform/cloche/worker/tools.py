"""What the attempts of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloche.db.engine import Database
from cloche.domain.egress import Endpoint
from cloche.domain.jobs import ClaimedJob
from cloche.domain.quotas import NO_QUOTAS, Quotas
from cloche.isolation.backend import Backend
from cloche.queueing.broker import Broker
from cloche.services.attempts import AttemptRecorder
from cloche.services.sealing import JobVault
from cloche.services.transitions import Transitions
from cloche.worker.files import JobFiles
from cloche.worker.secrets import JobSecrets

# What an attempt may reach. Raises PluginFailure (``egress_denied``) or PlatformFailure (``bundle_unavailable``).
Outbound = Callable[[ClaimedJob], tuple[Endpoint, ...]]


@dataclass(frozen=True)
class Tools:
    """What every attempt of a worker uses."""

    db: Database
    broker: Broker
    backend: Backend
    transitions: Transitions
    recorder: AttemptRecorder
    files: JobFiles
    worker_id: str
    outbound: Outbound
    retired: Callable[[str], bool] = lambda _bundle: False  # whether its version takes no new jobs
    vault: JobVault | None = None  # opens what sensitive jobs hold; without it they fail
    secrets: JobSecrets | None = None  # without it no job has any
    quotas: Quotas = NO_QUOTAS  # the platform's defaults
