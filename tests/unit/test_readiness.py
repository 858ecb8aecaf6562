"""Which part is away: told at once, with its beginning, also when a store swallows the question."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from cloche.errors import Unavailable
from cloche.web import readiness
from cloche.web.readiness import Readiness
from tests.support.stores import until


class Part:
    """A store that answers, is away, or hangs until it is let go."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hold: threading.Event | None = None
        self.asked = 0

    def ask(self, *_: object) -> None:
        self.asked += 1
        if self.hold is not None:
            self.hold.wait(30)
        if self.error is not None:
            raise self.error


@pytest.fixture
def database():
    return Part()


@pytest.fixture
def redis():
    return Part()


@pytest.fixture
def watch(database, redis, tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "_LOW_ROOM", 1)
    workers = SimpleNamespace(summary=lambda: {"running": True, "ready": 1, "reasons": []})
    made = Readiness(
        SimpleNamespace(
            db=SimpleNamespace(read=database.ask, kind="postgresql"),
            broker=SimpleNamespace(ping=redis.ask),
            workers=workers,
            settings=SimpleNamespace(home=tmp_path),
        )
    )
    yield made
    made.close()
    made.close()


def told(watch):
    return [(outage.part, outage.reason) for outage in watch.outages()]


def test_nothing_is_missing(watch):
    assert watch.outages() == []


def test_each_part_has_its_own_beginning_and_advice(watch, database, redis, monkeypatch):
    now = iter(range(1_000, 9_000, 1_000))
    monkeypatch.setattr(readiness, "now_ms", lambda: next(now))
    redis.error = Unavailable("Redis does not answer")
    (first,) = watch.outages()
    assert (first.part, first.since, first.reason) == ("redis", 1_000, "Redis does not answer")
    database.error = Unavailable("the database does not answer (connection refused)")
    both = {outage.part: outage for outage in watch.outages()}
    assert {part: outage.since for part, outage in both.items()} == {"redis": 1_000, "database": 2_000}
    assert "CLOCHE_DATABASE_URL" in both["database"].advice
    assert "CLOCHE_REDIS_URL" in both["redis"].advice
    redis.error = database.error = None
    assert watch.outages() == []
    redis.error = Unavailable("again")
    assert watch.outages()[0].since == 4_000


def test_a_store_that_swallows_the_question_is_said_to_and_asked_once(watch, database, monkeypatch):
    monkeypatch.setattr(readiness, "_PATIENCE_S", 0.05)
    database.hold = threading.Event()
    for _ in range(5):
        assert told(watch) == [("database", "the database has not answered for 0 s")]
    assert database.asked == 1
    database.hold.set()
    monkeypatch.setattr(readiness, "_PATIENCE_S", 30)
    until(lambda: watch._asking["database"].done(), 10, "the old question is answered")
    database.error = Unavailable("away now")
    assert told(watch) == [("database", "away now")]  # and not the old answer, which was a good one
    assert database.asked == 2
