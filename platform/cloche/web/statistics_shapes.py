"""Answers with statistics, as OpenAPI describes them. Rates are jobs a second, times seconds; ``docs/rest.md`` says how each is counted."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from cloche.domain.statistics import DEFAULT_WINDOW, parse_window
from cloche.web.routing import Query, Shape


def _window(value: str) -> str:
    parse_window(value)
    return value


class WindowQuery(Query):
    window: Annotated[str, AfterValidator(_window)] = Field(
        DEFAULT_WINDOW, description="How far back: `30s`, `5m`, `1h`; between 10s and 24h."
    )


class PercentilesOut(Shape):
    p50: float
    p95: float
    p99: float


class FlowOut(Shape):
    arrived: int
    completed: int
    failed: int
    canceled: int
    arrival_rate: float
    completion_rate: float
    failure_share: float | None
    complete: bool


class TimesOut(Shape):
    jobs_looked_at: int
    complete: bool
    wait_s: PercentilesOut | None
    run_s: PercentilesOut | None


class OverallTimesOut(TimesOut):
    window: str


class WorkerCountOut(Shape):
    alive: int
    draining: int
    dead: int


class SlotsOut(Shape):
    total: int
    busy: int
    free: int
    utilisation: float | None


class QueueFlowOut(Shape):
    name: str
    depth: dict[str, int]
    oldest_age_s: float | None
    windows: dict[str, FlowOut]


class StatsOut(Shape):
    generated_at: str
    jobs: dict[str, int]
    dead_letters: int
    counts_complete: bool
    windows: dict[str, FlowOut]
    times: OverallTimesOut
    workers: WorkerCountOut | None
    slots: SlotsOut | None
    queues: list[QueueFlowOut]


class QueueStatsOut(Shape):
    name: str
    generated_at: str
    window_s: float
    depth: dict[str, int]
    depth_complete: bool
    oldest_age_s: float | None
    flow: FlowOut
    times: TimesOut


class WorkerFinishedOut(Shape):
    id: str
    host: str
    status: str
    slots: int
    busy: int
    completed: int
    failed: int


class WorkersStatsOut(Shape):
    generated_at: str
    window_s: float
    count: WorkerCountOut
    slots: SlotsOut
    jobs_looked_at: int
    complete: bool
    workers: list[WorkerFinishedOut]
