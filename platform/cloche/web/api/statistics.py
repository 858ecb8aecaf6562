"""Statistics of jobs, queues and workers."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.domain.statistics import parse_window
from cloche.web.routing import Call, RouteGroup
from cloche.web.statistics_shapes import QueueStatsOut, StatsOut, WindowQuery, WorkersStatsOut

group = RouteGroup("statistics")


@group.route(
    "GET",
    "/stats",
    permission=Permission.QUEUE_READ,
    responses={200: StatsOut},
    summary="One's tenant in numbers: jobs, rates, waits and runs over 1m, 5m and 1h; workers and slots.",
)
def overall(call: Call) -> Any:
    return call.services.statistics.overall(call.actor)


@group.route(
    "GET",
    "/queues/<name>/stats",
    permission=Permission.QUEUE_READ,
    query=WindowQuery,
    responses={200: QueueStatsOut},
    summary="One queue in numbers: what waits, and what came and ended within `window`.",
)
def queue_stats(call: Call, name: str) -> Any:
    return call.services.statistics.queue(call.actor, name, parse_window(call.query.window))


@group.route(
    "GET",
    "/workers/stats",
    permission=Permission.WORKER_READ,
    query=WindowQuery,
    responses={200: WorkersStatsOut},
    summary="How busy workers are, and what each finished within `window`.",
)
def workers_stats(call: Call) -> Any:
    return call.services.statistics.workers(call.actor, parse_window(call.query.window))
