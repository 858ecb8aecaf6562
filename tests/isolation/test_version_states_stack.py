"""A version that is disabled or yanked on the real stack: what waited for its jobs is gone from the engine, and jobs accepted before complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.stack import Stack, stack
from tests.support.plugins import write_bundle
from tests.support.sandbox import containers_of
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
PLENTY_S = 120
MORE = """
[limits]
memory = "64MB"
output = "1MB"
tmp = "1MB"
shm = "1MB"
[sandbox]
isolation = "{level}"
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("plugins")
    for level in ("container", "namespace"):
        write_bundle(folder, f"in_{level}", more=MORE.format(level=level))
    # Nothing that waits goes by itself while this runs.
    with stack(plugin_path=str(folder), worker_slots="2", pool_idle="1h", cells_idle="1h") as made:
        yield made


def put(running: Stack, name: str, state: str) -> None:
    path, why = f"/plugins/{name}/1.0.0", "a test"
    tag = running.client.get(path).headers["ETag"]
    changed = running.client.patch(path, json={"state": state, "reason": why}, headers={"If-Match": tag})
    assert changed.status_code == 200, changed.text


def pause(running: Stack, paused: bool) -> None:
    answer = running.client.patch("/queues/default", json={"paused": paused}, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text


def waiting(running: Stack, name: str) -> int:
    """Sandboxes without a job, and those being made, of the plugin on the host, as operators see them."""
    [worker] = [item for item in running.client.get("/workers").json()["items"] if item["status"] == "alive"]
    return sum(pool["warm"] + pool["filling"] for pool in worker["pools"] if pool["plugin"] == name)


def started(running: Stack, job_id: str) -> dict[str, Any]:
    items = running.client.get(f"/trace/{job_id}").json()["items"]
    [details] = [item["details"] for item in items if item["event_type"] == "sandbox_started"]
    return dict(details)


def completed(running: Stack, job_id: str) -> None:
    done = running.finished(job_id, PLENTY_S)
    assert done["status"] == "completed", done


@pytest.mark.parametrize("level", ["container", "namespace"])
@pytest.mark.parametrize("state", ["disabled", "yanked"])
def test_what_waits_goes_and_what_was_accepted_completes(running: Stack, level: str, state: str) -> None:
    name = f"in_{level}"
    put(running, name, "enabled")  # again, after the test before

    def asked_for() -> int:
        """Workers hear within a heartbeat that it takes jobs; those after that have some made for the next."""
        completed(running, running.submit({"type": name})["id"])
        return waiting(running, name)

    until(asked_for, PLENTY_S, "some wait for the next job")
    # What operators see is up to a heartbeat old, and counts those being made: the last job may have taken the only one there was.
    until(lambda: containers_of(running.home), PLENTY_S, "some are on the engine")
    pause(running, True)
    accepted = running.submit({"type": name})["id"]
    put(running, name, state)
    until(lambda: not containers_of(running.home), PLENTY_S, "what waited is gone from the engine")
    until(lambda: not waiting(running, name), PLENTY_S, "operators see none")
    refused = running.client.post("/jobs", json={"type": name})
    assert refused.status_code == 422, refused.text
    assert f"it is {state} (a test)" in refused.json()["errors"][0]["detail"]
    pause(running, False)
    completed(running, accepted)
    how = started(running, accepted)
    assert (how["level"], how["start"], how["why"]) == ("container", "cold", "its version takes no new jobs")
    until(lambda: not containers_of(running.home), PLENTY_S, "the cold start brought no pool back")
