"""The declared schema is the migrated one; migrations go up and down; two programs may start at once."""

import sqlite3
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from cloche.db import audit_triggers, migrate
from cloche.db.tables import metadata
from cloche.errors import EnvironmentProblem


def test_the_migrated_schema_is_the_declared_one(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    migrate.upgrade(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_migrated_triggers_are_the_declared_ones(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    migrate.upgrade(url)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        found = {row[0] for row in connection.execute("select sql from sqlite_master where type = 'trigger'")}
    assert found == {statement.rstrip(";") for statement in audit_triggers.SQLITE}


def test_up_and_down_and_up_again(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    migrate.upgrade(url)
    first = migrate.current(url)
    migrate.downgrade(url, "base")
    assert migrate.current(url) is None
    with sqlite3.connect(tmp_path / "a.db") as connection:
        left = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    assert left == {"alembic_version"}
    migrate.upgrade(url)
    assert migrate.current(url) == first


def test_two_programs_may_upgrade_at_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    failures = []

    def run():
        try:
            migrate.upgrade(url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_newer_databases_schema_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    migrate.upgrade(url)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(EnvironmentProblem, match="newer version"):
        migrate.upgrade(url)
