"""One suite for every broker: Redis and the one in memory."""

import threading

import pytest
import redis

from cloche.errors import Unavailable
from cloche.queueing.broker import NoIndex, Ready
from cloche.queueing.memory_broker import MemoryBroker
from cloche.queueing.redis_broker import RedisBroker
from cloche.queueing.scripts import EVENTS


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


def test_nothing_is_taken_before_the_index_is_whole(broker):
    broker.push([Ready("a", "q", 1)])
    with pytest.raises(NoIndex):
        broker.take("q", 1)
    broker.rebuild([Ready("a", "q", 1), Ready("b", "q", 2)])
    assert list(broker.take("q", 5)) == ["a", "b"]


def test_lowest_score_goes_first_and_each_once(broker):
    broker.rebuild([])
    broker.push([Ready("late", "q", 30), Ready("early", "q", 10), Ready("mid", "q", 20)])
    assert list(broker.take("q", 2)) == ["early", "mid"]
    assert list(broker.take("q", 2)) == ["late"]
    assert list(broker.take("q", 2)) == []


def test_pushing_again_changes_nothing(broker):
    broker.rebuild([])
    for _ in range(3):
        broker.push([Ready("a", "q", 10)])
    broker.push([Ready("a", "q", 99), Ready("b", "q", 50)])
    assert broker.depth("q") == 2
    assert list(broker.take("q", 5)) == ["a", "b"]


def test_queues_do_not_mix(broker):
    broker.rebuild([Ready("a", "one", 1), Ready("b", "two", 1)])
    assert list(broker.take("one", 9)) == ["a"]
    assert broker.depth("two") == 1


def test_removed_jobs_are_not_taken(broker):
    broker.rebuild([Ready("a", "q", 1), Ready("b", "q", 2)])
    broker.remove("q", ["a", "never"])
    assert list(broker.take("q", 5)) == ["b"]


def test_a_push_wakes_a_waiting_worker(broker):
    broker.rebuild([])
    woken = []
    waiting = threading.Thread(target=lambda: woken.append(broker.wait("q", 5)))
    waiting.start()
    broker.push([Ready("a", "q", 1)])
    waiting.join(10)
    assert woken == [True]


def test_nobody_sleeps_beside_work_that_was_left(broker):
    broker.rebuild([])
    broker.push([Ready(str(n), "q", n) for n in range(5)])
    assert len(broker.take("q", 1)) == 1
    assert broker.wait("q", 2)


def test_wait_ends_without_work(broker):
    broker.rebuild([])
    assert not broker.wait("q", 0.05)


def test_a_flushed_index_says_so_and_is_rebuilt(broker, request):
    broker.rebuild([Ready("a", "q", 1)])
    assert broker.whole()
    flush(broker, request)
    assert not broker.whole()
    with pytest.raises(NoIndex):
        broker.take("q", 1)
    broker.rebuild([Ready("a", "q", 1)])
    assert list(broker.take("q", 1)) == ["a"]


def test_events_come_in_order_after_an_id(broker):
    start = broker.last_event_id()
    for n in range(3):
        broker.publish({"n": n})
    events = broker.events(start, 1)
    assert [event["n"] for _, event in events] == [0, 1, 2]
    assert [event["n"] for _, event in broker.events(events[0][0], 1)] == [1, 2]
    assert broker.has_event(events[0][0])
    assert broker.events(events[-1][0], 0.05) == []


def test_a_stream_entry_that_is_not_ours_is_an_event_of_no_type(broker, valkey):
    if isinstance(broker, MemoryBroker):
        return
    start = broker.last_event_id()
    with redis.Redis(unix_socket_path=str(valkey.socket)) as raw:
        raw.xadd(EVENTS, {"foo": "bar"})
        raw.xadd(EVENTS, {"e": "not json"})
    broker.publish({"n": 1})
    assert [event for _, event in broker.events(start, 1)] == [{}, {}, {"n": 1}]


def test_a_server_out_of_memory_is_unavailable_and_not_a_crash(broker, valkey):
    if isinstance(broker, MemoryBroker):
        return
    broker.rebuild([])
    with redis.Redis(unix_socket_path=str(valkey.socket)) as raw:
        raw.config_set("maxmemory", "100kb")
        try:
            with pytest.raises(Unavailable):
                broker.push([Ready("a", "q", 1)])
        finally:
            raw.config_set("maxmemory", "0")
    broker.push([Ready("a", "q", 1)])
    assert list(broker.take("q", 1)) == ["a"]


def test_two_takers_never_get_the_same_job(broker):
    broker.rebuild([Ready(f"{n:03}", "q", n) for n in range(200)])
    taken, lock = [], threading.Lock()

    def take():
        while ids := broker.take("q", 3):
            with lock:
                taken.extend(ids)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == [f"{n:03}" for n in range(200)]
