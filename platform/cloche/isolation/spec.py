"""From what a caller may ask to the engine's whole container configuration. Pure: no I/O, every option decided here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloche.clock import is_uuid7
from cloche.domain.limits import CEILINGS, Limits, violations, watched_apart
from cloche.domain.runtimes import RUNC, RUNSC, RUNTIMES
from cloche.isolation import plugin_image
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.gvisor import OWN_IMAGE_REFUSED, under_runsc
from cloche_guest import job_secrets, preload_names

MAX_ATTEMPT = 1_000_000
MAX_PRIORITY = 9
NO_JOB = "00000000-0000-7000-8000-000000000000"  # of a sandbox that waits for its job
LABEL = "org.cloche"
CONTAINER, NAMESPACE = LEVELS = ("container", "namespace")
_DIGEST = re.compile(r"[0-9a-f]{64}")
IMAGE = plugin_image.IMAGE_ID
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_MIN_SHM = 64 << 10  # bytes; the engine takes 0 for its own default of 64 MB
MAX_TMPFS_OUTPUT = 64 << 20  # bytes; larger outputs do not belong in memory
_TMP_INODES = 4_096
# Bytes of a core file. With 0 the kernel still starts the program that the host's core_pattern may pipe cores to, as root and fed by the job;
# it does not for 1, and a file needs a page at least, so that none is ever written.
_CORE = 1
_SPARE_INODES = 64  # of out/, for its root and folders
# What the engine hides by itself, and beyond it what tells of the whole host or lets anybody set the kernel to work: interrupts, users' keys,
# pressure (any user may write a trigger there), power meters, its boot line, disks and file locks. Naming any replaces the engine's list.
MASKED_PATHS = (
    "/dev/pts",  # of pseudo-terminals the host has a fixed number
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/swaps",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)


class BadSpec(ValueError):
    """A spec that is malformed or asks for more than the platform allows. Nothing was started."""


@dataclass(frozen=True)
class Folders:
    """The host's side of one sandbox's mounts; each is made by sandboxd under a folder that only root can change."""

    inputs: Path
    out: Path
    run: Path
    plugin: Path
    wheels: Path | None
    runtime: Path | None = None  # for a plugin with an image of its own


@dataclass(frozen=True)
class Placement:
    """What sandboxd decides, not the caller: identity, place, engine facts."""

    sandbox_id: str
    owner: str | None  # worker id; None: made before there is a job for it
    home: str  # digest of the home directory: two homes on one engine never touch each other's containers
    image: str  # config digest
    uid: int  # also the gid
    host_cpus: int
    seccomp: str  # the profile's JSON text
    folders: Folders
    counts_swap: bool = (
        True  # whether the engine can limit swap; where it cannot, sandboxd runs nothing unless the host has none
    )
    image_environment: Mapping[str, str] = field(default_factory=dict)  # of a plugin's own image
    runsc: str = RUNSC  # the name under which gVisor is registered with the engine


def check_spec(spec: SandboxSpec, ceilings: Limits = CEILINGS) -> None:
    """
    Raises:
        BadSpec: names the first thing that is wrong.
    """
    if not isinstance(spec.job_id, str) or len(spec.job_id) != 36 or not is_uuid7(spec.job_id):
        raise BadSpec("job_id is a UUIDv7")
    if not _is_count(spec.attempt, MAX_ATTEMPT):
        raise BadSpec(f"attempt lies between 1 and {MAX_ATTEMPT}")
    check_bundle(spec.bundle)
    if spec.wheels is not None and (not isinstance(spec.wheels, str) or not _DIGEST.fullmatch(spec.wheels)):
        raise BadSpec("wheels is 64 hex digits or null")
    if not _is_count(spec.lease_until, 1 << 53):
        raise BadSpec("lease_until is milliseconds since the epoch")
    if not isinstance(spec.warm, bool):
        raise BadSpec("warm is true or false")
    if not _is_count(spec.priority, MAX_PRIORITY, least=0):
        raise BadSpec(f"priority lies between 0 and {MAX_PRIORITY}")
    if not isinstance(spec.egress, bool):
        raise BadSpec("egress is true or false")
    if spec.runtime not in RUNTIMES:
        raise BadSpec(f"runtime is {' or '.join(RUNTIMES)}")
    if spec.level not in LEVELS:
        raise BadSpec(f"level is one of {', '.join(LEVELS)}")
    if spec.tenant is not None and (not isinstance(spec.tenant, str) or not _UUID.fullmatch(spec.tenant)):
        raise BadSpec("tenant is a UUID or null")
    if spec.level == NAMESPACE and spec.tenant is None:
        raise BadSpec("at level namespace a sandbox belongs to a tenant")
    if problem := preload_names.problem(spec.preload):
        raise BadSpec(f"preload {problem}")
    if spec.preload and (spec.level != NAMESPACE or spec.wheels is None):
        raise BadSpec("preload is for level namespace, and names modules of its wheels")
    if not isinstance(spec.secrets, bool):
        raise BadSpec("secrets is true or false")
    if not isinstance(spec.sensitive, bool):
        raise BadSpec("sensitive is true or false")
    if spec.sensitive and spec.level != CONTAINER:
        raise BadSpec("a sensitive job has a container of its own")
    if found := violations(spec.limits, ceilings):
        raise BadSpec(f"limits: {'; '.join(found)}")
    _check_own_image(spec)


def _check_own_image(spec: SandboxSpec) -> None:
    if spec.image is None and spec.command is None:
        return
    if not isinstance(spec.image, str) or not IMAGE.fullmatch(spec.image):
        raise BadSpec("image is sha256: and 64 hex digits, and comes with a command; or both are null")
    if problem := plugin_image.command_problem(spec.command):
        raise BadSpec(f"command {problem}")
    if spec.runtime == RUNSC:
        raise BadSpec(OWN_IMAGE_REFUSED)
    if spec.wheels is not None:
        raise BadSpec("a plugin with an image of its own has no wheels")


def template(spec: SandboxSpec) -> SandboxSpec:
    """The spec without its job: all that one sandbox must share with another to stand in for it.

    Whatever a spec comes to hold is part of it, unless it is named here.
    """
    limits = watched_apart(spec.limits)
    # At level container a sandbox is used once: whose job it will be does not matter. Level namespace has keys of its own (cell_spec).
    anybody = replace(spec, level=CONTAINER, tenant=None, preload=())
    return replace(anybody, job_id=NO_JOB, attempt=1, lease_until=1, warm=True, priority=0, limits=limits)


def check_owner(owner: Any) -> str:
    """
    Raises:
        BadSpec: not a worker's id.
    """
    if not isinstance(owner, str) or not _OWNER.fullmatch(owner):
        raise BadSpec("owner is 1 to 128 letters, digits and . _ : @ -")
    return owner


def check_bundle(bundle: Any) -> str:
    """
    Raises:
        BadSpec: not a bundle's digest.
    """
    if not isinstance(bundle, str) or not _DIGEST.fullmatch(bundle):
        raise BadSpec("bundle is 64 hex digits")
    return bundle


def out_on_disk(limits: Limits) -> bool:
    """Whether ``out/`` is a file system on the host's disk; a tmpfs otherwise."""
    return limits.output > MAX_TMPFS_OUTPUT


