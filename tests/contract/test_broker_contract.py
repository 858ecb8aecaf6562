"""One suite for every broker: Redis and the one in memory."""

import threading

import pytest
import redis

from cloche.errors import Unavailable
from cloche.queueing.broker import NoIndex, Ready, Running
from cloche.queueing.memory_broker import MemoryBroker
from cloche.queueing.redis_broker import RedisBroker
from cloche.queueing.scripts import EVENTS
from tests.support.queues import make_whole, take


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
    broker.push([Ready("a", "q", "t", 1)])
    with pytest.raises(NoIndex):
        take(broker, "q", 1)
    make_whole(broker, [Ready("a", "q", "t", 1), Ready("b", "q", "t", 2)], ["q"])
    assert take(broker, "q", 5) == ["a", "b"]


def test_lowest_score_goes_first_and_each_once(broker):
    make_whole(broker, queues=["q"])
    broker.push([Ready("late", "q", "t", 30), Ready("early", "q", "t", 10), Ready("mid", "q", "t", 20)])
    assert take(broker, "q", 2) == ["early", "mid"]
    assert take(broker, "q", 2) == ["late"]
    assert take(broker, "q", 2) == []


def test_pushing_again_changes_nothing(broker):
    make_whole(broker, queues=["q"])
    for _ in range(3):
        broker.push([Ready("a", "q", "t", 10)])
    broker.push([Ready("a", "q", "t", 99), Ready("b", "q", "t", 50)])
    assert broker.depth("q") == 2
    assert take(broker, "q", 5) == ["a", "b"]


def test_queues_do_not_mix(broker):
    make_whole(broker, [Ready("a", "one", "t", 1), Ready("b", "two", "t", 1)], ["one", "two"])
    assert take(broker, "one", 9) == ["a"]
    assert broker.depth("two") == 1


def test_removed_jobs_are_not_taken(broker):
    make_whole(broker, [Ready("a", "q", "t", 1), Ready("b", "q", "t", 2)], ["q"])
    broker.remove("q", "t", ["a", "never"])
    assert take(broker, "q", 5) == ["b"]


def test_a_push_wakes_a_waiting_worker(broker):
    make_whole(broker, queues=["q"])
    woken = []
    waiting = threading.Thread(target=lambda: woken.append(broker.wait(["q"], 5)))
    waiting.start()
    broker.push([Ready("a", "q", "t", 1)])
    waiting.join(10)
    assert woken == [True]


def test_nobody_sleeps_beside_work_that_was_left(broker):
    make_whole(broker, queues=["q"])
    broker.push([Ready(str(n), "q", "t", n) for n in range(5)])
    assert len(take(broker, "q", 1)) == 1
    assert broker.wait(["q"], 2)


def test_wait_ends_without_work(broker):
    make_whole(broker, queues=["q"])
    assert not broker.wait(["q"], 0.05)


def test_a_flushed_index_says_so_and_is_rebuilt(broker, request):
    make_whole(broker, [Ready("a", "q", "t", 1)], ["q"])
    assert broker.whole()
    flush(broker, request)
    assert not broker.whole()
    with pytest.raises(NoIndex):
        take(broker, "q", 1)
    make_whole(broker, [Ready("a", "q", "t", 1)], ["q"])
    assert take(broker, "q", 1) == ["a"]


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
    make_whole(broker, queues=["q"])
    with redis.Redis(unix_socket_path=str(valkey.socket)) as raw:
        raw.config_set("maxmemory", "100kb")
        try:
            with pytest.raises(Unavailable):
                broker.push([Ready("a", "q", "t", 1)])
        finally:
            raw.config_set("maxmemory", "0")
    broker.push([Ready("a", "q", "t", 1)])
    assert take(broker, "q", 1) == ["a"]


def tell(broker, item):
    with broker.together() as said:
        said.push([item])
        said.publish({"n": 1})


def test_hints_given_together_are_said_in_their_order(broker):
    make_whole(broker, [Ready("gone", "q", "t", 1), Ready("here", "q", "t", 2)], ["q"])
    broker.keep([Running("running", "q", 60_000)])
    last = broker.last_event_id()
    with broker.together() as said:
        said.free([("q", "running")])
        said.remove("q", "t", ["gone"])
        said.push([Ready("new", "q", "t", 3)])
        for number in range(2):
            said.publish({"n": number})
    assert broker.in_flight("q") == []
    assert [event for _, event in broker.events(last, 1)] == [{"n": 0}, {"n": 1}]
    assert take(broker, "q", 9) == ["here", "new"]
    with broker.together():
        pass  # nothing to say


def test_hints_given_together_reach_a_server_that_has_just_begun(broker, valkey):
    if isinstance(broker, MemoryBroker):
        return
    make_whole(broker, queues=["q"])
    with redis.Redis(unix_socket_path=str(valkey.socket)) as raw:
        raw.script_flush()
    tell(broker, Ready("new", "q", "t", 3))
    assert take(broker, "q", 9) == ["new"]


def test_hints_given_together_are_unavailable_where_the_server_is(broker, valkey):
    if isinstance(broker, MemoryBroker):
        return
    make_whole(broker, queues=["q"])
    with redis.Redis(unix_socket_path=str(valkey.socket)) as raw:
        raw.config_set("maxmemory", "100kb")
        try:
            with pytest.raises(Unavailable):
                tell(broker, Ready("a", "q", "t", 1))
        finally:
            raw.config_set("maxmemory", "0")


def test_two_takers_never_get_the_same_job(broker):
    make_whole(broker, [Ready(f"{n:03}", "q", "t", n) for n in range(200)], ["q"])
    taken, lock = [], threading.Lock()

    def work():
        while ids := take(broker, "q", 3):
            with lock:
                taken.extend(ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == [f"{n:03}" for n in range(200)]
