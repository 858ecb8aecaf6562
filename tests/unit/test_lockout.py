"""How long failed sign-ins make whom wait: in memory, in Redis, and while Redis is away."""

from __future__ import annotations

import pytest

from cloche.errors import RateLimited, Unavailable
from cloche.services import lockout
from cloche.services.lockout import PER_ACCOUNT, PER_ADDRESS, PER_PLACE, STRICTER, Lockout, place_of
from cloche.throttle import redis_failures
from cloche.throttle.failures import KNOWN_MAX, Limit, MemoryFailures, Tally
from cloche.throttle.redis_failures import RedisFailures
from tests.support.stores import running_valkey, until

QUICK = Limit(free=3, base=60_000, longest=240_000, window=60_000)


class Clock:
    now = 1_000_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(clock):
    return Lockout(alone=MemoryFailures(clock))


def fail(guard, account, address, times):
    for _ in range(times):
        guard.attempt(account, address)


def refused(guard, account, address):
    with pytest.raises(RateLimited) as caught:
        guard.attempt(account, address)
    with pytest.raises(RateLimited):
        guard.check(account, address)
    return caught.value.retry_after


def test_one_account_from_one_address_waits_longer_each_time(guard, clock):
    fail(guard, "anna", "192.0.2.1", PER_PLACE.free)
    assert refused(guard, "anna", "192.0.2.1") == 60
    guard.attempt("berta", "192.0.2.1")
    guard.attempt("anna", "192.0.2.2")
    waits = [60]
    for _ in range(8):
        clock.now += waits[-1] * 1_000
        guard.attempt("anna", "192.0.2.1")
        waits.append(refused(guard, "anna", "192.0.2.1"))
    assert waits[1:] == [120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]


def test_a_refused_try_is_not_counted(guard, clock):
    fail(guard, "anna", "a", PER_PLACE.free)
    for _ in range(50):
        refused(guard, "anna", "a")
    clock.now += PER_PLACE.base
    guard.attempt("anna", "a")
    assert refused(guard, "anna", "a") == 120


def test_what_failed_is_forgotten_in_time(guard, clock):
    fail(guard, "anna", "192.0.2.1", PER_PLACE.free - 1)
    clock.now += PER_PLACE.window
    fail(guard, "anna", "192.0.2.1", PER_PLACE.free - 1)
    guard.check("anna", "192.0.2.1")


def test_a_success_forgets_the_accounts_failures_there(guard):
    fail(guard, "anna", "192.0.2.1", PER_PLACE.free)
    guard.succeeded("anna", "192.0.2.1")
    fail(guard, "anna", "192.0.2.1", PER_PLACE.free)
    refused(guard, "anna", "192.0.2.1")


def test_an_address_that_tries_many_names_waits(guard):
    for n in range(PER_ADDRESS.free):
        guard.attempt(f"name-{n}", "192.0.2.1")
    refused(guard, "never-tried", "192.0.2.1")
    guard.attempt("never-tried", "192.0.2.2")


def test_successes_do_not_use_up_an_address(guard):
    for n in range(2 * PER_ADDRESS.free):
        guard.attempt(f"name-{n}", "192.0.2.1")
        guard.succeeded(f"name-{n}", "192.0.2.1")
    guard.check("anna", "192.0.2.1")


def test_many_addresses_slow_an_account_down_and_never_where_its_owner_is_known(guard, clock):
    guard.attempt("anna", "203.0.113.9")
    guard.succeeded("anna", "203.0.113.9")
    for n in range(PER_ACCOUNT.free):
        guard.attempt("anna", f"198.51.100.{n}")
    assert refused(guard, "anna", "192.0.2.50") == PER_ACCOUNT.base // 1000
    guard.attempt("anna", "203.0.113.9")
    guard.attempt("berta", "192.0.2.50")
    for n in range(20):
        clock.now += PER_ACCOUNT.longest
        guard.attempt("anna", f"192.0.2.{n}")
        assert refused(guard, "anna", "192.0.2.50") <= PER_ACCOUNT.longest // 1000
    guard.cleared("anna")
    guard.attempt("anna", "192.0.2.50")


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "local"),
        ("", "local"),
        ("no address", "local"),
    ],
)
def test_what_an_address_counts_as(given, place):
    assert place_of(given) == place


def test_memory_is_bounded(clock):
    failures = MemoryFailures(clock, most=50)
    guard = Lockout(alone=failures)
    for n in range(500):
        guard.attempt(f"name-{n}", f"192.0.{n % 256}.1")
        guard.succeeded(f"name-{n}", f"192.0.{n % 256}.1")
    assert len(failures._counts) <= 50
    assert len(failures._known) <= 50


