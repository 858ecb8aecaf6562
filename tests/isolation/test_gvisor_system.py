"""A plugin that asks for gVisor, from its manifest to the trace, through the whole platform."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench.stack import Stack, stack
from tests.support.engine import Engine
from tests.support.plugins import write_bundle

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
CODE = """
import os
from cloche_guest import hookimpl

@hookimpl
def run(job):
    act = job.payload.get("act")
    if act == "memory":
        job.kept = [b"x" * (1 << 20) for _ in range(2_000)]
    if act == "process 1":
        os.kill(1, 9)
        os.read(os.pipe()[0], 1)
    (job.out / "a.txt").write_text("from gVisor")
    return os.uname().version
"""
MANIFEST = """
[params]
type = "object"
properties.act.type = "string"
[limits]
memory = "64MB"
output = "1MB"
tmp = "1MB"
shm = "1MB"
[sandbox]
runtime = "runsc"
"""


def ended(running: Stack, act: str | None = None) -> Any:
    job = running.submit(
        {"type": "sealed", "payload": {} if act is None else {"act": act}, "retry": {"max_retries": 0}}
    )
    return running.finished(job["id"], 90)


def test_from_the_manifest_to_the_trace(gvisor_engine: Engine, tmp_path: Path) -> None:
    write_bundle(tmp_path, "sealed", code=CODE, more=MANIFEST)
    write_bundle(tmp_path, "plain")
    with stack(sandbox_docker_socket=str(gvisor_engine.socket), plugin_path=str(tmp_path)) as running:
        done = ended(running)
        assert done["status"] == "completed", done
        assert done["result"] not in (None, os.uname().version)
        outputs = running.client.get(f"/jobs/{done['id']}/outputs").json()["items"]
        assert [item["path"] for item in outputs] == ["a.txt"]
        trace = running.client.get(f"/trace/{done['id']}").json()["items"]
        assert [event["details"]["runtime"] for event in trace if event["event_type"] == "sandbox_started"] == ["runsc"]
        assert ended(running, "memory")["reason"] == "out_of_memory"
        crashed = ended(running, "process 1")
        assert crashed["reason"] == "plugin_crashed"
        assert crashed["attempt"] == 1
        plain = running.finished(running.submit({"type": "plain"})["id"], 60)
        trace = running.client.get(f"/trace/{plain['id']}").json()["items"]
        assert [event["details"]["runtime"] for event in trace if event["event_type"] == "sandbox_started"] == ["runc"]


def test_where_gvisor_is_not_registered_the_job_says_what_to_do(gvisor_engine: Engine, tmp_path: Path) -> None:
    write_bundle(tmp_path, "sealed", code=CODE, more=MANIFEST)
    more = {"sandbox_runsc_name": "absent", "retry_platform_budget": "1"}
    with stack(sandbox_docker_socket=str(gvisor_engine.socket), plugin_path=str(tmp_path), **more) as running:
        failed = ended(running)
        assert failed["reason"] == "engine_unavailable"
        assert "the engine has no runtime absent" in failed["error"]["message"]
        assert "docs/operations.md" in failed["error"]["message"]
