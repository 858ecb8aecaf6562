"""SQLite and a process that stands still in a transaction: who it is, what the others are told, and what the supervisor does about it."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from cloche import config
from cloche.cli.up.aftermath import Aftermath
from cloche.cli.up.standstill import Standstill
from cloche.db import sqlite_locks
from cloche.db import tables as t
from cloche.db.engine import Database, check_home
from cloche.errors import Unavailable
from tests.support.stores import until

_PATIENCE_S = 30.0
_WRITER = """
import sys, time
from cloche.db.engine import Database, check_home
def unit(connection):
    connection.exec_driver_sql("INSERT INTO tenant (id, name, created_at) VALUES ('half', 'half', 1)")
    print("inside", flush=True)
    time.sleep(600)
Database(sys.argv[1]).write(unit)
"""

_OUTSIDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("inside", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def url(tmp_path, sqlite_template):
    shutil.copyfile(sqlite_template, tmp_path / "s.db")
    return f"sqlite:///{tmp_path / 's.db'}"


@pytest.fixture
def db(url):
    opened = Database(url)
    yield opened
    opened.close()


@contextmanager
def standing_in(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process stopped in mid-transaction."""
    words = [sys.executable, "-c", _WRITER, url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        process.send_signal(signal.SIGSTOP)
        yield process
        process.kill()


@pytest.fixture
def standing(url):
    with standing_in(url) as process:
        yield process


@contextmanager
def outsider(db: Database) -> Iterator[subprocess.Popen[str]]:
    """A program that is none of ours, in a transaction for the length of the block."""
    words = [sys.executable, "-c", _OUTSIDER, str(db.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        yield process


def add(db: Database, name: str) -> Future[None]:
    def unit(connection):
        connection.execute(insert(t.tenant), {"id": name, "name": name, "created_at": 1})

    return db.submit(unit)


def names(db: Database) -> list[str]:
    return sorted(db.read(lambda c: c.execute(select(t.tenant.c.name)).scalars().all()))


class Silent:
    """A sink that says nothing to anybody."""

    def line(self, process: str, text: str) -> None:
        return

    def say(self, text: str, *, level: str = "info") -> None:
        return


def test_nobody_writes_to_a_database_at_rest(db):
    add(db, "a").result(_PATIENCE_S)
    assert sqlite_locks.writer(db.path) is None


def test_the_writer_is_named_whether_or_not_it_stood_in_line(db, standing):
    assert sqlite_locks.writer(db.path) == standing.pid


def test_a_writer_that_stood_in_no_line_is_named_too(db):
    add(db, "a").result(_PATIENCE_S)  # makes the files
    with outsider(db) as other:
        assert sqlite_locks.writer(db.path) == other.pid
    assert sqlite_locks.writer(db.path) is None


def test_others_are_told_within_bounds_and_what_was_given_up_is_never_written(db, standing, monkeypatch):
    monkeypatch.setattr("cloche.db.sqlite_store._PATIENCE_S", 0.3)
    waiting = add(db, "waited")  # whoever can wait may go on doing so
    with pytest.raises(Unavailable, match="nothing could be written"):
        db.write(lambda c: c.execute(insert(t.tenant), {"id": "no", "name": "no", "created_at": 1}))
    assert names(db) == []  # readers read on
    monkeypatch.undo()
    standing.kill()
    waiting.result(_PATIENCE_S)
    add(db, "after").result(_PATIENCE_S)
    assert names(db) == ["after", "waited"]


def test_a_database_can_be_closed_while_somebody_stands_still(url, standing, monkeypatch):
    monkeypatch.setattr("cloche.db.sqlite_store._PATIENCE_S", 0.2)
    db = Database(url)
    waiting = add(db, "waited")
    db.close()
    standing.kill()
    waiting.result(_PATIENCE_S)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("cloche.cli.up.standstill._EVERY_S", 0.05)
    monkeypatch.setattr("cloche.cli.up.standstill._LOOK_S", 0.05)


def test_the_one_who_stands_still_is_reported_and_its_death_sets_everybody_free(db, standing, quick):
    blocked: list[int] = []
    again = threading.Event()

    def kill(pid: int, seconds: float) -> None:
        assert seconds >= 0.2
        if blocked:
            standing.kill()
            again.set()
        blocked.append(pid)

    watch = Standstill(db, 0.2, kill)
    watch.start()
    assert again.wait(_PATIENCE_S)  # told again, for as long as it stands
    add(db, "free").result(_PATIENCE_S)
    watch.stop()
    assert set(blocked) == {standing.pid}
    assert names(db) == ["free"], "nothing of the half transaction was written"


def test_a_writer_outside_of_the_line_is_reported_too(url, tmp_path, quick, monkeypatch):
    monkeypatch.setattr("cloche.db.sqlite_store._BUSY_MS", 50)
    db = Database(url)
    add(db, "a").result(_PATIENCE_S)
    seen: list[int] = []
    told = threading.Event()
    watch = Standstill(db, 0.3, lambda pid, _seconds: (seen.append(pid), told.set()))
    with outsider(db) as other:
        watch.start()
        assert told.wait(_PATIENCE_S)
    watch.stop()
    db.close()
    assert seen[0] == other.pid


def test_a_busy_database_is_no_standstill(db, quick):
    seen: list[int] = []
    watch = Standstill(db, _PATIENCE_S, lambda pid, _seconds: seen.append(pid))
    watch.start()
    stop = threading.Event()
    others = [Database(db.url) for _ in range(2)]

    def write(other: Database, first: int) -> None:
        n = first
        while not stop.is_set():
            add(other, f"t{n}").result(_PATIENCE_S)
            n += 2

    threads = [threading.Thread(target=write, args=(other, n)) for n, other in enumerate(others)]
    for thread in threads:
        thread.start()
    until(lambda: len(names(db)) > 200, _PATIENCE_S, "many writes")
    stop.set()
    for thread in threads:
        thread.join()
    watch.stop()
    for other in others:
        other.close()
    assert seen == []


def test_one_that_holds_the_lock_again_and_again_stands_still_at_no_time(db, quick, monkeypatch):
    """Seen at every look, and for longer than the limit in all; but what waited was written in between."""
    looks, reported, gates = 0, [], []

    def hold() -> None:
        gate = threading.Event()
        gates.append(gate)
        db.submit(lambda _connection: gate.wait(_PATIENCE_S))

    def same(_path: Path) -> int:
        nonlocal looks
        looks += 1
        if looks % 3 == 0:
            hold()
            gates[-2].set()
        return 4711

    monkeypatch.setattr(sqlite_locks, "writer", same)
    hold()
    watch = Standstill(db, 2.0, lambda pid, _seconds: reported.append(pid))
    watch.start()
    until(lambda: looks >= 60, _PATIENCE_S, "more looks than the limit takes")
    watch.stop()
    gates[-1].set()
    assert reported == []


def test_a_file_that_is_not_there_has_no_writer(tmp_path: Path):
    assert sqlite_locks.writer(tmp_path / "none.db") is None
    sqlite3.connect(tmp_path / "plain.db").close()
    assert sqlite_locks.writer(tmp_path / "plain.db") is None


def test_a_kernel_that_shows_no_locks_shows_nobody(db, monkeypatch, tmp_path):
    monkeypatch.setattr(sqlite_locks, "_LOCKS", tmp_path / "locks")
    assert sqlite_locks.writer(db.path) is None


def test_up_asks_for_its_death_after_three_leases(tmp_path, sqlite_template, quick):
    settings = config.load(home=tmp_path, worker={"lease": "300ms", "heartbeat": "100ms"})
    check_home(tmp_path)
    shutil.copyfile(sqlite_template, tmp_path / "cloche.db")
    asked: list[tuple[int, str]] = []
    told = threading.Event()

    def kill(pid: int, why: str) -> None:
        asked.append((pid, why))
        told.set()

    with Aftermath(settings, Silent()) as aftermath, standing_in(settings.database_url) as process:
        aftermath.watch(kill)
        assert told.wait(_PATIENCE_S)
        process.kill()
    assert asked[0] == (process.pid, "has stood still for 1 s in a transaction that keeps everybody from writing")
