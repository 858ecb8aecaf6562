"""Who gets which waiting sandbox, and what is made next: the pools with a fake maker and a clock that the test moves.

The fake sandboxes answer what the pools ask of a :class:`cloche.sandboxd.warm.Warm`; tests/isolation holds the real ones to the same.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.clock import uuid7
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import template
from cloche.sandboxd import pools as module
from cloche.sandboxd.budget import Budget
from cloche.sandboxd.filler import Filler
from cloche.sandboxd.pool import Pool, Ticket
from cloche.sandboxd.pools import MAX_POOLS, SETUP_S, Load, Pools
from cloche.sandboxd.sizing import Bounds

IMAGE = "sha256:" + "1" * 64
MIB = 1 << 20


@dataclass(eq=False)
class FakeWarm:
    """Stands for one sandbox; a test changes what it is."""

    image: str = IMAGE
    ready: bool = True
    failure: str | None = None
    said: bool = False
    still: bool = True
    memory: int = 20 * MIB
    began: float = 0.0
    started_at: float = 0.0
    ready_at: float = 0.0
    closed: bool = False
    running: Any = field(default_factory=lambda: SimpleNamespace(id=uuid7()))

    def look(self) -> None: ...

    def check(self) -> str | None:
        return self.failure

    def idles(self, _now: float) -> bool:
        if not self.still:
            self.failure = "it does not keep still after its setup"
        return self.still

    def close(self) -> None:
        self.closed = True


class NoWatch:
    """Keeps what is watched."""

    def __init__(self) -> None:
        self.watched: set[Any] = set()

    def add(self, warm: Any) -> None:
        self.watched.add(warm)

    def remove(self, warm: Any) -> None:
        self.watched.discard(warm)


class World:
    """Pools, a clock, and a filler that the test plays."""

    def __init__(self, memory: int = 1 << 30, **bounds: Any) -> None:
        self.now = 1_000.0
        self.load = Load(room=64, cold=0, disk=1 << 40)
        self.watch = NoWatch()
        self.budget = Budget(memory)
        self.pools = Pools(
            Bounds(**bounds),
            self.watch,  # type: ignore[arg-type]
            lambda: self.load,
            self.budget.share(),
            fill_rate=100.0,
            cpus=2,
            now=lambda: self.now,
        )

    def take(self, spec: SandboxSpec, owner: str = "w1") -> Ticket:
        return self.pools.take(spec, owner, IMAGE)

    def next_fill(self) -> Pool | None:
        self.now += 0.2
        with self.pools.changed:
            return self.pools.next_fill()[0]

    def fill(self, **facts: Any) -> FakeWarm | None:
        """Make what the pools ask for next."""
        pool = self.next_fill()
        if pool is None:
            return None
        warm = self.made(**facts)
        self.pools.filled(pool, warm)  # type: ignore[arg-type]
        return warm

    def made(self, **facts: Any) -> FakeWarm:
        return FakeWarm(**{"began": self.now - 0.2, "started_at": self.now, "ready_at": self.now, **facts})

    def fill_all(self) -> list[FakeWarm]:
        found = []
        while (warm := self.fill()) is not None:
            found.append(warm)
        return found

    def doomed(self) -> list[Any]:
        with self.pools.changed:
            found = []
            while (warm := self.pools.doomed()) is not None:
                found.append(warm)
            return found

    def facts(self, number: int = 0) -> dict[str, Any]:
        return self.pools.facts(Counter())[number]


def spec(bundle: str = "a", priority: int = 5, **limits: Any) -> SandboxSpec:
    return SandboxSpec(
        job_id=uuid7(),
        attempt=1,
        bundle=bundle * 64,
        wheels=None,
        limits=replace(Limits(), **limits),
        lease_until=1,
        warm=True,
        priority=priority,
    )


def bundle(number: int) -> SandboxSpec:
    return replace(spec(), bundle=f"{number:064x}")


def started(call: Any, *arguments: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call(*arguments)))
    thread.start()
    return thread, found


def until_waiting(world: World, count: int) -> None:
    """Wait until that many tickets wait for what is being made."""
    done = threading.Event()
    while not done.wait(0.005):
        with world.pools.changed:
            if sum(len(pool.waiting) for pool in world.pools._pools.values()) >= count:
                return


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_job_starts_cold_and_the_next_one_warm(world: World) -> None:
    first = world.take(spec())
    assert (first.warm, first.why) == (None, "pool empty")
    made = world.fill()
    assert made is not None
    assert world.fill() is None
    assert world.watch.watched == {made}
    second = world.take(spec())
    assert (second.warm, second.why) == (made, None)
    assert world.watch.watched == set()
    third = world.take(spec())
    assert third.why == "pool empty", "one serves once"
    shown = world.facts()
    assert (shown["hits"], shown["cold_starts"], shown["warm"]) == (1, 2, 0)


def test_what_only_the_worker_watches_makes_no_other_pool(world: World) -> None:
    world.take(spec())
    made = world.fill()
    assert world.take(spec(time_ms=100, log=5, result=5, priority=9)).warm is made
    assert template(spec()) == template(spec(time_ms=100, log=5, result=5, priority=9))


@pytest.mark.parametrize(
    "other",
    [
        spec("b"),
        spec(memory=64 * MIB),
        spec(pids=8),
        spec(output=MIB),
        spec(cpu=0.5),
        replace(spec(), wheels="c" * 64),
    ],
)
def test_anything_else_that_differs_does(world: World, other: SandboxSpec) -> None:
    world.take(spec())
    assert world.fill() is not None
    assert world.take(other).warm is None
    assert world.pools.take(spec(), "w1", "sha256:" + "2" * 64).warm is None


def test_a_dead_one_is_found_before_a_job_gets_it(world: World) -> None:
    world.take(spec())
    dead = world.fill()
    assert dead is not None
    dead.failure = "it died"
    ticket = world.take(spec())
    assert ticket.warm is None
    assert ticket.why == "setup failed: it died"
    assert dead.closed
    assert world.doomed() == [dead]
    assert world.facts()["lost"] == 1


def test_a_setup_that_fails_backs_off_and_jobs_say_why(world: World) -> None:
    world.take(spec())
    world.fill(ready=False, failure="ImportError: no luck", said=True)
    assert world.next_fill() is None
    ticket = world.take(spec())
    assert ticket.why == "setup failed: ImportError: no luck"
    assert world.facts()["last_error"] == "its setup raised an error", "a plugin's words are for its own jobs"
    world.now += 6
    world.fill(ready=False, failure="again")
    assert world.facts()["failures"] == 2
    world.now += 6
    assert world.next_fill() is None, "twice as long"
    world.now += 6
    good = world.fill()
    assert good is not None
    assert world.fill() is None, "one at a time until one has served"
    assert world.take(spec()).warm is good
    assert world.facts()["last_error"] is None


def test_a_setup_that_hangs_is_given_up(world: World) -> None:
    world.take(spec())
    hung = world.fill(ready=False)
    assert hung is not None
    world.now += SETUP_S - 1
    world.pools.sweep()
    assert not hung.closed
    world.now += 2
    world.pools.sweep()
    assert world.doomed() == [hung]
    assert world.take(spec()).why == "setup failed: its setup took longer than 30 s"


def test_one_that_does_not_keep_still_is_given_up(world: World) -> None:
    world.take(spec())
    busy = world.fill()
    assert busy is not None
    busy.still = False
    world.pools.sweep()
    assert busy.closed
    assert world.next_fill() is None


def test_a_job_takes_one_that_is_still_at_its_setup(world: World) -> None:
    world.take(spec())
    slow = world.fill(ready=False)
    assert world.take(spec()).warm is slow


def test_a_job_waits_for_one_that_is_being_made(world: World) -> None:
    world.take(spec())
    pool = world.next_fill()
    assert pool is not None
    thread, found = started(world.take, spec())
    until_waiting(world, 1)
    warm = world.made(ready=False)
    world.pools.filled(pool, warm)  # type: ignore[arg-type]
    thread.join(10)
    assert found[0].warm is warm


def test_it_starts_cold_when_that_one_cannot_be_made(world: World) -> None:
    world.take(spec())
    pool = world.next_fill()
    assert pool is not None
    thread, found = started(world.take, spec())
    until_waiting(world, 1)
    world.pools.unfilled(pool, PlatformFailure(Reason.ENGINE_UNAVAILABLE, "no engine"))
    thread.join(10)
    assert found[0].why == "none could be made: no engine"
    assert world.next_fill() is None, "the engine gets a pause"
    world.now += 10
    assert world.next_fill() is not None


def test_it_starts_cold_when_that_takes_too_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    world.take(spec())
    pool = world.next_fill()
    assert pool is not None
    assert world.take(spec()).why == "none was made in time"
    warm = world.made()
    world.pools.filled(pool, warm)  # type: ignore[arg-type]
    assert world.take(spec()).warm is warm


def test_a_higher_priority_takes_the_turn_of_a_lower(world: World) -> None:
    world.take(spec())
    pool = world.next_fill()
    assert pool is not None
    low, low_found = started(world.take, spec(priority=1))
    until_waiting(world, 1)
    same = world.take(spec(priority=1))
    assert same.why == "pool empty", "first come, first served among equals"
    high, high_found = started(world.take, spec(priority=9))
    low.join(10)
    assert low_found[0].why == "one of a higher priority took its turn"
    warm = world.made()
    world.pools.filled(pool, warm)  # type: ignore[arg-type]
    high.join(10)
    assert high_found[0].warm is warm


def test_of_those_who_ask_at_once_the_higher_priority_gets_the_last_one(world: World) -> None:
    world.take(spec())
    last = world.fill()
    with world.pools.changed:  # all of them ask before anybody is served
        threads = [started(world.take, spec(priority=priority)) for priority in (1, 5, 9, 2)]
        done = threading.Event()
        while len(world.pools._asked) < 4:
            done.wait(0.005)
    for thread, _ in threads:
        thread.join(10)
    assert [found[0].warm is last for _, found in threads] == [False, False, True, False]


def test_owners_take_turns(world: World) -> None:
    for _ in range(30):
        world.take(spec(), "greedy")
        world.now += 0.1
    made = world.fill_all()
    assert len(made) >= 2
    made[0].failure = None
    for warm in made[2:]:
        warm.failure = "it died"
    assert world.take(spec(), "greedy").warm is made[0]
    with world.pools.changed:
        threads = [started(world.take, spec(), owner) for owner in ("greedy", "modest")]
        done = threading.Event()
        while len(world.pools._asked) < 2:
            done.wait(0.005)
    for thread, _ in threads:
        thread.join(10)
    assert [found[0].warm is made[1] for _, found in threads] == [False, True]


def test_more_are_kept_when_more_come(world: World) -> None:
    for _ in range(100):
        world.take(spec())
        world.now += 0.2
    assert len(world.fill_all()) > 2


def test_they_expire(world: World) -> None:
    world.take(spec())
    old = world.fill()
    assert old is not None
    world.now += 601
    world.pools.sweep()
    assert old.closed
    assert world.facts()["expired"] == 1
    assert world.next_fill() is None
    world.now += 1_200
    world.pools.sweep()
    assert world.pools.facts(Counter()) == [], "and the pool is forgotten"


def test_a_least_number_is_kept_without_demand() -> None:
    world = World(least=2)
    world.take(spec())
    assert len(world.fill_all()) == 2
    world.now += 601
    world.pools.sweep()
    assert len(world.doomed()) == 2
    assert len(world.fill_all()) == 2


def test_the_budget_is_shared_and_the_stalest_pool_gives_way() -> None:
    world = World(memory=50 * MIB)
    world.take(spec("a"))
    old = world.fill()
    world.take(spec("b"))
    assert world.fill() is not None
    world.take(spec("c"))
    assert world.next_fill() is None, "first there has to be room"
    assert world.doomed() == [old]
    assert world.fill() is not None
    assert [pool["evictions"] for pool in world.pools.facts(Counter())] == [1, 0, 0]
    assert sum(pool["memory"] for pool in world.pools.facts(Counter())) <= 50 * MIB  # type: ignore[misc]
    world.take(spec("a"))
    world.take(spec("b"))


def evictions(world: World) -> list[int]:
    return [int(pool["evictions"]) for pool in world.pools.facts(Counter())]


def left_alone(world: World, rounds: int = 20) -> int:
    """How many are made while nobody asks for anything any more."""
    made = 0
    for _ in range(rounds):
        made += world.fill() is not None
        world.pools.sweep()
    return made


def left_alone_but_for(world: World, bad: str, rounds: int = 10) -> None:
    """As :func:`left_alone`, and the setup of one version fails."""
    for _ in range(rounds):
        if (pool := world.next_fill()) is not None:
            fails = pool.key.template.bundle == bad * 64
            facts = {"ready": False, "failure": "no luck", "said": True} if fails else {}
            world.pools.filled(pool, world.made(**facts))  # type: ignore[arg-type]
        world.pools.sweep()


def test_nothing_is_given_up_for_one_that_does_not_fit_even_then() -> None:
    world = World(memory=100 * MIB)
    cells = world.budget.share()
    world.take(spec("a"))
    world.fill(memory=200 * MIB)
    assert world.take(spec("a")).warm is not None
    assert cells.fits(50 * MIB), "since it was made the cells have grown"
    world.take(spec("b"))
    small = world.fill()
    assert small is not None
    world.take(spec("a"))
    assert left_alone(world) == 0
    assert (small.closed, evictions(world)) == (False, [0, 0])
    assert cells.fits(0)
    world.take(spec("a"))
    assert left_alone(world) == 1, "now it fits beside the other"
    assert evictions(world) == [0, 0]


def test_the_place_of_one_that_is_given_up_is_that_of_whom_it_was_given_up_for() -> None:
    world = World(memory=50 * MIB)
    for name in ("a", "b", "c"):
        world.take(spec(name))
        left_alone(world)
    assert evictions(world) == [1, 0, 0]
    world.take(spec("d"))
    assert left_alone(world) == 1, "and not also the first, which is short since it gave up its own"
    assert evictions(world) == [1, 1, 0, 0]
    assert [pool["warm"] for pool in world.pools.facts(Counter())] == [0, 0, 1, 1]


def test_nobody_gives_up_its_only_one_for_anothers_second() -> None:
    world = World(memory=50 * MIB)
    world.take(spec("a"))
    assert world.fill() is not None
    for _ in range(20):
        world.take(spec("b"))
    assert left_alone(world) == 1
    assert evictions(world) == [0, 0]
    assert [pool["warm"] for pool in world.pools.facts(Counter())] == [1, 1]


def test_what_a_pool_does_not_need_any_more_is_anybodys() -> None:
    world = World(memory=70 * MIB)
    for _ in range(100):
        world.take(spec("a"))
    assert len(world.fill_all()) == 3
    world.now += 300
    for _ in range(100):
        world.take(spec("b"))
    assert left_alone(world) == 2
    assert evictions(world) == [2, 0]
    assert [pool["warm"] for pool in world.pools.facts(Counter())] == [1, 2]


def crowded() -> World:
    """Two wait, and the last place is a job's: a third version needs that of one of them."""
    world = World()
    for name in ("a", "b"):
        world.take(spec(name))
        assert world.fill() is not None
    world.load = replace(world.load, room=1)
    world.take(spec("c"))
    return world


