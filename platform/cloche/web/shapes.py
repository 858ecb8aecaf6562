"""Answers of the API, as OpenAPI describes them. ``docs/rest.md`` says more about each."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import ConfigDict

from cloche.domain.states import State
from cloche.web.routing import Shape

T = TypeVar("T")


class Items(Shape, Generic[T]):
    items: list[T]


class Paged(Items[T], Generic[T]):
    next_cursor: str | None


class SessionOut(Shape):
    user: MeOut
    csrf_token: str


class MeOut(Shape):
    id: str
    username: str
    tenant_id: str
    roles: list[str]
    permissions: list[str]
    platform_admin: bool
    token_id: str | None
    csrf_token: str | None


class TokenOut(Shape):
    id: str
    name: str
    scopes: list[str] | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class NewTokenOut(TokenOut):
    token: str


class UserOut(Shape):
    id: str
    username: str
    roles: list[str]
    platform_admin: bool
    disabled: bool
    created_at: str


class RoleOut(Shape):
    name: str
    builtin: bool
    summary: str
    permissions: list[str]


class PermissionOut(Shape):
    name: str
    summary: str


class FileOut(Shape):
    id: str
    name: str
    size: int
    sha256: str
    media_type: str
    created_at: str


class PluginRef(Shape):
    version: str
    digest: str
    image: str | None


class JobOut(Shape):
    id: str
    name: str | None
    type: str
    version: str
    status: State
    reason: str
    reason_text: str
    payload: dict[str, Any]
    priority: int
    queue: str
    labels: dict[str, str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    limits: dict[str, Any]
    retry: dict[str, Any]
    progress: dict[str, Any] | None
    result: Any
    error: dict[str, Any] | None
    attempt: int
    cancel_requested: bool
    submitted_by: str
    tenant: str
    plugin: PluginRef
    created_at: str
    started_at: str | None
    finished_at: str | None
    next_run_at: str | None
    usage: dict[str, Any] | None


class AttemptOut(Shape):
    number: int
    worker: str
    phase: str
    outcome: str | None
    reason: str | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    started_at: str
    finished_at: str | None
    duration_ms: int | None


class OutputOut(Shape):
    path: str
    size: int
    sha256: str
    artifact_id: str | None
    destination: str | None


class TraceOut(Shape):
    id: str
    job_id: str
    event_type: str
    timestamp: str
    attempt: int
    details: dict[str, Any]


class QueueOut(Shape):
    id: str
    name: str
    worker_count: int
    max_parallel_jobs: int
    current_load: int
    paused: bool
    depth: dict[str, int]
    oldest_age_s: float | None


class PoolOut(Shape):
    """Sandboxes of one plugin version that wait for jobs on the worker's host, and what became of them."""

    plugin: str
    version: str
    warm: int
    filling: int
    busy: int
    hits: int
    cold_starts: int
    evictions: int
    expired: int
    lost: int
    failures: int
    memory: int
    last_error: str | None


class WorkerOut(Shape):
    id: str
    host: str
    pid: int
    version: str
    status: str
    status_reason: str | None
    queues: list[str]
    slots: int
    busy: int
    pools: list[PoolOut]
    current_job_ids: list[str]
    started_at: str
    last_heartbeat: str


class PluginInputs(Shape):
    min: int
    max: int | None
    accept: list[str]


class PluginOut(Shape):
    id: str
    name: str
    version: str
    digest: str
    enabled: bool
    default: bool
    disabled_reason: str | None
    summary: str
    configuration: dict[str, Any]
    params: dict[str, Any]
    inputs: PluginInputs
    limits: dict[str, Any]
    isolation: str
    first_seen_at: str | None


class PluginDetailOut(PluginOut):
    versions: list[str]


class RemoteOut(Shape):
    id: str
    name: str
    type: str
    options: dict[str, Any]
    version: int
    created_at: str
    updated_at: str


class EgressPolicyOut(Shape):
    allow: list[str]
    platform_allow: list[str]
    version: int
    updated_at: str | None


class RemoteTestOut(Shape):
    ok: bool
    detail: str


class AuditEventOut(Shape):
    id: str
    seq: int | None
    at: str
    actor: str | None
    action: str
    object: str
    outcome: str
    ip: str | None
    token_id: str | None
    request_id: str | None
    reason: str | None
    details: dict[str, Any]


class BadEvent(Shape):
    model_config = ConfigDict(extra="allow")


class VerifyOut(Shape):
    status: str
    exit_code: int
    first_bad: BadEvent | None
    events: int
    leaves: int
    batches: int
    unsealed: int
    root: str
    key: str
    hmac_checked: bool
    notes: list[str]


class CheckpointOut(Shape):
    number: int
    size: int
    root: str
    at: str
    note: str


class CheckpointsOut(Paged[CheckpointOut]):
    public_key: str


class WorkersHealth(Shape):
    running: bool
    count: int


class HealthOut(Shape):
    status: str
    timestamp: str
    version: str
    workers: WorkersHealth


class ReadyOut(Shape):
    ready: bool
    reasons: list[str]
