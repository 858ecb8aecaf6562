"""The writer thread: grouped commits, one unit's failure is its own, durable when write returns."""

import sqlite3
import threading

import pytest
from sqlalchemy import insert, select

from cloche.db import migrate
from cloche.db import tables as t
from cloche.db.engine import Database, check_home
from cloche.errors import EnvironmentProblem, SettingsError, Unavailable


def add(db, name):
    return db.write(lambda c: c.execute(insert(t.tenant), {"id": name, "name": name, "created_at": 1}))


def names(db):
    return sorted(db.read(lambda c: c.execute(select(t.tenant.c.name)).scalars().all()))


def test_units_from_many_threads_all_land(db):
    threads = [threading.Thread(target=lambda n=n: [add(db, f"{n}-{m}") for m in range(20)]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(db)) == 160


def test_a_failing_unit_takes_nothing_from_its_neighbours(db):
    gate = threading.Event()
    blocked = db.submit(lambda _c: gate.wait(5))  # holds the writer, so that the next units share one commit

    def failing(connection):
        connection.execute(insert(t.tenant), {"id": "bad", "name": "bad", "created_at": 1})
        raise ValueError("after a statement")

    good = [db.submit(lambda c, n=n: c.execute(insert(t.tenant), {"id": n, "name": n, "created_at": 1})) for n in "ab"]
    bad = db.submit(failing)
    twice = db.submit(lambda c: c.execute(insert(t.tenant), {"id": "a", "name": "a", "created_at": 1}))
    gate.set()
    blocked.result(5)
    for future in good:
        future.result(5)
    with pytest.raises(ValueError, match="after a statement"):
        bad.result(5)
    with pytest.raises(Exception, match="UNIQUE"):
        twice.result(5)
    assert names(db) == ["a", "b"]


def test_a_full_disk_under_a_group_loses_nothing_that_was_accepted(db):
    def cap(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 3}")

    db.write(cap)
    gate = threading.Event()
    db.submit(lambda _c: gate.wait(5))  # so that all that follows shares one transaction
    futures = []
    for n in range(30):
        size = 10 if n < 3 else 60_000  # SQLite gives up the whole transaction when it cannot grow
        row = {"id": f"t{n}", "name": f"t{n}" + "x" * size, "created_at": 1}
        futures.append((f"t{n}", db.submit(lambda c, row=row: c.execute(insert(t.tenant), row))))
    gate.set()
    accepted, refused = [], []
    for name, future in futures:
        try:
            future.result(20)
            accepted.append(name)
        except Unavailable as error:
            refused.append(str(error))
    stored = db.read(lambda c: c.execute(select(t.tenant.c.id)).scalars().all())
    assert sorted(stored) == sorted(accepted)
    assert all("full" in text for text in refused)
    assert {"t0", "t1", "t2"} <= set(accepted) < {name for name, _ in futures}


def test_a_statements_values_are_not_in_its_error(db):
    add(db, "twice")
    with pytest.raises(Exception, match="UNIQUE") as caught:
        db.write(lambda c: c.execute(insert(t.tenant), {"id": "other", "name": "twice", "created_at": 777}))
    assert "777" not in str(caught.value)


def test_what_write_returned_for_is_seen_by_another_connection(db):
    add(db, "seen")
    with sqlite3.connect(db.path) as other:
        assert other.execute("select name from tenant").fetchall() == [("seen",)]


def test_a_locked_database_is_unavailable_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("cloche.db.engine._BUSY_MS", 100)
    migrate.upgrade(f"sqlite:///{tmp_path / 'x.db'}")
    db = Database(f"sqlite:///{tmp_path / 'x.db'}")
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        add(db, "no")
    other.execute("ROLLBACK")
    add(db, "yes")
    assert names(db) == ["yes"]
    other.close()
    db.close()


def test_a_closed_database_refuses(db):
    db.close()
    db.close()
    with pytest.raises(Unavailable):
        add(db, "late")


def test_another_backend_is_refused_in_words():
    with pytest.raises(SettingsError, match="SQLite"):
        Database("postgresql://localhost/x")


def test_an_unwritable_home_says_what_to_do(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentProblem, match="CLOCHE_HOME"):
        check_home(blocked / "home")
