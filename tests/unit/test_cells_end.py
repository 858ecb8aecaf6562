"""The end of a container of cells: by the kernel's word, with nothing let go of before, and each descriptor closed once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.cell_spec import UIDS, key_of
from cloche.sandboxd import disk
from cloche.sandboxd.cells import container as container_module
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.cells.container import CellContainer, Facts
from cloche.sandboxd.cells.home import Maker, NotRemoved
from cloche.sandboxd.cells.preloaded import Preloader
from cloche.sandboxd.cells.slot import Cell, Slot
from cloche.sandboxd.cells.talk import Talk
from cloche.sandboxd.engine import EngineAway
from cloche.sandboxd.uids import UidPool
from tests.support.cells import SPEC


class FakeEngine:
    """One container, whose process 1 is a real process. ``removes``: whether a removal does anything."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.removed: list[str] = []
        self.removes = True

    def inspect(self, container: str) -> dict[str, Any] | None:
        return None if self.state is None else {"State": self.state}

    def remove(self, container: str) -> None:
        self.removed.append(container)
        if self.removes:
            self.state = None


class FakePlaces:
    """``removed``: whether the process was alive when each folder was taken away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.removed: list[bool] = []
        self.child: subprocess.Popen[bytes] | None = None
        self.busy = False

    def remove(self, name: str) -> None:
        if self.busy:
            raise OSError(16, "Device or resource busy")
        self.removed.append(self.child is not None and self.child.poll() is None)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as found:
        yield found
        found.kill()


@pytest.fixture
def parts(tmp_path: Path, child: subprocess.Popen[bytes]) -> tuple[FakeEngine, FakePlaces, CellContainer]:
    engine, places = FakeEngine(), FakePlaces(tmp_path)
    places.child = child
    engine.state = {"Running": True, "Pid": child.pid}
    return engine, places, made(engine, places)


def facts(engine: Any, places: Any) -> Facts:
    return Facts(
        engine=engine, places=places, home="h", seccomp="{}", image="i", host_cpus=1, counts_swap=False, slots=2
    )


def made(engine: Any, places: Any, spec: SandboxSpec = SPEC) -> CellContainer:
    container = CellContainer(facts(engine, places), key_of(spec, "i"), spec, 1_000, 64)
    container.container = "c1"
    return container


Parts = tuple[FakeEngine, FakePlaces, CellContainer]


@pytest.mark.parametrize("removes", [True, False], ids=["removed", "removing"])
@pytest.mark.parametrize("held", [True, False])
def test_it_is_dead_before_anything_is_let_go_of(
    parts: Parts, child: subprocess.Popen[bytes], removes: bool, held: bool
) -> None:
    """Also when the engine says that it is about to remove it, and when its start failed before its agent had spoken."""
    engine, places, container = parts
    engine.removes = removes
    if held:
        container._hold("c1", child.pid)
    container.destroy()
    assert child.wait(60) == -signal.SIGKILL
    assert places.removed == [False]
    assert engine.removed == ["c1"]


def test_a_kill_needs_neither_engine_nor_lock_and_may_come_at_any_time(
    parts: Parts, child: subprocess.Popen[bytes]
) -> None:
    _, _, container = parts
    container.kill()
    assert child.poll() is None, "nothing is known of it yet"
    container._hold("c1", child.pid)
    container.kill()
    assert child.wait(60) == -signal.SIGKILL
    container.kill()
    container.destroy()
    container.kill()
    container.destroy()
    assert container.is_dead()


def test_what_does_not_die_keeps_everything(
    parts: Parts, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, places, container = parts
    monkeypatch.setattr(container_module, "_QUICK_SECONDS", 0.01)
    monkeypatch.setattr(container_module, "_DEATH_SECONDS", 0.01)
    container._hold("c1", child.pid)
    hastened: list[str] = []
    group: Any = SimpleNamespace(hasten=lambda: hastened.append("lifted"), remove=lambda: hastened.append("removed"))
    container._groups.append(group)
    with monkeypatch.context() as patch:
        patch.setattr(container, "kill", lambda: None)
        with pytest.raises(PlatformFailure, match="does not die"):
            container.destroy()
    assert (engine.removed, places.removed, hastened) == ([], [], ["lifted"])
    assert not container.is_dead()
    monkeypatch.setattr(container_module, "_DEATH_SECONDS", 60)
    container.destroy()
    assert (engine.removed, places.removed) == (["c1"], [False])


def test_of_a_process_that_was_never_held_the_engine_has_to_say_that_it_is_gone(parts: Parts) -> None:
    engine, places, container = parts
    engine.state, engine.removes = {"Running": False, "Pid": 0}, False
    with pytest.raises(PlatformFailure, match="not removed"):
        container.destroy()
    assert places.removed == []
    engine.removes = True
    container.destroy()
    assert places.removed


def test_a_number_that_came_to_mean_another_process_is_not_held(parts: Parts, child: subprocess.Popen[bytes]) -> None:
    engine, _, container = parts
    engine.state = {"Running": True, "Pid": 1}
    container._hold("c1", child.pid)
    container.kill()
    assert child.poll() is None


@pytest.mark.parametrize("leaves", [False, True])
def test_user_ids_stay_taken_as_long_as_anything_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Of a container that could not be started."""
    uids, blocks = (UidPool(1_000, 1, locks=tmp_path / name) for name in ("uids", "blocks"))
    places = FakePlaces(tmp_path / "places")
    places.busy = leaves

    def fails(container: CellContainer, spec: SandboxSpec) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CellContainer, "start", fails)
    maker = Maker(uids, blocks)
    with pytest.raises(NotRemoved if leaves else OSError, match="No space left") as caught:
        maker.make(facts(FakeEngine(), places), key_of(SPEC, "i"), SPEC)
    assert len(uids._held) == len(blocks._held) == leaves
    if isinstance(caught.value, NotRemoved):
        assert caught.value.container.cells_base == 1_000 * UIDS
        places.busy = False
        maker.destroy(caught.value.container)
        maker.destroy(caught.value.container)
    assert not uids._held
    assert not blocks._held


