"""``cloche worker list|stats|drain``, ``cloche stats`` and ``cloche queue stats`` against a small real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloche.web.routing import Shape
from cloche.web.statistics_shapes import QueueStatsOut, StatsOut, WorkersStatsOut
from cloche.web.worker_shapes import WorkerOut
from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

ID = "01900000-0000-7000-8000-000000000001"
NOW = "2026-01-31T12:00:00.000Z"
RESOURCES = {"cpu_count": 8, "load": 0.25, "memory_total": 16 << 30, "memory_free": 3 << 30}
WORKER: dict[str, Any] = {
    "id": ID,
    "host": "host\x1b[31m",
    "pid": 7,
    "version": "0.1.0",
    "status": "draining",
    "status_reason": "it was asked to drain",
    "drain_requested": True,
    "queues": ["default"],
    "labels": {"zone": "eu", "gpu": ""},
    "slots": 4,
    "busy": 1,
    "free": 0,
    "resources": {**RESOURCES, "disk_total": None, "disk_free": None},
    "pools": [],
    "current_job_ids": [],
    "started_at": NOW,
    "last_heartbeat": NOW,
}
COUNT = {"alive": 1, "draining": 1, "dead": 0}
SLOTS = {"total": 8, "busy": 3, "free": 5, "utilisation": 0.375}
FLOW = {"arrived": 60, "completed": 50, "failed": 2, "canceled": 1, "arrival_rate": 1.0, "completion_rate": 0.8833}
FLOW |= {"failure_share": 0.0385, "complete": True}
TIMES = {"jobs_looked_at": 2000, "complete": False, "wait_s": {"p50": 0.01, "p95": 0.1, "p99": 1.0}, "run_s": None}
DEPTH = {"scheduled": 0, "blocked": 0, "pending": 3, "processing": 1}
STATS: dict[str, Any] = {
    "generated_at": NOW,
    "jobs": DEPTH,
    "dead_letters": 2,
    "counts_complete": False,
    "windows": {"1m": FLOW, "5m": {**FLOW, "complete": False}, "1h": {**FLOW, "failure_share": None}},
    "times": {"window": "1h", **TIMES},
    "workers": COUNT,
    "slots": SLOTS,
    "queues": [{"name": "default", "depth": DEPTH, "oldest_age_s": 1.5, "windows": {"1m": FLOW}}],
}
QUEUE: dict[str, Any] = {
    "name": "default",
    "generated_at": NOW,
    "window_s": 60.0,
    "depth": DEPTH,
    "depth_complete": True,
    "oldest_age_s": 1.5,
    "flow": FLOW,
    "times": TIMES,
}
WORKERS: dict[str, Any] = {
    "generated_at": NOW,
    "window_s": 60.0,
    "count": COUNT,
    "slots": SLOTS,
    "jobs_looked_at": 2000,
    "complete": False,
    "workers": [
        {"id": ID, "host": "host", "status": "alive", "slots": 4, "busy": 1, "completed": 41, "failed": 3},
    ],
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /workers"] = Answer({"items": [WORKER]})
        fake.routes["GET /workers/stats"] = Answer(WORKERS)
        fake.routes[f"POST /workers/{ID}/drain"] = Answer(WORKER, 202)
        fake.routes["GET /stats"] = Answer(STATS)
        fake.routes["GET /queues/default/stats"] = Answer(QUEUE)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


@pytest.mark.parametrize(
    ("shape", "value"), [(WorkerOut, WORKER), (StatsOut, STATS), (QueueStatsOut, QUEUE), (WorkersStatsOut, WORKERS)]
)
def test_the_server_answers_as_the_real_one(shape: type[Shape], value: dict[str, Any]) -> None:
    assert shape.model_validate(value).model_dump() == value


def test_workers_are_listed(cli: Cli) -> None:
    ran = cli("worker", "list")
    assert ran.code == 0, ran.err
    for text in (ID, "draining", "1/4", "gpu= zone=eu", "0.25 / 8", "3.0 GB of 16.0 GB", "it was asked to drain"):
        assert text in ran.out
    assert "\x1b" not in ran.out
    assert cli("worker", "list", "-o", "name").out == f"{ID}\n"


def test_workers_in_numbers(api: FakeApi, cli: Cli) -> None:
    ran = cli("worker", "stats", "--window", "1h")
    assert (ran.code, api.asked[-1].query) == (0, {"window": "1h"})
    assert "41" in ran.out
    assert "3 busy, 5 free" in ran.err
    assert "newest 2000" in ran.err
    assert cli("worker", "stats", "-o", "json").err == ""


def test_a_worker_is_drained(api: FakeApi, cli: Cli) -> None:
    ran = cli("worker", "drain", ID)
    assert ran.code == 0, ran.err
    assert "draining" in ran.out
    assert (api.asked[-1].method, api.asked[-1].path) == ("POST", f"/workers/{ID}/drain")
    assert cli("worker", "drain", ID, "-o", "name").out == f"{ID}\n"
    other = ID.replace("1900", "1901")
    api.routes[f"POST /workers/{other}/drain"] = Answer({"title": "Conflict", "detail": "dead", "status": 409}, 409)
    assert cli("worker", "drain", other).code == 1


@pytest.mark.parametrize("words", [["drain"], ["drain", "../users"], ["drain", "x"], ["--slots", "2", "list"], ["nap"]])
def test_what_makes_no_sense_asks_nothing(api: FakeApi, cli: Cli, words: list[str]) -> None:
    assert cli("worker", *words).code == 2
    assert api.asked == []


def test_everything_in_numbers(api: FakeApi, cli: Cli) -> None:
    ran = cli("stats")
    assert ran.code == 0, ran.err
    for text in (
        "3 pending, 1 processing (at least)",
        "60 came, 50 completed, 2 failed, 1 canceled",
        "3.9%",
        "p99 1.000 s",
    ):
        assert text in ran.out
    assert "2000 jobs, the newest" in ran.out
    assert "3 busy, 5 free" in ran.out
    api.routes["GET /stats"] = Answer({**STATS, "workers": None, "slots": None})
    assert "slots" not in cli("stats").out


def test_one_queue_in_numbers(api: FakeApi, cli: Cli) -> None:
    ran = cli("queue", "stats", "default", "--window", "1m")
    assert (ran.code, api.asked[-1].query) == (0, {"window": "1m"})
    assert "1.5 s" in ran.out
    assert "0.88 ended a second" in ran.out
    assert cli("queue", "stats", "a/../../users").code == 5, "one name, whatever is in it"
    assert api.asked[-1].path == "/queues/a%2F..%2F..%2Fusers/stats"
    assert cli("queue", "stats", "..").code == 2
