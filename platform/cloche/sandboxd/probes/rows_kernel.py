"""Probes of who the job is, and of system calls that change the machine."""

from __future__ import annotations

import signal
from typing import Any

from cloche.sandboxd.probes import scenes
from cloche.sandboxd.probes.probe import Judge, Probe, equals, only, refused

_NO_CAPABILITY = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16)
ENVIRONMENT = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "HOSTNAME", "LC_CTYPE",
                "GPG_KEY", "PYTHON_VERSION", "PYTHON_SHA256", "PYTHON_PIP_VERSION", "PYTHON_SETUPTOOLS_VERSION"}  # fmt: skip


def _own_user(facts: Any) -> bool:
    (uid, *uids), gids = facts["uids"], facts["gids"]
    return uid >= 1_000 and {uid, *uids, *gids} == {uid} and set(facts["groups"]) <= {uid}


def _fresh_uids(facts: Any) -> bool:
    one, two = facts["together"]
    return one != two and facts["later"] not in (one, two) and facts["processes"] == sorted({one, two})


def environment(first: str) -> Judge:
    """The agent's has the image's own names alone. ``first``: what reading process 1's is answered; a list of such names is as good."""

    def held(facts: Any) -> bool:
        read = [facts["own"], facts["kept"], *([] if facts["first"] == first else [facts["first"]])]
        return "PATH" in facts["own"] and all(isinstance(names, list) and set(names) <= ENVIRONMENT for names in read)

    return held


def _not_raised(facts: Any) -> bool:
    """Refused for want of a right, each; and the core limit is one byte."""
    raised = facts["raised"]
    return (
        raised.keys() == {"NOFILE", "CORE", "FSIZE"}
        and set(raised.values()) == {"not allowed to raise maximum limit"}
        and facts["core"] == [1, 1]
    )


def _no_32bit(facts: Any) -> bool:
    """Killed by the filter, or by a kernel without that gate; or refused."""
    return facts in ({"died": -signal.SIGSYS}, {"died": -signal.SIGSEGV}) or facts.get("answer", 0) < 0


def _no_x32(facts: Any) -> bool:
    return facts in ({"died": -signal.SIGSYS}, {"answer": "ENOSYS"}, {"answer": "EPERM"})


def _keys(*allowed: Judge) -> Judge:
    """One judge for each answer, in order."""
    return lambda facts: (
        len(facts) == len(allowed) and all(judge(value) for judge, value in zip(allowed, facts.values(), strict=True))
    )


# fmt: off
IDENTITY = (
    Probe("capabilities", "identity", "read every capability set", "all five are empty", equals(_NO_CAPABILITY)),
    Probe("no_new_privileges", "identity", "undo no-new-privileges", "it is set, and cannot be unset",
          lambda f: f["status"] == "1" and f["undo"] != "DONE"),
    Probe("seccomp_filter", "identity", "switch the system call filter off", "a filter is active, and stays",
          lambda f: f["mode"] == "2" and f["off"] != "DONE"),
    Probe("user", "identity", "read user, group and further groups", "one id of the sandboxes' range throughout, no other group", _own_user),
    Probe("own_uids", "identity", "look at two sandboxes at once and at one after them", "three user ids, and no other user's process in any",
          _fresh_uids, scenes.own_uids),
    Probe("become_root", "identity", "setuid, setgid, setgroups, bounding and ambient capabilities", "each is EPERM", refused),
    Probe("root_programs", "identity", "su, sudo, pkexec, newgrp, mount, newuidmap, ping", "absent, or refused", only("absent", "refused")),
    Probe("setuid_bits", "identity", "make a set-uid file and give it to root", "every writable mount is nosuid; chown is EPERM",
          lambda f: all(value == [True, "EPERM"] for value in f.values())),
    Probe("file_capabilities", "identity", "give a file capabilities", "refused",
          only("EPERM", "EOPNOTSUPP")),
    Probe("scheduling", "identity", "nice -20, real-time scheduling, real-time disk priority", "each is refused", only("EPERM", "EACCES")),
    Probe("raise_limits", "identity", "raise the hard limits of descriptors, core and file size", "refused, and no core is ever written",
          _not_raised),
    Probe("spare_from_oom", "identity", "oom_score_adj of -1, -500, -1000", "each is refused", only("EACCES", "EPERM")),
    Probe("environment", "identity", "read the environment of the agent and of process 1", "the image's own names, nothing of the platform",
          environment("EACCES")),
    Probe("hostname", "identity", "read and set the host's and the domain's name", "the name says nothing; setting is refused",
          lambda f: f["name"] == "sandbox" and refused([f["set"], f["domain"]])),
)