def test_an_engine_that_did_not_answer_is_not_asked_again_by_who_wants_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a start that failed half-way; where the engine was asked for nothing yet, all goes at once."""
    uids, blocks = (UidPool(1_000, 2, locks=tmp_path / name) for name in ("uids", "blocks"))
    engine, places = FakeEngine(), FakePlaces(tmp_path / "places")
    asked: list[str] = []
    inspect = engine.inspect

    def counted(container: str) -> dict[str, Any] | None:
        asked.append(container)
        return inspect(container)

    monkeypatch.setattr(engine, "inspect", counted)
    name: str | None = "c1"

    def fails(container: CellContainer, spec: SandboxSpec) -> None:
        container.container = name
        raise EngineAway("engine_unavailable", "the engine does not answer")

    monkeypatch.setattr(CellContainer, "start", fails)
    maker = Maker(uids, blocks)
    with pytest.raises(
        NotRemoved, match=r"does not answer; what there is of the container cannot be removed now$"
    ) as left:
        maker.make(facts(engine, places), key_of(SPEC, "i"), SPEC)
    assert (asked, engine.removed, places.removed) == ([], [], [])
    assert len(uids._held) == len(blocks._held) == 1
    maker.destroy(left.value.container)
    assert engine.removed == ["c1"]
    name = None
    with pytest.raises(EngineAway):
        maker.make(facts(engine, places), key_of(SPEC, "i"), SPEC)
    assert engine.removed == ["c1"]
    assert not uids._held
    assert not blocks._held


def test_a_cell_waits_only_where_much_of_the_disk_is_free(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, places, small = parts
    large = made(engine, places, replace(SPEC, limits=replace(SPEC.limits, output=2 << 30)))
    for free, refused in (((16 << 30) - 1, True), (16 << 30, False)):
        monkeypatch.setattr(disk, "free", lambda folder, free=free: free)
        assert small.no_room() == ""
        assert ("8 outputs of 2048 MB" in large.no_room()) == refused
        assert bool(large.no_room()) == refused


class Descriptors:
    """Pidfds of this process, and how often each number was closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed: list[int] = []
        close = os.close

        def counted(fd: int) -> None:
            self.closed.append(fd)
            close(fd)

        monkeypatch.setattr(os, "close", counted)

    def new(self) -> int:
        return os.pidfd_open(os.getpid())


def slot_of(*pidfds: int) -> Slot:
    runner, preloader = pidfds
    talk = Talk(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0])
    group: Any = None
    site: Any = None
    return Slot(0, talk, group, runner, site, range(1, 32), 64, Preloader(os.getpid(), preloader, frozenset()))


def cell_of(pidfd: int) -> Cell:
    site: Any = None
    return Cell(0, 65, site, pidfd, socket.socketpair()[0])


def test_a_slot_closes_its_descriptors_once_and_is_dead_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = Descriptors(monkeypatch)
    pidfds = [descriptors.new() for _ in range(3)]
    slot = slot_of(*pidfds[:2])
    slot.cell = cell_of(pidfds[2])
    assert not slot.is_dead()
    assert slot._runner() == os.getpid()
    closers = [threading.Thread(target=slot.close) for _ in range(4)]
    for thread in closers:
        thread.start()
    for thread in closers:
        thread.join(60)
    assert sorted(fd for fd in descriptors.closed if fd in pidfds) == sorted(pidfds)
    assert slot.is_dead()
    with pytest.raises(ProcessLookupError):
        slot._runner()


def test_what_was_handed_out_is_another_threads_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = Descriptors(monkeypatch)
    cell = cell_of(descriptors.new())
    channel, pidfd = cell.take()
    cell.close()
    cell.kill()
    assert pidfd not in descriptors.closed
    assert cell.is_dead()
    with pytest.raises(PlatformFailure, match="handed out before, or is gone"):
        cell.take()
    os.close(pidfd)
    channel.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_cell_that_cannot_be_handed_out_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    """Its container was destroyed in the meantime, or no descriptor is left for the channel's copy."""
    descriptors = Descriptors(monkeypatch)
    pidfds = [descriptors.new() for _ in range(3)]
    slot, cell = slot_of(*pidfds[:2]), cell_of(pidfds[2])

    def none_left(fd: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "dup", none_left)
    if closed:
        cell.close()
    with pytest.raises(PlatformFailure if closed else OSError):
        RunningCell.of(slot, cell, "c1", "worker", SPEC.limits, waited=False, counts_swap=False)
    slot.close()
    assert sorted(fd for fd in descriptors.closed if fd in pidfds) == sorted(pidfds)
    assert cell.channel is None
