"""A container engine that is away, dies in mid-job, and comes back: jobs wait or run again, and it is never their fault."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from bench.stack import stack
from tests.support.engine import running_engine
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
SLOW = Path(__file__).parent / "plugins"


def test_jobs_outlive_their_engine():
    with running_engine() as engine, stack(sandbox_docker_socket=str(engine.socket), plugin_path=str(SLOW)) as running:
        job = running.submit({"type": "slow", "payload": {"seconds": 40}, "retry": {"max_retries": 0}})
        until(lambda: "started" in events(running, job["id"]), 40, "the job runs")
        engine.kill()
        away = until(lambda: not_ready(running), 30, "/readyz says that no engine answers")
        assert "engine" in away.text.lower()
        waiting = running.submit({"type": "slow"})
        assert running.client.get(f"/jobs/{waiting['id']}").json()["status"] == "pending"

        engine.start()
        done = running.finished(job["id"], 90)
        assert done["status"] == "completed", done
        assert done["attempt"] >= 2
        assert running.finished(waiting["id"], 90)["status"] == "completed"
        failed = [
            a for a in running.client.get(f"/jobs/{job['id']}/attempts").json()["items"] if a["outcome"] != "completed"
        ]
        assert {a["reason"] for a in failed} <= {"engine_unavailable", "lease_lapsed"}
        until(lambda: httpx.get(f"{running.url}/readyz").status_code == 200, 30, "/readyz is well again")


def events(running, job_id: str) -> list[str]:
    return [event["event_type"] for event in running.client.get(f"/trace/{job_id}").json()["items"]]


def not_ready(running) -> httpx.Response | None:
    answer = httpx.get(f"{running.url}/readyz", timeout=10)
    return answer if answer.status_code == 503 else None