def test_one_that_is_being_cleared_away_is_the_room_that_was_asked_for() -> None:
    world = crowded()
    assert world.next_fill() is None
    assert world.next_fill() is None
    assert evictions(world) == [1, 0, 0], "nobody has come to clear it away yet"
    assert len(world.doomed()) == 1
    for _ in range(5):
        assert world.next_fill() is None
    assert evictions(world) == [1, 0, 0], "it takes a while to die, and has its place until then"
    world.load = replace(world.load, room=2)
    pool = world.next_fill()
    assert pool is not None
    assert pool.key.template.bundle == "c" * 64


def test_one_that_cannot_be_cleared_away_is_not_waited_for() -> None:
    def fails(_warm: Any) -> None:
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the sandbox's processes do not die")

    world = crowded()
    filler = Filler(world.pools, world.watch, cpus=2, make=lambda _spec: world.made(), destroy=fails)  # type: ignore[arg-type, return-value]
    assert world.next_fill() is None
    filler._clear_away(world.doomed()[0])
    assert world.next_fill() is None
    assert evictions(world) == [1, 1, 0]


def test_over_the_budget_the_stalest_goes_where_one_is_enough() -> None:
    world = World(memory=90 * MIB)
    cells = world.budget.share()
    world.take(spec("a"))
    old = world.fill(memory=39 * MIB)
    world.take(spec("b"))
    new = world.fill(memory=40 * MIB)
    assert old is not None
    assert new is not None
    assert cells.fits(40 * MIB)
    world.pools.sweep()
    assert (old.closed, new.closed) == (True, False)
    assert left_alone(world) == 0
    assert evictions(world) == [1, 0], "the other one, which was asked for later, would have had its place"


