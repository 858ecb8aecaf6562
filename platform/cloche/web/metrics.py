"""Prometheus metrics, counted anew at each scrape from the database and Redis: every process tells the same, and a restart loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, RowMapping, case, func, select

from cloche.db import tables
from cloche.domain.jobs import DEFAULT_QUEUE
from cloche.domain.states import State
from cloche.errors import Unavailable
from cloche.services import egress
from cloche.services.container import Services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1_800)
_ENDED = (State.COMPLETED, State.FAILED, State.CANCELED)


def render(services: Services) -> bytes:
    """The text of one scrape.

    Raises:
        Unavailable: the database does not answer.
    """
    registry = CollectorRegistry()
    registry.register(_Scrape(services))
    return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        states, durations = self._services.db.read(lambda connection: (_by_state(connection), _durations(connection)))
        yield from _job_metrics(states, durations)
        summary = self._services.workers.summary()
        yield GaugeMetricFamily("job_queue_workers", "Workers alive.", summary["count"])
        yield GaugeMetricFamily("job_queue_workers_ready", "Workers that take jobs.", summary["ready"])
        yield from _pool_metrics(self._services.workers.pools())
        yield self._index_depth()
        yield from _egress_metrics(self._services.db.read(egress.totals))
        backlog = self._services.auditing.backlog()
        yield GaugeMetricFamily("cloche_audit_events", "Audit events.", backlog["events"])
        yield GaugeMetricFamily("cloche_audit_unsealed", "Audit events not sealed yet.", backlog["unsealed"])

    def _index_depth(self) -> Metric:
        gauge = GaugeMetricFamily(
            "cloche_redis_ready_jobs", "Jobs in Redis' index; -1 when it does not answer.", labels=["queue"]
        )
        try:
            depth = self._services.broker.depth(DEFAULT_QUEUE)
        except Unavailable:
            depth = -1
        gauge.add_metric([DEFAULT_QUEUE], depth)
        return gauge


def _job_metrics(states: Mapping[str, int], durations: Any) -> Iterable[Metric]:
    processed = CounterMetricFamily("job_queue_processed", "Jobs that have ended.", labels=["status"])
    for state in _ENDED:
        processed.add_metric([state.value], states.get(state.value, 0))
    yield processed
    yield CounterMetricFamily("job_queue_failed", "Jobs that have failed.", states.get(State.FAILED, 0))
    yield GaugeMetricFamily("job_queue_active_jobs", "Jobs a worker holds.", states.get(State.PROCESSING, 0))
    waiting = GaugeMetricFamily("job_queue_pending_jobs", "Jobs that wait.", labels=["status"])
    for state in (State.PENDING, State.SCHEDULED, State.BLOCKED):
        waiting.add_metric([state.value], states.get(state.value, 0))
    yield waiting
    histogram = HistogramMetricFamily("job_queue_duration_seconds", "Seconds from first start to end.")
    buckets = [(str(float(edge)), count) for edge, count in zip(_BUCKETS_S, durations[2:], strict=True)]
    histogram.add_metric([], [*buckets, ("+Inf", durations[0])], durations[1])
    yield histogram


_POOL_GAUGES = {
    "warm": "Sandboxes that wait for a job.",
    "filling": "Sandboxes being made to wait.",
    "busy": "Sandboxes whose job runs.",
}
_POOL_COUNTERS = {
    "hits": "Jobs that got a waiting sandbox.",
    "cold_starts": "Jobs that found none.",
    "evictions": "Waiting sandboxes given up to make room.",
    "failures": "Sandboxes that could not be made ready.",
}


def _pool_metrics(hosts: Mapping[str, Any]) -> Iterable[Metric]:
    names = ["host", "plugin", "version"]
    families: list[GaugeMetricFamily | CounterMetricFamily] = []
    for field, text in _POOL_GAUGES.items():
        families.append(GaugeMetricFamily(f"cloche_pool_{field}", text, labels=names))
    for field, text in _POOL_COUNTERS.items():
        families.append(CounterMetricFamily(f"cloche_pool_{field}", text, labels=names))
    for family, field in zip(families, [*_POOL_GAUGES, *_POOL_COUNTERS], strict=True):
        sums: Counter[tuple[str, str, str]] = Counter()  # a version has several pools when the image has just changed
        for host, pools in hosts.items():
            for pool in pools:
                sums[host, pool["plugin"], pool["version"]] += pool[field]
        for labels, value in sums.items():
            family.add_metric(list(labels), value)
    return families


def _egress_metrics(rows: Iterable[RowMapping]) -> Iterable[Metric]:
    connections = CounterMetricFamily(
        "cloche_egress_connections", "Connections of jobs to the outside, by how they ended.", labels=["verdict"]
    )
    moved = CounterMetricFamily("cloche_egress_bytes", "Bytes that jobs sent and received.", labels=["direction"])
    up = down = 0
    for row in rows:
        connections.add_metric([row["verdict"]], row["connections"])
        up, down = up + row["bytes_up"], down + row["bytes_down"]
    moved.add_metric(["up"], up)
    moved.add_metric(["down"], down)
    yield connections
    yield moved


def _by_state(connection: Connection) -> dict[str, int]:
    job = tables.job
    return {
        state: count for state, count in connection.execute(select(job.c.state, func.count()).group_by(job.c.state))
    }


def _durations(connection: Connection) -> tuple[Any, ...]:
    """Count, sum in seconds, and the count at or below each bucket's edge."""
    job = tables.job
    took = job.c.finished_at - job.c.started_at
    within = [func.coalesce(func.sum(case((took <= int(edge * 1000), 1), else_=0)), 0) for edge in _BUCKETS_S]
    query = select(func.count(), func.coalesce(func.sum(took), 0) / 1000.0, *within).where(took.is_not(None))
    return tuple(connection.execute(query).one())
