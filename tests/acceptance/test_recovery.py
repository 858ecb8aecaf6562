"""What dies comes back, and no accepted job is lost: on the real stack."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import docker
import pytest
import redis

from bench.stack import stack
from cloche.clock import now_ms, to_rfc3339
from tests.support.stores import until

SLOW = Path(__file__).parent / "plugins"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def running():
    with stack(plugin_path=str(SLOW), worker_slots="2") as made:
        yield made


def worker_pid(running) -> int:
    alive = [item for item in running.client.get("/workers").json()["items"] if item["status"] == "alive"]
    return alive[0]["pid"]


def processing(running, job_id: str) -> bool:
    trace = running.client.get(f"/trace/{job_id}").json()["items"]
    return any(event["event_type"] == "started" for event in trace)


def terminal_events(running, job_id: str) -> list[str]:
    trace = running.client.get(f"/trace/{job_id}").json()["items"]
    return [event["event_type"] for event in trace if event["event_type"] in ("completed", "failed", "canceled")]


def sandboxes(job_id: str) -> list[str]:
    with closing(docker.DockerClient(base_url="unix:///var/run/docker.sock")) as engine:
        found = engine.containers.list(all=True, filters={"label": f"cloche.job={job_id}"}, ignore_removed=True)
        return [str(container.id) for container in found]


def test_a_killed_workers_job_runs_again_and_completes_once(running):
    job = running.submit({"type": "slow", "payload": {"seconds": 40}, "retry": {"max_retries": 0}})
    until(lambda: processing(running, job["id"]), 30, "the job runs")
    os.kill(worker_pid(running), signal.SIGKILL)
    done = running.finished(job["id"], 60)
    assert (done["status"], done["attempt"]) == ("completed", 2)
    assert terminal_events(running, job["id"]) == ["completed"]
    attempts = running.client.get(f"/jobs/{job['id']}/attempts").json()["items"]
    assert [(item["outcome"], item["reason"]) for item in attempts] == [
        ("abandoned", "lease_lapsed"),
        ("completed", "succeeded"),
    ]
    started = [e for e in running.client.get(f"/trace/{job['id']}").json()["items"] if e["event_type"] == "claimed"]
    assert len(started) == 2
    until(lambda: not sandboxes(job["id"]), 20, "no sandbox of the job is left")


def test_a_flushed_queue_loses_nothing(running):
    ids = [running.submit({"type": "slow", "payload": {"seconds": 0}})["id"] for _ in range(50)]
    with redis.Redis(unix_socket_path=str(running.home / "run" / "valkey.sock")) as client:
        client.flushall()
    assert [running.finished(job_id, 120)["status"] for job_id in ids] == ["completed"] * 50
    assert {tuple(terminal_events(running, job_id)) for job_id in ids} == {("completed",)}


def test_a_running_job_is_canceled_within_moments(running):
    job = running.submit({"type": "slow", "payload": {"seconds": 60}})
    until(lambda: processing(running, job["id"]), 30, "the job runs")
    assert running.client.post(f"/jobs/{job['id']}/cancel").status_code == 202
    done = running.finished(job["id"], 20)
    assert (done["status"], done["reason"]) == ("canceled", "canceled_by_user")
    until(lambda: not sandboxes(job["id"]), 20, "its sandbox is gone")


def test_a_job_is_killed_at_its_deadline_and_says_so(running):
    job = running.submit({"type": "slow", "payload": {"seconds": 60}, "timeout": "1s", "retry": {"max_retries": 0}})
    done = running.finished(job["id"], 30)
    assert (done["status"], done["reason"]) == ("failed", "timed_out")


def test_a_failing_plugin_is_retried_with_its_own_budget(running):
    retry = {"max_retries": 2, "initial_delay": "10ms", "max_delay": "20ms"}
    job = running.submit({"type": "slow", "payload": {"fail": True}, "retry": retry})
    done = running.finished(job["id"], 60)
    assert (done["status"], done["reason"], done["attempt"]) == ("failed", "plugin_failed", 3)
    assert "asked to fail" in done["error"]["message"]


def test_jobs_wait_for_times_and_jobs_and_run_anew_by_hand(running):
    at = to_rfc3339(now_ms() + 5_000)
    first = running.submit({"type": "slow", "payload": {"seconds": 0}, "schedule_at": at})
    second = running.submit({"type": "slow", "payload": {"seconds": 0}, "depends_on": [first["id"]]})
    fails = {"type": "slow", "payload": {"fail": True}, "retry": {"max_retries": 0}}
    broken = running.submit({**fails, "schedule_at": at})
    never = running.submit({"type": "slow", "payload": {"seconds": 0}, "depends_on": [broken["id"], second["id"]]})
    states = [job["status"] for job in (first, second, broken, never)]
    assert states == ["scheduled", "blocked", "scheduled", "blocked"]
    assert running.finished(never["id"], 60)["reason"] == "upstream_failed"
    done = running.finished(second["id"], 60)
    assert done["status"] == "completed"
    assert at <= running.finished(first["id"], 60)["started_at"] <= done["started_at"]
    assert broken["id"] in [item["id"] for item in running.client.get("/dead-letters").json()["items"]]
    assert running.client.post(f"/jobs/{broken['id']}/retry").json()["run"] == 2
    assert running.finished(broken["id"], 60)["status"] == "failed"
    attempts = running.client.get(f"/jobs/{broken['id']}/attempts").json()["items"]
    assert [(item["number"], item["run"]) for item in attempts] == [(1, 1), (2, 2)]


def test_a_killed_sandboxd_costs_the_job_nothing(running):
    job = running.submit({"type": "slow", "payload": {"seconds": 40}, "retry": {"max_retries": 0}})
    until(lambda: processing(running, job["id"]), 30, "the job runs")
    os.kill(sandboxd_pid(running), signal.SIGKILL)
    done = running.finished(job["id"], 90)
    assert done["status"] == "completed"
    assert done["attempt"] >= 2
    assert terminal_events(running, job["id"]) == ["completed"]


def test_a_dead_valkey_is_started_again_and_nothing_is_lost(running):
    ids = [running.submit({"type": "slow", "payload": {"seconds": 0}})["id"] for _ in range(5)]
    for pid in children(running.pid):
        if "valkey" in command(pid) or "redis" in command(pid):
            os.kill(pid, signal.SIGKILL)
    ids += [running.submit({"type": "slow", "payload": {"seconds": 0}})["id"] for _ in range(5)]
    assert [running.finished(job_id, 120)["status"] for job_id in ids] == ["completed"] * 10


def test_the_record_of_all_this_is_valid(running):
    def sealed():
        verdict = running.client.get("/audit/verify").json()
        return verdict if verdict["unsealed"] == 0 or verdict["status"] != "valid" else None

    verdict = until(sealed, 20, "everything is sealed")
    assert verdict["status"] == "valid", verdict


def sandboxd_pid(running) -> int:
    return next(pid for pid in children(running.pid) if "sandboxd" in command(pid))


def children(pid: int) -> list[int]:
    return [int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
