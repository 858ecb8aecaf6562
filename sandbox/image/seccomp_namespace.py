"""The readable source of ``seccomp-namespace.json``: the profile of level ``namespace``, which is ``seccomp_profile.py``'s and what makes cells.

Write it anew with ``python sandbox/image/seccomp_namespace.py > sandbox/image/seccomp-namespace.json``; a test fails when they differ.

What is added is what our own agent and runners do, each call with the very arguments they use and no others. A cell inherits the profile,
and gets nothing from it: the kernel refuses each of these to a process without capabilities, a user namespace that would bring some is not
to be had (``max_user_namespaces`` is 0 in there), and the runner's own filter (``cloche_guest.kernel.filter_program``), which every cell
inherits, refuses the first four rows once more.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import seccomp_profile

_NS = {"mnt": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}

# (call, index of the argument, its value, who needs it); cloche_guest.kernel has the same numbers.
ADDED: tuple[tuple[str, int, int, str], ...] = (
    ("unshare", 0, _NS["user"], "the agent, once: the user namespace in which cells are made"),
    ("unshare", 0, _NS["mnt"] | _NS["ipc"] | _NS["uts"] | _NS["net"], "a runner, once: what its slot keeps"),
    ("prctl", 0, 22, "PR_SET_SECCOMP: a runner, once: its own filter, after which there is no other"),
    ("ioctl", 1, 0x8914, "SIOCSIFFLAGS: a runner, once: sets lo up in its own network namespace"),
    ("unshare", 0, _NS["pid"], "the agent for a slot, a runner for a cell"),
    ("unshare", 0, _NS["mnt"] | _NS["ipc"] | _NS["uts"], "a cell"),
    (
        "setns",
        1,
        _NS["pid"],
        "a runner comes back from the pid namespace of a new cell; a preloader goes into it and comes back",
    ),
    ("setns", 1, _NS["mnt"], "the plugin's process of a cell, where a preloader made it"),
    ("setns", 1, _NS["ipc"], "the same"),
    ("setns", 1, _NS["uts"], "the same"),
    ("prctl", 0, 24, "PR_CAPBSET_DROP: a runner empties its bounding set"),
    # flags: read-only 1, nosuid 2, nodev 4, noexec 8, remount 32, bind 4096, recursive 16384, private 1 << 18
    ("mount", 3, 2 | 4 | 8, "a slot's root; /tmp, /dev/shm and /proc of a cell"),
    ("mount", 3, 4096, "a slot's folders and devices, in/ and out/ of a cell: the flags of their mounts stay"),
    ("mount", 3, 4096 | 16384, "what of the image is in a slot's root"),
    ("mount", 3, 1 | 2 | 4 | 8 | 32 | 4096, "a slot's root, once it is laid out, becomes read-only"),
    ("mount", 3, (1 << 18) | 16384, "nothing that is mounted elsewhere later arrives in a cell"),
    ("umount2", 1, 2, "MNT_DETACH: a slot lets go of the container's root, a cell of its slot's folder"),
)
ROOT = "pivot_root"  # its arguments are paths, which a filter cannot see


def profile() -> dict[str, Any]:
    """The profile as the engine's ``seccomp=`` option takes it."""
    found = seccomp_profile.profile()
    rules: list[dict[str, Any]] = found["syscalls"]
    whole = {name for rule in rules if "args" not in rule for name in rule["names"]}
    rules += [_exact(*added) for added in ADDED if added[0] not in whole]
    rules.append(
        {
            "names": [ROOT],
            "action": "SCMP_ACT_ALLOW",
            "comment": "a runner, once: a root without the other slots' folders",
        }
    )
    return found


def _exact(name: str, index: int, value: int, reason: str) -> dict[str, Any]:
    condition = {"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition], "comment": reason}


def text() -> str:
    """The file's exact contents."""
    return json.dumps(profile(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
