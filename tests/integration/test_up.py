"""`cloche up` as a whole, with the machine's Docker engine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import DEADLINE_S, PASSWORD, Stack, environment, running, up

pytestmark = pytest.mark.docker

MANIFEST = """
[plugin]
name = "slow"
version = "1.0.0"
api = 1
summary = "Takes a while, the first time."
entry = "plugin"
[params]
type = "object"
[limits]
memory = "64MB"
time = "60s"
"""
CODE = """
import time
from cloche_guest import Job, hookimpl

@hookimpl
def run(job: Job) -> dict:
    print("begun", flush=True)
    if job.attempt == 1:
        time.sleep(job.payload["seconds"])
    return {"done": True}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="cloche-up-") as name:
        yield Path(name)


def started(stack: Stack, name: str) -> list[int]:
    """Pids of the living children whose command line holds ``name``, by the home in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            mine = f"CLOCHE_HOME={stack.home}".encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine and name.encode() in words:
            found.append(int(entry.name))
    return found


def finished(client: httpx.Client, job_id: str) -> Any:
    job = client.get(f"/jobs/{job_id}", params={"wait": "60s"}).json()
    assert job["status"] in ("completed", "failed", "canceled"), job
    return job


def test_what_an_operator_sees_from_the_first_start_to_the_second(folder: Path) -> None:
    first = up(folder)
    try:
        first.wait_ready()
        shown = re.search(r"User: admin   Password: (\S+)", first.out.read_text())
        assert shown, "the generated password is printed"
        answer = httpx.post(f"{first.url}/api/v1/tokens", json={"name": "t"}, auth=("admin", shown[1]), trust_env=False)
        assert answer.status_code == 201
        other = [sys.executable, "-m", "cloche", "up", "--port", "0"]
        refused = subprocess.run(other, env=first.environment, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"cloche: another `cloche up` (pid {first.process.pid}) runs on the home")
        assert len(refused.stderr.splitlines()) == 1
    finally:
        code = first.stop()
    assert code == 0
    assert shown[1] not in first.log.read_text(), "the password is in no log"
    order = re.findall(r"stopping (\S+)", first.log.read_text())
    assert order == ["worker-1", "web", "scheduler", "sandboxd", "egress", "valkey"]
    assert "has not stopped" not in first.log.read_text()
    assert not any(started(first, name) for name in ("web", "worker", "scheduler", "sandboxd", "egress"))
    assert str(first.home) not in Path("/proc/mounts").read_text()

    second = up(folder)
    try:
        second.wait_ready()
        assert "Password" not in second.out.read_text(), "only the first start prints it"
    finally:
        assert second.stop() == 0


def test_a_port_in_use_stops_the_start_with_one_line_before_anything_runs(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = up(folder, "--port", str(port))
        assert stack.process.wait(DEADLINE_S) == 1
    assert stack.log.read_text().startswith(f"cloche: port {port} on 127.0.0.1 is in use")
    assert len(stack.log.read_text().splitlines()) == 1
    assert not (stack.home / "cloche.db").exists()


def test_an_unwritable_home_is_one_line(folder: Path) -> None:
    (folder / "home").write_text("a file, not a folder")
    stack = up(folder)
    assert stack.process.wait(DEADLINE_S) == 1
    assert "cannot write to the home directory" in stack.log.read_text()
    assert len(stack.log.read_text().splitlines()) == 1


def test_a_killed_worker_is_replaced_and_its_job_runs_again_and_completes_once(folder: Path) -> None:
    plugin = folder / "plugins" / "slow" / "1.0.0"
    plugin.mkdir(parents=True)
    (plugin / "plugin.toml").write_text(MANIFEST)
    (plugin / "plugin.py").write_text(CODE)
    with running(folder, CLOCHE_PLUGIN_PATH=str(folder / "plugins")) as stack, stack.client() as client:
        body = {"type": "slow", "payload": {"seconds": 40}, "retry": {"max_retries": 0}}
        job_id = client.post("/jobs", json=body).json()["id"]
        stack.wait_for("the job's first words", lambda: "begun" in client.get(f"/jobs/{job_id}/logs").text)
        (worker,) = started(stack, "worker")
        os.kill(worker, signal.SIGKILL)
        job = finished(client, job_id)
        assert (job["status"], job["attempt"], job["result"]) == ("completed", 2, {"done": True})
        events = [event["event_type"] for event in client.get(f"/trace/{job_id}").json()["items"]]
        assert events.count("completed") == 1
        assert "worker-1 was killed by SIGKILL" in stack.log.read_text()
        assert "1 of its jobs went back to the queue" in stack.log.read_text()
        assert started(stack, "worker") != [worker]
        verify = [sys.executable, "-m", "cloche", "audit", "verify"]
        assert (
            subprocess.run(verify, env=stack.environment, capture_output=True, timeout=60, check=False).returncode == 0
        )


@pytest.mark.parametrize("name", ["web", "scheduler", "sandboxd", "valkey-server"])
def test_whatever_else_dies_is_started_again_and_jobs_run(folder: Path, name: str) -> None:
    plugin = folder / "plugins" / "slow" / "1.0.0"
    plugin.mkdir(parents=True)
    (plugin / "plugin.toml").write_text(MANIFEST)
    (plugin / "plugin.py").write_text(CODE)
    with running(folder, CLOCHE_PLUGIN_PATH=str(folder / "plugins")) as stack, stack.client() as client:
        text = stack.log.read_text()
        if name == "valkey-server":
            pids = [
                int(entry.name)
                for entry in Path("/proc").iterdir()
                if entry.name.isdigit() and str(stack.home / "run" / "valkey.sock") in _title(entry)
            ]
        else:
            pids = started(stack, name)
        assert pids, text
        os.kill(_root(pids), signal.SIGKILL)
        stack.wait_for("its death", lambda: "was killed by SIGKILL" in stack.log.read_text())
        job_id = stack.wait_for("an accepted job", lambda: _submitted(client))
        assert finished(client, job_id)["status"] == "completed"


def _root(pids: list[int]) -> int:
    """The one of them that none of the others started. Not the lowest: numbers begin anew when they have run out."""
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    [root] = [pid for pid, parent in parents.items() if parent not in parents]
    return root


def _title(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _submitted(client: httpx.Client) -> str | None:
    try:
        answer = client.post("/jobs", json={"type": "slow", "payload": {"seconds": 0}})
    except httpx.HTTPError:
        return None
    return str(answer.json()["id"]) if answer.status_code == 202 else None


def test_the_client_commands_against_the_real_api(folder: Path) -> None:
    (folder / "words.txt").write_text("one two three\n")
    with running(folder) as stack:
        env = environment(stack.home, CLOCHE_URL=stack.url)

        def cloche(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "cloche", *words]
            return subprocess.run(
                command, env=env, input=stdin, capture_output=True, text=True, timeout=120, check=False
            )

        assert cloche("job", "list").returncode == 4
        made = cloche(
            "token", "create", "t", "--user", "admin", "--password-stdin", "-o", "name", stdin=PASSWORD + "\n"
        )
        assert made.returncode == 0, made.stderr
        env["CLOCHE_TOKEN"] = made.stdout.strip()
        ran = cloche("job", "run", "text_stats", "--version", "==1.*", "-i", str(folder / "words.txt"), "-o", "json")
        assert ran.returncode == 0, ran.stderr
        assert '"words": 3' in ran.stdout
        table = folder / "table.csv"
        table.write_text("a,b\n1,2\n")
        saved = cloche("job", "run", "csv_profile", "-i", str(table), "--save", str(folder / "saved"), "--label", "t=1")
        assert saved.returncode == 0, saved.stderr
        assert (folder / "saved" / "report.md").read_text().startswith("# Table profile")
        job_id = cloche("job", "list", "--type", "csv_profile", "-o", "name").stdout.strip()
        assert cloche("job", "get", job_id).returncode == 0
        assert cloche("job", "logs", job_id).returncode == 0
        assert cloche("job", "wait", job_id, "-o", "name").stdout.strip() == job_id
        assert "report.md" in cloche("job", "outputs", job_id).stdout
        assert cloche("job", "cancel", job_id).returncode == 1, "it has ended"
        assert "text_stats==2.0.0" in cloche("plugin", "list", "-o", "name").stdout
        file_id = cloche("file", "put", str(table), "-o", "name").stdout.strip()
        assert cloche("file", "get", file_id, "--to", "-").stdout == "a,b\n1,2\n"
        refused = cloche("job", "submit", "text_stats")
        assert refused.returncode == 1
        assert "/inputs" in refused.stderr
        assert cloche("job", "get", "01920000-0000-7000-8000-000000000001").returncode == 5
        assert cloche("audit", "verify").returncode == 0
        assert cloche("doctor", "-o", "name").returncode == 0
