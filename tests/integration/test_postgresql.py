"""What PostgreSQL alone has: sessions that die, commits whose answer is lost, its own clock, units beside each other."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DataError, IntegrityError

from cloche import clock
from cloche.cli.commands import doctor
from cloche.db import postgres_store
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Permission
from cloche.domain.queues import Scope
from cloche.errors import EnvironmentProblem, Invalid, OutcomeUnknown, Unavailable
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services import queue_rows
from cloche.services.queues import QueueService
from tests.support import postgres, stores


@pytest.fixture
def url(postgres_server):
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def db(url):
    opened = Database(url, pool=6)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def _mortal():
    with postgres.running_postgres() as server:
        yield server


@pytest.fixture
def own_server(_mortal):
    """A server that the test may stop and kill."""
    yield _mortal
    _mortal.stop()
    _mortal.start()


def add(db, name):
    return db.write(lambda c: c.execute(insert(t.tenant), {"id": name, "name": name, "created_at": 1}))


def names(db):
    return sorted(db.read(lambda c: c.execute(select(t.tenant.c.name)).scalars().all()))


def end_sessions(url):
    """End every other session of the database, as an administrator or a fail-over does."""
    with postgres.connect(url) as session:
        session.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_sessions_that_were_ended_while_idle_are_nobodys_trouble(db, url):
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda n: add(db, f"a{n}"), range(20)))
    end_sessions(url)
    assert len(names(db)) == 20
    end_sessions(url)
    add(db, "b")
    assert len(names(db)) == 21


def test_a_unit_whose_session_ends_in_it_runs_again(db, url):
    runs = []

    def unit(connection):
        connection.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})
        runs.append(1)
        if len(runs) == 1:
            end_sessions(url)
        return connection.execute(select(t.tenant.c.name)).scalars().all()

    assert db.write(unit) == ["x"]
    assert len(runs) == 2
    assert names(db) == ["x"]


def test_a_read_whose_session_ends_in_it_runs_again(db, url):
    add(db, "x")
    runs = []

    def unit(connection):
        runs.append(1)
        if len(runs) == 1:
            end_sessions(url)
        return connection.execute(select(t.tenant.c.name)).scalars().all()

    assert db.read(unit) == ["x"]
    assert len(runs) == 2


def lose_a_commit(monkeypatch, end, *, stored):
    """The next commit's answer is lost: ``end()`` ends its session, after the server has committed or before. Returns what tells of it."""
    commit, lost = postgres_store.BoundedConnection.commit, []

    def dying(self):
        if lost or self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            return commit(self)
        lost.append(1)
        if stored:
            commit(self)
        end()
        self.execute("SELECT 1")  # finds out that the session is gone, as the wait for an answer would
        raise AssertionError("the session lives")

    monkeypatch.setattr(postgres_store.BoundedConnection, "commit", dying)
    return lost


def test_a_commit_that_did_not_happen_is_done_again(db, url, monkeypatch):
    lost = lose_a_commit(monkeypatch, lambda: end_sessions(url), stored=False)
    runs = []

    def unit(connection):
        runs.append(1)
        connection.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})
        return "done"

    assert db.write(unit) == "done"
    assert (lost, len(runs), names(db)) == ([1], 2, ["x"])


def test_a_commit_that_may_have_happened_is_neither_done_again_nor_taken_for_done(db, url, monkeypatch):
    """The server calls the id committed, and is not believed: after a crash it may be another transaction's."""
    lost = lose_a_commit(monkeypatch, lambda: end_sessions(url), stored=True)
    runs = []
    with pytest.raises(OutcomeUnknown, match="not known"):
        db.write(lambda c: (runs.append(1), c.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})))
    assert (lost, len(runs), names(db)) == ([1], 1, ["x"])


@pytest.mark.parametrize("others", [0, 40])
def test_what_a_crash_forgot_is_not_taken_for_stored(own_server, monkeypatch, others):
    """After the crash the transaction's id is one of the future, or another transaction's that was committed."""
    with own_server.database() as url:
        db = Database(url)

        def crash():
            own_server.stop(signal.SIGQUIT)
            own_server.start()
            with postgres.connect(url) as session:
                for _ in range(others):
                    session.execute("SELECT pg_current_xact_id()")

        lose_a_commit(monkeypatch, crash, stored=False)
        runs = []

        def unit(connection):
            runs.append(1)
            if len(runs) > 1:  # the first leaves nothing in the log by which the id could be remembered
                connection.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})

        if others:
            with pytest.raises(OutcomeUnknown):
                db.write(unit)
            assert (len(runs), names(db)) == (1, [])
        else:
            db.write(unit)
            assert (len(runs), names(db)) == (2, ["x"])
        db.close()


