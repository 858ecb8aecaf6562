"""Jobs of every ugly kind through the real stack: each ends under its own name, and then nothing of them is left.

:data:`UGLY_JOBS` of them in a row; the long run is ``./run test tests/acceptance/test_ugly_jobs.py --ugly-jobs 300 -rP``, which prints what
was counted before and after.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench import held as counts
from bench.stack import Stack, stack
from cloche.isolation.spec import LABEL
from cloche.sandboxd import syscalls, uids
from cloche.sandboxd.places import home_digest
from tests.support.stores import until

UGLY_JOBS = 60
PLUGINS = Path(__file__).parent / "plugins"
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1_800)]


@dataclass(frozen=True)
class Kind:
    """One way to misbehave, and the name it ends under. ``limit``: what the error's details say was allowed."""

    name: str
    reason: str
    limit: int | None = None
    says: str = ""
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return "completed" if self.reason == "succeeded" else "failed"


MIB = 1 << 20
SHORT = {"timeout": "1s"}
SMALL = {"limits": {"output": "2MB"}}
KINDS = (
    Kind("fine", "succeeded"),
    Kind("sleep", "timed_out", 1_000, "1 s", SHORT),
    Kind("spin", "timed_out", 1_000, "1 s", SHORT),
    Kind("deaf", "timed_out", 1_000, "1 s", SHORT),
    Kind("half_frame", "timed_out", 1_000, "1 s", SHORT),
    Kind("slow_frame", "timed_out", 1_000, "1 s", SHORT),
    Kind("memory", "out_of_memory", 96 * MIB, "96 MB"),
    Kind("memory_of_a_child", "out_of_memory", 96 * MIB, "96 MB"),
    Kind("forks", "too_many_processes", 32, "32"),
    Kind("fork_bomb", "too_many_processes", 32, "32", SHORT),
    Kind("fill", "output_too_large", 80 * MIB, str(80 * MIB)),
    Kind("fill", "output_too_large", 2 * MIB, str(2 * MIB), SMALL),
    Kind("sparse", "output_too_large", 2 * MIB, str(2 * MIB), SMALL),
    Kind("many_files", "too_many_files", 50, "50"),
    Kind("many_files", "too_many_files", 50, "50", SMALL),
    Kind("some_files", "too_many_files", 50, "50", SMALL),
    Kind("locks", "too_many_locks", 1_000, "1000", SMALL),
    Kind("no_files", "succeeded", body=SMALL),
    Kind("scratch", "plugin_failed", says="No space left"),
    Kind("log", "succeeded"),
    Kind("long_line", "succeeded", body=SMALL),
    Kind("progress", "succeeded", body=SMALL),
    Kind("large_result", "result_too_large", 1_000, "1000"),
    Kind("nan", "bad_result", says="NaN"),
    Kind("leave", "no_result", says="exit(0)"),
    Kind("leave_hard", "no_result"),
    Kind("code", "plugin_crashed", says="exit code 7"),
    Kind("segfault", "plugin_crashed", says="SIGSEGV"),
    Kind("kill_everything", "plugin_crashed", says="SIGKILL"),
    Kind("error", "plugin_failed", says="asked to fail"),
    Kind("daemons", "succeeded", body=SMALL),
    Kind("descriptors", "plugin_failed", says="Too many open files"),
    Kind("garbage", "bad_result", says="protocol"),
    Kind("frame_flood", "bad_result", says="too many frames"),
    Kind("log_flood", "bad_result", says="too many bytes"),
)


@pytest.fixture(scope="module")
def running() -> Iterator[Stack]:
    # Sandboxes that wait for the next job are given up soon, so that at the end nothing at all is left.
    with stack(plugin_path=str(PLUGINS), worker_slots="2", pool_idle="2s") as made:
        yield made


def submit(running: Stack, kind: Kind) -> str:
    body = {"type": "ugly", "payload": {"kind": kind.name}, "retry": {"max_retries": 0}, **kind.body}
    return str(running.submit(body)["id"])


def trace(running: Stack, job_id: str) -> dict[str, dict[str, Any]]:
    items = running.client.get(f"/trace/{job_id}").json()["items"]
    return {item["event_type"]: item["details"] for item in items}


def test_every_limit_says_its_name(running: Stack) -> None:
    jobs = [(kind, submit(running, kind)) for kind in KINDS]
    for kind, job_id in jobs:
        done = running.finished(job_id, 240)
        assert (done["status"], done["reason"]) == (kind.status, kind.reason), (kind, done)
        if kind.status == "failed":
            assert kind.says in done["error"]["message"], (kind, done["error"])
            assert done["error"]["details"].get("limit") == kind.limit, (kind, done["error"])
            assert ("used" in done["error"]["details"]) == (kind.limit is not None), (kind, done["error"])
        check_numbers(kind, done["usage"])
        events = trace(running, job_id)
        assert events["finished"].get("reason", "succeeded") == kind.reason, (kind, events["finished"])
        assert events["finished"].get("limit") == kind.limit, (kind, events["finished"])
        assert ("used" in events["finished"]) == (kind.limit is not None), (kind, events["finished"])
        assert ("log_truncated" in events) == (kind.name in {"log", "long_line", "log_flood"}), kind


