from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from sqlalchemy import event, func, select

from cloche.audit.event import TamperedTrail
from cloche.db import tables, unsealed
from cloche.db.audit_log import AuditEntry
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.services.auditing import AuditService
from cloche.services.sealer import Sealer
from tests.support.audit import ALICE, Platform, attacker


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    yield platform
    platform.db.close()


def _batches(platform: Platform) -> list[int]:
    query = select(tables.audit_batch.c.size).order_by(tables.audit_batch.c.number)
    return list(platform.db.read(lambda connection: connection.scalars(query).all()))


def _acts(platform: Platform, count: int) -> None:
    platform.record(*(AuditEntry(ALICE, Action.FILE_CREATE, f"file:{number}") for number in range(count)))


def _valid(platform: Platform) -> bool:
    return platform.verify().exit_code == 0


def test_a_pass_seals_what_is_there_in_order_and_nothing_twice(platform):
    assert platform.sealer.run_once() == 0
    platform.filled(2, jobs=1)
    assert platform.sealer.run_once() == 0
    assert _batches(platform) == [4, 8]
    query = select(tables.audit_event.c.id).order_by(tables.audit_event.c.id)
    leaves = select(tables.audit_leaf.c.event_id).order_by(tables.audit_leaf.c.seq)
    ids, sealed = (platform.db.read(lambda connection, q=q: connection.scalars(q).all()) for q in (query, leaves))
    assert ids == sealed


def test_an_idle_pass_writes_nothing(platform):
    platform.filled(1)
    platform.db.write(lambda connection: connection.execute(tables.lease.delete()))
    assert platform.sealer.run_once() == 0
    assert platform.db.read(lambda connection: connection.scalar(select(func.count()).select_from(tables.lease))) == 0


def test_a_backlog_becomes_batches_of_a_thousand(platform):
    _acts(platform, 2_500)
    assert platform.sealer.run_once() == 2_500
    assert _batches(platform) == [1_000, 2_000, 2_500]
    assert _valid(platform)


def test_a_long_backlog_does_not_keep_the_caller(platform, monkeypatch):
    monkeypatch.setattr("cloche.services.sealer._PASS", 1)
    _acts(platform, 1_500)
    assert [platform.sealer.run_once() for _ in range(3)] == [1_000, 500, 0]


def test_a_new_sealer_goes_on_where_the_last_one_stopped(platform):
    platform.filled(2)
    platform.sealer.close()
    _acts(platform, 3)
    assert Sealer(platform.db, platform.keyring, "sealer-2").run_once() == 3
    assert _valid(platform)


def test_the_lease_keeps_a_second_sealer_idle_until_it_is_given_back(platform):
    second = Sealer(platform.db, platform.keyring, "sealer-2")
    platform.filled(1)
    _acts(platform, 1)
    assert second.run_once() == 0
    platform.sealer.close()
    platform.sealer.close()
    assert second.run_once() == 1


def test_a_lapsed_lease_is_taken_over_and_the_first_sealer_catches_up(platform):
    platform.filled(1)
    second = Sealer(platform.db, platform.keyring, "sealer-2")
    lapse = tables.lease.update().values(until=0)
    for number, sealer in enumerate([second, platform.sealer, second, platform.sealer], start=1):
        _acts(platform, number)
        platform.db.write(lambda connection: connection.execute(lapse))
        assert sealer.run_once() == number
    assert _valid(platform)


def test_a_batch_computed_from_an_old_head_is_dropped(platform, monkeypatch):
    """The lease changed hands between computing and writing: nothing is written, the next pass starts afresh."""
    _acts(platform, 5)
    second, prepare = Sealer(platform.db, platform.keyring, "sealer-2"), platform.sealer._prepare

    def overtaken(connection, *said):
        sealing = prepare(connection, *said)
        assert second.run_once() == 5
        second.close()
        return sealing

    monkeypatch.setattr(platform.sealer, "_prepare", overtaken)
    assert platform.sealer.run_once() == 0
    monkeypatch.undo()
    _acts(platform, 2)
    assert platform.sealer.run_once() == 2
    assert _batches(platform) == [5, 7]
    assert _valid(platform)


