"""Answers that tell of batches and of callbacks, as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from cloche.domain.callbacks import Delivery, Outcome
from cloche.web.routing import Shape
from cloche.web.shapes import SkippedOut


class AcceptedBatchOut(Shape):
    """``refs``: the ids of the jobs that have a ref. ``warnings``: each once, however many jobs it is about."""

    id: str
    name: str | None
    count: int
    created_at: str
    refs: dict[str, str]
    warnings: list[str]


class BatchOut(Shape):
    id: str
    name: str | None
    count: int
    submitted_by: str
    tenant: str
    created_at: str


class BatchProgressOut(BatchOut):
    """``jobs`` counts them by state; ``done`` is the part that has ended, 0 to 1; ``purged`` jobs have ended and are no longer kept."""

    status: Literal["waiting", "running", "ended"]
    jobs: dict[str, int]
    purged: int
    done: float
    started_at: str | None
    finished_at: str | None


class RetriedBatchOut(BatchProgressOut):
    """``skipped``: the first 100 of the jobs that were left as they are."""

    retried: int
    skipped_count: int
    skipped: list[SkippedOut]


class DeliveryOut(Shape):
    id: str
    number: int
    event: str
    receiver: str
    status: Delivery
    attempts: int
    created_at: str
    last_attempt_at: str | None
    last_status: int | None
    last_outcome: Outcome | None
    last_error: str | None
    next_try_at: str | None
    ended_at: str | None


class TenantDeliveryOut(DeliveryOut):
    job_id: str


class CallbackSecretOut(Shape):
    secret: str
    version: int
    created_at: str
    previous_until: str | None
