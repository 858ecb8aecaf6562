"""Permits by GCRA, taken in portions, in Redis and alone."""

from __future__ import annotations

import threading

import pytest

from cloche.errors import Unavailable
from cloche.queueing.permits import Ask, Given, MemoryPermits, RedisPermits
from cloche.services.rate_limits import RateLimits

MINUTE = 60_000


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000.0

    def __call__(self) -> float:
        return self.ms

    def seconds(self) -> float:
        return self.ms / 1000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def patient(monkeypatch):
    """For tests in which Redis is there: a busy machine may take longer for an answer than a request waits for one."""
    monkeypatch.setattr("cloche.queueing.permits._TIMEOUT_S", 30)


class Counting:
    """Permits that count how often they are asked, or that are away."""

    def __init__(self, clock: Clock) -> None:
        self.asked = 0
        self.away = False
        self._inner = MemoryPermits(clock=clock)

    def take(self, asks: list[Ask]) -> list[Given]:
        self.asked += 1
        if self.away:
            raise Unavailable("Redis does not answer.")
        return list(self._inner.take(asks))

    def close(self) -> None:
        pass


def passed(limits: RateLimits, count: int, key: str = "k") -> int:
    return sum(not any(one.wait_s for one in limits.charge([("user", key)])) for _ in range(count))


def test_a_window_at_once_then_one_for_each_interval(clock):
    permits = MemoryPermits(clock=clock)
    ask = Ask("k", 60, MINUTE, 1)
    assert [permits.take([ask])[0].permits for _ in range(61)] == [1] * 60 + [0]
    refused = permits.take([ask])[0]
    assert 900 <= refused.wait_ms <= 1_000
    clock.ms += 999
    assert permits.take([ask])[0].permits == 0
    clock.ms += 2
    assert permits.take([ask])[0].permits == 1
    clock.ms += MINUTE
    assert permits.take([Ask("k", 60, MINUTE, 100)])[0] == Given(60, 0, 0)


def test_keys_are_apart_and_a_clock_that_jumps_back_locks_nobody_out_for_longer_than_a_window(clock):
    permits = MemoryPermits(clock=clock)
    assert permits.take([Ask("a", 5, MINUTE, 9), Ask("b", 5, MINUTE, 9)]) == [Given(5, 0, 0), Given(5, 0, 0)]
    clock.ms -= 10 * MINUTE
    assert permits.take([Ask("a", 5, MINUTE, 1)])[0].wait_ms <= MINUTE


def test_redis_answers_as_memory_does(valkey, clock, patient):
    """In a window of an hour, whose shortest interval is 72 s: the server's clock goes on meanwhile, the other one stands."""
    shared, alone = RedisPermits(valkey.url), MemoryPermits(clock=clock)
    asks = [Ask("a", 50, 60 * MINUTE, 20), Ask("b", 3, 60 * MINUTE, 1)]
    for _ in range(4):
        found, expected = shared.take(asks), alone.take(asks)
        assert [one.permits for one in found] == [one.permits for one in expected]
        assert [one.left for one in found] == [one.left for one in expected]
        assert all(abs(one.wait_ms - other.wait_ms) < 60_000 for one, other in zip(found, expected, strict=True))
    shared.close()


def test_two_processes_share_a_limit(valkey, patient, monkeypatch):
    monkeypatch.setattr("cloche.services.rate_limits.WINDOW_MS", 60 * MINUTE)  # one permit comes back in 3.6 s
    first, second = (RateLimits(RedisPermits(valkey.url), {"user": 1_000}) for _ in range(2))
    got = [0, 0]

    def run(number: int, limits: RateLimits) -> None:
        got[number] = passed(limits, 900)

    threads = [threading.Thread(target=run, args=(number, one)) for number, one in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1_000 <= sum(got) <= 1_000 + 1_000 // 10  # what came back while it ran
    first.close()
    second.close()


def test_a_server_that_is_not_there_is_noticed_at_once(tmp_path):
    away = RedisPermits(f"unix://{tmp_path}/none.sock")
    with pytest.raises(Unavailable):
        away.take([Ask("k", 1, MINUTE, 1)])


def test_most_requests_ask_nobody(clock):
    counting = Counting(clock)
    limits = RateLimits(counting, {"address": 60_000, "user": 30_000}, clock.seconds)
    for _ in range(600):
        assert not any(one.wait_s for one in limits.charge([("address", "a"), ("user", "u"), ("token", "t")]))
    assert counting.asked <= 3


def test_beyond_the_limit_nobody_is_asked_until_it_is_time(clock):
    counting = Counting(clock)
    limits = RateLimits(counting, {"user": 10}, clock.seconds)
    assert passed(limits, 10) == 10
    assert passed(limits, 1) == 0
    asked = counting.asked
    assert passed(limits, 500) == 0
    assert counting.asked == asked
    known = limits.refused("user", "k")
    assert known is not None
    assert 1 <= known.wait_s <= 6
    assert limits.refused("user", "other") is None
    clock.ms += 6_100
    assert limits.refused("user", "k") is None
    assert passed(limits, 5) == 1


def test_without_redis_a_process_counts_alone_and_more_strictly(clock):
    counting = Counting(clock)
    counting.away = True
    limits = RateLimits(counting, {"user": 400}, clock.seconds)
    assert 100 <= passed(limits, 400) <= 104
    assert counting.asked == 1, "who is away is not asked again with each request"
    counting.away = False
    clock.ms += 2_100
    limits_before = counting.asked
    passed(limits, 50, "another")
    assert counting.asked > limits_before


def test_zero_is_no_limit(clock):
    counting = Counting(clock)
    limits = RateLimits(counting, {"user": 0, "address": 0}, clock.seconds)
    assert limits.charge([("user", "k"), ("address", "a")]) == []
    assert limits.policies == {}


def test_keys_do_not_pile_up(clock, monkeypatch):
    monkeypatch.setattr("cloche.services.rate_limits._MAX_KEYS", 50)
    limits = RateLimits(Counting(clock), {"address": 10}, clock.seconds)
    for number in range(500):
        limits.charge([("address", f"a{number}")])
    assert len(limits._held) <= 51