def test_two_sealers_at_once_while_events_come_in(platform):
    """Two databases as in two processes, a lease of one millisecond so that it changes hands all the time."""
    other = Database(platform.url)
    sealers = [
        Sealer(platform.db, platform.keyring, "a", interval_ms=0),
        Sealer(other, platform.keyring, "b", interval_ms=0),
    ]
    written, failures = threading.Event(), []

    def run(sealer: Sealer) -> None:
        try:
            while not written.is_set() or sealer.run_once():
                sealer.run_once()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(sealer,)) for sealer in sealers]
    for thread in threads:
        thread.start()
    for _ in range(60):
        platform.job()
    written.set()
    for thread in threads:
        thread.join()
    other.close()
    platform.sealer.run_once()
    assert failures == []
    verdict = platform.verify()
    assert (verdict.exit_code, verdict.leaves, verdict.unsealed) == (0, 180, 0)


def test_processes_seal_one_tree(platform):
    """Real processes, each recording and sealing by itself."""
    code = (
        "import pathlib, sys; from tests.support.audit import Platform; p = Platform(pathlib.Path(sys.argv[1]), sys.argv[3]);"
        "from cloche.services.sealer import Sealer; s = Sealer(p.db, p.keyring, sys.argv[2], interval_ms=1);"
        "[(p.job(), s.run_once()) for _ in range(25)]; p.db.close()"
    )
    command = [sys.executable, "-c", code, str(platform.home)]
    processes = [subprocess.Popen([*command, f"sealer-{number}", platform.url], cwd=_root()) for number in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    Sealer(platform.db, platform.keyring, "last").run_once()
    assert _valid(platform)


def _root() -> str:
    from pathlib import Path

    return str(Path(__file__).parents[2])


def test_a_tampered_event_stops_sealing_and_says_so(platform):
    platform.filled(1)
    _acts(platform, 3)
    with attacker(platform) as connection:
        (event_id,) = connection.execute(
            "SELECT id FROM audit_event WHERE object = 'file:1' ORDER BY id DESC"
        ).fetchone()
        (original,) = connection.execute("SELECT outcome FROM audit_event WHERE id = ?", (event_id,)).fetchone()
        connection.execute("UPDATE audit_event SET outcome = 'denied' WHERE id = ?", (event_id,))
    for _ in range(2):
        with pytest.raises(TamperedTrail) as found:
            platform.sealer.run_once()
        assert found.value.event_id == event_id
        assert event_id in (platform.sealer.problem or "")
    assert _batches(platform) == [7]
    assert AuditService(platform.db, platform.keyring).backlog()["unsealed"] == 3
    with attacker(platform) as connection:
        connection.execute("UPDATE audit_event SET outcome = ? WHERE id = ?", (original, event_id))
    assert platform.sealer.run_once() == 3
    assert platform.sealer.problem is None


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE audit_leaf SET hash = '" + "0" * 64 + "' WHERE seq = 3", "signed root"),
        ("DELETE FROM audit_leaf WHERE seq = 3", "leaf is missing"),
        ("DELETE FROM audit_batch WHERE number = 1", "signed root"),
        ("UPDATE audit_batch SET note = replace(note, 'batch 1', 'batch 2') WHERE number = 1", "batch 1"),
    ],
)
def test_a_tree_that_was_changed_is_not_built_on(platform, statement, why):
    platform.filled(2)
    with attacker(platform) as connection:
        connection.execute(statement)
    platform.sealer.close()
    fresh = Sealer(platform.db, platform.keyring, "sealer-2")
    _acts(platform, 1)
    with pytest.raises(TamperedTrail, match=why):
        fresh.run_once()


