"""The pool of cells with containers that are none: what becomes of one that something went wrong with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.clock import uuid7
from cloche.domain.limits import Limits
from cloche.errors import PlatformFailure
from cloche.isolation.cell_spec import CellKey, key_of
from cloche.sandboxd.budget import Budget
from cloche.sandboxd.cells.home import Bounds, Home, NoCells, NotRemoved, longest_idle
from cloche.sandboxd.cells.pool import Cells
from cloche.sandboxd.cells.slot import Anomaly, State, Unplaced
from cloche.sandboxd.engine import EngineAway
from cloche.sandboxd.uids import UidPool
from tests.support import sandbox as support
from tests.support.cells import SPEC

IMAGE = "sha256:" + "1" * 64
KEY = key_of(SPEC, IMAGE)


def nothing(*_: Any) -> None: ...


def unexpected(*_: Any) -> Any:
    raise ValueError("not enough values to unpack")


class FakeSlot:
    """``prepare`` and ``clear`` do what the test says."""

    def __init__(self, prepare: Callable[..., Any] = nothing, clear: Callable[..., Any] = nothing) -> None:
        self.number = 0
        self.state = State.PREPARING
        self.cell: Any = None
        self.group = SimpleNamespace(begin=nothing, group=SimpleNamespace(memory_used=int))
        self.prepare = prepare
        self.clear = clear

    def memory_waiting(self) -> int:
        return 0

    def works_unasked(self) -> bool:
        return False

    def is_dead(self, seconds: float = 0) -> bool:
        return False


class FakeContainer:
    """``made``: what ``add_slot`` gives; ``destroys``: what ``destroy`` does before it counts as done."""

    def __init__(
        self, *slots: FakeSlot, add: Callable[[], Any] = FakeSlot, destroys: Callable[[], Any] = nothing
    ) -> None:
        self.container = "c1"
        self.id = "1"
        self.limits = SPEC.limits
        self.slots = list(slots)
        self.born = time.monotonic()
        self.jobs = 0
        self.add_slot = add
        self.destroys = destroys
        self.killed = threading.Event()
        self.kill = self.killed.set
        self.no_room: Callable[[], str] = str
        self.gone = False

    def is_dead(self) -> bool:
        return False


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cells]:
    monkeypatch.setattr("cloche.sandboxd.cells.pool._TICK_SECONDS", 0.02)
    pools = [UidPool(1_000, 8, locks=tmp_path / name) for name in ("uids", "blocks")]
    bounds = Bounds(containers=4, jobs=9, life_s=3_600, idle_s=3_600, memory=Budget(1 << 30).share())
    made = Cells(*pools, bounds)

    def destroy(container: Any) -> None:
        container.destroys()
        container.gone = True

    maker: Any = SimpleNamespace(destroy=destroy, make=lambda *_: FakeContainer())
    made._maker = maker
    made.start()
    yield made
    made.close()


def housed(cells: Cells, container: Any, key: CellKey = KEY) -> Home:
    home = Home(key, container)
    with cells._changed:
        cells._homes.append(home)
    return home


def at_work(cells: Cells, home: Home, slot: Any) -> Any:
    """A running cell in the slot, as far as its release goes."""
    slot.state = State.BUSY
    running = SimpleNamespace(id=uuid7(), slot_cgroup=SimpleNamespace(oom_kills=lambda: 0))
    cells._taken[running.id] = (home, slot)
    return running


def gone(cells: Cells, container: FakeContainer) -> None:
    support.wait_until(lambda: container.gone, "the container is destroyed", 60)
    support.wait_until(lambda: not any(home.container is container for home in cells._homes), "and forgotten", 60)


FACTS: Any = SimpleNamespace(image=IMAGE, slots=2, counts_swap=False)


def test_a_slot_that_cannot_be_cleared_for_a_reason_nobody_knows_costs_the_container(cells: Cells) -> None:
    slot = FakeSlot(clear=unexpected)
    container = FakeContainer(slot)
    running = at_work(cells, housed(cells, container), slot)
    cells.release(running)
    assert slot.state == State.LOST
    gone(cells, container)


def test_a_next_cell_that_cannot_be_made_for_a_reason_nobody_knows_costs_the_container(cells: Cells) -> None:
    slot = FakeSlot(prepare=unexpected)
    container = FakeContainer(slot)
    cells.release(at_work(cells, housed(cells, container), slot))
    gone(cells, container)
    assert slot.state == State.LOST


@pytest.mark.parametrize("add", [unexpected, lambda: FakeSlot(prepare=unexpected)], ids=["slot", "cell"])
def test_a_slot_that_cannot_be_made_for_a_reason_nobody_knows_costs_the_container(
    cells: Cells, add: Callable[[], Any]
) -> None:
    container = FakeContainer(add=add)
    housed(cells, container)
    with pytest.raises(NoCells, match="unpack"):
        cells.create(FACTS, SPEC, "worker")
    gone(cells, container)


def test_a_waiting_cell_that_cannot_be_handed_out_for_a_reason_nobody_knows_costs_the_container(cells: Cells) -> None:
    slot = FakeSlot(clear=unexpected)
    slot.state = State.READY
    container = FakeContainer(slot)
    housed(cells, container)
    with pytest.raises(NoCells, match="unpack"):
        cells.create(FACTS, SPEC, "worker")
    gone(cells, container)


def test_a_container_that_cannot_be_made_for_a_reason_nobody_knows_is_a_lack(cells: Cells) -> None:
    """The job runs at level ``container``; only that its plugin's files are gone would be no better there."""
    maker: Any = SimpleNamespace(make=unexpected)
    cells._maker = maker
    with pytest.raises(NoCells, match="unpack"):
        cells.create(FACTS, SPEC, "worker")
    assert not cells._homes

    def missing(*_: Any) -> None:
        raise PlatformFailure("bundle_unavailable", "not here")

    maker.make = missing
    with pytest.raises(PlatformFailure, match="not here"):
        cells.create(FACTS, replace(SPEC, bundle="b" * 64), "worker")