def test_outputs_that_do_not_fit_into_the_storage_quota(running: Stack) -> None:
    client = running.client
    quotas = f"/tenants/{client.get('/me').json()['tenant_id']}/quotas"
    stored = client.get("/usage/limits").json()["tenant"]["storage_bytes"]["used"]

    def limit(**limits: int) -> None:
        client.put(quotas, json=limits, headers={"If-Match": "*"}).raise_for_status()

    limit(storage_bytes=stored + 11_999)
    body = {"retry": {"max_retries": 1, "initial_delay": "10ms"}}
    job_id = submit(running, Kind("two_files", "storage_quota", body=body))
    done = running.finished(job_id, 60)
    assert (done["reason"], done["attempt"]) == ("storage_quota", 1), "it would not fit a second time either"
    assert f"tenant's quota of {stored + 11_999} bytes" in done["error"]["message"], done["error"]
    assert client.get(f"/jobs/{job_id}/outputs").json()["items"] == []
    assert client.get("/usage/limits").json()["tenant"]["storage_bytes"]["used"] == stored, "neither file, not the half"

    limit(storage_bytes=stored + 12_000)
    client.post(f"/jobs/{job_id}/retry").raise_for_status()
    assert running.finished(job_id, 60)["status"] == "completed"
    assert {item["size"] for item in client.get(f"/jobs/{job_id}/outputs").json()["items"]} == {6_000}
    assert client.get("/usage/limits").json()["tenant"]["storage_bytes"]["used"] == stored + 12_000
    limit()


def check_numbers(kind: Kind, usage: dict[str, Any], least_cpu_ms: int = 1) -> None:
    """What was used stands beside what was allowed. ``least_cpu_ms``: 0 where a job is not charged for its plugin's setup."""
    for name in ("memory", "pids", "time_ms", "output", "output_files", "log", "result"):
        assert usage[f"{name}_limit"] > 0, kind
    assert usage["ran_ms"] >= 0
    assert usage["log_bytes"] <= usage["log_limit"] == 20 << 10
    assert usage["cpu_ms"] >= least_cpu_ms, kind
    assert usage["memory_peak"] > MIB, kind
    assert usage["output_used"] <= usage["output_limit"] + MIB, kind
    if kind.reason == "out_of_memory":
        assert usage["memory_peak"] > 96 * MIB
    if kind.name == "log":
        assert usage["log_bytes"] == usage["log_limit"]


def test_nothing_is_left(running: Stack, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--ugly-jobs") or UGLY_JOBS
    run_many(running, 8)  # connections and threads that are kept for the next job are there now
    until(lambda: idle(running), 30, "the worker is idle")
    before = held(running)
    orphans = counts.orphaned_cgroups()
    run_many(running, count)
    until(lambda: idle(running), 30, "the worker is idle")
    until(lambda: not any(leftovers(running).values()), 30, f"nothing is left: {leftovers(running)}")
    until(lambda: not counts.orphaned_cgroups() - orphans, 30, "no cgroup is left")
    until(lambda: not more(before, held(running)), 30, f"no more is held than before: {more(before, held(running))}")
    told(count, {**leftovers(running), "cgroups": list(counts.orphaned_cgroups() - orphans)}, before, held(running))


def told(
    count: int, left: dict[str, list[str]], before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> None:
    """The figures of the run, for docs/threat-model.md."""
    print(f"{count + 1} jobs; left: {', '.join(f'{name} {len(items)}' for name, items in left.items())}")
    for role in before:
        print(f"{role}: {', '.join(f'{name} {before[role][name]} → {after[role][name]}' for name in before[role])}")


def run_many(running: Stack, count: int) -> None:
    jobs = [(kind, submit(running, kind)) for kind in (KINDS[number % len(KINDS)] for number in range(count))]
    canceled = submit(running, Kind("sleep", "canceled"))
    assert running.client.post(f"/jobs/{canceled}/cancel").status_code in (200, 202)
    for kind, job_id in jobs:
        done = running.finished(job_id, 60 + 4 * count)
        assert done["reason"] == kind.reason, (kind, done)
    assert running.finished(canceled, 60)["status"] == "canceled"


def idle(running: Stack) -> bool:
    return all(not item["current_job_ids"] for item in running.client.get("/workers").json()["items"])


def leftovers(running: Stack) -> dict[str, list[str]]:
    """Containers, mounts, folders, loop devices and user ids of this home's sandboxes."""
    home = running.home
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}.home={home_digest(home)}"]
    files = counts.open_files(counts.processes(running)["sandboxd"])
    return {
        "containers": subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(),
        "mounts": list(map(str, syscalls.mounts_below(home))),
        "folders": [str(path) for path in (home / "sandboxes").iterdir()],
        "loop devices": counts.loops(home),
        "user ids": [path.name for path in files if path.parent == uids.LOCKS],
    }


def held(running: Stack) -> dict[str, dict[str, int]]:
    """Descriptors, threads and kilobytes of memory of sandboxd and of the worker."""
    return {
        role: {
            "descriptors": len(counts.open_files(pid)),
            "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
            "memory": counts.memory_kb(pid),
        }
        for role, pid in counts.processes(running).items()
        if role in ("sandboxd", "worker")
    }


def more(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> list[str]:
    """What grew beyond its bound, whatever the number of jobs.

    Connections between the two are kept, each with its thread, for as many calls as were ever made at once (two slots, a heartbeat, a
    kill). Memory may grow by 32 MB: allocators keep what one large frame needed.
    """
    room = {"descriptors": 3, "threads": 3, "memory": 32 << 10}
    return [
        f"{role}: {name} {before[role][name]} → {after[role][name]}"
        for role in before
        for name in room
        if after[role][name] > before[role][name] + room[name]
    ]
