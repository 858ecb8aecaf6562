"""Prometheus metrics, counted anew at each scrape from the database and Redis: every process tells the same, and a restart loses nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, RowMapping, case, func, select

from cloche.db import scope, tables
from cloche.domain.jobs import DURATION_EDGES_MS
from cloche.domain.quotas import CODES
from cloche.domain.states import State
from cloche.errors import Unavailable
from cloche.services import callback_store, checkpoint_sinks, egress, past, queue_rows, quota_rows
from cloche.services.container import Services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ENDED = (State.COMPLETED, State.FAILED, State.CANCELED)


def render(services: Services) -> bytes:
    """The text of one scrape.

    Raises:
        Unavailable: the database does not answer.
    """
    registry = CollectorRegistry()
    registry.register(_Scrape(services))
    with scope.across_tenants("numbers over the whole platform"):
        return generate_latest(registry)


class _Scrape(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        states, durations, gone = self._services.db.read(lambda c: (_by_state(c), _durations(c), past.totals(c)))
        yield from _job_metrics(states, durations, gone)
        summary = self._services.workers.summary()
        yield GaugeMetricFamily("job_queue_workers", "Workers alive.", summary["count"])
        yield GaugeMetricFamily("job_queue_workers_ready", "Workers that take jobs.", summary["ready"])
        yield from _pool_metrics(self._services.workers.pools())
        yield from self._queues()
        yield from _egress_metrics(self._services.db.read(egress.totals))
        yield from _callback_metrics(*self._services.db.read(callback_store.totals))
        self._services.gate.flush()
        yield _refusals(self._services.db.read(quota_rows.refusals))
        backlog = self._services.auditing.backlog()
        yield GaugeMetricFamily("cloche_audit_events", "Audit events.", backlog["events"])
        yield GaugeMetricFamily("cloche_audit_unsealed", "Audit events not sealed yet.", backlog["unsealed"])
        yield from _checkpoint_metrics(self._services.db.read(checkpoint_sinks.states))

    def _queues(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily(
            "cloche_redis_ready_jobs", "Jobs in Redis' index; -1 when it does not answer.", labels=["queue"]
        )
        running = GaugeMetricFamily(
            "cloche_redis_in_flight_jobs",
            "Jobs in flight in Redis' index; -1 when it does not answer.",
            labels=["queue"],
        )
        paused = GaugeMetricFamily(
            "cloche_queue_paused", "1 where a queue is paused for every tenant.", labels=["queue"]
        )
        for rules in self._services.db.read(queue_rows.rules):
            try:
                broker = self._services.broker
                depth, flying = broker.depth(rules.queue), len(broker.in_flight(rules.queue))
            except Unavailable:
                depth = flying = -1
            gauge.add_metric([rules.queue], depth)
            running.add_metric([rules.queue], flying)
            paused.add_metric([rules.queue], int(rules.paused))
        return gauge, running, paused


def _job_metrics(states: Mapping[str, int], durations: Any, gone: Mapping[str, int]) -> Iterable[Metric]:
    """``gone``: ends that no row shows any more; a counter may not fall."""
    processed = CounterMetricFamily("job_queue_processed", "Jobs that have ended.", labels=["status"])
    for state in _ENDED:
        processed.add_metric([state.value], states.get(state.value, 0) + gone[state.value])
    yield processed
    yield CounterMetricFamily(
        "job_queue_failed", "Jobs that have failed.", states.get(State.FAILED, 0) + gone[State.FAILED]
    )
    yield GaugeMetricFamily("job_queue_active_jobs", "Jobs a worker holds.", states.get(State.PROCESSING, 0))
    waiting = GaugeMetricFamily("job_queue_pending_jobs", "Jobs that wait.", labels=["status"])
    for state in (State.PENDING, State.SCHEDULED, State.BLOCKED):
        waiting.add_metric([state.value], states.get(state.value, 0))
    yield waiting
    histogram = HistogramMetricFamily("job_queue_duration_seconds", "Seconds from first start to end.")
    edges = zip(DURATION_EDGES_MS, durations[2:], strict=True)
    buckets = [(str(edge / 1000), count + gone[f"took_le_{edge}"]) for edge, count in edges]
    count, seconds = durations[0] + gone[past.COUNT], float(durations[1]) + gone[past.SUM_MS] / 1000
    histogram.add_metric([], [*buckets, ("+Inf", count)], seconds)
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


def _callback_metrics(pending: int, tries: Mapping[str, int]) -> Iterable[Metric]:
    yield GaugeMetricFamily("cloche_callbacks_pending", "Callbacks not yet delivered or given up.", pending)
    counted = CounterMetricFamily(
        "cloche_callback_tries", "Tries to deliver callbacks, by how they ended.", labels=["outcome"]
    )
    for outcome, number in sorted(tries.items()):
        counted.add_metric([outcome], number)
    yield counted


def _refusals(counted: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily("cloche_quota_refusals", "Requests refused by a quota.", labels=["kind"])
    for code in CODES.values():
        kind = code.removeprefix("quota-")
        family.add_metric([kind], counted.get(kind, 0))
    return family


def _by_state(connection: Connection) -> dict[str, int]:
    job = tables.job
    return {
        state: count for state, count in connection.execute(select(job.c.state, func.count()).group_by(job.c.state))
    }


def _durations(connection: Connection) -> tuple[Any, ...]:
    """Count, sum in seconds, and the count at or below each bucket's edge."""
    job = tables.job
    took = job.c.finished_at - job.c.started_at
    within = [func.coalesce(func.sum(case((took <= edge, 1), else_=0)), 0) for edge in DURATION_EDGES_MS]
    query = select(func.count(), func.coalesce(func.sum(took), 0) / 1000.0, *within).where(took.is_not(None))
    return tuple(connection.execute(query).one())


def _checkpoint_metrics(places: Iterable[RowMapping]) -> Iterable[Metric]:
    behind = GaugeMetricFamily(
        "cloche_audit_checkpoint_behind", "Sealed batches that the place does not vouch for yet.", labels=["to"]
    )
    tries = GaugeMetricFamily(
        "cloche_audit_checkpoint_failures", "Tries in vain since the last checkpoint that arrived.", labels=["to"]
    )
    for place in places:
        behind.add_metric([place["name"]], place["behind"])
        tries.add_metric([place["name"]], place["tries"])
    yield behind
    yield tries
