"""Ending a sandbox from outside of its session, while its session is at work with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.limits import Limits
from cloche.errors import PlatformFailure
from cloche.isolation.spec import Folders
from cloche.sandboxd import running as running_module
from cloche.sandboxd.cgroups import Cgroup
from cloche.sandboxd.places import Site
from cloche.sandboxd.running import Running


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Running]:
    """A process of ours in the place of a container's first."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        (tmp_path / "out").mkdir()
        (tmp_path / "collected").mkdir()
        folders = Folders(tmp_path, tmp_path / "out", tmp_path, tmp_path, None)
        site = Site(tmp_path, folders, os.stat(tmp_path / "out").st_dev)
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
    sandbox.stop_for("locks_over", 1_001)
    assert sandbox.is_dead(20)
    assert sandbox.stopped_with["locks_over"] == 1_001
    assert "output_used" in sandbox.stopped_with


def test_the_engine_at_work_with_it_does_not_keep_it_alive(sandbox: Running, no_patience: None) -> None:
    with sandbox.lock:
        sandbox.stop_for("locks_over", 1_001)
    assert sandbox.is_dead(20)
    assert sandbox.stopped_with == {"locks_over": 1_001}


def test_a_finish_under_way_keeps_its_own_verdict(sandbox: Running, no_patience: None) -> None:
    with sandbox.lock:
        sandbox.finished = True
        sandbox.stop_for("locks_over", 1_001)
    assert sandbox.is_dead(20)
    assert sandbox.stopped_with == {}


def test_it_dies_though_its_use_cannot_be_read(sandbox: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_folder: Path) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(os, "statvfs", gone)
    with pytest.raises(FileNotFoundError):
        sandbox.stop_for("locks_over", 1_001)
    assert sandbox.is_dead(20)


class News:
    """An engine that says these things of its container, one after the other, the last one for good."""

    def __init__(self, *states: Mapping[str, Any] | None) -> None:
        self._states = list(states)

    def inspect(self, _container: str) -> Mapping[str, Any] | None:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return None if state is None else {"State": state}


def test_an_engine_that_has_not_heard_of_its_end_is_asked_again(sandbox: Running) -> None:
    """What it would miss is that the memory was used up, which makes the end the plugin's."""
    early = {"Running": True, "OOMKilled": False, "ExitCode": 0}
    engine: Any = News(early, early, {"Running": False, "OOMKilled": True, "ExitCode": 137})
    sandbox.kill()
    assert sandbox.is_dead(20)
    sandbox.killed = False
    found = sandbox.finish(engine, (os.getuid(), os.getgid()))
    assert (found["died_alone"], found["exit_code"], found["oom_killed"]) == (True, 137, True)


def test_an_engine_that_never_hears_of_it_is_not_asked_for_ever(
    sandbox: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "_NEWS_SECONDS", 0.05)
    engine: Any = News({"Running": True})
    sandbox.kill()
    assert sandbox.is_dead(20)
    sandbox.killed = False
    found = sandbox.finish(engine, (os.getuid(), os.getgid()))
    assert (found["died_alone"], found["exit_code"], found["oom_killed"]) == (True, None, False)


def test_an_engine_that_lost_it(sandbox: Running) -> None:
    sandbox.kill()
    assert sandbox.is_dead(20)
    sandbox.killed = False
    engine: Any = News(None)
    with pytest.raises(PlatformFailure, match="lost the container"):
        sandbox.finish(engine, (os.getuid(), os.getgid()))


def test_a_death_that_gets_on_is_waited_for_and_one_that_does_not_is_none(
    sandbox: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_module, "DEATH_SECONDS", 0.01)
    (tmp_path / "cpu.stat").write_text("usage_usec 0\n")
    sandbox.cgroup = Cgroup(tmp_path, {})
    assert not sandbox.dies(), "it uses no CPU time, and lives"
    assert (tmp_path / "cpu.max").read_text() == "max"
    looks = 0

    def taken_apart(_: float = 0) -> bool:
        nonlocal looks
        looks += 1
        (tmp_path / "cpu.stat").write_text(f"usage_usec {looks * 100_000}\n")
        return looks > 5

    monkeypatch.setattr(sandbox, "is_dead", taken_apart)
    assert sandbox.dies()
    monkeypatch.setattr(running_module, "LONGEST_DEATH_SECONDS", 0)
    looks = 0
    assert not sandbox.dies(), "not for ever"
