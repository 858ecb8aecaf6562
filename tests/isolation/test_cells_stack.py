"""Level ``namespace`` through the real stack: every ugly job ends under the same name as at level ``container``, in a cell."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import held
from bench.stack import Stack, stack
from cloche.sandboxd import syscalls
from tests.acceptance import test_ugly_jobs as ugly
from tests.support.sandbox import containers_of
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
VERSION = "2.0.0"
SHORT_LIVED = {
    "fine",
    "log",
    "nan",
    "leave",
    "leave_hard",
    "code",
    "segfault",
    "kill_everything",
    "error",
    "descriptors",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The ugly plugin as it would be at level ``namespace``; once more with the small output that some of the jobs ask for."""
    folder = tmp_path_factory.mktemp("plugins")
    plugin_at(folder, "ugly")
    plugin_at(folder, "ugly_small", output="2MB")
    # What waits for the next job is given up soon, so that everything can be counted while nothing waits.
    with stack(plugin_path=str(folder), worker_slots="2", cells_idle="2s", pool_idle="2s") as made:
        yield made


def plugin_at(folder: Path, name: str, output: str = "80MB") -> None:
    target = folder / name / VERSION
    shutil.copytree(ugly.PLUGINS / "ugly" / "1.0.0", target)
    text = (target / "plugin.toml").read_text() + '\n[sandbox]\nisolation = "namespace"\n'
    for old, new in (('name = "ugly"', f'name = "{name}"'), ('"1.0.0"', f'"{VERSION}"'), ('"80MB"', f'"{output}"')):
        text = text.replace(old, new)
    (target / "plugin.toml").write_text(text)


def submit(running: Stack, kind: ugly.Kind) -> str:
    """As the acceptance test's; a job with another output than its plugin's would have no cell, so it is another plugin's."""
    if kind.body != ugly.SMALL:
        return ugly.submit(running, kind)
    body = {"type": "ugly_small", "payload": {"kind": kind.name}, "retry": {"max_retries": 0}}
    return str(running.submit(body)["id"])


def test_a_job_with_limits_of_its_own_has_a_container(running: Stack) -> None:
    fine = next(kind for kind in ugly.KINDS if kind.name == "fine")
    job_id = ugly.submit(running, replace(fine, body=ugly.SMALL))
    assert running.finished(job_id)["status"] == "completed"
    started = ugly.trace(running, job_id)["sandbox_started"]
    assert (started["level"], started["start"], started["why"]) == (
        "container",
        "cold",
        "its limits are not the plugin's own",
    )


def test_every_limit_says_its_name_in_a_cell_too(running: Stack) -> None:
    jobs = [(kind, submit(running, kind)) for kind in ugly.KINDS]
    levels = set()
    for kind, job_id in jobs:
        done = running.finished(job_id, 240)
        assert (done["status"], done["reason"]) == (kind.status, kind.reason), (kind, done)
        if kind.status == "failed":
            assert kind.says in done["error"]["message"], (kind, done["error"])
            assert done["error"]["details"].get("limit") == kind.limit, (kind, done["error"])
        ugly.check_numbers(kind, done["usage"], least_cpu_ms=0)
        levels.add(ugly.trace(running, job_id)["sandbox_started"]["level"])
    assert levels == {"namespace"}


def test_a_job_after_another_finds_its_cell_ready(running: Stack) -> None:
    fine = next(kind for kind in ugly.KINDS if kind.name == "fine")
    for _ in range(3):
        assert running.finished(ugly.submit(running, fine))["status"] == "completed"


def test_nothing_grows_with_the_jobs(running: Stack) -> None:
    """The long run is `./run bench leaks`. Every kind that ends by itself, after enough of them that what is kept for good is there."""
    kinds = [kind for kind in ugly.KINDS if kind.name in SHORT_LIVED and not kind.body]
    assert {kind.name for kind in kinds} == SHORT_LIVED

    def run(times: int) -> dict[str, dict[str, int]]:
        for job_id in [ugly.submit(running, kind) for _ in range(times) for kind in kinds]:
            running.finished(job_id, 120)
        until(lambda: ugly.idle(running), 30, "the worker is idle")
        until(lambda: not any(ugly.leftovers(running).values()), 60, f"nothing is left: {ugly.leftovers(running)}")
        return ugly.held(running)

    # The engine's client keeps a connection for each of the last 25 addresses that it asked: containers are what has many.
    fine = next(kind for kind in ugly.KINDS if kind.name == "fine")
    for job_id in [ugly.submit(running, replace(fine, body=ugly.SMALL)) for _ in range(8)]:
        assert running.finished(job_id, 120)["status"] == "completed"
    orphans = held.orphaned_cgroups()
    before, after = run(2), run(8)
    until(lambda: not held.orphaned_cgroups() - orphans, 30, "no cgroup is left")
    assert not ugly.more(before, after)


def test_nothing_is_left_when_the_stack_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    plugin_at(folder, "ugly")
    with stack(plugin_path=str(folder)) as made:
        fine = next(kind for kind in ugly.KINDS if kind.name == "fine")
        assert made.finished(ugly.submit(made, fine))["status"] == "completed"
        home = made.home
        assert made.stop() == 0
        assert containers_of(home) == []
        assert syscalls.mounts_below(home) == []
        assert list((home / "sandboxes").iterdir()) == held.loops(home) == []
