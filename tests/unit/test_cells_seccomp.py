"""Level ``namespace``'s two filters: the profile is generated and adds what its source names; the runner's program says what it is meant to."""

from __future__ import annotations

import errno
import importlib
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloche_guest import kernel

FOLDER = Path(__file__).parents[2] / "sandbox" / "image"
X86, ARM = 0xC000003E, 0xC00000B7
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("seccomp_profile", "seccomp_namespace"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("seccomp_namespace")


def rules(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / name).read_text())["syscalls"]
    return found


def test_the_committed_profile_is_generated(source: ModuleType) -> None:
    assert (FOLDER / "seccomp-namespace.json").read_text() == source.text(), (
        "run: python sandbox/image/seccomp_namespace.py > sandbox/image/seccomp-namespace.json"
    )


def test_it_is_the_other_profile_and_what_its_source_names(source: ModuleType) -> None:
    base, ours = rules("seccomp.json"), rules("seccomp-namespace.json")
    assert ours[: len(base)] == base
    added = ours[len(base) :]
    assert all(rule["action"] == "SCMP_ACT_ALLOW" and rule["comment"] for rule in added)
    assert {name for rule in added for name in rule["names"]} <= {
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "prctl",
        "ioctl",
    }
    whole = [rule["names"] for rule in added if "args" not in rule]
    assert whole == [["pivot_root"]], "everything else is allowed for exact values only"
    assert all(arg["op"] == "SCMP_CMP_EQ" for rule in added for arg in rule.get("args", []))
    assert all(reason for *_, reason in source.ADDED)


def test_its_numbers_are_those_the_guest_uses(source: ModuleType) -> None:
    allowed = {(name, value) for name, _, value, _ in source.ADDED}
    for flags in (kernel.NEWUSER, kernel.NEWPID, kernel.SLOT_NAMESPACES, kernel.CELL_NAMESPACES):
        assert ("unshare", flags) in allowed
    assert len([value for name, value in allowed if name == "unshare"]) == 4


def run(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What a classic BPF program answers to a call: loads, two kinds of jumps, returns; as the kernel reads them."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(list(arguments) + [0] * 6)[:6])
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x15:
            at += yes if accumulator == value else no
        elif code == 0x45:
            at += yes if accumulator & value else no
        elif code == 0x06:
            return int(value)
        else:
            raise AssertionError(f"an instruction {code:#x}")


CALLS = {
    "x86_64": (
        X86,
        {
            "unshare": 272,
            "pivot_root": 155,
            "prctl": 157,
            "setsockopt": 54,
            "getsockopt": 55,
            "clone": 56,
            "mount": 165,
            "umount2": 166,
            "setns": 308,
        },
    )
}
CALLS["aarch64"] = (
    ARM,
    {
        "unshare": 97,
        "pivot_root": 41,
        "prctl": 167,
        "setsockopt": 208,
        "getsockopt": 209,
        "clone": 220,
        "mount": 40,
        "umount2": 39,
        "setns": 268,
    },
)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_runners_filter(machine: str) -> None:
    program = kernel.filter_program(machine)
    arch, numbers = CALLS[machine]

    def answer(name: str, *arguments: int) -> int:
        return run(program, arch, numbers[name], *arguments)

    for flags in (kernel.NEWUSER, kernel.SLOT_NAMESPACES, kernel.NEWNET, kernel.NEWUSER | kernel.NEWNS):
        assert answer("unshare", flags) == REFUSE
    for flags in (kernel.CELL_NAMESPACES, kernel.NEWPID, 0):
        assert answer("unshare", flags) == ALLOW
    assert answer("pivot_root", 1, 2) == REFUSE
    assert answer("prctl", 22, 2) == REFUSE
    assert [answer("prctl", option) for option in (4, 24, 38)] == [ALLOW] * 3
    assert [answer("setsockopt", 3, 1, option) for option in (26, 50, 51, 52)] == [REFUSE] * 4
    assert [answer("setsockopt", 26, 6, 26), answer("setsockopt", 3, 1, 9), answer("setsockopt", 3, 0, 26)] == [
        ALLOW
    ] * 3
    assert answer("getsockopt", 3, 1, 77) == answer("getsockopt", 3, 1 | 1 << 32, 77) == REFUSE, (
        "as the kernel reads an int"
    )
    assert [answer("getsockopt", 3, 1, 17), answer("getsockopt", 3, 6, 77)] == [ALLOW] * 2
    assert answer("clone", 17) == answer("mount") == ALLOW
    assert run(program, 0x40000003, 1) == KILL, "another architecture's numbers"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filters_of_a_slot_with_a_preloader(machine: str) -> None:
    """The runner's lets one more filter follow, and nothing else pass that it refused; the preloader's refuses that too, and whatever makes cells."""
    arch, numbers = CALLS[machine]
    calls = [("unshare", flags) for flags in (0, kernel.NEWPID, kernel.CELL_NAMESPACES, kernel.NEWUSER)]
    calls += [
        ("pivot_root", 1, 2),
        ("mount", 0),
        ("umount2", 0),
        ("prctl", 22, 2),
        ("prctl", 4),
        ("setsockopt", 3, 1, 26),
        ("clone", 17),
        ("setns", 3),
    ]
    found = {}
    for name, options in {"plain": {}, "runner": {"further": True}, "preloader": {"makes_cells": False}}.items():
        program = kernel.filter_program(machine, **options)
        found[name] = {call: run(program, arch, numbers[call[0]], *call[1:]) for call in calls}
    differ = {call for call in calls if found["plain"][call] != found["runner"][call]}
    assert differ == {("prctl", 22, 2)}
    allowed = {call for call in calls if found["preloader"][call] == ALLOW}
    assert allowed == {("prctl", 4), ("clone", 17), ("setns", 3)}
    assert all(found["preloader"][call] == REFUSE for call in set(calls) - allowed)


def test_an_architecture_without_numbers_has_no_cells() -> None:
    with pytest.raises(OSError, match="riscv"):
        kernel.filter_program("riscv64")


def test_the_filter_is_no_longer_than_the_kernel_takes() -> None:
    assert len(kernel.filter_program("x86_64")) // 8 < 64
