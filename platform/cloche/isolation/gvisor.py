"""How a container's configuration differs under gVisor. Pure: no I/O.

Under gVisor the engine's limits of memory, processes and CPU do not reach the sandbox's processes; sandboxd puts those into cgroups of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloche.domain.limits import Limits

ARGUMENTS = ("--platform=ptrace", "--network=none", "--ignore-cgroups", "--oci-seccomp", "--host-uds=open")
"""How gVisor is registered with the engine. On newer versions ``--platform=systrap`` is the same and faster."""
GATE_WORD = "gate"
"""Argument that has process 1 wait for one byte (:data:`GATE`) before it starts the agent: before that, sandboxd has set the limits."""
GATE = b"\n"
OWN_IMAGE_REFUSED = (
    "a plugin's own image cannot run under runsc (gVisor): from outside nobody can see what its first process is"
)

MEMORY_OVERHEAD = 16 << 20
"""Bytes on top of a job's limit, for what gVisor's kernel keeps for it. Measured with Debian's 20221219: what is there before the gate opens (about
55 MB, and the interpreter) is counted to the engine, not to the job; 200 MB touched by a job were 202 MB in its cgroup, and each process of
its own took 1 to 2 MB more than under runc."""
MEMORY_BEFORE = 55 << 20
"""Bytes that gVisor takes for a sandbox before its gate opens. They are counted to the engine; where sandboxes wait, they count as theirs."""
TASKS_BASE = 64
"""Threads that gVisor itself has on the host: 42 to 44 were counted for a sandbox that does nothing."""
TASKS_PER_PROCESS = 32
"""Threads on the host for each process inside: 5 for one that waits, 29 for one that computed and slept in turn among 30 of its kind."""
MAX_TASKS = 8_192
"""No sandbox may have more threads on the host, whatever it asked for."""


@dataclass(frozen=True)
class GroupLimits:
    """What sandboxd's own cgroup holds a sandbox to: bytes, threads on the host, CPUs."""

    memory: int
    tasks: int
    cpus: float


def group_limits(memory: int, limits: Limits, host_cpus: int) -> GroupLimits:
    """``memory``: bytes of the job and its tmpfs, as :func:`cloche.isolation.spec.memory_limit` says."""
    return GroupLimits(
        memory=memory + MEMORY_OVERHEAD,
        tasks=min(TASKS_BASE + TASKS_PER_PROCESS * limits.pids, MAX_TASKS),
        cpus=min(limits.cpu, float(host_cpus)),
    )


def under_runsc(config: Mapping[str, Any], limits: Limits, registered: str) -> dict[str, Any]:
    """The engine's configuration of the same sandbox under gVisor.

    ``registered``: the runtime's name with the engine. The number of processes is held twice: inside by RLIMIT_NPROC, which gVisor's kernel
    counts for the sandbox's one user (a fork gets EAGAIN, as under runc), and on the host by the cgroup (gVisor itself ends).
    """
    host = dict(config["HostConfig"])
    host["Runtime"] = registered
    host["Memory"] += MEMORY_OVERHEAD
    if host["MemorySwap"] >= 0:  # an engine that cannot count swap takes no limit of it
        host["MemorySwap"] = host["Memory"]
    host["PidsLimit"] = min(TASKS_BASE + TASKS_PER_PROCESS * limits.pids, MAX_TASKS)
    host["Ulimits"] = [*host["Ulimits"], {"Name": "nproc", "Soft": limits.pids, "Hard": limits.pids}]
    host["SecurityOpt"] = [_filter_inside(option) for option in host["SecurityOpt"]]
    return {**config, "Cmd": [GATE_WORD], "HostConfig": host}


def _filter_inside(option: str) -> str:
    """The system call filter as gVisor can keep it, inside its own kernel.

    The version of 2022 answers EPERM where a rule says ENOSYS, and libraries then start no thread. ``clone3`` is therefore left to gVisor's
    kernel: it has none, or one that makes namespaces of that kernel, never of the host's. It also has another name for ``pselect6``.
    """
    name, _, text = option.partition("=")
    if name != "seccomp":
        return option
    profile = json.loads(text)
    rules = [rule for rule in profile["syscalls"] if rule["names"] != ["clone3"]]
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ALLOW"})
    if any("pselect6" in rule["names"] for rule in rules):
        rules.append({"names": ["pselect"], "action": "SCMP_ACT_ALLOW"})
    return f"seccomp={json.dumps({**profile, 'syscalls': rules})}"
