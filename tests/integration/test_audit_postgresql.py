"""The audit trail in PostgreSQL: append-only for whoever speaks SQL, and whoever gets around that is found and named."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from cloche.audit.keys import PUBLIC_FILE, read_public_key
from cloche.audit.offline import Trust, verify_server, verify_store
from cloche.db.audit_triggers import DROP_POSTGRESQL
from cloche.errors import EnvironmentProblem, Unavailable
from tests.support import postgres
from tests.support.audit import Platform, attacker
from tests.unit.test_audit_verify import ATTACKS, BATCHES, JOBS, TOTAL

# What only a file without types can be brought to hold
OF_SQLITE = {"edit to bytes", "edit to broken text", "edit time to text"}


@pytest.fixture
def platform(postgres_server, tmp_path):
    with postgres_server.database() as url:
        made = Platform(tmp_path / "home", url).filled(BATCHES, JOBS)
        yield made
        made.db.close()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in OF_SQLITE])
def test_each_attack_is_found_and_named(platform, name):
    attack = ATTACKS[name]
    with attacker(platform) as connection:
        attack.do(connection)
    verdict = verify_server(platform.url, keys=platform.keys)
    assert (verdict.status.value, verdict.exit_code) == ("tampered", 1)
    assert verdict.first_bad is not None
    assert verdict.first_bad.seq == attack.seq
    assert attack.why in verdict.first_bad.why
    blind = verify_store(platform.url, Trust(read_public_key(platform.keys / PUBLIC_FILE)))
    assert blind.exit_code == 1
    assert blind.first_bad is not None and blind.first_bad.seq == attack.seq


def test_an_untouched_trail_is_valid_and_an_event_of_a_job_that_was_cut_off_is_missed(platform):
    verdict = verify_server(platform.url, keys=platform.keys)
    assert (verdict.exit_code, verdict.events, verdict.leaves, verdict.unsealed) == (0, TOTAL, TOTAL, 0)
    platform.job()
    with attacker(platform) as connection:
        (last,) = connection.execute(
            "SELECT object FROM audit_event WHERE object_seq = 3 ORDER BY txid DESC"
        ).fetchone()
        connection.execute("DELETE FROM audit_event WHERE object = ? AND object_seq = 2", (last,))
    assert "event 2 of" in verify_server(platform.url, keys=platform.keys).first_bad.why


@pytest.mark.parametrize("table", ["audit_event", "audit_leaf", "audit_batch"])
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {0}",
        "UPDATE {0} SET {1} = {1}",
        "TRUNCATE {0}",
        "INSERT INTO {0} SELECT * FROM {0} ON CONFLICT ({1}) DO UPDATE SET {1} = excluded.{1}",
    ],
)
def test_changes_are_refused(platform, table, statement):
    key = {"audit_event": "id", "audit_leaf": "seq", "audit_batch": "number"}[table]
    with postgres.connect(platform.url) as session, pytest.raises(psycopg.errors.IntegrityError, match="append-only"):
        session.execute(statement.format(table, key))
    assert platform.verify().exit_code == 0


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO audit_leaf VALUES (99, 'x', 'x')",
        "INSERT INTO audit_leaf VALUES (3, 'x', 'x')",
        "INSERT INTO audit_batch VALUES (99, 1, 'x', 'x', 1, 'x')",
        "INSERT INTO audit_batch VALUES (0, 1, 'x', 'x', 1, 'x')",
    ],
)
def test_a_gap_and_a_place_that_is_taken_are_refused(platform, statement):
    with postgres.connect(platform.url) as session, pytest.raises(psycopg.errors.IntegrityError, match="append-only"):
        session.execute(statement)


def test_dropping_them_leaves_none(postgres_server):
    from cloche.db import migrate

    with postgres_server.schemaless() as url, postgres.connect(url) as session:
        migrate.upgrade(url)
        for statement in DROP_POSTGRESQL:
            session.execute(statement)
        assert session.execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchone() == (0,)


def test_what_is_no_trail_is_not_called_tampered(postgres_server, platform):
    with postgres_server.schemaless() as url, pytest.raises(EnvironmentProblem, match="no table audit_batch"):
        verify_server(url, keys=platform.keys)
    with pytest.raises(Unavailable) as caught:
        verify_server(platform.url.replace(postgres_server.password, "hunter2-wrong"), keys=platform.keys)
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


def test_the_command_line_reads_the_database_of_the_settings(platform):
    command = [sys.executable, "-m", "cloche", "audit", "verify", "--home", str(platform.home), "-o", "name"]
    environment = {
        "CLOCHE_DATABASE_URL": platform.url.replace("postgresql:", "postgresql+psycopg:"),
        "PATH": "/usr/bin",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "valid"), done.stderr