def test_one_that_grows_is_evicted_when_the_budget_is_spent() -> None:
    world = World(memory=50 * MIB)
    world.take(spec("a"))
    small = world.fill()
    world.take(spec("b"))
    big = world.fill()
    assert small is not None
    assert big is not None
    big.memory = 200 * MIB
    world.pools.sweep()
    assert (big.closed, small.closed) == (True, False)


def test_what_grows_while_it_waits_comes_back_only_where_there_is_room_for_all_of_it() -> None:
    world = World(memory=100 * MIB)
    world.take(spec("a"))
    grows = world.fill()
    world.take(spec("b"))
    assert world.fill() is not None
    for _ in range(5):
        if grows is not None:
            grows.memory = 90 * MIB
        world.pools.sweep()
        grows = world.fill()
    assert evictions(world) == [1, 0]
    world.pools.retire("b" * 64)
    assert left_alone(world) == 1, "alone it fits"


def test_a_version_whose_setup_fails_again_and_again_takes_no_more_from_others() -> None:
    world = World(memory=50 * MIB)
    for name in ("a", "b", "c"):
        world.take(spec(name))
        left_alone_but_for(world, "c")
    for _ in range(4):
        world.now += 100
        left_alone_but_for(world, "c")
    assert sum(evictions(world)) == 2, "once it may be chance"
    assert [pool["warm"] for pool in world.pools.facts(Counter())] == [1, 1, 0]
    world.take(spec("d"))
    world.take(spec("c"))
    assert world.next_fill() is None
    pool = world.next_fill()
    assert pool is not None
    assert pool.key.template.bundle == "d" * 64, "what was given up for one that can be made is its own"
    world.pools.filled(pool, world.made())  # type: ignore[arg-type]
    world.pools.retire("d" * 64)
    assert world.pools.retire("b" * 64) == 1
    assert left_alone(world) == 2, "it still gets what is nobody's"
    assert [pool["warm"] for pool in world.pools.facts(Counter())] == [1, 1]