def out_inodes(limits: Limits) -> int:
    """The inodes of ``out/``: its files, its root and some folders."""
    return limits.output_files + max(_SPARE_INODES, limits.output_files // 4)


def out_options(limits: Limits, uid: int) -> str:
    """The tmpfs options of ``out/``: a hard quota of bytes and of inodes."""
    return f"size={limits.output},nr_inodes={out_inodes(limits)},uid={uid},gid={uid},mode=0700"


def memory_limit(limits: Limits, own_image: bool = False) -> int:
    """Bytes for the container's cgroup: tmpfs pages count as the job's memory, so they are added to what was asked.

    ``own_image``: for a plugin with an image of its own, whose ``/job`` is one more tmpfs.
    """
    out = 0 if out_on_disk(limits) else limits.output
    job = plugin_image.job_files(limits) if own_image else 0
    return limits.memory + out + limits.tmp + max(limits.shm, _MIN_SHM) + job


def swap_limit(memory: int, counts_swap: bool) -> int:
    """The engine's limit of memory and swap together, in bytes: no swap. -1, none: all that an engine takes which cannot count it."""
    return memory if counts_swap else -1


def resized(limits: Limits, made: Limits, memory: Any, output: Any) -> Limits:
    """The limits of a running sandbox with other bytes of memory and of output.

    ``made``: those it was made with. Its output may not become larger than then: the size of its file system and of each file is bound to it.

    Raises:
        BadSpec: not numbers, beyond what the platform allows, or an output that this sandbox cannot have.
    """
    for name, value in (("memory", memory), ("output", output)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadSpec(f"{name} is a number of bytes")
    asked = replace(limits, memory=memory, output=output)
    if found := violations(asked):
        raise BadSpec(f"limits: {'; '.join(found)}")
    if output > made.output:
        raise BadSpec(f"the output was made for {made.output} bytes, and cannot become larger")
    if out_on_disk(made) and not out_on_disk(asked):
        raise BadSpec(f"an output on disk stays there, and has more than {MAX_TMPFS_OUTPUT} bytes")
    return asked


def container_config(spec: SandboxSpec, place: Placement, ceilings: Limits = CEILINGS) -> dict[str, Any]:
    """The body of the engine's ``POST /containers/create``.

    Raises:
        BadSpec: the spec or the placement breaks a rule.
    """
    check_spec(spec, ceilings)
    if not IMAGE.fullmatch(place.image):
        raise BadSpec("the image is named by its config digest")
    if place.uid < 1_000:
        raise BadSpec("a sandbox runs under a user id of its own range, never a system's")
    user = f"{place.uid}:{place.uid}"
    own: Mapping[str, Any] = {}
    if spec.image is not None and spec.command is not None:
        if place.image != spec.image or place.folders.runtime is None:
            raise BadSpec("a plugin's own image is placed with the runtime, and as no other image")
        own = plugin_image.container(spec.command, place.image_environment)
    config = {
        "Image": place.image,
        "User": user,
        "Hostname": "sandbox",
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,  # the guest sees the end of its input when our connection closes
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": True,
        "Labels": _labels(spec, place),
        "HostConfig": _container_host_config(spec, place, own_image=bool(own)),
        **own,
    }
    return under_runsc(config, spec.limits, place.runsc) if spec.runtime == RUNSC else config


def _labels(spec: SandboxSpec, place: Placement) -> Mapping[str, str]:
    labels = {
        f"{LABEL}.home": place.home,
        f"{LABEL}.sandbox": place.sandbox_id,
        f"{LABEL}.bundle": spec.bundle,
    }
    if place.owner is None:  # labels are for good: whose it becomes only sandboxd knows
        return {**labels, f"{LABEL}.warm": "true"}
    return {
        **labels,
        f"{LABEL}.job": spec.job_id,
        f"{LABEL}.attempt": str(spec.attempt),
        f"{LABEL}.worker": check_owner(place.owner),
        f"{LABEL}.lease": str(spec.lease_until),
    }


def _container_host_config(spec: SandboxSpec, place: Placement, own_image: bool) -> dict[str, Any]:
    limits = spec.limits
    memory = memory_limit(limits, own_image)
    config = host_config(limits, memory, min(limits.cpu, float(place.host_cpus)), place.seccomp, place.counts_swap)
    job = plugin_image.job_files(limits) if own_image else 0
    tmp = {"/tmp": f"rw,noexec,nosuid,nodev,size={limits.tmp},nr_inodes={_TMP_INODES},mode=1777"}  # noqa: S108
    # What the secrets take there, at most a megabyte, counts as the job's own memory. With an image of its own they are in its /job.
    if spec.secrets and not own_image:
        tmp[job_secrets.PLACE] = f"rw,noexec,nosuid,nodev,{job_secrets.options(place.uid)}"
    return config | {
        "PidsLimit": limits.pids,
        "Ulimits": _ulimits(limits, job),
        "ShmSize": max(limits.shm, _MIN_SHM),
        "Tmpfs": tmp | (plugin_image.tmpfs(limits, place.uid) if own_image else {}),
        "Mounts": [bind_mount(*each) for each in mount_places(place.folders)],
    }


def host_config(limits: Limits, memory: int, cpus: float, seccomp: str, counts_swap: bool) -> dict[str, Any]:
    """What every container has, whatever runs in it. ``memory`` in bytes; see :func:`swap_limit` for ``counts_swap``."""
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp}"],
        "Runtime": RUNC,
        # Process 1 is our own guest (cloche_guest.first), which reaps; the engine's init is not installed everywhere.
        "Init": False,
        "Memory": memory,
        "MemorySwap": swap_limit(memory, counts_swap),
        "OomKillDisable": False,
        "NanoCpus": int(cpus * 1_000_000_000),
        "Ulimits": _ulimits(limits),
        "MaskedPaths": list(MASKED_PATHS),
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
    }


def _ulimits(limits: Limits, job: int = 0) -> list[dict[str, Any]]:
    """``job``: bytes of a further tmpfs that the job can write to."""
    values = {"nofile": limits.nofile, "core": _CORE, "fsize": max(limits.output, limits.tmp, job)}
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in values.items()]


def mount_places(folders: Folders) -> list[tuple[Path, str, bool]]:
    """Folder of the host, target in the container, whether read-only."""
    places = [
        (folders.inputs, "/job/in", True),
        (folders.out, "/job/out", False),
        (folders.run, "/run/cloche", True),
        (folders.plugin, "/cloche/plugin", True),
    ]
    if folders.wheels is not None:
        places.append((folders.wheels, "/cloche/wheels", True))
    if folders.runtime is not None:
        places.append((folders.runtime, plugin_image.RUNTIME, True))
    return places


def bind_mount(source: Path, target: str, read_only: bool) -> dict[str, Any]:
    """One entry of the engine's ``Mounts``."""
    return {
        "Type": "bind",  # unlike a volume or an old-style bind, it fails when the source is missing
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }


def _is_count(value: Any, top: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= top
