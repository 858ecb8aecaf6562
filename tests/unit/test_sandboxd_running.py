"""Ending a sandbox from outside of its session, while its session is at work with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.domain.limits import Limits
from cloche.isolation.spec import Folders
from cloche.sandboxd import running as running_module
from cloche.sandboxd.cgroups import Cgroup
from cloche.sandboxd.places import Site
from cloche.sandboxd.running import Running


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Running]:
    """A process of ours in the place of a container's first."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        site = Site(tmp_path, Folders(tmp_path, tmp_path, tmp_path, tmp_path, None), os.stat(tmp_path).st_dev)
        pidfd = os.pidfd_open(process.pid)
        made = Running("id", "owner", "container", Limits(), 1_000, site, Cgroup(None, {}), pidfd, counts_swap=True)
        yield made
        made.kill()
        process.wait()
        made.close()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_module, "_NOTE_SECONDS", 0.01)


def test_what_it_had_used_is_noted_before_it_is_killed(sandbox: Running) -> None:
    sandbox.stop_for("locks_over")
    assert sandbox.is_dead(20)
    assert sandbox.stopped_with["locks_over"] == 1
    assert "output_used" in sandbox.stopped_with


def test_the_engine_at_work_with_it_does_not_keep_it_alive(sandbox: Running, no_patience: None) -> None:
    with sandbox.lock:
        sandbox.stop_for("locks_over")
    assert sandbox.is_dead(20)
    assert sandbox.stopped_with == {"locks_over": 1}


def test_a_finish_under_way_keeps_its_own_verdict(sandbox: Running, no_patience: None) -> None:
    with sandbox.lock:
        sandbox.finished = True
        sandbox.stop_for("locks_over")
    assert sandbox.is_dead(20)
    assert sandbox.stopped_with == {}


def test_it_dies_though_its_use_cannot_be_read(sandbox: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_folder: Path) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(os, "statvfs", gone)
    with pytest.raises(FileNotFoundError):
        sandbox.stop_for("locks_over")
    assert sandbox.is_dead(20)