def test_what_cells_take_of_the_budget_is_not_the_pools() -> None:
    world = World(memory=100 * MIB)
    cells = world.budget.share()
    for name in ("a", "b", "c", "d"):
        world.take(spec(name))
        assert world.fill() is not None
    assert [pool["memory"] for pool in world.pools.facts(Counter())] == [20 * MIB] * 4, "all of it, while no cell waits"
    assert cells.fits(50 * MIB)
    world.pools.sweep()
    assert len(world.doomed()) == 2, "two are over what is left"
    assert world.next_fill() is None, "nor is another one made for them"
    assert cells.fits(0)
    assert len(world.fill_all()) == 2


def test_running_jobs_come_first(world: World) -> None:
    world.take(spec())
    world.load = Load(room=1, cold=0, disk=1 << 40)
    assert world.next_fill() is None, "the last place is a job's"
    world.load = Load(room=64, cold=2, disk=1 << 40)
    assert world.next_fill() is not None
    world.take(spec("b"))
    assert world.next_fill() is None, "while jobs wait for cold starts, one a second"
    world.now += 1.0
    assert world.next_fill() is not None


def test_a_job_without_room_gets_that_of_one_that_waits(world: World) -> None:
    assert world.pools.give_up_one() is None
    world.take(spec())
    made = world.fill()
    assert made is not None
    assert world.pools.give_up_one() is made
    assert made.closed
    assert world.doomed() == [], "it is the caller's"
    assert world.facts()["evictions"] == 1


