"""The seccomp profile: the committed JSON is what its readable source gives, and what must be denied is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parents[2] / "sandbox" / "image"

# From measurements on stock profiles: each of these opened a way out, or is a long list of kernel holes.
DENIED = """
ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise process_mrelease
io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd vmsplice splice tee memfd_secret
keyctl add_key request_key modify_ldt open_by_handle_at name_to_handle_at lookup_dcookie
mount umount umount2 pivot_root chroot mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick setns unshare
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd syslog
settimeofday clock_settime clock_adjtime adjtimex iopl ioperm vm86 vm86old uselib ustat sysfs _sysctl nfsservctl
set_mempolicy mbind migrate_pages move_pages fanotify_init fanotify_mark vhangup sethostname setdomainname seccomp socketcall ipc
sync syncfs io_setup io_submit inotify_init inotify_init1 inotify_add_watch
""".split()


def source() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seccomp_profile", FOLDER / "seccomp_profile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_profile_is_generated() -> None:
    assert (FOLDER / "seccomp.json").read_text() == source().text(), (
        "run: python sandbox/image/seccomp_profile.py > sandbox/image/seccomp.json"
    )


def test_what_must_be_denied_is_not_allowed() -> None:
    profile = json.loads((FOLDER / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert allowed.isdisjoint(DENIED)
    assert "rseq" in allowed


def test_calls_that_are_allowed_only_with_some_arguments() -> None:
    rules = json.loads((FOLDER / "seccomp.json").read_text())["syscalls"]
    conditional: dict[str, list[dict[str, Any]]] = {}
    for rule in rules:
        for name in rule["names"]:
            conditional.setdefault(name, []).append(rule)
    families = sorted(rule["args"][0]["value"] for rule in conditional["socket"])
    assert families == [1, 2, 10]
    assert [rule["args"][0]["value"] for rule in conditional["socketpair"]] == [1]
    assert all(
        "args" in rule for name in ("socket", "socketpair", "clone", "personality") for rule in conditional[name]
    )
    namespaces, files, thread = 0x7E020000, 0x400, 0x10000
    masks = {(rule["args"][0]["value"], rule["args"][0]["valueTwo"]) for rule in conditional["clone"]}
    assert masks == {(namespaces | files | thread, 0), (namespaces | files | thread, files | thread)}
    (clone3,) = conditional["clone3"]
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def allowed_values(name: str) -> set[tuple[tuple[int, int], ...]]:
    """Of a call with operations: the (index, value) pairs of each rule, every comparison being exact."""
    rules = [rule for rule in json.loads((FOLDER / "seccomp.json").read_text())["syscalls"] if name in rule["names"]]
    assert all(rule["action"] == "SCMP_ACT_ALLOW" and rule["names"] == [name] for rule in rules)
    assert {condition["op"] for rule in rules for condition in rule["args"]} == {"SCMP_CMP_EQ"}
    return {tuple((one["index"], one["value"]) for one in rule["args"]) for rule in rules}


def test_nobody_installs_a_filter() -> None:
    assert {((0, 22),), ((0, 59),)}.isdisjoint(allowed_values("prctl"))  # PR_SET_SECCOMP, PR_SET_SYSCALL_USER_DISPATCH
    options = allowed_values("setsockopt")
    filters = {((1, 1), (2, option)) for option in (26, 27, 44, 50, 51, 52)}  # SO_ATTACH_*, SO_DETACH_*, SO_LOCK_FILTER
    assert options.isdisjoint(filters | {((1, 6), (2, 31))})  # TCP_ULP
    assert all(len(option) == 2 for option in options)


def test_operations_are_allowed_by_value() -> None:
    assert {((1, 37),), ((1, 38),), ((1, 1024),)}.isdisjoint(allowed_values("fcntl"))
    assert {((1, 0x5412),), ((1, 0x40049409),)}.isdisjoint(allowed_values("ioctl"))  # TIOCSTI, FICLONE
    # Each value fits a positive int, so that no library widens it in another way than we compare it.
    for name in ("prctl", "setsockopt", "fcntl", "ioctl", "prlimit64", "setrlimit"):
        assert all(0 <= value < 1 << 31 for rule in allowed_values(name) for _, value in rule)


def test_the_cores_limit_cannot_be_changed() -> None:
    assert ((0, 4),) not in allowed_values("setrlimit")
    own = allowed_values("prlimit64")
    assert all(rule[0] == (0, 0) for rule in own)
    assert [rule for rule in own if (1, 4) in rule] == [((0, 0), (1, 4), (2, 0))]


def test_no_32_bit_call_table() -> None:
    profile = json.loads((FOLDER / "seccomp.json").read_text())
    assert [entry["architecture"] for entry in profile["archMap"]] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    assert all(entry["subArchitectures"] == [] for entry in profile["archMap"])


def test_no_call_is_named_twice_without_conditions() -> None:
    names = [name for _, calls in source().GROUPS for name in calls.split()]
    assert sorted(names) == sorted(set(names))