@pytest.mark.parametrize("answer", ["in progress", None, "nonsense"])
def test_an_answer_that_is_no_answer_is_not_taken_for_one(db, url, monkeypatch, answer):
    monkeypatch.setattr(postgres_store, "_SETTLE_S", 0.2)
    lose_a_commit(monkeypatch, lambda: end_sessions(url), stored=False)
    asked = []
    monkeypatch.setattr(db._store, "_outcome", lambda xid: asked.append(xid) or answer)
    with pytest.raises(OutcomeUnknown):
        add(db, "x")
    assert len(asked) > 1


def test_a_session_that_ends_after_the_question_is_answered_changes_nothing_of_the_answer(db, url):
    add(db, "x")

    def unit(connection):
        found = connection.execute(select(t.tenant.c.name)).scalars().all()
        end_sessions(url)
        return found

    assert db.read(unit) == ["x"]
    assert names(db) == ["x"]


def test_a_commit_that_the_server_refuses_stored_nothing_and_is_not_asked_after(db, monkeypatch):
    """A constraint that is looked at only then: the session lives, and says so itself."""
    monkeypatch.setattr(db._store, "_outcome", lambda xid: pytest.fail("asked"))

    def unit(connection):
        connection.exec_driver_sql("CREATE TEMP TABLE one (id int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP")
        connection.exec_driver_sql("INSERT INTO one VALUES (1), (1)")
        connection.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})

    with pytest.raises(IntegrityError):
        db.write(unit)
    assert names(db) == []


def test_a_commit_that_cannot_be_looked_up_says_so(own_server, monkeypatch):
    monkeypatch.setattr(postgres_store, "_SETTLE_S", 0.2)
    with own_server.database() as url:
        db = Database(url)
        add(db, "first")
        commit = postgres_store.BoundedConnection.commit

        def dying(self):
            if self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                return commit(self)
            own_server.stop(signal.SIGQUIT)
            return commit(self)

        monkeypatch.setattr(postgres_store.BoundedConnection, "commit", dying)
        with pytest.raises(OutcomeUnknown, match="not known"):
            add(db, "second")
        monkeypatch.undo()
        own_server.start()
        assert names(db) in (["first"], ["first", "second"])
        db.close()