def test_the_keeper_judges_the_others_when_one_cannot_be_judged_and_that_one_goes(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (replace(KEY, bundle=letter * 64) for letter in "bc")
    looks: list[str] = []

    def judge(home: Home, bounds: Bounds, now: float) -> bool:
        if home.key == bad:
            looks.append("bad")
            unexpected()
        looks.append("good")
        return False

    monkeypatch.setattr(Home, "judge", judge)
    container = FakeContainer()
    housed(cells, container, bad)
    housed(cells, FakeContainer(), good)
    support.wait_until(lambda: looks.count("good") > 2, "the keeper goes on", 60)
    gone(cells, container)


def test_the_keeper_goes_on_after_what_nobody_expected(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def forget(homes: Any) -> None:
        looks.append(1)
        unexpected()

    monkeypatch.setattr(cells._tally, "forget", forget)
    support.wait_until(lambda: len(looks) > 2, "the keeper goes on", 60)


def first_time(what: Callable[[], Any]) -> Callable[[], None]:
    """What it does when it is called first; nothing later."""
    calls: list[int] = []

    def once() -> None:
        calls.append(1)
        if len(calls) == 1:
            what()

    return once


def refused() -> None:
    raise PlatformFailure("engine_unavailable", "the engine does not answer")


def anomaly() -> None:
    raise Anomaly("a process too many")


class Stopped(BaseException):
    """What ends a thread, and is no error."""


def stopped() -> None:
    raise Stopped


@pytest.mark.parametrize("fails", [refused, unexpected, stopped])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_container_that_cannot_be_destroyed_at_once_is_destroyed_later(
    cells: Cells, fails: Callable[[], Any]
) -> None:
    """Whatever runs in it, and whatever became of its slots."""
    slot, busy = FakeSlot(clear=anomaly), FakeSlot()
    container = FakeContainer(slot, busy, destroys=first_time(fails))
    home = housed(cells, container)
    at_work(cells, home, busy)
    cells.release(at_work(cells, home, slot))
    gone(cells, container)
    support.wait_until(lambda: not cells._homes, "its place is free", 60)


def test_a_slot_whose_container_is_just_being_destroyed_in_vain_does_not_keep_it(cells: Cells) -> None:
    """Its next cell is not made, and it does not count as about to be made either."""
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        go_on.wait(60)
        refused()

    slot = FakeSlot(prepare=unexpected)
    container = FakeContainer(slot, destroys=first_time(hang))
    home = housed(cells, container)
    threading.Thread(target=cells._bury, args=(home,), daemon=True).start()
    assert begun.wait(60)
    home.retired = "it is old"
    cells._refill(home, slot)  # type: ignore[arg-type]
    assert slot.state == State.LOST
    go_on.set()
    gone(cells, container)
    assert not home.lost, "nothing that ran in it would have been killed"


def test_what_is_left_of_a_container_that_could_not_be_made_is_destroyed_later(cells: Cells) -> None:
    left: Any = FakeContainer(destroys=first_time(refused))

    def make(*_: Any) -> None:
        raise NotRemoved(left, OSError("no room"), OSError("busy"))

    maker: Any = cells._maker
    maker.make = make
    with pytest.raises(NoCells, match="no room; what there is of the container cannot be removed now: busy"):
        cells.create(FACTS, SPEC, "worker")
    gone(cells, left)
    support.wait_until(lambda: not cells._homes, "its place is free", 60)


def test_a_lost_container_is_killed_at_once_whoever_adds_a_slot_to_it(cells: Cells) -> None:
    """A preload may hang for half a minute, and holds the container's lock; its end comes with the kill."""
    adding = threading.Event()

    def add() -> None:
        adding.set()
        assert container.killed.wait(60)
        raise PlatformFailure("engine_unavailable", "the runner is gone")

    slot = FakeSlot(clear=anomaly)
    container = FakeContainer(slot, add=add)
    home = housed(cells, container)
    running = at_work(cells, home, slot)
    refusals: list[str] = []

    def ask() -> None:
        with pytest.raises(NoCells) as caught:
            cells.create(FACTS, SPEC, "worker")
        refusals.append(str(caught.value))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert adding.wait(60)
    cells.release(running)
    assert container.killed.is_set(), "before anybody had to wait for the lock"
    gone(cells, container)
    asking.join(60)
    assert refusals == ["engine_unavailable: the runner is gone"]


def test_containers_that_take_long_to_die_keep_no_slot_waiting(cells: Cells) -> None:
    go_on = threading.Event()
    slow = [FakeContainer(destroys=lambda: go_on.wait(120)) for _ in range(4)]
    for number, container in enumerate(slow):
        cells._lose(housed(cells, container, replace(KEY, bundle=str(number) * 64)), None, "a test")
    support.wait_until(lambda: sum(home.container is None for home in cells._homes) >= 2, "they are at it", 60)
    slot = FakeSlot()
    cells.release(at_work(cells, housed(cells, FakeContainer(slot)), slot))
    support.wait_until(lambda: slot.state == State.READY, "its next cell waits", 60)
    assert not any(container.gone for container in slow)
    go_on.set()
    for container in slow:
        gone(cells, container)


def handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is handed out tells whether it had waited, and nothing else."""

    def of(slot: Any, cell: Any, *_: Any, waited: bool, **__: Any) -> Any:
        running = SimpleNamespace(id=uuid7(), waited=waited, slot_cgroup=SimpleNamespace(oom_kills=lambda: 0))
        return running, None

    monkeypatch.setattr("cloche.sandboxd.cells.pool.RunningCell", SimpleNamespace(of=of))


def works(slot: FakeSlot) -> FakeSlot:
    """A slot that makes cells and clears them."""

    def prepare(limits: Limits) -> Any:
        slot.cell = SimpleNamespace(is_dead=lambda: False, kill=nothing)
        return slot.cell

    def clear() -> None:
        slot.cell = None

    slot.prepare, slot.clear = prepare, clear
    return slot


def test_where_the_disk_is_scarce_no_cell_waits_and_the_next_job_has_one_made(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_out(monkeypatch)
    slot, ready = works(FakeSlot()), works(FakeSlot())
    ready.prepare(SPEC.limits)
    ready.state = State.READY
    container = FakeContainer(slot, ready)
    container.no_room = lambda: "too little is free"
    home = housed(cells, container)
    cells.release(at_work(cells, home, slot))
    support.wait_until(lambda: slot.state == State.READY, "the slot is there for the next", 60)
    assert slot.cell is None
    assert (home.retired, ready.state) == ("", State.READY), "what waits in other slots goes on waiting"
    assert cells.facts()[0]["warm"] == 1
    first, _ = cells.create(FACTS, SPEC, "worker")
    assert first.waited, "a cell that waits comes before one that has to be made"
    second, _ = cells.create(FACTS, SPEC, "worker")
    assert not second.waited
    assert slot.cell is not None
    for running in (first, second):
        cells.release(running)
    support.wait_until(lambda: (slot.state, ready.state) == (State.READY, State.READY), "as before", 60)
    assert (slot.cell, ready.cell, home.retired) == (None, None, "")
    container.no_room = str
    cells.release(cells.create(FACTS, SPEC, "worker")[0])
    support.wait_until(lambda: State.READY == slot.state == ready.state, "there is room again", 60)
    assert slot.cell is not None, "its next cell waits"


def test_where_there_is_no_room_for_the_jobs_own_cell_either_it_says_so(cells: Cells) -> None:
    def full(limits: Limits) -> None:
        raise Unplaced("no space is left")

    slot, busy = FakeSlot(prepare=full), FakeSlot()
    slot.state = State.READY
    container = FakeContainer(slot, busy)
    home = housed(cells, container)
    neighbour = at_work(cells, home, busy)
    with pytest.raises(NoCells, match="no space is left"):
        cells.create(FACTS, SPEC, "worker")
    assert home.retired == "no space is left"
    assert not container.killed.is_set(), "what runs in other slots goes on"
    cells.release(neighbour)
    gone(cells, container)


@pytest.mark.parametrize("way", ["nobody needs it", "its version ends", "its runner goes too far"])
def test_a_container_whose_slots_have_no_cells_goes_as_any_other(cells: Cells, way: str) -> None:
    slot = FakeSlot()
    slot.state = State.READY
    container = FakeContainer(slot)
    home = housed(cells, container)
    if way == "nobody needs it":
        with cells._changed:
            home.used -= 7_200
    elif way == "its version ends":
        assert cells.retire(KEY.bundle) == 0, "no cell waited"
    else:
        (waiting,) = cells.waiting()
        waiting.give_up("too much")
    gone(cells, container)


def full_of_idle(cells: Cells, destroys: Callable[[], Any]) -> list[FakeContainer]:
    """As many containers as there may be, all of them idle and of other plugins."""
    made = []
    for number in range(cells._bounds.containers):
        slot = FakeSlot()
        slot.state = State.READY
        container = FakeContainer(slot, destroys=destroys)
        housed(cells, container, replace(KEY, bundle=str(number) * 64))
        made.append(container)
    return made


def away() -> None:
    raise EngineAway("engine_unavailable", "the engine does not answer")


@pytest.mark.parametrize(("fails", "cost"), [(refused, 2), (away, 1)])
def test_a_job_costs_one_idle_container_at_most_and_none_once_the_engine_is_known_to_be_away(
    cells: Cells, fails: Callable[[], None], cost: int
) -> None:
    stuck = threading.Event()
    stuck.set()
    containers = full_of_idle(cells, lambda: fails() if stuck.is_set() else None)

    def retired() -> int:
        with cells._changed:
            return sum(bool(home.retired) for home in cells._homes)

    for number, bundle in enumerate("bc"):
        with pytest.raises(NoCells, match="cannot be removed now"):
            cells.create(FACTS, replace(SPEC, bundle=bundle * 64), "worker")
        assert retired() == min(number + 1, cost)
    stuck.clear()
    support.wait_until(lambda: sum(container.gone for container in containers) == cost, "the keeper removes it", 60)
    support.wait_until(lambda: len(cells._homes) == len(containers) - cost, "its place is free", 60)


@pytest.mark.parametrize("how", ["time", "answer"])
def test_one_container_that_the_engine_hangs_on_does_not_keep_the_others_for_good(
    cells: Cells, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The keeper tries it again and again, and in vain each time: that is no news of the engine."""
    stuck = threading.Event()
    stuck.set()
    tries: list[int] = []

    def hangs() -> None:
        tries.append(1)
        if stuck.is_set():
            away()

    containers = full_of_idle(cells, nothing)
    containers[0].destroys = hangs
    for bundle in "bc":
        with pytest.raises(NoCells, match="cannot be removed now"):
            cells.create(FACTS, replace(SPEC, bundle=bundle * 64), "worker")
    assert [home.container for home in cells._homes if home.retired] == [containers[0]]
    if how == "time":
        monkeypatch.setattr("cloche.sandboxd.cells.home.AWAY_SECONDS", 0.0, raising=False)
    else:
        cells._bury(cells._homes[1])
        housed(cells, FakeContainer(FakeSlot()), replace(KEY, bundle="e" * 64))
    before = len(tries)
    support.wait_until(lambda: len(tries) > before + 2, "it is tried again, in vain", 60)
    with cells._changed:
        chosen = longest_idle(cells._homes)
    assert chosen.container in containers[1:], "it, or another job, would have no cell ever again"
    stuck.clear()
    gone(cells, containers[0])


def test_who_finds_the_container_gone_finds_its_place_free(cells: Cells) -> None:
    """Whoever destroyed it: a job that needs the place is not told that it cannot be had."""
    home = housed(cells, FakeContainer())
    seen: list[bool] = []

    class Seen(list[Home]):
        def remove(self, home: Home) -> None:
            seen.append(home.lock.locked())
            super().remove(home)

    with cells._changed:
        cells._homes = Seen(cells._homes)
    cells._bury(home)
    assert (seen, cells._homes) == ([True], [])


def test_containers_that_never_came_to_be_cost_no_idle_one_while_the_engine_is_away(cells: Cells) -> None:
    """They take up places until the keeper has removed what there may be of them."""
    containers = full_of_idle(cells, nothing)
    cells._bury(cells._homes[0])
    containers.pop(0)
    stuck = threading.Event()
    stuck.set()
    left: Any = FakeContainer(destroys=lambda: away() if stuck.is_set() else None)
    error = EngineAway("engine_unavailable", "the engine does not answer")

    def make(*_: Any) -> None:
        raise NotRemoved(left, error, error)

    maker: Any = cells._maker
    maker.make = make
    for bundle in "bcd":
        with pytest.raises(NoCells, match=r"does not answer|cannot be removed now"):
            cells.create(FACTS, replace(SPEC, bundle=bundle * 64), "worker")
    assert not any(home.retired for home in cells._homes if home.container in containers)
    stuck.clear()
    gone(cells, left)
    assert not any(container.gone for container in containers)
