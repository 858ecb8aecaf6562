"""From a bundle's limits to the configuration of a container of level ``namespace``. Pure: no I/O, every option decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.domain.limits import Limits
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import IMAGE, LABEL, BadSpec, bind_mount, check_spec, host_config, memory_limit

UIDS = 64  # user ids of one container's cells: 0 is our own agent and runners inside, the others are cells'
SLOTS_PLACE = "/cloche/slots"
AGENT_MEMORY = 48 << 20  # bytes for the agent, beyond the slots' own
RUNNER_MEMORY = 24 << 20  # bytes for a slot's runner and the first process of its cell, beyond the job's own
RUNNER_PIDS = 1  # the runner; the first process of the cell counts as the job's, as process 1 does at level `container`
# The preloader, where there is one, and its cell's maker. Its memory counts as the job's, which would have imported the same itself.
PRELOADER_PIDS = 2
_AGENT_PIDS = 16  # the agent, and what stands for a moment between it and a new runner
_TMP_INODES = 4_096
_SHM_INODES = 4_096
_SMALL = 64 << 10  # bytes of the agent's own /tmp and /dev/shm, which no cell sees


@dataclass(frozen=True)
class CellKey:
    """What cells of one container have in common. Jobs of two tenants, or of two bundles, never meet in one."""

    tenant: str
    bundle: str
    wheels: str | None
    preload: tuple[str, ...]
    image: str
    cpu: float
    memory: int
    pids: int
    output: int
    output_files: int
    tmp: int
    shm: int
    nofile: int
    secrets: bool = False  # whether its cells have a place for them


@dataclass(frozen=True)
class CellFolders:
    """The host's side of a container's mounts; each is made by sandboxd under a folder that only root can change."""

    slots: Path  # shared: what is mounted below it later arrives in the container
    run: Path
    plugin: Path
    wheels: Path | None


@dataclass(frozen=True)
class CellPlacement:
    """What sandboxd decides."""

    container_id: str
    home: str
    image: str
    uid: int  # of the agent before it has a user namespace
    cells_base: int  # first of the UIDS that are mapped into it
    host_cpus: int
    slots: int
    seccomp: str
    counts_swap: bool  # whether the engine can limit swap
    folders: CellFolders


def key_of(spec: SandboxSpec, image: str) -> CellKey:
    """
    Raises:
        BadSpec: the spec names no tenant.
    """
    if spec.tenant is None:
        raise BadSpec("level namespace needs a tenant")
    limits = spec.limits.to_dict()
    shared: dict[str, Any] = {name: limits[name] for name in CellKey.__dataclass_fields__ if name in limits}
    return CellKey(
        tenant=spec.tenant,
        bundle=spec.bundle,
        wheels=spec.wheels,
        preload=spec.preload,
        image=image,
        secrets=spec.secrets,
        **shared,
    )


def slot_memory(limits: Limits) -> int:
    """Bytes for a slot's cgroup."""
    return memory_limit(limits) + RUNNER_MEMORY


def slot_pids(limits: Limits, *, preloads: bool) -> int:
    """Processes and threads for a slot's cgroup."""
    return limits.pids + RUNNER_PIDS + (PRELOADER_PIDS if preloads else 0)


def tmp_options(limits: Limits, uid: int) -> str:
    """Of a cell's ``/tmp``; ``uid`` inside the container."""
    return f"size={limits.tmp},nr_inodes={_TMP_INODES},uid={uid},gid={uid},mode=0700"


def shm_options(limits: Limits, uid: int) -> str:
    return f"size={max(limits.shm, _SMALL)},nr_inodes={_SHM_INODES},uid={uid},gid={uid},mode=0700"


def id_map(base: int) -> str:
    """The content of uid_map and gid_map: 0 … 63 inside are ``base`` … ``base + 63`` outside.

    Raises:
        BadSpec: the range touches the system's own users, or root.
    """
    if base < 1_000:
        raise BadSpec("cells run under user ids of their own range, never a system's")
    return f"0 {base} {UIDS}\n"


def cell_container_config(spec: SandboxSpec, place: CellPlacement) -> dict[str, Any]:
    """The body of the engine's ``POST /containers/create``.

    Nothing in it is, or can become, uid 0 of the host: that is what makes its unmasked ``/proc`` safe, without which a cell could not
    have a ``/proc`` of its own.

    Raises:
        BadSpec: the spec or the placement breaks a rule.
    """
    check_spec(spec)
    id_map(place.cells_base)
    if not IMAGE.fullmatch(place.image):
        raise BadSpec("the image is named by its config digest")
    if place.uid < 1_000 or place.cells_base <= place.uid < place.cells_base + UIDS:
        raise BadSpec("the agent runs under a user id of its own, never a system's or a cell's")
    if not 1 <= place.slots <= UIDS // 4:
        raise BadSpec(f"a container has 1 to {UIDS // 4} slots")
    return {
        "Image": place.image,
        "Cmd": ["cells"],
        "User": f"{place.uid}:{place.uid}",
        "Hostname": "sandbox",
        "Tty": False,
        "OpenStdin": False,
        "NetworkDisabled": True,
        "Labels": _labels(spec, place),
        "HostConfig": _host_config(spec, place),
    }


def _labels(spec: SandboxSpec, place: CellPlacement) -> Mapping[str, str]:
    return {
        f"{LABEL}.home": place.home,
        f"{LABEL}.sandbox": place.container_id,
        f"{LABEL}.level": "namespace",
        f"{LABEL}.tenant": str(spec.tenant),
        f"{LABEL}.bundle": spec.bundle,
    }


def _host_config(spec: SandboxSpec, place: CellPlacement) -> dict[str, Any]:
    limits = spec.limits
    memory = place.slots * slot_memory(limits) + AGENT_MEMORY
    cpus = min(limits.cpu * place.slots, float(place.host_cpus))
    config = host_config(limits, memory, cpus, place.seccomp, place.counts_swap)
    return config | {
        "PidsLimit": place.slots * slot_pids(limits, preloads=bool(spec.preload)) + _AGENT_PIDS,
        "MaskedPaths": [],
        "ReadonlyPaths": [],
        # Each cell has its own; these are the agent's.
        "ShmSize": _SMALL,
        "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={_SMALL},nr_inodes=64,mode=1777"},  # noqa: S108
        "Mounts": _mounts(place.folders),
    }


def _mounts(folders: CellFolders) -> list[dict[str, Any]]:
    places = [(folders.run, "/run/cloche"), (folders.plugin, "/cloche/plugin")]
    if folders.wheels is not None:
        places.append((folders.wheels, "/cloche/wheels"))
    mounts = [bind_mount(source, target, read_only=True) for source, target in places]
    slots = bind_mount(folders.slots, SLOTS_PLACE, read_only=True)
    slots["BindOptions"] = {"Propagation": "rslave", "NonRecursive": True}
    return [*mounts, slots]