def test_what_was_accepted_survives_a_crash_and_the_store_comes_back_by_itself(own_server):
    with own_server.database() as url:
        db = Database(url)
        accepted, refused, unsure, wrong, stop = [], [], [], [], threading.Event()

        def keep_writing(lane):
            number = 0
            while not stop.is_set():
                name = f"{lane}-{number}"
                number += 1
                try:
                    add(db, name)
                    accepted.append(name)
                except OutcomeUnknown:
                    unsure.append(name)
                except Unavailable:
                    refused.append(name)
                    stop.wait(0.05)
                except Exception as error:  # callers know of no other
                    wrong.append((name, error))

        threads = [threading.Thread(target=keep_writing, args=(lane,)) for lane in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            count = len(accepted)
            postgres.until(lambda count=count: len(accepted) > count + 20, 60, "writes")
            own_server.stop(signal.SIGQUIT)
            postgres.until(lambda count=len(refused): len(refused) > count, 60, "a refusal")
            own_server.start()
        count = len(accepted)
        postgres.until(lambda: len(accepted) > count + 20, 60, "writes again")
        stop.set()
        for thread in threads:
            thread.join()
        stored = set(names(db))
        assert not wrong
        assert set(accepted) <= stored
        assert not stored & set(refused)
        assert stored <= {*accepted, *unsure}
        db.close()


def test_no_server_is_unavailable_in_words_without_secrets(own_server):
    url = own_server.url("postgres")
    db = Database(url)
    own_server.stop()
    for act in (lambda: names(db), lambda: add(db, "x"), lambda: db.submit(lambda c: None).result()):
        with pytest.raises(Unavailable) as caught:
            act()
        said = f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
        assert "connection refused" in str(caught.value)
        for secret in (own_server.password, postgres.USER, "127.0.0.1"):
            assert secret not in str(caught.value)
        assert own_server.password not in said
    db.close()


@pytest.mark.parametrize(
    ("wrong", "says"), [("password", "user name or password"), ("database", "no database"), ("encoding", "UTF8")]
)
def test_a_server_that_will_not_do_says_why(postgres_server, wrong, says):
    with postgres_server.schemaless("SQL_ASCII") as other:
        url = {
            "password": postgres_server.url("postgres").replace(postgres_server.password, "hunter2-wrong"),
            "database": postgres_server.url("nobody_made_this"),
            "encoding": other,
        }[wrong]
        db = Database(url)
        with pytest.raises((Unavailable, EnvironmentProblem), match=says) as caught:
            names(db)
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
        db.close()


def test_no_value_is_in_an_errors_text(db):
    add(db, "twice")
    with pytest.raises(IntegrityError, match="uq_tenant_name") as caught:
        db.write(lambda c: c.execute(insert(t.tenant), {"id": "other", "name": "twice", "created_at": 777}))
    assert not {"twice", "777"} & set(str(caught.value).replace("(", " ").replace(")", " ").split())
    for statement in (
        "UPDATE tenant SET created_at = CAST(:v AS text)::bigint",
        "UPDATE tenant SET name = repeat(:v, 20)",
    ):
        with pytest.raises(DataError, match="SQLSTATE 22") as caught:
            db.write(lambda c, s=statement: c.execute(text(s), {"v": "s3cr3t-value"}))
        assert "s3cr3t" not in f"{caught.value} {caught.value.__cause__}"


def test_a_statement_that_stands_still_is_ended_by_the_server(db, monkeypatch):
    def unit(connection):
        connection.exec_driver_sql("SET LOCAL statement_timeout = 50")
        connection.exec_driver_sql("SELECT pg_sleep(60)")

    with pytest.raises(Unavailable, match="longer than it may"):
        db.write(unit)


def test_a_session_that_stands_still_is_ended_by_the_server_sooner_in_a_write_than_in_a_read(db):
    def allowed(connection):
        return connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()

    assert db.write(allowed) == "10s"
    assert db.read(allowed) == "10min"  # it keeps nobody from writing
    assert db.write(allowed) == "10s", "whatever the session was used for before"


def test_who_stands_still_in_a_write_keeps_its_rows_from_others_for_a_bounded_time(db, url, monkeypatch):
    """What a stopped process (SIGSTOP, a frozen machine) is to the server: a session that says nothing more."""
    monkeypatch.setattr(postgres_store, "_LOST_TRIES", 0)
    add(db, "x")
    inside, go_on = threading.Event(), threading.Event()

    def unit(connection):
        connection.execute(update(t.tenant).where(t.tenant.c.id == "x").values(name="half"))
        # Of this write alone, and sooner than the 10 s that the test before this one sees: nobody else here stands still.
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 300")
        inside.set()
        go_on.wait(60)
        connection.execute(update(t.tenant).where(t.tenant.c.id == "x").values(name="whole"))

    standing = db.submit(unit)
    assert inside.wait(20)
    other = Database(url)
    other.write(lambda c: c.execute(update(t.tenant).where(t.tenant.c.id == "x").values(name="mine")))
    other.close()
    go_on.set()
    with pytest.raises(Unavailable):
        standing.result(20)
    assert names(db) == ["mine"]


def test_a_server_that_does_not_answer_is_given_up(db, url, monkeypatch):
    """It is there and takes what is sent, as when it is stopped or a link swallows everything: the driver alone would wait for ever."""
    add(db, "x")
    monkeypatch.setattr("cloche.db.postgres_connection.ANSWER_S", 0.3)
    monkeypatch.setattr(postgres_store, "_LOST_TRIES", 0)
    with pytest.raises(Unavailable, match="no answer in time"):
        db.write(lambda c: c.exec_driver_sql("SELECT pg_sleep(60)"))
    monkeypatch.undo()
    assert names(db) == ["x"]


def test_a_unit_that_hides_a_failed_statement_stores_nothing(db):
    def unit(connection):
        connection.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})
        with pytest.raises(IntegrityError):
            connection.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1})

    with pytest.raises(RuntimeError, match="nothing of it was stored"):
        db.write(unit)
    assert names(db) == []


def test_two_units_that_find_a_key_free_are_told_apart(db):
    """Look first, then insert: the one that comes second looks again, and sees the first."""
    gate = threading.Barrier(2)
    runs = []

    def unit(connection):
        runs.append(1)
        if connection.execute(select(t.tenant.c.id).where(t.tenant.c.name == "only")).first():
            return "there"
        if len(runs) <= 2:
            gate.wait(20)
        connection.execute(insert(t.tenant), {"id": clock.uuid7(), "name": "only", "created_at": 1})
        return "made"

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(lambda _: db.write(unit), range(2)))
    assert (answers, len(runs)) == (["made", "there"], 3)


def test_a_deadlock_is_resolved_by_running_one_again(db):
    add(db, "a")
    add(db, "b")
    gate = threading.Barrier(2)
    runs = []

    def bump(connection, name):
        connection.execute(update(t.tenant).where(t.tenant.c.id == name).values(created_at=t.tenant.c.created_at + 1))

    def crosswise(names):
        def unit(connection):
            runs.append(1)
            bump(connection, names[0])
            if len(runs) <= 2:
                gate.wait(20)
            bump(connection, names[1])

        db.write(unit)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(crosswise, ["ab", "ba"]))
    assert db.read(lambda c: c.execute(select(t.tenant.c.created_at)).scalars().all()) == [3, 3]
    assert len(runs) >= 3  # on a busy machine the server may end both


