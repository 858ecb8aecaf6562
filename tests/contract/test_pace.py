"""Submissions a minute: one suite for Redis and memory, and what a process does alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloche.domain.pace import WINDOW_S, Window
from cloche.errors import Unavailable
from cloche.queueing.broker import Spent
from cloche.queueing.memory_broker import MemoryBroker
from cloche.queueing.redis_broker import RedisBroker
from cloche.services.pace import SHARE, Pace


@pytest.fixture(params=["redis", "memory"])
def broker(request):
    made = MemoryBroker() if request.param == "memory" else RedisBroker(request.getfixturevalue("valkey").url)
    yield made
    made.close()


def test_all_limits_or_none(broker, request):
    name = request.node.name
    both = [(f"t:{name}", 5), (f"u:{name}", 3)]
    assert broker.spend(both, 3) is None
    full = broker.spend(both, 1)
    assert isinstance(full, Spent)
    assert (full.place, full.used) == (1, 3)
    assert 0 < full.wait_ms <= (WINDOW_S + 1) * 1000
    assert broker.spend([(f"t:{name}", 5)], 2) is None, "the refused one was not counted"
    assert broker.spend([(f"t:{name}", 5)], 1).place == 0


def test_many_at_once_never_overshoot(broker, request):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: broker.spend([(request.node.name, 7)], 1), range(40)))
    assert found.count(None) == 7


def test_no_minute_sees_more_than_the_limit():
    window, accepted = Window(), []
    for now in range(0, 300_000, 700):
        if not window.wait_ms(1, 10, now):
            window.add(1, now)
            accepted.append(now)
    assert len(accepted) > 40
    assert all(sum(1 for at in accepted if start <= at < start + 60_000) <= 10 for start in accepted)


def test_the_wait_is_as_long_as_it_says():
    window = Window()
    window.add(4, 500)
    window.add(4, 20_900)
    assert window.wait_ms(2, 10, 30_000) == 0
    wait = window.wait_ms(3, 10, 30_000)
    assert window.wait_ms(3, 10, 30_000 + wait - 1) == 1
    assert window.wait_ms(3, 10, 30_000 + wait) == 0
    assert wait == 61_000 - 30_000


class Away(MemoryBroker):
    asked = 0

    def spend(self, limits, count):
        self.asked += 1
        raise Unavailable("away")


def test_without_redis_a_process_lets_through_a_part_of_the_limit_and_does_not_keep_asking():
    broker, now = Away(), [1_000_000]
    pace = Pace(broker, lambda: now[0])
    assert [pace.spend([("t", 8)], 1) is None for _ in range(4)] == [True] * (8 // SHARE) + [False] * 2
    assert broker.asked == 1
    assert pace.spend([("u", 8)], 8) is None, "a batch that fits the limit passes, once"
    assert pace.spend([("u", 8)], 1) is not None
    now[0] += 5_000
    pace.spend([("t", 8)], 1)
    assert broker.asked == 2
    now[0] += 62_000
    assert pace.spend([("t", 8)], 1) is None


def test_what_a_process_remembers_is_bounded():
    pace = Pace(Away(), lambda: 5)
    for number in range(10_050):
        pace.spend([(str(number), 4)], 1)
    assert len(pace._windows) == 10_000
