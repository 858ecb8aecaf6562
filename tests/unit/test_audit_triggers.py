from __future__ import annotations

import sqlite3

import pytest

from cloche.db.audit_triggers import DROP_SQLITE, SQLITE
from tests.support.audit import Platform


@pytest.fixture
def connection(tmp_path):
    platform = Platform(tmp_path / "home").filled(batches=1)
    platform.db.close()
    connection = sqlite3.connect(platform.path)
    yield connection
    connection.close()


def _refused(connection: sqlite3.Connection, statement: str) -> None:
    before = list(connection.iterdump())
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    assert list(connection.iterdump()) == before


@pytest.mark.parametrize("table", ["audit_event", "audit_leaf", "audit_batch"])
@pytest.mark.parametrize(
    "statement", ["DELETE FROM {0}", "UPDATE {0} SET rowid = rowid + 99", "UPDATE OR REPLACE {0} SET rowid = 1"]
)
def test_update_and_delete_are_refused(connection, table, statement):
    _refused(connection, statement.format(table))


_EVENT = "id, at, tenant_id, actor, action, object, object_seq, outcome, details, mac"


@pytest.mark.parametrize(
    "statement",
    [
        "REPLACE INTO audit_event SELECT * FROM audit_event LIMIT 1",
        f"REPLACE INTO audit_event (rowid, {_EVENT}) VALUES (1, 'new', 1, '', '', '', 'x', NULL, '', '', '')",
        f"REPLACE INTO audit_event ({_EVENT}) SELECT 'new', 1, '', '', '', object, object_seq, '', '', '' FROM audit_event WHERE object_seq = 1",
        "REPLACE INTO audit_leaf SELECT seq, event_id, 'forged' FROM audit_leaf",
        "REPLACE INTO audit_leaf SELECT max(seq) + 1, min(event_id), 'forged' FROM audit_leaf",
        "REPLACE INTO audit_leaf (rowid, seq, event_id, hash) SELECT 1, max(seq) + 1, 'new', 'forged' FROM audit_leaf",
        "REPLACE INTO audit_batch SELECT number, 1, 'forged', '', 1, '' FROM audit_batch",
    ],
)
def test_replacing_a_row_by_inserting_is_refused(connection, statement):
    _refused(connection, statement)


@pytest.mark.parametrize("table", ["audit_leaf", "audit_batch"])
def test_a_gap_is_refused(connection, table):
    columns = "seq, event_id, hash" if table == "audit_leaf" else "number, size, root, previous, at, note"
    values = ", ".join(["'x'"] * (columns.count(",")))
    _refused(connection, f"INSERT INTO {table} ({columns}) VALUES (99, {values})")


def test_dropping_them_leaves_none(connection):
    for statement in DROP_SQLITE:
        connection.execute(statement)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() == (0,)
    assert len(SQLITE) == len(DROP_SQLITE)