def test_retiring_kills_all_that_waits_or_comes(world: World) -> None:
    world.take(spec("a"))
    idle = world.fill()
    world.take(spec("b"))
    pool = world.next_fill()
    assert idle is not None
    assert pool is not None
    thread, found = started(world.take, spec("b"))
    until_waiting(world, 1)
    assert world.pools.retire("b" * 64) == 1
    thread.join(10)
    assert found[0].why == "its pool was given up"
    late = world.made()
    world.pools.filled(pool, late)  # type: ignore[arg-type]
    assert late.closed
    assert not idle.closed
    assert world.pools.retire("a" * 64) == 1
    assert idle.closed
    assert world.pools.retire("a" * 64) == 0


def test_of_another_image_none_is_kept(world: World) -> None:
    world.take(spec())
    other = world.fill(image="sha256:" + "9" * 64)
    assert other is not None
    assert other.closed


def test_there_are_never_too_many_pools(world: World) -> None:
    for number in range(MAX_POOLS + 10):
        world.take(bundle(number))
        world.now += 1
    assert len(world.pools.facts(Counter())) == MAX_POOLS
    assert world.facts()["bundle"] == f"{10:064x}"


def test_closing_gives_up_all(world: World) -> None:
    world.take(spec())
    made = world.fill()
    assert made is not None
    world.pools.close()
    assert made.closed
    assert world.take(spec()).why == "sandboxd is stopping"
    assert world.next_fill() is None


def test_outputs_on_disk_wait_only_where_there_is_plenty_of_room(world: World) -> None:
    big = spec(output=256 * MIB)
    world.take(big)
    world.load = Load(room=64, cold=0, disk=2_047 * MIB)
    assert world.next_fill() is None
    world.load = Load(room=64, cold=0, disk=2_048 * MIB)
    assert world.next_fill() is not None


def test_many_that_end_together_are_one_failure() -> None:
    world = World(least=4)
    world.take(spec())
    for warm in world.fill_all():
        warm.failure = "its channel ended"
    world.pools.sweep()
    assert world.facts()["lost"] == 4
    world.now += 5.1
    assert world.fill() is not None


def test_a_moment_is_left_to_a_short_job_and_no_more(world: World) -> None:
    def ask_next() -> Pool | None:
        with world.pools.changed:
            return world.pools.next_fill()[0]

    world.take(spec())
    world.now += 0.05
    assert ask_next() is None
    world.now += 0.06
    assert ask_next() is not None
    world.take(spec("b"))
    waits = 0
    while ask_next() is None:
        waits += 1
        world.now += 0.05
        world.take(spec("b"))  # they never stop coming
    assert 0.3 <= waits * 0.05 <= 0.4
