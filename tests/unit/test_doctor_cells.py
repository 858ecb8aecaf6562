"""The doctor's row on level ``namespace``: off, not to be had, in trouble, well. Cgroups are files laid out as the kernel's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloche import config
from cloche.config import Settings
from cloche.isolation.client import SandboxdBackend
from cloche.sandboxd import cgroups, doctor_cells
from cloche.sandboxd.cells import slot_cgroup
from cloche.sandboxd.cells.slot_cgroup import SlotCgroup
from cloche.sandboxd.doctor_host import Check
from cloche.sandboxd.groups import Groups

V1 = ("memory", "pids", "cpu", "cpuacct")
UNCHANGED = {"problem": None, "containers": 2, "preparing": 0, "ready": 3, "busy": 1, "lost": 0}


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return config.load(home=tmp_path / "home")


def version_1(root: Path, *controllers: str) -> Path:
    for name in controllers:
        (root / name).mkdir(parents=True)
        (root / name / "cgroup.procs").touch()
    return root


@contextmanager
def answering(settings: Settings, monkeypatch: pytest.MonkeyPatch, cells: Any) -> Iterator[None]:
    """As if a sandboxd ran there that says this of its cells."""
    monkeypatch.setattr(Path, "is_socket", lambda path: path == settings.sandboxd_socket)
    monkeypatch.setattr(SandboxdBackend, "facts", lambda _: {"problem": None, "cells": cells})
    yield


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files take no part in a slot's limits; where they would be set."""
    found: list[Path] = []

    def make(container: cgroups.Cgroup, name: str, *_: Any) -> SlotCgroup:
        found.append(container.unified or container.controllers["memory"])
        return SlotCgroup(cgroups.Cgroup(None, {}), memory=1, above=container, cpu=1)

    monkeypatch.setattr(slot_cgroup.SlotCgroup, "make", make)
    return found


def asked(settings: Settings, root: Path) -> Check:
    check = doctor_cells.check(settings, root)
    assert check.name == "cells"
    assert bool(check.advice) == (check.status != "ok")
    return check


def test_switched_off(tmp_path: Path) -> None:
    check = asked(config.load(home=tmp_path, cells={"enabled": False}), tmp_path / "none")
    assert (check.status, check.detail.split(";")[0]) == ("ok", "off: CLOCHE_CELLS_ENABLED is false")


def test_without_root(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = asked(settings, tmp_path)
    assert (check.status, check.advice) == ("warn", "Ask again with sudo.")


@pytest.mark.parametrize("name", V1)
def test_version_1_without_a_controller(settings: Settings, tmp_path: Path, name: str) -> None:
    root = version_1(tmp_path / "cgroup", *(other for other in V1 if other != name))
    check = asked(settings, root)
    assert check.status == "warn"
    assert check.detail.endswith(f"no cgroup controller {name}")
    assert "boot with" in check.advice
    assert "level `container`" in check.advice


def test_version_2_without_a_controller(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory\n")
    made = Groups.parent

    def with_files(groups: Groups, name: str) -> Any:
        group = made(groups, name)
        (group.folders[0] / "cgroup.controllers").write_text("cpu memory\n")
        return group

    monkeypatch.setattr(Groups, "parent", with_files)
    check = asked(settings, root)
    assert (check.status, check.detail) == ("warn", "level `namespace` cannot be had: no cgroup controller pids")


@pytest.mark.parametrize("version", [1, 2])
def test_no_cgroup_may_be_made(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    root = version_1(tmp_path / "cgroup", *V1)
    if version == 2:
        (root / "cgroup.controllers").write_text("cpu memory pids\n")

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    check = asked(settings, root)
    assert check.status == "warn"
    assert "Read-only file system" in check.detail
    assert "delegated" in check.advice


def test_a_child_without_limits(settings: Settings, tmp_path: Path) -> None:
    """Folders can be made, but are no cgroups: nothing is there to write limits to."""
    check = asked(settings, version_1(tmp_path / "cgroup", *V1))
    assert check.status == "warn"
    assert "memory.limit_in_bytes: No such file" in check.detail


def test_well_and_nothing_is_left(settings: Settings, tmp_path: Path, limits: list[Path]) -> None:
    root = version_1(tmp_path / "cgroup", *V1)
    check = asked(settings, root)
    assert check.status == "ok"
    assert "at most 8 containers with 4 slots each" in check.detail
    (tried,) = limits
    assert tried.is_relative_to(root / "memory")
    assert [path.name for name in V1 for path in (root / name).iterdir()] == ["cgroup.procs"] * 4


@pytest.mark.parametrize(
    ("cells", "status", "word"),
    [
        (None, "warn", "switched off in the sandboxd that runs"),
        (UNCHANGED | {"problem": "no user id is left"}, "warn", "a moment ago: no user id is left"),
        (UNCHANGED, "ok", "2 containers, 3 cells wait, 1 have jobs"),
    ],
)
def test_what_the_sandboxd_that_runs_says(
    settings: Settings,
    tmp_path: Path,
    limits: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    cells: Any,
    status: str,
    word: str,
) -> None:
    root = version_1(tmp_path / "cgroup", *V1)
    with answering(settings, monkeypatch, cells):
        check = asked(settings, root)
    assert check.status == status
    assert word in check.detail
    assert limits


def test_one_that_does_not_answer_is_none(settings: Settings, tmp_path: Path, limits: list[Path]) -> None:
    settings.sandboxd_socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(settings.sandboxd_socket))
    assert asked(settings, version_1(tmp_path / "cgroup", *V1)).status == "ok"
