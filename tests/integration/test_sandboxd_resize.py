"""Limits of a running sandbox, changed from outside: they hold in the kernel, both or neither."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import Sandbox
from cloche.isolation.spec import memory_limit
from cloche.sandboxd import cgroups
from cloche.sandboxd.main import Sandboxd
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20
WRITER = support.plugin("""
    done = 0
    try:
        with open(job.out / 'file', 'wb', 0) as file:
            while done < job.payload['size']:
                done += file.write(b'x' * (1 << 16))
    except OSError as error:
        pass
    print(done, flush=True)
    time.sleep(600)
""")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder:
        yield folder


@pytest.fixture(scope="module")
def daemon(home: Path) -> Iterator[Sandboxd]:
    with support.running_sandboxd(home) as running:
        yield running


class Open:
    """A sandbox that has been made, and has written ``size`` bytes if asked to."""

    def __init__(self, home: Path, daemon: Sandboxd, **limits: Any) -> None:
        self.backend = support.client(home)
        self.spec = support.spec(support.write_bundle(home, WRITER), tmp=MIB, shm=0, **limits)
        self.sandbox: Sandbox = self.backend.create(self.spec)
        running = daemon.host.find(self.sandbox.id)
        assert running is not None
        self.running = running

    def __enter__(self) -> Open:
        frame = self.sandbox.channel.receive(30)
        assert frame is not None
        assert frame["type"] == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self.sandbox.destroy()
        self.backend.close()

    def write(self, size: int) -> int:
        """How much of it could be written."""
        self.sandbox.channel.send(support.job_frame(self.spec, {"size": size}))
        frame = self.sandbox.channel.receive(60)
        assert frame is not None
        return int(frame["text"])

    def memory(self) -> int:
        """The limit that the kernel keeps."""
        group = self.running.cgroup
        if group.unified is not None:
            return int((group.unified / "memory.max").read_text())
        return int((group.controllers["memory"] / "memory.limit_in_bytes").read_text())


@pytest.mark.parametrize(("made", "after"), [(4 * MIB, 2 * MIB), (100 * MIB, 70 * MIB)])
def test_a_smaller_output_holds_at_once(home: Path, daemon: Sandboxd, made: int, after: int) -> None:
    with Open(home, daemon, output=made, memory=64 * MIB) as box:
        box.sandbox.resize(48 * MIB, after)
        assert (
            box.memory()
            == memory_limit(box.running.limits)
            == 49 * MIB + (64 << 10) + (after if after < 64 * MIB else 0)
        )
        assert after - MIB // 2 <= box.write(made) <= after + MIB // 2
        assert box.sandbox.usage()["output_full"] == 1
        box.sandbox.resize(64 * MIB, made)
        assert box.sandbox.usage()["output_full"] == 0


@pytest.mark.parametrize(("made", "used", "after"), [(4 * MIB, 3 * MIB, 2 * MIB), (100 * MIB, 80 * MIB, 70 * MIB)])
def test_an_output_smaller_than_what_is_in_it_changes_nothing(
    home: Path, daemon: Sandboxd, made: int, used: int, after: int
) -> None:
    with Open(home, daemon, output=made, memory=64 * MIB) as box:
        assert box.write(used) == used
        before = box.memory()
        with pytest.raises(PlatformFailure, match="output") as caught:
            box.sandbox.resize(48 * MIB, after)
        assert caught.value.reason == Reason.PLATFORM_FAILED
        assert box.memory() == before
        assert box.running.limits == box.spec.limits


def test_memory_that_cannot_be_set_leaves_the_output_as_it_was(
    home: Path, daemon: Sandboxd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "away")

    with Open(home, daemon, output=4 * MIB, memory=64 * MIB) as box:
        monkeypatch.setattr(daemon.host._engine, "set_memory", refuse)
        with pytest.raises(PlatformFailure, match="away"):
            box.sandbox.resize(48 * MIB, 2 * MIB)
        assert box.write(4 * MIB) == 4 * MIB
        assert box.running.limits == box.spec.limits


def test_an_output_on_disk_stays_on_disk(home: Path, daemon: Sandboxd) -> None:
    with Open(home, daemon, output=100 * MIB) as box, pytest.raises(PlatformFailure, match="on disk"):
        box.sandbox.resize(64 * MIB, MIB)


@pytest.fixture
def uncounted(daemon: Sandboxd) -> Iterator[Sandboxd]:
    """The same daemon, on an engine that says it cannot count swap."""
    ready = daemon.host._ready
    assert ready is not None
    daemon.host._ready = replace(ready, engine={**ready.engine, "SwapLimit": False})
    yield daemon
    daemon.host._ready = ready


def test_without_any_swap_an_engine_that_cannot_count_it_will_do(home: Path, uncounted: Sandboxd) -> None:
    assert cgroups.swap_areas() == 0, "this host uses swap; the test needs one that does not"
    assert uncounted.host.health()["problem"] is None
    with Open(home, uncounted, output=4 * MIB, memory=64 * MIB) as box:
        text = subprocess.run(["docker", "inspect", f"cloche-{box.sandbox.id}"], capture_output=True, check=True).stdout
        assert json.loads(text)[0]["HostConfig"]["MemorySwap"] == -1
        assert box.memory() == memory_limit(box.spec.limits)
        box.sandbox.resize(48 * MIB, 4 * MIB)
        assert box.memory() == memory_limit(box.running.limits) == 53 * MIB + (64 << 10)


def test_with_swap_that_cannot_be_counted_nothing_runs(
    home: Path, uncounted: Sandboxd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "swap_areas", lambda *_: 1)
    with pytest.raises(PlatformFailure, match="cannot count swap") as caught:
        Open(home, uncounted)
    assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
    assert "cannot count swap" in uncounted.host.health()["problem"]
    assert list((home / "sandboxes").iterdir()) == []
