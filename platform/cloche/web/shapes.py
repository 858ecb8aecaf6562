"""Answers of the API, as OpenAPI describes them. ``docs/rest.md`` says more about each."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import ConfigDict

from cloche.domain.states import State
from cloche.domain.versions import VersionState
from cloche.web.routing import Shape

T = TypeVar("T")


class Items(Shape, Generic[T]):
    items: list[T]


class Paged(Items[T], Generic[T]):
    next_cursor: str | None


class SessionOut(Shape):
    user: MeOut
    csrf_token: str


class MyTenantOut(Shape):
    id: str
    name: str
    suspended: bool
    roles: list[str]


class MeOut(Shape):
    id: str
    username: str
    tenant_id: str
    tenants: list[MyTenantOut]
    roles: list[str]
    permissions: list[str]
    platform_admin: bool
    token_id: str | None
    csrf_token: str | None


class TokenOut(Shape):
    id: str
    name: str
    scopes: list[str] | None
    addresses: list[str] | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class NewTokenOut(TokenOut):
    token: str


class SessionRowOut(Shape):
    id: str
    current: bool
    created_at: str
    last_seen_at: str
    expires_at: str
    ip: str | None
    user_agent: str | None


class SessionsEndedOut(Shape):
    ended: int


class ResetOut(Shape):
    code: str
    user_id: str
    expires_at: str


class PermissionOut(Shape):
    name: str
    summary: str
    platform: bool


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


class CallbackOut(Shape):
    url: str
    events: list[str]


class JobOut(Shape):
    id: str
    batch_id: str | None
    name: str | None
    type: str
    version: str
    status: State
    reason: str
    reason_text: str
    sensitive: bool
    masked: bool
    payload: dict[str, Any] | None
    priority: int
    queue: str
    waiting_for: Literal["queue_paused", "share_paused", "queue_full", "no_worker"] | None
    labels: dict[str, str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    limits: dict[str, Any]
    retry: dict[str, Any]
    callback: CallbackOut | None
    warnings: list[str]
    progress: dict[str, Any] | None
    result: Any
    error: dict[str, Any] | None
    attempt: int
    run: int
    depends_on: list[str]
    depends_on_condition: str | None
    on_upstream_failure: str | None
    cancel_requested: bool
    submitted_by: str
    tenant: str
    plugin: PluginRef
    created_at: str
    started_at: str | None
    finished_at: str | None
    schedule_at: str | None
    expires_at: str | None
    next_run_at: str | None
    usage: dict[str, Any] | None


class AttemptOut(Shape):
    number: int
    run: int
    worker: str
    phase: str
    outcome: str | None
    reason: str | None
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    started_at: str
    finished_at: str | None
    duration_ms: int | None


class TryOut(Shape):
    """An attempt in short; `GET /jobs/{id}/attempts` has all of it."""

    number: int
    run: int
    outcome: str | None
    reason: str | None
    message: str | None
    started_at: str
    finished_at: str | None


class DeadLetterOut(JobOut):
    attempts: list[TryOut]


class SkippedOut(Shape):
    id: str
    detail: str


class BulkOut(Shape):
    """What was chosen and done; `remaining` are dead letters that fit and are still there."""

    matched: int
    done: int
    remaining: int
    dry_run: bool
    ids: list[str]
    skipped: list[SkippedOut]


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
    depth: dict[str, int]
    depth_complete: bool
    oldest_age_s: float | None
    description: str | None
    built_in: bool
    paused: bool
    paused_scopes: list[Literal["platform", "tenant"]]
    max_concurrency: int | None
    weight: int
    version: str
    created_at: str
    updated_at: str


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
    state: VersionState
    state_reason: str | None
    state_changed_at: str | None
    revision: int | None
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
    before_sha256: str | None
    after_sha256: str | None
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
    pruned: int
    root: str
    key: str
    hmac_checked: bool
    gaps: list[dict[str, int]]
    notes: list[str]


class CheckpointOut(Shape):
    number: int
    size: int
    root: str
    at: str
    note: str


class CheckpointsOut(Paged[CheckpointOut]):
    public_key: str


class AuditKeyOut(Shape):
    public_key: str
    key_id: str
    first_batch: int
    last_batch: int | None
    announced_at: str | None
    announcement: str | None


class AuditProofOut(Shape):
    format: int
    origin: str
    seq: int
    event: dict[str, Any]
    leaf: str
    path: list[str]
    note: str
    announcements: list[str]
    people: list[dict[str, Any]]


class ForgottenOut(Shape):
    commitment: str
    kind: str


class WorkersHealth(Shape):
    running: bool
    count: int


class HealthOut(Shape):
    status: str
    timestamp: str
    version: str | None
    workers: WorkersHealth


class OutageOut(Shape):
    part: str
    since: str
    reason: str
    advice: str


class ReadyOut(Shape):
    ready: bool
    reasons: list[str]
    parts: list[OutageOut]
    warnings: list[OutageOut]
