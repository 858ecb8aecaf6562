"""Level ``namespace`` through the real stack: every ugly job ends under the same name as at level ``container``, in a cell."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.stack import Stack, stack
from cloche.sandboxd import syscalls
from tests.acceptance import test_ugly_jobs as ugly
from tests.support.sandbox import containers_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
VERSION = "2.0.0"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The ugly plugin once more, as a version that asks for level ``namespace``."""
    folder = tmp_path_factory.mktemp("plugins")
    target = folder / "ugly" / VERSION
    shutil.copytree(ugly.PLUGINS / "ugly" / "1.0.0", target)
    manifest = (target / "plugin.toml").read_text().replace('version = "1.0.0"', f'version = "{VERSION}"')
    (target / "plugin.toml").write_text(manifest + '\n[sandbox]\nisolation = "namespace"\n')
    with stack(plugin_path=str(folder), worker_slots="2") as made:
        yield made


def test_every_limit_says_its_name_in_a_cell_too(running: Stack) -> None:
    jobs = [(kind, ugly.submit(running, kind)) for kind in ugly.KINDS]
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


def test_nothing_is_left_when_the_stack_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    shutil.copytree(ugly.PLUGINS / "ugly" / "1.0.0", folder / "ugly" / VERSION)
    manifest = folder / "ugly" / VERSION / "plugin.toml"
    text = manifest.read_text().replace('version = "1.0.0"', f'version = "{VERSION}"')
    manifest.write_text(text + '\n[sandbox]\nisolation = "namespace"\n')
    with stack(plugin_path=str(folder)) as made:
        fine = next(kind for kind in ugly.KINDS if kind.name == "fine")
        assert made.finished(ugly.submit(made, fine))["status"] == "completed"
        home = made.home
        assert made.stop() == 0
        assert containers_of(home) == []
        assert syscalls.mounts_below(home) == []
        assert list((home / "sandboxes").iterdir()) == ugly.loops(home) == []
