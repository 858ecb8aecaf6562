"""Looks at a started container from outside: whether process 1 is ours, among exactly the mounts that were asked for.

For plugins with an image of their own. What an image holds can lead the engine astray (a link where something is mounted); what the kernel
says of the running process cannot be led anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.plugin_image import ENVIRONMENT, JOB_FOLDER, LOADER
from cloche.isolation.spec import Folders, mount_places
from cloche.sandboxd import kernel_text

START_SECONDS = 10.0  # from the engine's answer to process 1 being its own program
_POLL_S = 0.002
# The engine's own, which exist for every container; below /proc, /sys and /dev it mounts more.
_ENGINES = frozenset({"/", "/proc", "/sys", "/dev", "/tmp", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"})  # noqa: S108
_ENGINES_BELOW = ("/proc/", "/sys/", "/dev/")
_ADDED_NAMES = frozenset({"HOSTNAME"})  # to every container's environment, by the engine


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. ``source``: the device and the path within it."""

    id: int
    parent: int
    source: tuple[str, str]
    target: str
    read_only: bool
    kind: str


def check(pid: int, folders: Folders, uid: int) -> None:
    """
    Raises:
        PlatformFailure: process 1 is not our runtime's loader, its environment or user is not the one we set, or a mount is not where it belongs.
        OSError: it has ended.
    """
    _await_program(pid, folders)
    if problem := _mount_problem(pid, folders) or _process_problem(pid, uid):
        raise PlatformFailure(Reason.PLATFORM_FAILED, f"the plugin's image was refused after its start: {problem}")


def _await_program(pid: int, folders: Folders) -> None:
    """Until process 1 has left the engine's own program for ours; whatever else it becomes is refused."""
    if folders.runtime is None:
        raise PlatformFailure(Reason.PLATFORM_FAILED, "a plugin's image was started without the runtime")
    wanted = os.stat(folders.runtime / LOADER)
    deadline = time.monotonic() + START_SECONDS
    while True:
        found = os.stat(f"/proc/{pid}/exe")
        # For a moment after the change of program there is no environment yet.
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) and Path(f"/proc/{pid}/environ").read_bytes():
            return
        if time.monotonic() > deadline:
            message = "the plugin's image was refused after its start: its first process is not Cloche's"
            raise PlatformFailure(Reason.PLATFORM_FAILED, message)
        time.sleep(_POLL_S)


def _process_problem(pid: int, uid: int) -> str | None:
    entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    given = dict(entry.decode("utf-8", "surrogateescape").partition("=")[::2] for entry in entries)
    for name in _ADDED_NAMES:
        given.pop(name, None)
    if given != ENVIRONMENT:
        return "the environment of its first process is not the one it was given"
    lines = dict(line.split(":", 1) for line in kernel_text.lines(f"/proc/{pid}/status") if ":" in line)
    if any(lines[name].split() != [str(uid)] * 4 for name in ("Uid", "Gid")) or set(lines["Groups"].split()) - {
        str(uid)
    }:
        return "its first process runs as another user or in another group"
    return None


def _mount_problem(pid: int, folders: Folders) -> str | None:
    mounts = parse(kernel_text.read(f"/proc/{pid}/mountinfo"))
    ours = parse(kernel_text.read("/proc/self/mountinfo"))
    asked = {target: (source_of(ours, source), read_only) for source, target, read_only in mount_places(folders)}
    return layout_problem(mounts, asked)


def layout_problem(mounts: Sequence[Mount], asked: Mapping[str, tuple[tuple[str, str], bool]]) -> str | None:
    """Why the mounts of a container are not those asked for; None when they are. ``asked``: target → (source, read-only)."""
    by_target: dict[str, list[Mount]] = {}
    for mount in mounts:
        by_target.setdefault(mount.target, []).append(mount)
    for target in by_target:
        known = target in asked or target in _ENGINES or target == JOB_FOLDER or target.startswith(_ENGINES_BELOW)
        if not known:
            return f"something is mounted at {target!a}"
    for target in (*asked, JOB_FOLDER, "/"):
        if len(by_target.get(target, ())) != 1:
            return f"{target} is not mounted exactly once"
    root, job = by_target["/"][0], by_target[JOB_FOLDER][0]
    if job.kind != "tmpfs" or job.parent != root.id or not root.read_only:
        return f"{JOB_FOLDER} is not a file system in memory on a read-only root"
    for target, (source, read_only) in asked.items():
        mount = by_target[target][0]
        parent = job if target.startswith(f"{JOB_FOLDER}/") else root
        if mount.parent != parent.id:
            return f"{target} is hidden by another mount"
        if mount.source != source or mount.read_only != read_only:
            return f"what is mounted at {target} is not what was asked for"
    return None


def source_of(mounts: Sequence[Mount], folder: Path) -> tuple[str, str]:
    """The device and the path within it that a bind of ``folder`` has.

    Raises:
        PlatformFailure: nothing is mounted above it.
    """
    above = [mount for mount in mounts if folder.is_relative_to(mount.target)]
    if above:
        # The longest target, and of those the newest, which lies over the others.
        mount = max(enumerate(above), key=lambda item: (len(item[1].target), item[0]))[1]
        device, root = mount.source
        return device, str(Path(root, folder.relative_to(mount.target)))
    raise PlatformFailure(Reason.PLATFORM_FAILED, f"nothing is mounted above {folder}")


def parse(text: str) -> list[Mount]:
    """The lines of a mountinfo file (proc(5)), oldest first. An image may have chosen some of the names."""
    found = []
    for line in kernel_text.split(text):
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1]
        options = fields[5].split(",")
        source = (fields[2], kernel_text.plain(fields[3]))
        target = kernel_text.plain(fields[4])
        found.append(Mount(int(fields[0]), int(fields[1]), source, target, "ro" in options, kind))
    return found
