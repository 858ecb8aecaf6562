"""Plain job and attempt types, imported by everything that handles jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PRIORITIES = range(10)  # 9 goes first
DEFAULT_PRIORITY = 5
AGING_STEP_MS = 60_000  # one step of priority is worth a minute of waiting, so nothing starves
DEFAULT_QUEUE = "default"
SENSITIVE_QUEUE = "sensitive"  # of sensitive jobs, and of them alone
QUEUES = (DEFAULT_QUEUE, SENSITIVE_QUEUE)  # built in: always there
SEALED = "sealed"  # the member that stands in a sensitive job's JSON columns for what was encrypted
DURATION_EDGES_MS = (10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000)  # of the histogram


@dataclass(frozen=True)
class RetryPolicy:
    """How failures of the plugin are retried. Delays in milliseconds. Platform failures have a budget of their own.

    ``backoff`` is one of :data:`cloche.domain.retries.BACKOFFS`. ``retry_on`` names the reasons that are retried; None: all of the plugin's.
    """

    max_retries: int = 3
    backoff: str = "exponential"
    initial_delay_ms: int = 1_000
    max_delay_ms: int = 300_000
    retry_on: Sequence[str] | None = None


@dataclass(frozen=True)
class InputSpec:
    """One entry of a job's ``inputs``: ``source`` is ``artifact:<id>`` or ``<remote>:path``; ``to`` a name under ``/job/in``."""

    source: str
    to: str | None = None


@dataclass(frozen=True)
class OutputSpec:
    """One entry of ``outputs``: files matching ``match`` go to ``to`` (None = artifact store, else ``<remote>:folder``)."""

    match: str
    to: str | None = None


@dataclass(frozen=True)
class ClaimedJob:
    """What a worker holds after a claim: one attempt of one job, with a lease on it."""

    id: str
    tenant_id: str
    type: str
    plugin_version: str
    plugin_digest: str
    payload: dict[str, Any]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    limits: dict[str, Any]
    retry: RetryPolicy
    attempt: int
    lease_until: int
    submitted_by: str
    name: str | None = None
    priority: int = DEFAULT_PRIORITY
    sensitive: bool = False  # then ``payload`` is sealed until the attempt opens it
    queue: str = DEFAULT_QUEUE


@dataclass(frozen=True)
class OutputFile:
    """A stored output: ``path`` as the plugin wrote it under ``/job/out``, bytes, hex digest, where it went."""

    path: str
    size: int
    sha256: str
    artifact_id: str | None
    destination: str | None = None


@dataclass(frozen=True)
class Success:
    """A finished attempt's accepted outcome."""

    result: Any
    outputs: tuple[OutputFile, ...] = ()
    usage: dict[str, Any] = field(default_factory=dict)
