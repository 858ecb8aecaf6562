"""What holds of every kind of database; and SQLite's one writer at a time: grouped commits, one unit's failure is its own."""

import errno
import shutil
import sqlite3
import threading
from contextlib import ExitStack

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from cloche.db import migrate
from cloche.db import tables as t
from cloche.db.engine import Database, check_home
from cloche.errors import EnvironmentProblem, SettingsError, Unavailable


@pytest.fixture
def sqlite_db(tmp_path, sqlite_template):
    shutil.copyfile(sqlite_template, tmp_path / "s.db")
    opened = Database(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    opened.close()


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
    with pytest.raises(Exception, match=r"(?i)unique"):
        twice.result(5)
    assert names(db) == ["a", "b"]


def test_whoever_waits_writes_by_itself_and_leaves_nothing_lying(sqlite_db):
    assert sqlite_db.write(lambda _c: threading.current_thread()) is threading.current_thread()
    begun, gate = threading.Event(), threading.Event()

    def slow(_connection):
        begun.set()
        gate.wait(5)

    writer = threading.Thread(target=lambda: sqlite_db.write(slow))
    writer.start()
    assert begun.wait(5)
    mine = sqlite_db.submit(lambda _c: threading.current_thread())
    others = [threading.Thread(target=lambda n=n: add(sqlite_db, f"n{n}")) for n in range(4)]
    for thread in others:
        thread.start()
    gate.set()
    for thread in (writer, *others):
        thread.join(5)
        assert not thread.is_alive()
    assert mine.result(5) is not None
    assert names(sqlite_db) == ["n0", "n1", "n2", "n3"]


def test_a_reader_that_read_nothing_or_failed_leaves_no_transaction(sqlite_db):
    for _ in range(40):  # more than are kept in hand
        sqlite_db.read(lambda _c: None)
        with pytest.raises(ValueError, match="nothing"):
            sqlite_db.read(lambda c: (c.execute(select(t.tenant)).all(), int("nothing")))
        with sqlite_db.reader() as first, sqlite_db.reader() as second:
            assert first is not second
    add(sqlite_db, "a")
    assert names(sqlite_db) == ["a"]


def test_every_connection_waits_for_the_disk_and_checks_references(sqlite_db):
    def settings(connection):
        names = ("synchronous", "foreign_keys", "journal_mode")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    full = [2, 1, "wal"]
    for _ in range(2):  # new ones, and those that were kept
        with ExitStack() as stack:
            opened = [stack.enter_context(sqlite_db.reader()) for _ in range(20)]
            assert [settings(connection) for connection in opened] == [full] * 20
        assert sqlite_db.write(settings) == full
        with pytest.raises(ValueError, match="nothing"):
            sqlite_db.write(lambda c: (settings(c), int("nothing")))


def test_a_full_disk_under_a_group_loses_nothing_that_was_accepted(sqlite_db):
    db = sqlite_db

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


def test_what_was_given_up_takes_nothing_along_when_its_group_fails(sqlite_db, monkeypatch):
    pages = "PRAGMA max_page_count={}"
    sqlite_db.write(lambda c: c.exec_driver_sql(pages.format(c.exec_driver_sql("PRAGMA page_count").scalar() + 3)))
    begun, gate = threading.Event(), threading.Event()
    sqlite_db.submit(lambda _c: (begun.set(), gate.wait(5)))  # so that all that follows shares one transaction
    assert begun.wait(5)
    monkeypatch.setattr("cloche.db.sqlite_store._PATIENCE_S", 0.05)
    with pytest.raises(Unavailable, match="nothing could be written"):
        add(sqlite_db, "given up")
    small = sqlite_db.submit(lambda c: c.execute(insert(t.tenant), {"id": "s", "name": "small", "created_at": 1}))
    row = {"id": "l", "name": "x" * 60_000, "created_at": 1}
    large = sqlite_db.submit(lambda c: c.execute(insert(t.tenant), row))
    gate.set()
    small.result(20)
    with pytest.raises(Unavailable, match="full"):
        large.result(20)
    sqlite_db.submit(lambda _c: None).result(20)  # the store's own thread goes on
    assert names(sqlite_db) == ["small"]


def test_a_file_system_without_locks_keeps_nobody_from_writing(sqlite_db, monkeypatch):
    def none_left(_file, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    add(sqlite_db, "before")
    monkeypatch.setattr("cloche.db.sqlite_store.fcntl.flock", none_left)
    add(sqlite_db, "alone")
    sqlite_db.submit(lambda c: c.execute(insert(t.tenant), {"id": "s", "name": "submitted", "created_at": 1})).result(5)
    assert names(sqlite_db) == ["alone", "before", "submitted"]


def test_what_a_caller_was_told_has_failed_is_not_written_later(sqlite_db, monkeypatch):
    def broken(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("cloche.db.sqlite_store._Turn.take", broken)
        with pytest.raises(MemoryError):
            add(sqlite_db, "failed")
    add(sqlite_db, "after")
    assert names(sqlite_db) == ["after"]


def test_a_unit_may_go_on_after_a_failure_inside_a_savepoint(db):
    def unit(connection):
        connection.execute(insert(t.tenant), {"id": "a", "name": "a", "created_at": 1})
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(insert(t.tenant), {"id": "a", "name": "a", "created_at": 1})
        connection.execute(insert(t.tenant), {"id": "b", "name": "b", "created_at": 1})

    db.write(unit)
    assert names(db) == ["a", "b"]


def test_a_statements_values_are_not_in_its_error(db):
    add(db, "twice")
    with pytest.raises(Exception, match=r"(?i)unique") as caught:
        db.write(lambda c: c.execute(insert(t.tenant), {"id": "other", "name": "twice", "created_at": 777}))
    assert "777" not in str(caught.value)


def test_what_write_returned_for_is_seen_by_another_program(db):
    add(db, "seen")
    other = Database(db.url)
    assert names(other) == ["seen"]
    other.close()


def test_only_a_file_has_a_path(db):
    if db.kind == "sqlite":
        assert db.path.exists()
    else:
        with pytest.raises(TypeError, match="no file"):
            _ = db.path


def test_a_locked_database_is_unavailable_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("cloche.db.sqlite_store._BUSY_MS", 100)
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


@pytest.mark.parametrize(
    "url",
    ["mysql://u:s3cr3t@h/x", "postgresql+asyncpg://u:s3cr3t@h/x", "postgresql://u:s3cr3t@h", "sqlite://", "s3cr3t", ""],
)
def test_what_is_no_database_is_refused_in_words_and_not_quoted(url):
    with pytest.raises(SettingsError, match="postgresql://USER") as caught:
        Database(url)
    assert "s3cr3t" not in str(caught.value)


def test_an_unwritable_home_says_what_to_do(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentProblem, match="CLOCHE_HOME"):
        check_home(blocked / "home")
