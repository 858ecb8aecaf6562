"""On PostgreSQL the record belongs to another role: the platform's own can add to it and read it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import psycopg
import pytest
from sqlalchemy import make_url

from cloche.db import grants, migrate
from cloche.db.engine import Database
from cloche.errors import EnvironmentProblem
from cloche.services.audit_prune import prune
from cloche.services.auditing import AuditService
from tests.support import postgres, stores
from tests.support.audit import ALICE, Platform

DAY = 86_400_000


def _as(url: str, role: str) -> str:
    return make_url(url).set(username=role, password="secret").render_as_string(hide_password=False)


@pytest.fixture
def urls(postgres_server):
    """The owner's and the platform's URL of an empty database; each role is a plain one."""
    with postgres_server.schemaless() as url, postgres.connect(url) as session:
        for role in ("record_owner", "record_platform"):
            session.execute(f"DROP ROLE IF EXISTS {role}")
            session.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        session.execute("GRANT CREATE, USAGE ON SCHEMA public TO record_owner")
        yield _as(url, "record_owner"), _as(url, "record_platform")
        session.execute("DROP OWNED BY record_owner, record_platform CASCADE")
        session.execute("DROP ROLE record_owner, record_platform")


@pytest.fixture
def platform(urls, tmp_path):
    owner, own = urls
    migrate.upgrade(owner)
    grants.apply(owner, own)
    platform = Platform(tmp_path / "home", own)
    stores.add_tenant(platform.db)
    yield platform.filled(3, 1)
    platform.db.close()


def test_the_platform_works(platform):
    assert platform.verify().exit_code == 0
    assert AuditService(platform.db, platform.keyring).forget(ALICE, "name", "alice")["kind"] == "name"
    migrate.upgrade(platform.url)  # as a web process does: nothing to do
    assert migrate.check(platform.url)


@pytest.mark.parametrize("table", ["audit_event", "audit_leaf", "audit_batch", "audit_prune", "audit_node"])
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {0}",
        "UPDATE {0} SET {1} = {1}",
        "TRUNCATE {0}",
        "ALTER TABLE {0} DISABLE TRIGGER ALL",
        "DROP TABLE {0} CASCADE",
        "ALTER TABLE {0} OWNER TO CURRENT_USER",
    ],
)
def test_it_cannot_change_the_record(platform, table, statement):
    column = {"audit_event": "id", "audit_leaf": "seq", "audit_node": "level"}.get(table, "number")
    with postgres.connect(platform.url) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(statement.format(table, column))


def test_it_can_neither_make_a_mark_nor_get_around_the_triggers(platform):
    with postgres.connect(platform.url) as session:
        for statement in (
            "INSERT INTO audit_prune VALUES (0, 4, 1, 'x')",
            "UPDATE audit_person SET value = 'bob'",
            "SET session_replication_role = replica",
            "UPDATE alembic_version SET version_num = 'x'",
            "CREATE TABLE mine (a int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(statement)


def test_the_owner_prunes(platform, urls):
    with pytest.raises(Exception, match="permission denied"):
        prune(platform.db, platform.keyring, platform.db.now_ms() + 1_000, least_ms=-DAY)
    owner = Database(urls[0])
    done = prune(owner, platform.keyring, platform.db.now_ms() + 1_000, least_ms=-DAY)
    owner.close()
    assert done.events == 8
    platform.sealer.run_once()
    assert platform.verify().exit_code == 0


def test_the_command_line_makes_the_tables_the_owner_s(urls, tmp_path):
    environment = {
        "CLOCHE_DATABASE_OWNER_URL": urls[0],
        "CLOCHE_DATABASE_URL": urls[1],
        "CLOCHE_HOME": str(tmp_path / "home"),
        "PATH": os.environ["PATH"],
    }
    for _ in range(2):
        command = [sys.executable, "-m", "cloche", "db", "upgrade"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    with postgres.connect(urls[1]) as session:
        owners = session.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert owners == [("record_owner",)]
        assert session.execute("SELECT count(*) FROM audit_event").fetchone() == (0,)


def test_tables_of_the_platform_are_taken_over_or_it_is_said_how(urls, postgres_server):
    owner, own = urls
    with postgres.connect(
        owner.replace("record_owner:secret", f"{postgres.USER}:{postgres_server.password}")
    ) as session:
        session.execute("GRANT CREATE, USAGE ON SCHEMA public TO record_platform")
        migrate.upgrade(own)
        with pytest.raises(EnvironmentProblem, match="REASSIGN OWNED BY record_platform TO record_owner"):
            grants.apply(owner, own)
        session.execute("REASSIGN OWNED BY record_platform TO record_owner")
    grants.apply(owner, own)
    with pytest.raises(EnvironmentProblem, match="another one"):
        grants.apply(own, own)
