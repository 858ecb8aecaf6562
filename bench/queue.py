"""`./run bench queue`: the whole system as its clients meet it, on SQLite and on PostgreSQL, beside other queues and a bare web application.

Every job goes through REST, is on the disk with its audit event when `POST` is answered, and runs in a sandbox of its own. Two stacks for each
database, each thrown away with what it holds: one whose worker runs the jobs, and one whose worker takes none of them, so that submits and
batches are measured alone. The peers of `--peers DIR` and the bare application run before them, one after the other.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import bare, queue_peers
from bench.engine import socket_path
from bench.figures import Row, figures
from bench.http_load import Line, flood, spelled
from bench.stack import Stack, stack
from tests.support import postgres

NAMESPACE, CONTAINER = "cell", "noop"  # the plugins of this folder that run at these levels
LINES = 16  # connections of a flood
LIVE_LINES = 4  # connections that submit while the worker runs what came
_BATCH = 10_000
_BATCHES = 5
_THREADS = 32  # of both web servers
_ENDED = ("completed", "failed", "canceled")
_THINK_S = 0.008  # the mean pause between two jobs of an idle system, as the peers make it
_SLOTS = {"worker_count": "1", "worker_slots": "4"}


@dataclass(frozen=True)
class Counts:
    """How many of each. Multiplied by ``--count`` over 40."""

    drained: int = 1_500
    live: int = 800
    rounds: int = 150
    container: int = 20
    submits: int = 4_000

    def times(self, factor: float) -> Counts:
        return Counts(*(max(10, round(factor * number)) for number in vars(self).values()))


@dataclass
class Run:
    """Everything of one run. Of ``databases``: by name, then ``drain``, ``live``, ``submits``, ``batch`` (a second), ``namespace`` and
    ``container`` (rows of :func:`figures`); or ``not measured``."""

    load: tuple[float, float] = (0.0, 0.0)  # of the machine in the minute before this run began and at its end
    peers: dict[str, queue_peers.Figures] = field(default_factory=dict)
    bare: float = 0.0
    databases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rq(self) -> queue_peers.Figures:
        return self.peers[queue_peers.PEERS[0].name]


def rows(run: Run, counts: Counts, folder: Path | None) -> Iterator[Row]:
    """Measure all into ``run``; rows as they come."""
    before = os.getloadavg()[0]
    yield {"what": "load of the machine before", "processes": round(before, 1)}
    run.peers = queue_peers.measured(folder)
    for name, found in run.peers.items():
        yield {"what": name, **found}
    with tempfile.TemporaryDirectory(prefix="cloche-bench-") as home, bare.running(Path(home), _THREADS) as url:
        run.bare = submits(url, {}, counts.submits)
    yield {"what": f"bare Flask and one XADD, {LINES} connections", "per_s": round(run.bare)}
    yield from database(run, "SQLite", counts, {})
    try:
        postgres.binaries()
    except AssertionError as missing:
        run.databases["PostgreSQL"] = {"not measured": str(missing)}
        yield {"what": "PostgreSQL", "not measured": str(missing)}
    else:
        with postgres.running_postgres() as server:
            yield from database(run, "PostgreSQL", counts, {"server": server})
    run.load = (before, os.getloadavg()[0])


def database(run: Run, name: str, counts: Counts, on: dict[str, Any]) -> Iterator[Row]:
    found = run.databases[name] = {}
    with _stack(on) as running:
        headers = _headers(running)
        finish(running, headers, 2, CONTAINER)
        finish(running, headers, 100, NAMESPACE)
        one = figures(f"{name}: POST to result, level namespace", latency(running, headers, NAMESPACE, counts.rounds))
        found["namespace"] = one
        yield one
        one = figures(
            f"{name}: POST to result, level container", latency(running, headers, CONTAINER, counts.container)
        )
        found["container"] = one
        yield one
        found["drain"] = drain(running, headers, counts.drained)
        yield _rate(
            f"{name}: {counts.drained} jobs waiting, level namespace", found["drain"], run.rq.get("drain"), "RQ"
        )
        found["live"] = live(running, headers, counts.live)
        yield _rate(f"{name}: {counts.live} jobs, POST to the last end", found["live"], run.rq.get("e2e"), "RQ")
    with _stack(on, worker_queues="sensitive") as running:
        headers = _headers(running)
        submits(f"{running.client.base_url}jobs", headers, 200)
        found["submits"] = submits(f"{running.client.base_url}jobs", headers, counts.submits)
        yield _rate(f"{name}: submits, {LINES} connections", found["submits"], run.bare, "bare")
        found["batch"], longest = batches(running, headers)
        yield _rate(f"{name}: batches of {_BATCH}", found["batch"], None, "") | {"longest_ms": round(longest * 1000)}


@contextmanager
def _stack(on: dict[str, Any], **settings: str) -> Iterator[Stack]:
    chosen = {
        "plugin_path": str(Path(__file__).parent / "plugins"),
        "sandbox_docker_socket": socket_path(),
        "server_threads": str(_THREADS),
        "logging_level": "warning",
        **_SLOTS,
        **settings,
    }
    if not on:
        with stack(**chosen) as running:
            yield running
        return
    with on["server"].database() as url, stack(database_url=url, **chosen) as running:
        yield running


def _headers(running: Stack) -> dict[str, str]:
    return {"Authorization": running.client.headers["Authorization"]}


def submits(url: str, headers: dict[str, str], count: int) -> float:
    """Requests a second, each for a job that nobody takes."""
    body = {"type": NAMESPACE, "payload": {}, "priority": 5}
    return count / flood(url, [spelled(url, "POST", body, headers)] * count, LINES, 202)


def batches(running: Stack, headers: dict[str, str]) -> tuple[float, float]:
    """Jobs a second by the median of some batches, after one that is not counted, and the seconds of the longest."""
    url = f"{running.client.base_url}jobs/batch"
    jobs = [{"type": NAMESPACE, "labels": {"n": str(number)}} for number in range(_BATCH)]
    request = spelled(url, "POST", {"jobs": jobs}, headers)
    line, took = Line(url), []
    for _ in range(_BATCHES + 1):
        began = time.perf_counter()
        line.ask(request, 202)
        took.append(time.perf_counter() - began)
    line.close()
    return _BATCH / statistics.median(took[1:]), max(took[1:])


def latency(running: Stack, headers: dict[str, str], plugin: str, rounds: int) -> list[float]:
    """Seconds from `POST` until the job's end is in the client's hand, one job after the other on a system that does nothing else."""
    base = str(running.client.base_url)
    submit = spelled(f"{base}jobs", "POST", {"type": plugin}, headers)
    line, took, pause = Line(base), [], random.Random(1)
    for _ in range(rounds):
        if plugin == CONTAINER:
            wait_full(running)
        time.sleep(pause.uniform(0, 2 * _THINK_S))
        began = time.perf_counter()
        job = line.ask(submit, 202)
        wait = spelled(f"{base}jobs/{job['id']}?wait=20s", "GET", None, headers)
        while job["status"] not in _ENDED:
            job = line.ask(wait, 200)
        took.append(time.perf_counter() - began)
        if job["status"] != "completed":
            raise RuntimeError(f"{job['status']}: {job['reason_text']}")
    line.close()
    return took


def wait_full(running: Stack) -> None:
    """Return when the pool of level ``container`` is full and quiet, as the worker told a moment ago."""
    deadline = time.monotonic() + 60
    time.sleep(0.3)
    while time.monotonic() < deadline:
        workers = running.client.get("/workers").json()["items"]
        pools = [
            pool for worker in workers for pool in worker["pools"] if pool.get("level", "container") == "container"
        ]
        if any(pool["warm"] for pool in pools) and not any(pool["filling"] or pool["busy"] for pool in pools):
            return
        time.sleep(0.1)
    raise RuntimeError("the pool does not fill")


def drain(running: Stack, headers: dict[str, str], count: int) -> float:
    """Jobs a second of a backlog, from the first fifth of the ends to the last."""
    ends = finish(running, headers, count, NAMESPACE)
    first = count // 5
    return (count - 1 - first) / (ends[-1] - ends[first])


def finish(running: Stack, headers: dict[str, str], count: int, plugin: str) -> list[float]:
    """Submit a batch, wait for its end, and return when each of its jobs ended (seconds, in order)."""
    base = str(running.client.base_url)
    line = Line(base)
    jobs = [{"type": plugin}] * count
    batch = line.ask(spelled(f"{base}jobs/batch", "POST", {"jobs": jobs}, headers), 202)
    request = spelled(f"{base}batches/{batch['id']}", "GET", None, headers)
    deadline = time.monotonic() + 180
    while sum(number for state, number in line.ask(request, 200)["jobs"].items() if state in _ENDED) < len(jobs):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the batch does not end:\n{running.tail()}")
        time.sleep(0.3)
    return ended(line, f"{base}batches/{batch['id']}/jobs?limit=100", headers)


def ended(line: Line, url: str, headers: dict[str, str], count: int | None = None) -> list[float]:
    """When the listed jobs ended, the first ``count`` of them, in the order of their ends."""
    ends: list[float] = []
    cursor = ""
    while True:
        page = line.ask(spelled(url + cursor, "GET", None, headers), 200)
        for job in page["items"]:
            if job["status"] != "completed":
                raise RuntimeError(f"{job['status']}: {job['reason_text']}")
            ends.append(datetime.fromisoformat(job["finished_at"]).timestamp())
        if page["next_cursor"] is None or (count is not None and len(ends) >= count):
            return sorted(ends[:count])
        cursor = f"&cursor={page['next_cursor']}"


def live(running: Stack, headers: dict[str, str], count: int) -> float:
    """Jobs a second from the first `POST` to the last end, one `POST` for each."""
    base = str(running.client.base_url)
    began = time.time()
    flood(base, [spelled(f"{base}jobs", "POST", {"type": NAMESPACE}, headers)] * count, LIVE_LINES, 202)
    line = Line(base)
    for state in ("pending", "processing"):
        while line.ask(spelled(f"{base}jobs?status={state}&limit=1", "GET", None, headers), 200)["items"]:
            time.sleep(0.2)
    ends = ended(line, f"{base}jobs?limit=100", headers, count)
    line.close()
    return count / (ends[-1] - began)


def _rate(what: str, rate: float, other: float | None, name: str) -> Row:
    row: Row = {"what": what, "per_s": round(rate, 1) if rate < 1_000 else round(rate)}
    return row | ({f"ratio to {name}": round(rate / other, 2)} if other else {})


if __name__ == "__main__":
    for _row in rows(Run(), Counts(), None):
        print(json.dumps(_row), flush=True)
