"""Workers come, drain and go on the real stack, under the supervisor and by hand; no job notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bench.stack import stack
from cloche.worker import exits
from tests.support.stores import until

SLOW = str(Path(__file__).parent / "plugins")
SETTINGS = {"plugin_path": SLOW, "worker_heartbeat": "500ms"}
pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def running():
    with stack(**SETTINGS, worker_count="2", worker_slots="2", worker_labels="zone=eu") as made:
        yield made


@contextmanager
def by_hand(running, *arguments, **settings):
    """A worker beside the supervisor's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
    given = {f"CLOCHE_{name}".upper(): value for name, value in {**SETTINGS, **settings}.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "cloche", "worker", *arguments],
        cwd=running.home,
        env={**kept, "CLOCHE_HOME": str(running.home), **given},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: ready(running, process.pid), 40, "the worker takes jobs")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def workers(running):
    return running.client.get("/workers").json()["items"]


def ready(running, pid):
    return any(w["pid"] == pid and w["status"] == "alive" and w["status_reason"] is None for w in workers(running))


def holder(running, job_id):
    """The worker that runs the job, once its plugin does."""

    def started():
        trace = running.client.get(f"/trace/{job_id}").json()["items"]
        found = [worker for worker in workers(running) if job_id in worker["current_job_ids"]]
        return found if found and any(event["event_type"] == "started" for event in trace) else None

    return until(started, 40, "the job runs")[0]


def attempts(running, job_id):
    items = running.client.get(f"/jobs/{job_id}/attempts").json()["items"]
    return [(item["worker"], item["outcome"], item["reason"]) for item in items]


def slow(running, seconds):
    return running.submit({"type": "slow", "payload": {"seconds": seconds}})["id"]


def drain(running, worker):
    answer = running.client.post(f"/workers/{worker['id']}/drain")
    assert (answer.status_code, answer.json()["status"]) == (202, "draining")


def has_left(running, worker, why):
    def left():
        (row,) = [one for one in workers(running) if one["id"] == worker["id"]]
        return row["status"] == "dead" and row["status_reason"] == why

    return until(left, 60, f"the worker has left: {why}")


def test_drained_workers_finish_what_they_run_and_their_places_stay_empty(running):
    job = slow(running, 4)
    first = holder(running, job)
    assert (first["labels"], first["resources"]["memory_free"] > 0) == ({"zone": "eu"}, True)
    drain(running, first)
    until(lambda: "finishing what runs" in running.tail(50_000), 30, "the worker has heard of it")
    others = [slow(running, 0) for _ in range(6)]
    assert {running.finished(other)["status"] for other in others} == {"completed"}
    assert {worker for other in others for worker, _, _ in attempts(running, other)} != {first["id"]}
    assert not any(first["id"] == worker for other in others for worker, _, _ in attempts(running, other))
    assert running.finished(job)["status"] == "completed"
    assert attempts(running, job) == [(first["id"], "completed", "succeeded")]
    has_left(running, first, "drained")
    until(
        lambda: "was drained and has left; its place stays empty" in running.tail(50_000), 30, "the supervisor says so"
    )
    (second,) = [worker for worker in workers(running) if worker["status"] == "alive"]
    drain(running, second)
    has_left(running, second, "drained")
    until(lambda: httpx.get(f"{running.url}/readyz").status_code == 503, 30, "nobody takes jobs, and that is said")
    waits = slow(running, 0)
    with by_hand(running, "--slots", "3", worker_labels="zone=us") as process:
        assert running.finished(waits)["status"] == "completed"
        ((found, _, _),) = attempts(running, waits)
        alive = [worker for worker in workers(running) if worker["status"] == "alive"]
        assert [(one["id"], one["pid"], one["slots"], one["labels"]) for one in alive] == [
            (found, process.pid, 3, {"zone": "us"})
        ], "the supervisor has started none again"
        numbers = running.client.get("/workers/stats").json()
        assert numbers["count"] == {"alive": 1, "draining": 0, "dead": 2}
        assert {row["id"]: row["completed"] for row in numbers["workers"]}[found] == 1
        drain(running, alive[0])
        assert process.wait(60) == exits.DRAINED


def test_a_stopped_worker_lets_jobs_finish_for_its_grace(running):
    with by_hand(running, worker_grace="60s") as process:
        job = slow(running, 3)
        me = holder(running, job)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == exits.STOPPED
        assert attempts(running, job) == [(me["id"], "completed", "succeeded")]
        has_left(running, me, "stopped")


def test_what_does_not_finish_within_the_grace_goes_back_at_once_and_at_no_charge(running):
    # A lease that nobody gave back would be held for longer than this test waits.
    with by_hand(running, worker_grace="200ms", worker_lease="10m") as process:
        job = slow(running, 60)
        me = holder(running, job)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == exits.STOPPED
        row = running.client.get(f"/jobs/{job}").json()
        assert (row["status"], row["reason"]) == ("pending", "worker_stopped")
        assert attempts(running, job) == [(me["id"], "abandoned", "worker_stopped")]
    running.client.post(f"/jobs/{job}/cancel").raise_for_status()
    numbers = running.client.get("/queues/default/stats").json()
    assert numbers["depth"]["pending"] == 0
    assert numbers["flow"]["completed"] >= 9
    assert numbers["times"]["run_s"]["p99"] >= 3
