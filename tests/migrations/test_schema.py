"""The declared schema is the migrated one on every kind of database; migrations go up and down; two programs may start at once."""

import subprocess
import sys
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, make_url, select, text

from cloche.db import audit_triggers, migrate, tables
from cloche.db.engine import Database
from cloche.db.tables import metadata
from cloche.errors import EnvironmentProblem, Unavailable
from cloche.queueing.memory_broker import MemoryBroker
from tests.support import jobs, stores

# What only the sealer's own query on PostgreSQL asks for, and SQLite has in its row numbers: see cloche.db.unsealed.
OWN = {("audit_event", "txid"), ("audit_event", "ix_audit_event_txid")}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'a.db'}"
    else:
        with request.getfixturevalue("postgres_server").schemaless() as made:
            yield made


@pytest.fixture
def engine(url):
    engine = create_engine(
        make_url(url).set(drivername=url.partition(":")[0].replace("postgresql", "postgresql+psycopg"))
    )
    yield engine
    engine.dispose()


def include(item, name, kind, _reflected, _other):
    return kind not in ("column", "index") or (item.table.name, name) not in OWN


def test_the_migrated_schema_is_the_declared_one(url, engine):
    migrate.upgrade(url)
    options = {"compare_type": True, "compare_server_default": True, "include_object": include}
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_migrated_triggers_are_the_declared_ones(url, engine, tmp_path, request):
    migrate.upgrade(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            found = set(connection.scalars(text("select sql from sqlite_master where type = 'trigger'")))
            assert found == {statement.rstrip(";") for statement in audit_triggers.SQLITE}
            return
        migrated = _described(connection)
    with request.getfixturevalue("postgres_server").schemaless() as other:
        bare = create_engine(make_url(other).set(drivername="postgresql+psycopg"))
        with bare.begin() as connection:
            metadata.create_all(connection)
            for statement in audit_triggers.POSTGRESQL:
                connection.exec_driver_sql(statement.replace("%", "%%"))
            assert migrated == _described(connection)
        bare.dispose()


def _described(connection):
    triggers = "select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal"
    functions = "select pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace"
    return {*connection.exec_driver_sql(triggers).scalars(), *connection.exec_driver_sql(functions).scalars()}


def test_up_and_down_and_up_again(url, engine):
    migrate.upgrade(url)
    first = migrate.current(url)
    migrate.downgrade(url, "base")
    assert migrate.current(url) is None
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            assert _described(connection) == set()
    migrate.upgrade(url)
    assert migrate.current(url) == first


def test_nobody_goes_back_while_a_sensitive_job_waits(url, engine):
    """A version that does not know of them would run the sealed payload as if it were the job's own."""
    migrate.upgrade(url)
    db = Database(url)
    actor = stores.add_actor(db, stores.add_tenant(db), "anna")
    job_id = jobs.submit(db, MemoryBroker(), actor, sensitive=True, payload={"sealed": "x"})
    db.close()
    with pytest.raises(RuntimeError, match="1 sensitive jobs have not ended"):
        migrate.downgrade(url, "0003")
    with engine.begin() as connection:
        connection.execute(text("update job set state = 'canceled', reason = 'canceled_by_user'"))
    migrate.downgrade(url, "0003")
    migrate.upgrade(url)
    with engine.connect() as connection:
        rows = connection.execute(select(tables.job.c.id, tables.job.c.sensitive, tables.job.c.payload)).all()
    assert rows == [(job_id, False, {"sealed": "x"})]


def test_nobody_goes_back_while_a_tenant_is_suspended(url, engine):
    """A version that does not know of it would start its jobs and let its people in."""
    migrate.upgrade(url)
    db = Database(url)
    tenant_id = stores.add_tenant(db)
    stores.add_actor(db, tenant_id, "anna")
    db.close()
    with engine.begin() as connection:
        connection.execute(text("update tenant set suspended = true"))
    with pytest.raises(RuntimeError, match="1 tenants are suspended"):
        migrate.downgrade(url, "0009")
    with engine.begin() as connection:
        connection.execute(text("update tenant set suspended = false"))
    migrate.downgrade(url, "0009")
    names = ["adrnin", "Old Name", "b0b", "bob"]
    with engine.begin() as connection:
        for number, name in enumerate(names):
            row = {"id": f"{number:036}", "name": name}
            false = "false" if engine.dialect.name == "postgresql" else "0"
            connection.execute(
                text(
                    "insert into account (id, username, password_hash, platform_admin, disabled, created_at)"
                    f" values (:id, :name, '!', {false}, {false}, 1)"
                ),
                row,
            )
    migrate.upgrade(url)
    user = tables.user.c
    with engine.connect() as connection:
        rows = connection.execute(select(user.username, user.skeleton, user.kind, user.version).order_by(user.id)).all()
        kept = connection.execute(select(tables.tenant.c.suspended, tables.tenant.c.version)).all()
    assert [tuple(row) for row in kept] == [(False, 1)]
    # Names that are there stay; of two that look alike the first keeps the others' look-alikes out.
    assert [tuple(row) for row in rows][:4] == [
        ("adrnin", "admin", "person", 1),
        ("Old Name", "Old Name", "person", 1),
        ("b0b", "bob", "person", 1),
        ("bob", None, "person", 1),
    ]


def test_jobs_of_queues_that_an_older_version_does_not_know_go_to_the_one_it_takes_from(url, engine):
    migrate.upgrade(url)
    db = Database(url)
    actor = stores.add_actor(db, stores.add_tenant(db), "anna")
    ids = [jobs.submit(db, MemoryBroker(), actor, queue=queue) for queue in ("fast", "sensitive", "default")]
    db.close()
    migrate.downgrade(url, "0007")
    with engine.connect() as connection:
        rows = dict(connection.execute(select(tables.job.c.id, tables.job.c.queue)).all())
    assert [rows[job_id] for job_id in ids] == ["default", "sensitive", "default"]
    migrate.upgrade(url)
    with engine.connect() as connection:
        found = connection.execute(
            select(tables.queue.c.name, tables.queue.c.paused).order_by(tables.queue.c.name)
        ).all()
    assert [tuple(row) for row in found] == [("default", False), ("sensitive", False)]


def test_every_step_goes_down_and_up_again(url):
    migrate.upgrade(url)
    steps = []
    while (at := migrate.current(url)) is not None:
        steps.append(at)
        migrate.downgrade(url, "-1")
    for step in reversed(steps):
        migrate.upgrade(url, step)
        assert migrate.current(url) == step


def test_two_programs_may_upgrade_at_once(url):
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


def set_version(engine, version):
    with engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = :v"), {"v": version})


def test_a_newer_schema_is_refused(url, engine):
    migrate.upgrade(url)
    assert migrate.check(url) == migrate.current(url)
    set_version(engine, "9999")
    for refuse in (migrate.upgrade, migrate.check, lambda url: migrate.downgrade(url, "base")):
        with pytest.raises(EnvironmentProblem, match="newer version"):
            refuse(url)


def test_an_older_schema_is_refused_by_programs_that_do_not_upgrade(url):
    with pytest.raises(EnvironmentProblem, match="cloche db upgrade"):
        migrate.check(url)
    migrate.upgrade(url, "0001")
    with pytest.raises(EnvironmentProblem, match=r"0001.*cloche db upgrade"):
        migrate.check(url)


def test_an_unknown_revision_is_refused_in_words(url):
    migrate.upgrade(url)
    with pytest.raises(EnvironmentProblem, match="there is no schema"):
        migrate.downgrade(url, "0000")


def test_a_process_waits_for_its_database(monkeypatch):
    said = iter([Unavailable("away"), Unavailable("away"), None])
    pauses = []
    monkeypatch.setattr(migrate.time, "sleep", pauses.append)

    def step():
        if (error := next(said)) is not None:
            raise error
        return "there"

    assert migrate.patiently(step) == "there"
    assert pauses == sorted(pauses)
    assert len(pauses) == 2


def test_the_command_line_goes_up_and_down(url, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "cloche", "db", *arguments, "--home", str(tmp_path / "home")]
        environment = {"CLOCHE_DATABASE_URL": url, "PATH": "/usr/bin"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert run("upgrade").returncode == 0
    head = migrate.check(url)
    refused = run("downgrade", "base")
    assert (refused.returncode, migrate.current(url)) == (2, head)
    assert "--yes" in refused.stderr
    wrong = run("downgrade", "0000", "--yes")
    assert wrong.returncode == 1
    assert "there is no schema 0000" in wrong.stderr
    assert run("downgrade", "base", "--yes").returncode == 0
    assert migrate.current(url) is None
