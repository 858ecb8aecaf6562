"""The live streams: bounded, of one's own tenant, and honest about gaps."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from cloche.domain.permissions import Actor
from cloche.errors import Unavailable
from cloche.queueing.memory_broker import MemoryBroker
from cloche.web.dashboard.live import PER_SESSION, Streams
from cloche.web.slots import Slots

ACTOR = Actor("u1", "alma", "t1", frozenset(), session_id="s1")


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def streams(broker):
    return Streams(broker)


@pytest.fixture
def slots():
    return Slots(6, threading.Event())


def changed(broker, job_id: str, tenant: str = "t1", kind: str = "job") -> None:
    broker.publish({"type": kind, "id": job_id, "tenant": tenant})


def frames(stream, count: int) -> list[str]:
    """The next frames that say something."""
    found = []
    for chunk in stream:
        if chunk.startswith(b"event"):
            found.append(chunk.decode())
        if len(found) == count:
            return found
    return found


def test_a_stream_tells_of_its_tenants_jobs_only(broker, streams, slots):
    changed(broker, "before")
    stream = streams.open(slots, ACTOR, broker.last_event_id(), None)
    changed(broker, "theirs", "t2")
    changed(broker, "noisy", kind="log")
    changed(broker, "mine")
    changed(broker, "mine")
    assert frames(stream, 1) == ['event: job\nid: 5-0\ndata: {"ids": ["mine"]}\n\n']


def test_a_jobs_stream_tells_of_that_job_with_its_log(broker, streams, slots):
    changed(broker, "before")
    stream = streams.open(slots, ACTOR, broker.last_event_id(), "one")
    changed(broker, "other")
    changed(broker, "one", kind="log")
    assert '["one"]' in frames(stream, 1)[0]


@pytest.mark.parametrize("after", [None, "77-0", "nonsense"])
def test_a_gap_is_told_first(broker, streams, slots, after):
    changed(broker, "missed")
    stream = streams.open(slots, ACTOR, after, None)
    assert frames(stream, 1)[0].startswith("event: reset\n")


def test_one_session_holds_few_streams_and_gives_them_back(streams, slots):
    opened = [streams.open(slots, ACTOR, None, None) for _ in range(PER_SESSION)]
    with pytest.raises(Unavailable):
        streams.open(slots, ACTOR, None, None)
    other = streams.open(slots, replace(ACTOR, session_id="s2"), None, None)
    opened[0].close()
    opened[0].close()
    streams.open(slots, ACTOR, None, None)
    assert streams.count == PER_SESSION + 1
    other.close()


def test_the_process_holds_no_more_than_its_slots(streams, slots):
    opened = [streams.open(slots, replace(ACTOR, session_id=f"s{n}"), None, None) for n in range(6)]
    with pytest.raises(Unavailable):
        streams.open(slots, replace(ACTOR, session_id="one more"), None, None)
    for stream in opened:
        stream.close()
    assert streams.count == 0
    streams.open(slots, ACTOR, None, None)


def test_a_place_is_given_back_when_redis_is_away(streams, slots, broker, monkeypatch):
    def away(_event_id: str) -> bool:
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(broker, "has_event", away)
    for _ in range(PER_SESSION + 1):
        with pytest.raises(Unavailable, match="Redis"):
            streams.open(slots, ACTOR, "1-0", None)
    assert streams.count == 0


def test_a_stopping_process_ends_its_streams(streams):
    stopping = threading.Event()
    stream = streams.open(Slots(1, stopping), ACTOR, None, None)
    stopping.set()
    assert len(list(stream)) == 2  # how long to wait before coming back, and the gap
