"""What a take honours, on every broker: pauses, limits, shares of tenants, turns of queues, places of what is given back."""

from __future__ import annotations

from collections import Counter

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloche.domain.jobs import AGING_STEP_MS
from cloche.queueing import scripts
from cloche.queueing.broker import NoIndex, Ready, Rules, Running, Share
from cloche.queueing.memory_broker import MemoryBroker
from cloche.queueing.redis_broker import RedisBroker
from cloche.services import effects
from tests.support.queues import make_whole, open_rules, take
from tests.support.stores import until


@pytest.fixture(params=["redis", "memory"])
def broker(request):
    made = MemoryBroker() if request.param == "memory" else RedisBroker(request.getfixturevalue("valkey").url)
    yield made
    made.close()


def flush(broker, request):
    if isinstance(broker, MemoryBroker):
        broker.flush()
    else:
        request.getfixturevalue("valkey").flush()


def ready(tenant, count, queue="q", first=0):
    return [Ready(f"{queue}-{tenant}-{n:03}", queue, tenant, n) for n in range(first, first + count)]


def tenants(taken):
    return [one.tenant for one in taken]


def rules(version, queue="q", **said):
    return Rules(queue, version, **said)


# Pauses


def test_a_paused_queue_accepts_jobs_and_gives_none(broker):
    make_whole(broker, ready("t", 2), ["q", "other"])
    broker.set_rules([rules(2, paused=True)])
    broker.push([*ready("t", 2, first=2), *ready("t", 1, "other")])
    assert [one.queue for one in broker.take(["q", "other"], 9)] == ["other"]
    assert broker.depth("q") == 4
    assert not broker.wait(["q"], 0.05), "nobody is kept awake by what is paused"
    broker.set_rules([rules(3)])
    assert broker.wait(["q"], 2)
    assert take(broker, "q", 9) == ["q-t-000", "q-t-001", "q-t-002", "q-t-003"]


def test_a_tenant_that_pauses_its_share_is_passed_over(broker):
    make_whole(broker, [*ready("a", 3), *ready("b", 3)], ["q"])
    broker.set_rules([rules(2, shares={"a": Share(paused=True)})])
    broker.push(ready("a", 1, first=3))
    assert tenants(broker.take(["q"], 9)) == ["b", "b", "b"]
    assert broker.depth("q") == 4
    assert not broker.wait(["q"], 0.05)
    broker.set_rules([rules(3, shares={"a": Share(paused=False)})])
    assert broker.wait(["q"], 2)
    assert tenants(broker.take(["q"], 9)) == ["a"] * 4


def test_a_share_that_the_rules_name_no_more_is_open(broker):
    make_whole(broker, ready("a", 1), ["q"])
    broker.set_rules([rules(2, shares={"a": Share(paused=True)})])
    broker.set_rules([rules(3)])
    assert len(broker.take(["q"], 9)) == 1


def test_older_rules_do_not_undo_newer_ones(broker):
    make_whole(broker, ready("t", 1), ["q"])
    broker.set_rules([rules(5, paused=True)])
    broker.set_rules([rules(4, paused=False)])
    assert take(broker, "q", 1) == []
    broker.set_rules([rules(5, paused=True)])
    assert take(broker, "q", 1) == []


def test_a_queue_without_rules_is_closed(broker):
    broker.rebuild(ready("t", 1), [])
    assert take(broker, "q", 1) == []
    broker.set_rules(open_rules("q"))
    assert take(broker, "q", 1) == ["q-t-000"]


def test_a_flush_does_not_end_a_pause(broker, request):
    make_whole(broker, ready("a", 1), ["q"])
    said = rules(2, shares={"a": Share(paused=True)})
    broker.set_rules([said, rules(1, "p", paused=True)])
    flush(broker, request)
    broker.push([*ready("a", 1), *ready("a", 1, "p")])
    with pytest.raises(NoIndex):
        broker.take(["q", "p"], 1)
    broker.rebuild([*ready("a", 1), *ready("a", 1, "p")], [said, rules(1, "p", paused=True)])
    assert list(broker.take(["q", "p"], 9)) == []


# Limits


def test_a_queue_at_its_limit_gives_no_more_until_something_ends(broker):
    broker.rebuild(ready("t", 5), [rules(1, limit=2)])
    first = broker.take(["q"], 9)
    assert len(first) == 2
    assert list(broker.take(["q"], 9)) == []
    assert not broker.wait(["q"], 0.05)
    broker.free([("q", first[0].job_id)])
    assert broker.wait(["q"], 2), "room again wakes a waiting worker"
    assert take(broker, "q", 9) == ["q-t-002"]
    broker.set_rules([rules(2, limit=3)])
    assert take(broker, "q", 9) == ["q-t-003"]
    broker.set_rules([rules(3)])
    assert take(broker, "q", 9) == ["q-t-004"]


def test_a_limit_counts_over_all_takers_and_for_its_queue_alone(broker):
    broker.rebuild([*ready("t", 4), *ready("t", 4, "other")], [rules(1, limit=1), rules(1, "other")])
    taken = [*broker.take(["q", "other"], 3), *broker.take(["q", "other"], 9)]
    assert Counter(one.queue for one in taken) == {"q": 1, "other": 4}


