"""Quotas and usage: bodies, queries and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cloche.clock import from_rfc3339
from cloche.domain.quotas import MOST, day_of
from cloche.services.usage import DEFAULT_DAYS, MOST_DAYS
from cloche.web.routing import Body, Query, Shape

Limit = Annotated[int, Field(ge=0, le=MOST)] | Literal["unlimited"] | None
Shown = int | Literal["unlimited"]


def _day(value: str) -> str:
    to_day(value)
    return value


def to_day(text: str) -> int:
    """``2026-01-31`` as days since the epoch.

    Raises:
        ValueError: it is no day.
    """
    if len(text) != len("2026-01-31"):
        raise ValueError("write a day such as 2026-01-31")
    day = day_of(from_rfc3339(f"{text}T00:00:00Z"))
    if day < 0:
        raise ValueError("is before 1970")
    return day


Day = Annotated[str, AfterValidator(_day)]


class QuotaBody(Body):
    """The whole quota: a limit that is not named, or null, is as by default."""

    jobs: Limit = Field(None, description="Jobs that have not ended.")
    submissions_per_minute: Limit = Field(None, description="Jobs submitted within any minute.")
    storage_bytes: Limit = Field(None, description="Bytes of stored files.")
    cpu_seconds_per_day: Limit = Field(None, description="CPU-seconds of one day of UTC.")


class UsageQuery(Query):
    since: Day | None = Field(
        None, description=f"The first day (UTC), such as `2026-01-31`; {DEFAULT_DAYS} days before `until` when absent."
    )
    until: Day | None = Field(None, description=f"The day after the last; at most {MOST_DAYS} days after `since`.")
    group: Literal["tenant", "user", "day"] = Field("day", description="What each row is of.")
    scope: Literal["tenant", "platform"] = Field("tenant", description="`platform`: every tenant's (`quota:manage`).")


class LimitsOut(Shape):
    jobs: Shown | None
    submissions_per_minute: Shown | None
    storage_bytes: Shown | None
    cpu_seconds_per_day: Shown | None


class QuotaOut(Shape):
    limits: LimitsOut
    effective: LimitsOut
    version: int
    updated_at: str | None


class LimitOut(Shape):
    limit: Shown
    used: float | None
    resets_at: str | None


class OwnLimitsOut(Shape):
    jobs: LimitOut
    submissions_per_minute: LimitOut
    storage_bytes: LimitOut
    cpu_seconds_per_day: LimitOut


class UsageLimitsOut(Shape):
    tenant: OwnLimitsOut
    user: OwnLimitsOut


class MeteredOut(Shape):
    attempts: int
    cpu_seconds: float
    memory_gb_seconds: float
    bytes_in: int
    bytes_out: int
    bytes_stored: int
    wall_seconds: float


class UsageRowOut(MeteredOut):
    day: str | None = None
    tenant_id: str | None = None
    tenant: str | None = None
    user_id: str | None = None
    user: str | None = None


class UsageOut(Shape):
    since: str
    until: str
    group: str
    items: list[UsageRowOut]
    total: MeteredOut
    complete: bool
