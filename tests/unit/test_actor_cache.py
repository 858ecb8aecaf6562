"""Actors that are remembered: by whole credential, until anything changed, and not for longer than they last."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select

from cloche.db import epoch
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.permissions import Actor
from cloche.services.actor_cache import ActorCache, Known
from cloche.services.actors import changed

ACTOR = Actor("u", "anna", "t", frozenset())


@pytest.fixture
def cache(db):
    return ActorCache(db, most=3)


def test_the_number_is_another_one_after_a_change_and_not_before_its_commit(db, cache):
    db.write(changed)
    before = cache.mark()
    assert cache.mark() == before
    assert db.number(epoch.QUERY) == before

    def fails(connection):
        changed(connection)
        raise KeyError

    with pytest.raises(KeyError):
        db.write(fails)
    assert cache.mark() == before
    other = Database(db.url)
    other.write(changed)
    other.close()
    assert cache.mark() not in (None, before)


def test_what_is_remembered_is_forgotten_after_a_change(db, cache):
    db.write(changed)
    mark = cache.mark()
    cache.put("key", mark, Known(ACTOR, 0))
    assert cache.get("key", cache.mark(), 5).actor == ACTOR
    assert cache.get("another key", cache.mark(), 5) is None
    db.write(changed)
    assert cache.get("key", cache.mark(), 5) is None


def test_what_was_read_before_a_change_is_not_remembered_as_read_after_it(db, cache):
    db.write(changed)
    mark = cache.mark()
    db.write(changed)  # between the look at the number and the rows, or after the rows: nobody can say
    cache.put("key", mark, Known(ACTOR, 0))
    assert cache.get("key", cache.mark(), 5) is None


def test_without_the_number_nothing_is_remembered_and_the_next_change_brings_it_back(db, cache):
    db.write(lambda c: c.execute(delete(t.access_epoch)))
    assert cache.mark() is None
    cache.put("key", None, Known(ACTOR, 0))
    assert cache.get("key", None, 5) is None
    db.write(changed)
    assert cache.mark() is not None
    assert len(db.read(lambda c: c.execute(select(t.access_epoch)).all())) == 1


@pytest.mark.parametrize(
    ("known", "last"),
    [
        (Known(ACTOR, 100), None),
        (Known(ACTOR, 100, ends_at=500), 499),
        (Known(ACTOR, 100, idle=50), 150),
        (Known(ACTOR, 100, idle=50, ends_at=120), 119),
        (Known(ACTOR, 100, idle=50).seen(140), 190),
    ],
)
def test_what_ends_by_itself_is_not_remembered_longer(db, cache, known, last):
    db.write(changed)
    mark = cache.mark()
    moment = 10**15 if last is None else last
    cache.put("key", mark, known)
    assert cache.get("key", mark, moment) == known
    if last is not None:
        assert cache.get("key", mark, last + 1) is None
        assert cache.get("key", mark, last) is None  # it is gone


def test_memory_is_bounded_and_what_is_used_stays(db, cache):
    db.write(changed)
    mark = cache.mark()
    for key in ("a", "b", "c"):
        cache.put(key, mark, Known(ACTOR, 0))
    cache.get("a", mark, 0)
    cache.put("d", mark, Known(ACTOR, 0))
    assert [key for key in "abcd" if cache.get(key, mark, 0)] == ["a", "c", "d"]