class Away:
    """A store that does not answer until it is back."""

    def __init__(self):
        self.asked = 0
        self.store = MemoryFailures()
        self.back = False

    def __getattr__(self, name):
        def call(*arguments):
            self.asked += 1
            if not self.back:
                raise Unavailable("away")
            return getattr(self.store, name)(*arguments)

        return call


def test_while_redis_is_away_each_process_allows_less_and_asks_rarely(monkeypatch):
    shared, times = Away(), [0.0]
    monkeypatch.setattr(lockout.time, "monotonic", lambda: times[0])
    guard = Lockout(shared)
    times[0] = 100.0
    fail(guard, "anna", "192.0.2.1", PER_PLACE.free // STRICTER)
    refused(guard, "anna", "192.0.2.1")
    assert shared.asked == 1
    shared.back, times[0] = True, 110.0
    guard.attempt("anna", "192.0.2.1")
    assert shared.asked == 2


@pytest.fixture
def patient(monkeypatch):
    """For tests in which Redis is there: a busy machine may take longer for an answer than a sign-in waits for one."""
    monkeypatch.setattr(redis_failures, "_TIMEOUT_S", 30)


@pytest.fixture(params=["memory", "redis"])
def failures(request, patient):
    if request.param == "memory":
        yield MemoryFailures()
    else:
        made = RedisFailures(request.getfixturevalue("valkey").url)
        yield made
        made.close()


def test_every_store_counts_alike(failures):
    tallies = [Tally("pair", QUICK), Tally("who", Limit(5, 60_000, 60_000, 60_000), spares_known=True)]
    assert failures.wait_ms("who", "here", tallies) == 0
    assert [failures.attempt("who", "here", tallies) for _ in range(3)] == [0, 0, 0]
    assert 50_000 < failures.attempt("who", "here", tallies) <= 60_000
    assert 50_000 < failures.wait_ms("who", "here", tallies) <= 60_000
    failures.forgive("who", "here", tallies, ["pair"])
    assert failures.wait_ms("who", "here", tallies) == 0
    other = [Tally("other pair", QUICK), tallies[1]]
    assert [failures.attempt("who", "there", other) for _ in range(2)] == [0, 0]
    third = [Tally("third pair", QUICK), tallies[1]]
    assert failures.attempt("who", "elsewhere", third) == 0
    assert failures.attempt("who", "elsewhere", third) > 0  # five of the account from wherever
    assert failures.attempt("who", "here", tallies) == 0  # where it has succeeded
    failures.forgive("nobody", "nowhere", [Tally("never counted", QUICK)])
    assert failures.wait_ms("nobody", "nowhere", [Tally("never counted", QUICK)]) == 0


def test_two_processes_count_together(valkey, patient):
    first, second = (Lockout(RedisFailures(valkey.url), key=b"k" * 32) for _ in range(2))
    for n in range(PER_PLACE.free):
        (first, second)[n % 2].attempt("anna", "192.0.2.1")
    refused(first, "anna", "192.0.2.1")
    refused(second, "anna", "192.0.2.1")
    second.succeeded("anna", "192.0.2.1")
    first.attempt("anna", "192.0.2.1")


def test_no_name_is_kept_in_redis_and_every_key_goes_by_itself(valkey, patient):
    shared = RedisFailures(valkey.url)
    guard = Lockout(shared, key=b"k" * 32)
    for n in range(KNOWN_MAX + 10):
        guard.attempt("hunter2-typed-as-name", f"192.0.2.{n}")
        guard.succeeded("hunter2-typed-as-name", f"192.0.2.{n}")
    fail(guard, "anna", "192.0.2.200", 5)
    client = shared._client
    keys = client.keys("*")
    assert keys
    for key in keys:
        assert client.ttl(key) > 0, key
        kept = str(client.hgetall(key) if client.type(key) == "hash" else client.zrange(key, 0, -1))
        assert "hunter2" not in key + kept
        assert "192.0.2" not in key + kept
        assert key.startswith(("{cloche}:tries:", "{cloche}:known:"))
    known = [key for key in keys if key.startswith("{cloche}:known:")]
    assert [client.zcard(key) for key in known] == [KNOWN_MAX]
    shared.close()


def test_a_server_that_is_killed_holds_up_nobody(monkeypatch):
    with running_valkey() as own:
        guard = Lockout(RedisFailures(own.url))
        guard.attempt("anna", "192.0.2.1")
        own.kill()
        monkeypatch.setattr(lockout, "_AWAY_S", 0.0)
        fail(guard, "anna", "192.0.2.1", PER_PLACE.free // STRICTER)
        refused(guard, "anna", "192.0.2.1")
        own.start()
        until(lambda: guard.attempt("anna", "192.0.2.1") is None, 10, "it counts in Redis again")


def test_the_map_of_keys_is_the_documented_one():
    assert "{cloche}:tries:<what>" in redis_failures.__doc__
    assert "{cloche}:known:<account>" in redis_failures.__doc__
