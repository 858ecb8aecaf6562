"""Whether level ``namespace`` can be had on this host: switched on, with cgroups of our own below a container's, and no trouble now."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from cloche import clock
from cloche.config import Settings
from cloche.domain.limits import Limits
from cloche.errors import PlatformFailure
from cloche.isolation.client import SandboxdBackend
from cloche.sandboxd import cgroups
from cloche.sandboxd.cells.slot_cgroup import CgroupProblem, SlotCgroup, open_for_slots
from cloche.sandboxd.doctor_host import Check
from cloche.sandboxd.groups import Group, GroupProblem, Groups
from cloche.sandboxd.places import home_digest

_NAME = "cells"
_MEANWHILE = (
    "Until then, plugins that ask for level `namespace` run at level `container`, with everything else as it is."
)


def check(settings: Settings, root: Path = cgroups.ROOT) -> Check:
    """Makes a cgroup with one below it, and asks this home's sandboxd if one runs. Leaves the host as it was."""
    if not settings.cells.enabled:
        return Check(
            _NAME, "ok", "off: CLOCHE_CELLS_ENABLED is false; plugins that ask for level `namespace` run at `container`"
        )
    if os.geteuid() != 0:
        return Check(_NAME, "warn", "whether a container's cgroup can have children is not checked without root",
                     "Ask again with sudo.")  # fmt: skip
    if (lack := lacking(home_digest(settings.home), root)) is not None:
        return Check(_NAME, "warn", f"level `namespace` cannot be had: {lack}", f"{_what_to_do(lack)} {_MEANWHILE}")
    told = _told(settings.sandboxd_socket)
    if told is None:
        many = f"{settings.cells.containers} containers with {settings.cells.slots} slots each"
        return Check(_NAME, "ok", f"cgroups of our own below a container's have limits; at most {many}")
    if told["cells"] is None:
        advice = f"Start it again: it has the settings of its start. {_MEANWHILE}"
        return Check(_NAME, "warn", "switched off in the sandboxd that runs", advice)
    if (problem := told["cells"]["problem"]) is not None:
        advice = f"sandboxd tries again by itself, and its log has more. {_MEANWHILE}"
        return Check(_NAME, "warn", f"a container of cells could not be made a moment ago: {problem}", advice)
    states = {"containers": "containers", "ready": "cells wait", "busy": "have jobs"}
    return Check(_NAME, "ok", ", ".join(f"{told['cells'][name]} {words}" for name, words in states.items()))


def lacking(home: str, root: Path = cgroups.ROOT) -> str | None:
    """What this host's cgroups lack for slots, or None: tried out, in a cgroup that stands for a container's."""
    groups, name = Groups(home, root), clock.uuid7()
    try:
        group = groups.parent(name)
    except GroupProblem as error:
        return str(error)
    try:
        open_for_slots(group.cgroup)
        SlotCgroup.make(group.cgroup, "slot-0", Limits()).remove()
    except CgroupProblem as error:
        return str(error)
    except OSError as error:
        return f"no cgroup with limits can be made below a container's ({error.filename}: {error.strerror})"
    finally:
        _remove(groups, group, name)
    return None


def _remove(groups: Groups, group: Group, name: str) -> None:
    with contextlib.suppress(OSError):  # the home's next sandboxd takes what is left
        for folder in group.folders:
            for child in folder.iterdir():
                if child.is_dir():
                    child.rmdir()
        groups.remove(name)


def _what_to_do(lack: str) -> str:
    if "controller" in lack:
        return "Have the kernel offer it (boot with cgroup_enable=memory, without cgroup_disable=…)."
    return "Run sandboxd where it may make cgroups: on the host itself, or with /sys/fs/cgroup delegated to it (cpu, memory and pids)."


def _told(path: Path) -> dict[str, Any] | None:
    """What the home's sandboxd says of itself; None when there is none."""
    if not path.is_socket():
        return None
    backend = SandboxdBackend(path)
    try:
        return dict(backend.facts())
    except PlatformFailure:
        return None
    finally:
        backend.close()