def test_a_queue_is_paused_while_jobs_are_submitted_to_it_and_removed_when_they_are_stored(db):
    person = stores.add_actor(db, stores.add_tenant(db, "some"), "some", "admin")
    admin = replace(person, permissions=frozenset(Permission))
    queues = QueueService(db, MemoryBroker(), AuditLog(bytes(32)))
    queues.create(admin, "busy", None, None)
    held, go_on, runs = threading.Event(), threading.Event(), []

    def submitting():
        def unit(connection):
            runs.append(1)
            assert queue_rows.held(connection, ["busy"]) == {"busy"}
            held.set()
            assert go_on.wait(30)

        db.write(unit)

    with ThreadPoolExecutor(2) as pool:
        submitter = pool.submit(submitting)
        assert held.wait(30)
        for scope in Scope:
            changing = pool.submit(queues.change, admin, "busy", scope, {"paused": True})
            try:
                assert changing.result(30)["paused"] is True, "it waits for no submitter"
            except TimeoutError:
                go_on.set()
                raise
        removing = pool.submit(queues.delete, admin, "busy")
        assert not removing.done()
        go_on.set()
        submitter.result(30)
        removing.result(30)
    assert runs == [1], "the server has ended nobody's session so that others could go on"
    assert [queue["name"] for queue in queues.list(admin) if not queue["built_in"]] == []


def test_what_a_thread_submits_is_written_in_its_order_and_before_what_it_writes(db):
    def work(lane):
        seen = []
        for number in range(30):
            db.submit(lambda c, n=number: seen.append(n))
        db.write(lambda c: seen.append("write"))
        return seen

    with ThreadPoolExecutor(6) as pool:
        for seen in pool.map(work, range(6)):
            assert seen == [*range(30), "write"]


def test_time_is_the_servers(db, monkeypatch):
    real = time.time_ns
    monkeypatch.setattr(clock.time, "time_ns", lambda: real() + 2 * 3_600_000_000_000)
    mine = clock.now_ms()
    within = db.write(lambda c: now_ms(c))
    assert 7_000_000 < mine - within < 7_400_000
    assert abs(db.now_ms() - within) < 60_000
    asked = db.read(
        lambda c: c.exec_driver_sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").scalar()
    )
    assert abs(asked - within) < 60_000


def test_a_full_pool_is_unavailable(url, monkeypatch):
    monkeypatch.setattr("cloche.db.postgres_connection._POOL_WAIT_S", 0.1)
    db = Database(url, pool=2)
    with db.reader(), db.reader(), pytest.raises(Unavailable, match="pool_size"):
        names(db)
    assert names(db) == []
    db.close()


def test_commits_are_durable_whatever_the_server_is_set_to(postgres_server, url):
    shown = "SELECT current_setting('synchronous_commit'), current_setting('transaction_isolation')"
    name = url.rpartition("/")[2]
    try:
        postgres_server.run(f"ALTER DATABASE {name} SET synchronous_commit = off")
        db = Database(url)
        assert db.write(lambda c: tuple(c.exec_driver_sql(shown).one())) == ("on", "read committed")
        db.close()
    finally:
        postgres_server.run(f"ALTER DATABASE {name} RESET ALL")


def test_text_that_postgresql_has_no_place_for_is_the_callers_fault(db):
    for act in (db.write, db.read):
        with pytest.raises(Invalid, match=r"U\+0000"):
            act(lambda c: c.execute(select(t.tenant.c.id).where(t.tenant.c.name == "a\0b")).all())


def test_a_reader_writes_nothing(db):
    with pytest.raises(Unavailable, match="read-only"):
        db.read(lambda c: c.execute(insert(t.tenant), {"id": "x", "name": "x", "created_at": 1}))
    assert names(db) == []


def test_doctor_tells_of_the_server_and_refuses_one_that_does_not_sync(own_server):
    with own_server.database() as url:
        found = doctor._server(url, "PostgreSQL")
        assert (found.status, own_server.password in found.detail) == ("ok", False)
        assert "max" not in found.advice and "connections" in found.detail
        own_server.run("ALTER SYSTEM SET fsync = off")
        own_server.run("SELECT pg_reload_conf()")
        try:
            wrong = postgres.until(
                lambda: c if (c := doctor._server(url, "PostgreSQL")).status == "fail" else None, 10, "fsync is off"
            )
            assert "fsync off" in wrong.detail
        finally:
            own_server.run("ALTER SYSTEM RESET fsync")
            own_server.run("SELECT pg_reload_conf()")
    own_server.stop()
    away = doctor._server(url, "PostgreSQL")
    assert (away.status, "connection refused" in away.detail) == ("fail", True)