CALLS = (
    Probe("unshare", "system calls", "unshare into each kind of new namespace", "each is EPERM", refused),
    Probe("clone", "system calls", "clone into each kind of new namespace", "each is EPERM", refused),
    Probe("clone3", "system calls", "clone3, whose flags a filter cannot see", "ENOSYS, so that libraries use clone", only("ENOSYS")),
    Probe("setns", "system calls", "enter process 1's namespaces", "each is refused", only("EPERM", "EACCES")),
    Probe("mount", "system calls", "mount, umount, pivot_root, chroot", "each is EPERM", refused),
    Probe("new_mount", "system calls", "open_tree, move_mount, fsopen and their kin", "each is EPERM", refused),
    Probe("mknod", "system calls", "make block and memory devices wherever one may write", "each is EPERM", refused),
    Probe("bpf", "system calls", "bpf", "EPERM", refused),
    Probe("perf", "system calls", "perf_event_open", "EPERM", refused),
    Probe("userfaultfd", "system calls", "userfaultfd", "EPERM", refused),
    Probe("io_uring", "system calls", "io_uring's three calls", "each is EPERM", refused),
    Probe("keyring", "system calls", "add_key, request_key, keyctl: keys have no namespace", "each is EPERM", refused),
    Probe("modules", "system calls", "load and remove kernel modules", "each is EPERM", refused),
    Probe("kexec", "system calls", "kexec_load, kexec_file_load", "each is EPERM", refused),
    Probe("reboot", "system calls", "reboot", "EPERM", refused),
    Probe("clocks", "system calls", "set or tune the clock", "each is EPERM", refused),
    Probe("handles", "system calls", "open_by_handle_at, which walks out of bind mounts", "each is EPERM", refused),
    Probe("trace", "system calls", "ptrace, process_vm_*, pidfd_getfd, kcmp", "each is EPERM", refused),
    Probe("administration", "system calls", "swap, accounting, quota, kernel log, hang up", "each is EPERM", refused),
    Probe("watching", "system calls", "fanotify, lookup_dcookie", "each is EPERM", refused),
    Probe("rare", "system calls", "calls with a history of holes: splice and vmsplice, memory policy, memfd_secret …", "each is EPERM", refused),
    Probe("personality", "system calls", "switch address randomisation off", "each is EPERM", refused),
    Probe("table_32bit", "system calls", "the 32-bit call table through int 0x80", "refused, or the process is killed", _no_32bit),
    Probe("table_x32", "system calls", "the x32 call table", "refused, or the process is killed", _no_x32),
    Probe("own_filters", "system calls", "one filter for system calls or sockets by each way there is; in number they bring a kernel to a stop", "each is EPERM", refused),
    Probe("socket_options", "system calls", "options of sockets that load modules, forge, or skip copying", "each is EPERM", refused),
    Probe("odd_operations", "system calls", "what no plugin needs of ioctl, prctl and fcntl: terminals, file systems, leases, tracers", "each is EPERM", refused),
    Probe("asynchronous_io", "system calls", "contexts of asynchronous I/O, of which the host has a fixed number", "ENOSYS", only("ENOSYS")),
    Probe("watches", "system calls", "watch the plugin's files, which neighbours open too", "ENOSYS", only("ENOSYS")),
    Probe("sync_host", "system calls", "sync, and syncfs on the host's file system", "each is EPERM", refused),
    Probe("core_handler", "system calls", "change the core limit of one byte, so that the host's core handler runs", "each is EPERM",
          lambda f: f["now"] == [1, 1] and refused([value for name, value in f.items() if name != "now"])),
    Probe("priorities", "system calls", "deadline and real-time scheduling by sched_setattr", "each is EPERM", refused),
    Probe("pseudo_terminals", "system calls", "pseudo-terminals, of which the host has a fixed number", "there are none", only("ENOENT", "EACCES")),
    Probe("terminal", "system calls", "open a terminal to type into", "there is none", only("ENXIO", "ENOENT", "EACCES", "EIO", "EPERM")),
)
# fmt: on
