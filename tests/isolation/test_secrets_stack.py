"""Secrets through the real stack: at both levels and in an image of one's own they are in memory, in their job's sandbox, and nowhere else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.stack import Stack, stack
from cloche import config
from cloche.redact import MASK
from cloche.sandboxd.engine import Engine
from tests.support import images
from tests.support.plugins import write_bundle
from tests.support.sandbox import containers_of
from tests.support.sensitive import leaking_cells, leaking_keys, leaks
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
CANARY = "canary-5ec4e7-ü-and-more"
CODE = """
import hashlib, os, stat, subprocess, sys, time
from pathlib import Path
from cloche_guest import hookimpl

PLACE = Path("/job/secrets")
MARK = b"canary" + b"-5ec4e7"
waiting = {}


def holding():
    # Files that this process may read and that hold it; what the kernel shows of itself and others among them.
    found = []
    for folder in ("/job", "/tmp", "/dev/shm", "/run", "/cloche", "/opt", "/etc", "/proc"):
        for parent, folders, names in os.walk(folder):
            folders[:] = [one for one in folders if one != "task"]
            for name in names:
                path = os.path.join(parent, name)
                try:
                    if stat.S_ISREG(os.lstat(path).st_mode) and not path.endswith(("/mem", "kmsg", "/pagemap", "clear_refs")):
                        with open(path, "rb") as file:
                            if MARK in file.read(1 << 20):
                                found.append(path)
                except OSError:
                    pass
    return found


@hookimpl
def setup():
    waiting["names"] = sorted(path.name for path in PLACE.iterdir())
    waiting["holding"] = holding()


@hookimpl
def run(job):
    value = job.secrets["API_KEY"]
    path = PLACE / "API_KEY"
    print("key", value)
    for part in (value[:7], value[7:9], value[9:], "!"):
        print(part, end="", flush=True)
        time.sleep(0.02)
    print("error", value, file=sys.stderr)
    job.progress(1, 2, "at " + value)
    time.sleep(job.payload.get("hold", 0))
    if job.payload.get("fail"):
        raise ValueError(value)
    (job.out / "kept.txt").write_text(value)
    info = path.stat()
    [mount] = [line.split() for line in open("/proc/self/mounts") if line.split()[1] == str(PLACE)]
    return {
        "said": value,
        "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
        "by_program": subprocess.run(["/bin/sh", "-c", "test -r /job/secrets/API_KEY"]).returncode if os.path.exists("/bin/sh") else 0,
        "mode": oct(info.st_mode & 0o777),
        "own": info.st_uid == os.getuid(),
        "mount": [mount[2], sorted({"noexec", "nosuid", "nodev"} - set(mount[3].split(",")))],
        "names": sorted(job.secrets),
        "holding": holding(),
        "environ": any(MARK.decode() in text for text in os.environ.values()),
        "arguments": MARK.decode() in repr(sys.argv),
        "shown": repr(job.secrets) + repr(job),
        "waiting": waiting,
    }
"""
SHELL = """
set -e
IFS= read -r key < /job/secrets/API_KEY || :
IFS= read -r job < /job/job.json
echo "key $key"
case "$(export -p; echo "$job")" in *anary*) exit 9 ;; esac
printf '{"said": "%s"}' "$key" > /job/result.json
"""
MORE = """
[requires]
secrets = ["API_KEY"]
[params]
type = "object"
additionalProperties = true
[limits]
memory = "64MB"
output = "1MB"
tmp = "1MB"
shm = "1MB"
[sandbox]
isolation = "{level}"
"""
IMAGE = """
[image]
id = "{image}"
command = ["/bin/sh", "/cloche/plugin/run.sh"]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("plugins")
    for name, level in (("needy", "container"), ("needy_cell", "namespace")):
        write_bundle(folder, name, code=CODE, more=MORE.format(level=level))
    with images.loaded() as image:
        more = MORE.format(level="container") + IMAGE.format(image=image)
        write_bundle(folder, "needy_image", more=more, files={"run.sh": SHELL})
        with stack(plugin_path=str(folder), worker_slots="2") as made:
            answer = made.client.post("/secrets", json={"name": "API_KEY", "value": CANARY})
            assert answer.status_code == 201, answer.text
            plugins = ("needy", "needy_cell", "needy_image")
            grants = [{"plugin": name, "versions": "==1.0.0"} for name in plugins]
            changed = made.client.put("/secrets/API_KEY/grants", json={"grants": grants}, headers={"If-Match": "*"})
            assert changed.status_code == 200, changed.text
            yield made


def submit(running: Stack, plugin: str, **payload: Any) -> str:
    return str(running.submit({"type": plugin, "payload": payload, "retry": {"max_retries": 0}})["id"])


def started(running: Stack, job_id: str) -> Any:
    items = running.client.get(f"/trace/{job_id}").json()["items"]
    return next(item["details"] for item in items if item["event_type"] == "sandbox_started")