def test_lost_keys_do_not_go_unnoticed(platform, tmp_path):
    """New keys over an old trail: the sealer refuses to sign on."""
    platform.filled(1)
    platform.sealer.close()
    _acts(platform, 1)
    other = Platform(tmp_path / "other")
    with pytest.raises(TamperedTrail):
        Sealer(platform.db, other.keyring, "sealer-2").run_once()
    other.db.close()


def test_numbers_of_rows_and_transactions_may_change(platform):
    """VACUUM numbers SQLite's rows anew; a dump brings PostgreSQL the transactions' numbers of another cluster."""
    platform.filled(2)
    with attacker(platform) as connection:
        if platform.db.kind == "sqlite":
            connection.execute("UPDATE audit_event SET rowid = rowid + 1000")
            connection.commit()
            connection.execute("VACUUM")
        else:
            connection.execute("UPDATE audit_event SET txid = txid + 1000000")
    _acts(platform, 2)
    assert platform.sealer.run_once() == 2
    assert Sealer(platform.db, platform.keyring, platform.sealer._owner).run_once() == 0
    assert _valid(platform)


def test_an_event_that_is_committed_late_is_sealed(postgres_server, tmp_path):
    """A transaction that began first and ends last: what it wrote lies before what the sealer has already seen."""
    with postgres_server.database() as url:
        platform = Platform(tmp_path / "home", url).filled(1)
        _seal_around_a_late_one(platform)
        platform.db.close()


def _seal_around_a_late_one(platform):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(connection):
        platform.log.record(connection, AuditEntry(ALICE, Action.FILE_CREATE, "file:late"))
        begun.set()
        assert go_on.wait(30)

    late = threading.Thread(target=platform.db.write, args=(slowly,))
    late.start()
    assert begun.wait(30)
    _acts(platform, 2)
    assert platform.sealer.run_once() == 2
    assert platform.sealer.run_once() == 0
    go_on.set()
    late.join()
    assert platform.sealer.run_once() == 1
    assert _valid(platform)


def test_a_restarted_sealer_finds_an_event_that_was_left_behind(platform):
    """A leaf taken away with its batch by restoring rows: everything without a leaf is sealed, wherever its row lies."""
    platform.filled(2)
    with attacker(platform) as connection:
        connection.execute("DELETE FROM audit_leaf WHERE seq >= 7")
        connection.execute("DELETE FROM audit_batch WHERE number = 1")
    platform.sealer.close()
    assert Sealer(platform.db, platform.keyring, "sealer-2").run_once() == 7
    assert _valid(platform)


def test_the_pending_query_does_not_read_the_sealed_events(platform):
    platform.filled(1)
    asked = []
    engine = platform.db._store._engine
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, text, values, *_: asked.append((text, values)))
    first = platform.db.read(lambda connection: unsealed.find(connection, None, 1_000))
    platform.db.read(lambda connection: unsealed.find(connection, first.mark, 1_000))
    text, values = next(one for one in reversed(asked) if "NOT (EXISTS" in one[0])
    if platform.db.kind == "sqlite":
        plan = platform.db.read(lambda c: c.exec_driver_sql("EXPLAIN QUERY PLAN " + text, values).all())
        steps = [row[-1] for row in plan]
        assert any("SEARCH audit_event USING INTEGER PRIMARY KEY (rowid>?)" in step for step in steps), steps
        assert not any("TEMP B-TREE" in step or step.startswith("SCAN") for step in steps), steps
    else:

        def explain(connection):
            # Of a table with few rows the planner, once it has counted them, rather reads all or gathers them first.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            connection.exec_driver_sql("ANALYZE audit_event, audit_leaf")
            return connection.exec_driver_sql("EXPLAIN " + text, values).all()

        plan = platform.db.write(explain)
        steps = [row[0] for row in plan]
        assert any("using ix_audit_event_txid" in step for step in steps), steps
        assert any("Index Cond: ((txid >=" in step for step in steps), steps
        assert not any("Seq Scan" in step for step in steps), steps