def test_what_is_in_flight_ends_with_its_lease(broker):
    broker.rebuild(ready("t", 2), [rules(1, limit=1)])
    assert len(broker.take(["q"], 1, hold_ms=1)) == 1
    until(lambda: take(broker, "q", 1), 5, "its place is free")
    assert broker.in_flight("q") == ["q-t-001"]


def test_what_was_taken_is_known_until_it_is_freed_however_late(broker):
    """It may be all that is left of an id that nobody claimed."""
    broker.rebuild(ready("t", 3), [rules(1, limit=1)])
    (first,) = broker.take(["q"], 1, hold_ms=1)
    until(lambda: broker.in_flight("q") == [], 5, "its time is over")
    assert broker.in_flight("q", over=True) == [first.job_id]
    (second,) = broker.take(["q"], 1)
    assert set(broker.in_flight("q", over=True)) == {first.job_id, second.job_id}
    broker.free([("q", second.job_id)])
    broker.push([first])
    (again,) = broker.take(["q"], 1)
    assert (again.job_id, again.fresh) == (first.job_id, True), "it did not count any more"
    broker.free([("q", first.job_id)])
    assert broker.in_flight("q", over=True) == []


def test_a_heartbeat_keeps_what_is_in_flight_and_never_shortens_it(broker):
    broker.rebuild(ready("t", 2), [rules(1, limit=1)])
    first = broker.take(["q"], 1)[0]
    broker.keep([Running(first.job_id, "q", 1)])
    until(lambda: broker.in_flight("q") == [first.job_id], 5, "still in flight")
    assert take(broker, "q", 1) == []


def test_what_runs_counts_after_a_rebuild(broker, request):
    broker.rebuild(ready("t", 2), [rules(1, limit=1)])
    first = broker.take(["q"], 1)[0]
    flush(broker, request)
    broker.rebuild(ready("t", 1, first=1), [rules(1, limit=1)], [Running(first.job_id, "q", 10_000)])
    assert take(broker, "q", 1) == []
    broker.free([("q", first.job_id), ("q", "never")])
    assert take(broker, "q", 1) == ["q-t-001"]


# Turns


def test_tenants_take_turns_whatever_they_push(broker):
    make_whole(broker, [*ready("a", 50), *ready("b", 3), *ready("c", 1)], ["q"])
    assert Counter(tenants(broker.take(["q"], 6))) == {"a": 3, "b": 2, "c": 1}
    assert Counter(tenants(broker.take(["q"], 4))) == {"a": 3, "b": 1}


def test_a_tenant_that_comes_late_waits_for_no_backlog(broker):
    make_whole(broker, ready("a", 100), ["q"])
    assert len(broker.take(["q"], 60)) == 60
    broker.push(ready("b", 1))
    assert "b" in tenants(broker.take(["q"], 3))


def test_leaving_and_coming_back_gains_nothing(broker):
    """One job at a time is no way past those who wait with many."""
    make_whole(broker, ready("b", 40), ["q"])
    served = Counter()
    for n in range(40):
        broker.push(ready("a", 1, first=n))
        served.update(tenants(broker.take(["q"], 1)))
    assert served["b"] >= 19


def test_shares_follow_their_weights(broker):
    shares = {"a": Share(weight=3)}
    broker.rebuild([*ready("a", 80), *ready("b", 80)], [rules(1, shares=shares)])
    served = Counter(tenants(broker.take(["q"], 40)))
    assert abs(served["a"] - 30) <= 1


def test_a_tenants_own_order_is_by_score(broker):
    make_whole(broker, [Ready("late", "q", "a", 30), Ready("early", "q", "a", 10), Ready("b", "q", "b", 20)], ["q"])
    taken = [one.job_id for one in broker.take(["q"], 3)]
    assert taken.index("early") < taken.index("late")


def test_the_least_urgent_is_taken_however_many_urgent_ones_keep_coming(broker):
    """Of a tenant's own: each step of waiting is worth a step of priority. Two of the most urgent come a step, and one is taken."""
    make_whole(broker, [effects.ready("least", "q", "t", 0, 0)], ["q"])
    served = []
    for n in range(30):
        broker.push(effects.ready(f"most-{n:02}{x}", "q", "t", n * AGING_STEP_MS, 9) for x in "ab")
        served += take(broker, "q", 1)
    assert 18 <= served.index("least") <= 20, "after those that came within nine steps, and before all others"
    assert served[:18] == [f"most-{n:02}{x}" for n in range(9) for x in "ab"]


def test_queues_take_turns_within_one_call(broker):
    make_whole(broker, [*ready("t", 9, "x"), *ready("t", 9, "y"), *ready("t", 1, "z")], ["x", "y", "z"])
    assert [one.queue for one in broker.take(["y", "z", "x"], 5)] == ["y", "z", "x", "y", "x"]


# What was taken


