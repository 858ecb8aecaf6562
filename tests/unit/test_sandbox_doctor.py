"""The doctor's checks of a host, on hosts that lack this and that."""

from __future__ import annotations

import ctypes
import os
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cloche.cli.commands.doctor import doctor
from cloche.sandboxd import disk, doctor_host


def cgroup_root(root: Path, *controllers: str) -> Path:
    for name in controllers:
        (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("controllers", "status"),
    [
        (("cpu", "cpuacct", "memory", "pids"), "ok"),
        (("cpu,cpuacct", "memory", "pids"), "ok"),
        (("cpu,cpuacct", "pids"), "fail"),
    ],
)
def test_cgroup_version_1(tmp_path: Path, controllers: tuple[str, ...], status: str) -> None:
    root = cgroup_root(tmp_path, *controllers)
    if "memory" in controllers:
        (root / "memory" / "memory.kmem.tcp.limit_in_bytes").touch()
    check = doctor_host.cgroup(root)
    assert check.status == status
    assert check.detail.startswith("version 1")
    assert bool(check.advice) == (status != "ok")


def test_cgroup_version_1_without_a_limit_for_sockets(tmp_path: Path) -> None:
    check = doctor_host.cgroup(cgroup_root(tmp_path, "cpu", "cpuacct", "memory", "pids"))
    assert (check.status, check.detail) == ("warn", "version 1, without a limit for the memory of sockets")


@pytest.mark.parametrize(("text", "status"), [("cpuset cpu io memory pids\n", "ok"), ("cpuset cpu\n", "fail")])
def test_cgroup_version_2(tmp_path: Path, text: str, status: str) -> None:
    (tmp_path / "cgroup.controllers").write_text(text)
    check = doctor_host.cgroup(tmp_path)
    assert (check.status, check.detail.split(" with")[0]) == (status, "version 2")
    assert status == "ok" or "memory, pids" in check.detail


def test_no_cgroups(tmp_path: Path) -> None:
    assert doctor_host.cgroup(tmp_path / "absent").status == "fail"


@pytest.mark.parametrize(
    ("areas", "limit", "status"), [(1, True, "ok"), (0, True, "ok"), (1, False, "fail"), (0, False, "warn")]
)
def test_swap(tmp_path: Path, areas: int, limit: bool, status: str) -> None:
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n" + "/swap file 1024 0 -2\n" * areas)
    check = doctor_host.swap({"SwapLimit": limit}, tmp_path)
    assert check.status == status
    assert bool(check.advice) == (status != "ok")


def test_security_modules() -> None:
    assert doctor_host.apparmor({"SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"]}).status == "ok"
    assert doctor_host.apparmor({"SecurityOptions": ["name=selinux"]}).status == "ok"
    assert doctor_host.apparmor({"SecurityOptions": None}).status == "warn"


def test_user_namespaces(tmp_path: Path) -> None:
    (tmp_path / "sys/user").mkdir(parents=True)
    (tmp_path / "sys/kernel").mkdir()

    def check(*options: str) -> doctor_host.Check:
        return doctor_host.user_namespaces({"SecurityOptions": list(options)}, tmp_path)

    assert check().status == "warn"
    (tmp_path / "sys/user/max_user_namespaces").write_text("0\n")
    assert check().status == "warn"
    (tmp_path / "sys/user/max_user_namespaces").write_text("100\n")
    assert check("name=seccomp,profile=default").status == "ok"
    for option, word in (("name=userns", "remaps"), ("name=apparmor", "AppArmor")):
        assert check(option).status == "warn"
        assert word in check(option).detail
    (tmp_path / "sys/kernel/unprivileged_userns_clone").write_text("0\n")
    assert "unprivileged_userns_clone" in check().detail
    (tmp_path / "sys/kernel/unprivileged_userns_clone").write_text("1\n")
    assert check().status == "ok"


@pytest.mark.parametrize(
    ("names", "status"), [(["runc", "runsc"], "ok"), (["io.containerd.runc.v2", "runc"], "warn"), (["kata"], "fail")]
)
def test_runtimes(names: list[str], status: str) -> None:
    assert doctor_host.runtimes({"Runtimes": {name: {} for name in names}}).status == status


def test_loop_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "problem", lambda: "there are no loop devices")
    check = doctor_host.loops()
    assert (check.status, check.detail) == ("warn", "there are no loop devices")
    monkeypatch.setattr(disk, "problem", lambda: None)
    assert doctor_host.loops().status == "ok"


@pytest.mark.parametrize(("tags", "word"), [("shared:1 ", "shared"), ("", "private"), ("master:7 ", "master")])
def test_mount_propagation(tmp_path: Path, tags: str, word: str) -> None:
    (tmp_path / "mountinfo").write_text(f"22 1 8:1 / / rw,relatime {tags}- ext4 /dev/sda1 rw\n")
    assert f"/ is {word};" in doctor_host.propagation(tmp_path / "mountinfo").detail
    (tmp_path / "mountinfo").write_text("22 1 8:1 / /home rw,relatime - ext4 /dev/sda1 rw\n")
    assert doctor_host.propagation(tmp_path / "mountinfo").status == "warn"


@pytest.mark.parametrize(
    ("free", "inodes", "files", "status"),
    [(1 << 40, 1 << 20, 1 << 21, "ok"), (1 << 20, 1 << 20, 1 << 21, "warn"), (1 << 40, 10, 1 << 21, "warn"), (1 << 40, 0, 0, "ok")],
)  # fmt: skip
def test_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, inodes: int, files: int, status: str) -> None:
    facts = namedtuple("facts", "f_bavail f_frsize f_favail f_files")(free >> 12, 1 << 12, inodes, files)
    monkeypatch.setattr(os, "statvfs", lambda _: facts)
    assert doctor_host.room(tmp_path / "not" / "yet").status == status


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_host, "_unsynchronised", lambda: True)
    assert doctor_host.clock().status == "warn"
    monkeypatch.setattr(doctor_host, "_unsynchronised", lambda: False)
    assert doctor_host.clock().status == "ok"
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    assert doctor_host.clock().status == "fail"


def test_the_kernels_word_on_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(status: int) -> SimpleNamespace:
        def adjtimex(buffer: ctypes.Array[ctypes.c_char]) -> int:
            buffer[40:44] = status.to_bytes(4, "little")
            return 0

        return SimpleNamespace(adjtimex=adjtimex)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel(0x40))
    assert doctor_host._unsynchronised()
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel(0x2001))
    assert not doctor_host._unsynchronised()


def test_no_cells_under_gvisor(tmp_path: Path) -> None:
    asked = ["--sandbox", "--runtime", "runsc", "--level", "namespace", "--home", str(tmp_path)]
    done = CliRunner().invoke(doctor, asked)
    assert done.exit_code == 2
    assert "--level namespace is for runtime runc" in done.output
