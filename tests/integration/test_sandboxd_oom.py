"""The kernel's word on used-up memory outlives the cgroup it is of."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cloche.sandboxd.cgroups import ROOT, Cgroup, version
from cloche.sandboxd.oom import OomEvents
from tests.support.stores import until

EAT = "import sys; sys.stdin.read(1); kept = bytearray(64 << 20); kept[::4096] = b'x' * len(kept[::4096])"


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory cgroup of 16 MB."""
    if version() == 2:
        pytest.fail(
            "this host has version 2 of cgroups alone: its memory events are to be tried here, and so far they are not"
        )
    folder = ROOT / "memory" / f"cloche-test-{uuid4()}"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(16 << 20))
    yield folder
    if folder.exists():
        folder.rmdir()


def used_up(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", EAT], stdin=subprocess.PIPE) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.close()
        assert process.wait() == -9


def removed(folder: Path) -> None:
    def gone() -> bool:
        try:
            folder.rmdir()
        except OSError:
            return False
        return True

    until(gone, 10, "the cgroup is empty")


def descriptors(folder: Path) -> list[str]:
    """What this process has open of what such events need; what else it has open comes and goes with other tests' leftovers."""
    gc.collect()
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists this folder
            link = os.readlink(entry)
            if link == "anon_inode:[eventfd]" or Path(link).is_relative_to(folder):
                found.append(link)
    return sorted(found)


class TestOfThisHost:
    """Version 2 of cgroups has no such events: there the engine's word has to do, and nothing else is said."""

    @pytest.mark.parametrize("taken_away", [False, True])
    def test_memory_that_was_used_up_is_told(self, group: Path, taken_away: bool) -> None:
        events = OomEvents.of(Cgroup(None, {"memory": group}))
        assert events is not None
        assert not events.happened()
        used_up(group)
        if taken_away:
            removed(group)
        assert [events.happened(), events.happened()] == [True, True]
        events.close()

    def test_a_cgroup_that_only_goes_is_none(self, group: Path) -> None:
        events = OomEvents.of(Cgroup(None, {"memory": group}))
        assert events is not None
        removed(group)
        assert not events.happened()
        events.close()

    def test_no_descriptor_is_left(self, group: Path) -> None:
        before = descriptors(group)
        for _ in range(3):
            events = OomEvents.of(Cgroup(None, {"memory": group}))
            assert events is not None
            events.close()
            assert OomEvents.of(Cgroup(None, {"memory": group / "none"})) is None
        assert descriptors(group) == before


def test_without_events_nothing_is_said(tmp_path: Path) -> None:
    assert OomEvents.of(Cgroup(tmp_path, {})) is None
    assert OomEvents.of(Cgroup(None, {})) is None