def test_what_is_given_back_is_where_it_was(broker):
    make_whole(broker, [Ready("a", "q", "t", -500), Ready("b", "q", "t", 7), Ready("c", "q", "u", 9)], ["q"])
    taken = broker.take(["q"], 3)
    assert {(one.job_id, one.queue, one.tenant, one.score) for one in taken} == {
        ("a", "q", "t", -500),
        ("b", "q", "t", 7),
        ("c", "q", "u", 9),
    }
    assert all(one.fresh for one in taken)
    broker.give_back(taken)
    assert broker.in_flight("q") == []
    again = broker.take(["q"], 3)
    assert {(one.job_id, one.score) for one in again} == {("a", -500), ("b", 7), ("c", 9)}


def test_giving_back_a_second_copy_leaves_the_running_one_in_flight(broker):
    make_whole(broker, ready("t", 1), ["q"])
    first = broker.take(["q"], 1)
    broker.push(ready("t", 1))
    second = broker.take(["q"], 1)
    assert [one.fresh for one in (*first, *second)] == [True, False]
    broker.give_back(second)
    assert broker.in_flight("q") == [first[0].job_id]


def test_a_queue_that_is_dropped_leaves_nothing(broker):
    make_whole(broker, [*ready("a", 2), *ready("b", 2)], ["q"])
    broker.set_rules([rules(7, shares={"b": Share(paused=True)})])
    broker.take(["q"], 1)
    broker.drop("q", 6)
    assert broker.depth("q") == 3, "somebody made it anew meanwhile"
    broker.drop("q", 7)
    assert (broker.depth("q"), list(broker.in_flight("q")), list(broker.queues())) == (0, [], [])
    broker.drop("q", 7)


def test_no_key_is_left_when_all_is_done(broker, valkey):
    if isinstance(broker, MemoryBroker):
        return
    names = [f"q{n}" for n in range(3)]
    make_whole(broker, [one for name in names for n in range(20) for one in ready(f"t{n}", 2, name)], names)
    while taken := broker.take(names, 7):
        broker.free((one.queue, one.job_id) for one in taken)
    broker.push(ready("t0", 1, "q0"))
    broker.remove("q0", "t0", ["q0-t0-000"])
    with redis.Redis(unix_socket_path=str(valkey.socket), decode_responses=True) as raw:
        left = set(raw.scan_iter()) - {scripts.wake_key("q0")}  # a token that the next take finds to be of nothing
        assert left == {scripts.EPOCH, scripts.QUEUES, *map(scripts.rules_key, names)}
        broker.take(["q0"], 1)
        assert not raw.exists(scripts.wake_key("q0"))


TENANTS = ("a", "b", "c", "d")
QUEUES = ("x", "y", "z")
pushes = st.tuples(st.just("push"), st.sampled_from(QUEUES), st.sampled_from(TENANTS), st.integers(1, 4))
takes = st.tuples(st.just("take"), st.permutations(QUEUES), st.integers(1, 5))
ends = st.tuples(st.just("end"), st.integers(0, 9))
steps = st.lists(st.one_of(pushes, takes, ends), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", ["redis", "memory"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, limits=st.fixed_dictionaries({name: st.sampled_from([None, 1, 3]) for name in QUEUES}))
def test_whatever_happens_limits_hold_and_nobody_starves(kind, valkey, steps, limits):
    """Between two turns of a tenant in a queue no other has more than two; what is ready is taken by enough takes; nothing is taken twice."""
    valkey.flush()
    broker = MemoryBroker() if kind == "memory" else RedisBroker(valkey.url)
    broker.rebuild([], [rules(1, name, limit=limits[name]) for name in QUEUES])
    waiting = {(queue, tenant): [] for queue in QUEUES for tenant in TENANTS}
    passed = {key: Counter() for key in waiting}
    flying, number = [], 0

    def taken(order, count):
        got = broker.take(order, count)
        for one in got:
            waiting[one.queue, one.tenant].remove(one.job_id)
            flying.append((one.queue, one.job_id))
            passed[one.queue, one.tenant].clear()
            for tenant in TENANTS:
                key = (one.queue, tenant)
                if tenant != one.tenant and waiting[key]:
                    passed[key][one.tenant] += 1
                    assert passed[key][one.tenant] <= 2
        running = Counter(queue for queue, _ in flying)
        assert all(limit is None or running[name] <= limit for name, limit in limits.items())
        return got

    for step in steps:
        if step[0] == "push":
            _, queue, tenant, count = step
            if not waiting[queue, tenant]:
                passed[queue, tenant].clear()
            for _ in range(count):
                number += 1
                job_id = f"{number:04}"
                waiting[queue, tenant].append(job_id)
                broker.push([Ready(job_id, queue, tenant, number)])
        elif step[0] == "take":
            taken(list(step[1]), step[2])
        elif flying:
            broker.free([flying.pop(step[1] % len(flying))])
    for _ in range(number + 1):
        broker.free(flying)
        flying.clear()
        taken(list(QUEUES), 3)
    assert not any(waiting.values())
    broker.close()
