"""A sensitive job through the whole platform, on gVisor where it is proven and on runc where it is not; and nowhere is it left in clear."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench.stack import Stack, stack
from tests.support.engine import Engine
from tests.support.plugins import write_bundle
from tests.support.sensitive import leaking_cells, leaking_keys, leaks

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
CANARY = "canary-5e75171e-ü"
CODE = """
import os, sys
from cloche_guest import hookimpl

@hookimpl
def run(job):
    secret = job.payload["secret"]
    print("log", secret)
    print("error log", secret, file=sys.stderr)
    job.progress(1, 2, "at " + secret)
    if job.payload.get("fail"):
        raise ValueError(secret)
    return {"kernel": os.uname().version, "said": secret}
"""
MANIFEST = """
[params]
type = "object"
additionalProperties = true
[limits]
memory = "64MB"
output = "1MB"
tmp = "1MB"
shm = "1MB"
[sandbox]
isolation = "namespace"
"""


def ended(running: Stack, **payload: Any) -> Any:
    body = {"type": "echo", "payload": {"secret": CANARY, **payload}, "sensitive": True, "retry": {"max_retries": 0}}
    answer = running.client.post("/jobs", json=body, headers={"Idempotency-Key": f"k{payload}"})
    assert answer.status_code == 202, answer.text
    done = running.finished(answer.json()["id"], 90)
    assert done["masked"], done
    assert (done["payload"], done["result"], done["queue"]) == (None, None, "sensitive")
    return done


def started(running: Stack, job: Any) -> Any:
    trace = running.client.get(f"/trace/{job['id']}").json()["items"]
    return next(event["details"] for event in trace if event["event_type"] == "sandbox_started")


def clear(running: Stack, job: Any) -> Any:
    answer = running.client.get(f"/jobs/{job['id']}", params={"reveal": "true"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_sensitive_job_runs_under_gvisor_and_is_nowhere_in_clear(gvisor_engine: Engine, tmp_path: Path) -> None:
    write_bundle(tmp_path, "echo", code=CODE, more=MANIFEST)
    with stack(sandbox_docker_socket=str(gvisor_engine.socket), plugin_path=str(tmp_path)) as running:
        done, failed = ended(running), ended(running, fail=True)
        assert (done["status"], failed["status"], failed["reason"]) == ("completed", "failed", "plugin_failed")
        for job in (done, failed):
            seen = started(running, job)
            assert (seen["runtime"], seen["level"]) == ("runsc", "container")
            assert seen["runtime_why"] == "it is sensitive, and gVisor is proven here"
        # One that waits serves it too: it was made for that runtime, by whichever job asked first.
        starts = (started(running, ended(running, n=n)) for n in range(20))
        assert any((seen["start"], seen["runtime"]) == ("warm", "runsc") for seen in starts)
        home = running.home
        # Before anybody reads it, and again afterwards; the second time without its processes.
        assert leaks(CANARY, home, running.log) == []
        assert leaking_keys(CANARY, home / "run" / "valkey.sock") == []
        assert leaking_cells(CANARY, f"sqlite:///{home / 'cloche.db'}") == []
        shown = clear(running, done)
        assert (shown["payload"], shown["result"]["said"]) == ({"secret": CANARY}, CANARY)
        assert shown["result"]["kernel"] != os.uname().version
        assert CANARY in clear(running, failed)["error"]["details"]["traceback"]
        log = running.client.get(f"/jobs/{done['id']}/logs", params={"reveal": "true"}).text
        assert sorted(log.splitlines()) == [f"error log {CANARY}", f"log {CANARY}"]
        assert running.client.get("/audit/verify").json()["status"] in ("valid", "incomplete")
        assert running.stop() == 0
        assert leaks(CANARY, home, running.log) == []
        assert leaking_cells(CANARY, f"sqlite:///{home / 'cloche.db'}") == []


def test_where_gvisor_is_not_proven_it_runs_on_runc_in_a_container_and_says_so(
    gvisor_engine: Engine, tmp_path: Path
) -> None:
    write_bundle(tmp_path, "echo", code=CODE, more=MANIFEST)
    more = {"sandbox_runsc_name": "absent"}
    with stack(sandbox_docker_socket=str(gvisor_engine.socket), plugin_path=str(tmp_path), **more) as running:
        done = ended(running)
        assert done["status"] == "completed"
        seen = started(running, done)
        assert (seen["runtime"], seen["level"]) == ("runc", "container")
        assert seen["runtime_why"].startswith("gVisor is not proven here: the engine has no runtime absent")
        assert clear(running, done)["result"]["kernel"] == os.uname().version
        again = started(running, ended(running, n=2))
        assert (again["runtime"], again["level"]) == ("runc", "container")
        assert leaks(CANARY, running.home, running.log) == []
