"""What a look at a started container's mounts finds: the lines are those of a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloche.errors import PlatformFailure
from cloche.sandboxd.entered import Mount, layout_problem, parse, source_of

HOST = """\
20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 20 0:40 / /srv/a\\040b rw - tmpfs none rw
31 20 8:1 /elsewhere /srv/bound rw - ext4 /dev/sda1 rw
32 31 0:50 / /srv/bound rw - tmpfs none rw
"""
CONTAINER = """\
100 90 0:60 / / ro,relatime - overlay overlay rw
101 100 0:61 / /proc rw,nosuid - proc proc rw
102 100 0:62 / /dev rw,nosuid - tmpfs tmpfs rw
103 102 0:63 / /dev/shm rw - tmpfs shm rw
104 100 0:64 / /sys ro - sysfs sysfs ro
105 100 0:65 / /job rw - tmpfs tmpfs rw
106 105 8:1 /site/in /job/in ro - ext4 /dev/sda1 rw
107 105 0:66 / /job/out rw - tmpfs cloche rw
108 100 0:67 / /tmp rw - tmpfs tmpfs rw
109 100 8:1 /runtime/x /cloche/runtime ro - ext4 /dev/sda1 rw
110 100 8:1 /hosts /etc/hosts rw - ext4 /dev/sda1 rw
111 101 0:61 /sys /proc/sys ro - proc proc rw
"""
ASKED = {
    "/job/in": (("8:1", "/site/in"), True),
    "/job/out": (("0:66", "/"), False),
    "/cloche/runtime": (("8:1", "/runtime/x"), True),
}


def test_what_was_asked_for() -> None:
    assert layout_problem(parse(CONTAINER), ASKED) is None


def changed(at: str, **change: object) -> list[Mount]:
    return [replace(mount, **change) if mount.target == at else mount for mount in parse(CONTAINER)]


MOUNTS = parse(CONTAINER)
EXTRA = Mount(200, 100, ("8:1", "/etc"), "/x", False, "ext4")


@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        (changed("/job/in", target="/elsewhere/in"), "mounted at '/elsewhere/in'"),
        (changed("/job", target="/jobs"), "mounted at '/jobs'"),
        ([*MOUNTS, EXTRA], "mounted at '/x'"),
        ([*MOUNTS, replace(EXTRA, target="/etc/passwd")], "mounted at '/etc/passwd'"),
        ([*MOUNTS, replace(EXTRA, target="/cloche")], "mounted at '/cloche'"),
        ([*MOUNTS, replace(EXTRA, target="/cloche/runtime/usr")], "mounted at '/cloche/runtime/usr'"),
        ([*MOUNTS, replace(EXTRA, target="/cloche/runtime")], "/cloche/runtime is not mounted exactly once"),
        ([*MOUNTS, replace(EXTRA, target="/job")], "/job is not mounted exactly once"),
        ([*MOUNTS, replace(EXTRA, target="/")], "/ is not mounted exactly once"),
        ([m for m in MOUNTS if m.target != "/job/out"], "/job/out is not mounted exactly once"),
        ([m for m in MOUNTS if m.target != "/job"], "/job is not mounted exactly once"),
        (changed("/", read_only=False), "read-only root"),
        (changed("/job", kind="ext4"), "in memory"),
        (changed("/job", parent=101), "in memory"),
        (changed("/job/in", parent=100), "/job/in is hidden"),
        (changed("/cloche/runtime", parent=105), "/cloche/runtime is hidden"),
        (changed("/job/in", read_only=False), "at /job/in is not what"),
        (changed("/job/in", source=("8:1", "/site/out")), "at /job/in is not what"),
        (changed("/cloche/runtime", source=("8:2", "/runtime/x")), "at /cloche/runtime is not what"),
    ],
)
def test_what_was_not(mounts: list[Mount], says: str) -> None:
    assert says in (layout_problem(mounts, ASKED) or "")


def test_where_a_folder_of_the_host_comes_from() -> None:
    mounts = parse(HOST)
    assert source_of(mounts, Path("/srv/x/y")) == ("8:1", "/srv/x/y")
    assert source_of(mounts, Path("/srv/a b/in")) == ("0:40", "/in")
    assert source_of(mounts, Path("/srv/bound")) == ("0:50", "/")
    assert source_of(mounts[:3], Path("/srv/bound/z")) == ("8:1", "/elsewhere/z")
    with pytest.raises(PlatformFailure):
        source_of([], Path("/srv"))