def inspected(running: Stack) -> str:
    """All that the engine tells of this home's containers."""
    engine = Engine(config.load(home=running.home).sandbox.docker_socket)
    try:
        return json.dumps([engine.inspect(one) for one in containers_of(running.home)], ensure_ascii=False)
    finally:
        engine.close()


def nowhere(running: Stack) -> None:
    home = running.home
    # A file that a job makes of it is the job's, and sandboxes come and go while we look.
    places = [path for path in home.iterdir() if path.name not in ("artifacts", "sandboxes")]
    assert leaks(CANARY, *places, running.log) == []
    for folder, _, names in os.walk(home / "sandboxes"):
        for name in names:
            with contextlib.suppress(OSError):
                assert CANARY.encode() not in Path(folder, name).read_bytes(), f"{folder}/{name}"
    assert leaking_keys(CANARY, home / "run" / "valkey.sock") == []
    assert leaking_cells(CANARY, f"sqlite:///{home / 'cloche.db'}") == []


@pytest.mark.parametrize(("plugin", "level"), [("needy", "container"), ("needy_cell", "namespace")])
def test_a_job_finds_its_secrets_in_memory_and_nobody_else_finds_them(running: Stack, plugin: str, level: str) -> None:
    starts = []
    for _ in range(3):  # the first is cold; what waits for the next has not seen the one before
        job_id = submit(running, plugin)
        done = running.finished(job_id, 120)
        assert done["status"] == "completed", done["error"]
        found = done["result"]
        assert found["said"] == MASK
        assert found["digest"] == hashlib.sha256(CANARY.encode()).hexdigest()
        assert (found["mode"], found["own"], found["by_program"]) == ("0o400", True, 0)
        assert found["mount"] == ["tmpfs", []]
        assert found["names"] == ["API_KEY"]
        assert set(found["holding"]) == {"/job/out/kept.txt", "/job/secrets/API_KEY"}
        assert not found["environ"]
        assert not found["arguments"]
        assert "Secrets(API_KEY)" in found["shown"]
        assert found["waiting"] == {"names": [], "holding": []}
        seen = started(running, job_id)
        assert seen["level"] == level
        starts.append(seen["start"])
        log = running.client.get(f"/jobs/{job_id}/logs").text
        assert f"key {MASK}\n{MASK}!" in log
        assert f"error {MASK}" in log
    assert starts[0] == "cold" or level == "namespace"


def test_while_a_job_holds_it_neither_the_engine_nor_the_home_shows_it(running: Stack) -> None:
    job_id = submit(running, "needy", hold=8)
    until(lambda: MASK in running.client.get(f"/jobs/{job_id}/logs").text, 60, "it has its secret")
    assert CANARY.partition("-ü")[0] not in inspected(running)
    nowhere(running)
    assert running.finished(job_id, 60)["status"] == "completed"


def test_a_program_in_any_language_reads_the_same_file(running: Stack) -> None:
    job_id = submit(running, "needy_image")
    done = running.finished(job_id, 120)
    assert done["status"] == "completed", done["error"]
    assert done["result"] == {"said": MASK}
    assert running.client.get(f"/jobs/{job_id}/logs").text == f"key {MASK}\n"


@pytest.mark.parametrize("plugin", ["needy", "needy_cell"])
def test_an_error_that_quotes_it_is_masked(running: Stack, plugin: str) -> None:
    done = running.finished(submit(running, plugin, fail=True), 120)
    assert (done["status"], done["reason"]) == ("failed", "plugin_failed")
    assert MASK in done["error"]["message"]
    assert MASK in done["error"]["details"]["traceback"]
    nowhere(running)


def test_what_is_revoked_between_submission_and_start_is_not_delivered(running: Stack) -> None:
    """The hold keeps both slots busy while it happens."""
    held = [submit(running, "needy", hold=6) for _ in range(2)]
    waiting = submit(running, "needy_cell")
    grants = [{"plugin": "needy", "versions": "*"}, {"plugin": "needy_image", "versions": "*"}]
    answer = running.client.put("/secrets/API_KEY/grants", json={"grants": grants}, headers={"If-Match": "*"})
    assert answer.status_code == 200
    done = running.finished(waiting, 120)
    assert (done["status"], done["reason"]) == ("failed", "secret_denied"), done
    assert "API_KEY" in done["error"]["message"]
    assert all(running.finished(one, 120)["status"] == "completed" for one in held)


def test_rotation_under_running_jobs(running: Stack) -> None:
    command = [str(Path(sys.executable).parent / "cloche"), "key", "rotate", "--secrets"]
    ran = subprocess.run(
        [*command, "--home", str(running.home)], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "1 secrets were encrypted anew" in ran.stderr
    assert running.finished(submit(running, "needy"), 120)["status"] == "completed"
    assert running.client.get("/audit/verify").json()["status"] in ("valid", "incomplete")
