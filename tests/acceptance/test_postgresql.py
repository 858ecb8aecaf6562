"""The whole stack on PostgreSQL, which dies in mid-job and comes back: nothing of ours dies with it, and nothing accepted is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bench.stack import stack
from tests.support.postgres import running_postgres
from tests.support.sensitive import below, read_file
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
SLOW = Path(__file__).parent / "plugins"


@pytest.fixture(scope="module")
def server():
    """One that the tests may kill."""
    with running_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def url(server):
    with server.schemaless() as made:
        yield made


@pytest.fixture(scope="module")
def running(url):
    with stack(database_url=url, plugin_path=str(SLOW)) as made:
        yield made


def readiness(running) -> httpx.Response:
    return httpx.get(f"{running.url}/readyz", timeout=10)


def processes(running) -> set[int]:
    web = json.loads((running.home / "run" / "web.json").read_text())["pid"]
    return {web, *(item["pid"] for item in running.client.get("/workers").json()["items"] if item["status"] == "alive")}


def test_a_database_that_crashes_takes_nothing_along(running, server):
    before = [running.submit({"type": "slow", "payload": {"seconds": 0}})["id"] for _ in range(5)]
    assert [running.finished(job_id, 60)["status"] for job_id in before] == ["completed"] * 5
    alive = processes(running)
    job = running.submit({"type": "slow", "payload": {"seconds": 4}, "retry": {"max_retries": 0}})
    started = f"/trace/{job['id']}"
    until(lambda: "started" in running.client.get(started).text, 30, "the job runs")

    server.stop(signal.SIGQUIT)
    away = until(lambda: answer if (answer := readiness(running)).status_code == 503 else None, 20, "/readyz says so")
    (part,) = [part for part in away.json()["parts"] if part["part"] == "database"]
    assert "PostgreSQL" in part["advice"]
    assert server.password not in away.text
    refused = running.client.post("/jobs", json={"type": "slow"})
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    assert readiness(running).json()["parts"][0]["since"] == part["since"]

    server.start()
    done = running.finished(job["id"], 90)
    assert done["status"] == "completed", done
    until(lambda: readiness(running).status_code == 200, 30, "/readyz is well again")
    assert processes(running) == alive
    after = running.submit({"type": "slow", "payload": {"seconds": 0}})
    assert running.finished(after["id"], 60)["status"] == "completed"


def test_the_record_is_whole_and_verified_by_the_command_line(running, server, url):
    environment = {**os.environ, "CLOCHE_HOME": str(running.home), "CLOCHE_DATABASE_URL": url}

    def verdict():
        command = [sys.executable, "-m", "cloche", "audit", "verify", "-o", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done if done.returncode == 0 else None

    said = json.loads(until(verdict, 30, "the trail is valid").stdout)
    assert (said["status"], said["hmac_checked"]) == ("valid", True)
    assert said["leaves"] >= 3 * 7
    with_secret = [
        path for path in below(running.home) if path.is_file() and server.password.encode() in read_file(path)
    ]
    assert with_secret == []


def test_a_worker_of_another_schema_is_refused(url, server, home):
    environment = {**os.environ, "CLOCHE_HOME": str(home), "CLOCHE_DATABASE_URL": url}
    name = url.rpartition("/")[2]
    ((known,),) = server.run("SELECT version_num FROM alembic_version", name)
    server.run("UPDATE alembic_version SET version_num = '9999'", name)
    try:
        for process in ("worker", "scheduler", "web"):
            done = subprocess.run(
                [sys.executable, "-m", "cloche", process], env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode != 0
            assert "newer version (schema 9999)" in done.stderr
            assert server.password not in done.stderr + done.stdout
    finally:
        server.run(f"UPDATE alembic_version SET version_num = '{known}'", name)
