"""Answers about workers, as OpenAPI describes them."""

from __future__ import annotations

from cloche.web.routing import Shape


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


class ResourcesOut(Shape):
    """What the worker's host has and has left; memory and disk in bytes. None is what it could not read."""

    cpu_count: int | None
    load: float | None
    memory_total: int | None
    memory_free: int | None
    disk_total: int | None
    disk_free: int | None


class WorkerOut(Shape):
    id: str
    host: str
    pid: int
    version: str
    status: str
    status_reason: str | None
    drain_requested: bool
    queues: list[str]
    labels: dict[str, str]
    slots: int
    busy: int
    free: int
    resources: ResourcesOut | None
    pools: list[PoolOut]
    current_job_ids: list[str]
    started_at: str
    last_heartbeat: str
