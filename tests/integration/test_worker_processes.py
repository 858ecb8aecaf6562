"""Real `cloche worker` processes on real stores, with no sandboxd beside them: how they come, wait, drain and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from sqlalchemy import select, text

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.db.engine import check_home
from cloche.queueing.redis_broker import RedisBroker
from cloche.services.drains import Drains
from cloche.services.workers import WorkerService
from cloche.worker import exits
from tests.support import jobs
from tests.support.queues import make_whole
from tests.support.stores import until

DEADLINE_S = 40


@pytest.fixture
def launch(db, database_url, valkey, home):
    """Start a worker as an operator does; what still runs is killed at the end."""
    check_home(home)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
    base = {"CLOCHE_HOME": str(home), "CLOCHE_DATABASE_URL": database_url, "CLOCHE_REDIS_URL": valkey.url}
    base |= {"CLOCHE_WORKER_HEARTBEAT": "300ms", "CLOCHE_WORKER_LABELS": "zone=eu"}
    running = []

    def begin(*arguments, **more):
        process = subprocess.Popen(
            [sys.executable, "-m", "cloche", "worker", *arguments],
            cwd=home,
            env={**kept, **base, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process):
    """Its exit code and what it wrote."""
    said, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, said


def rows(db):
    return {row["pid"]: row for row in db.read(lambda c: c.execute(select(t.worker)).mappings().all())}


def waiting(db, *processes):
    """Their rows, once each has told all it tells."""

    def told():
        found = rows(db)
        mine = [found.get(process.pid) for process in processes]
        whole = all(row and row["resources"] and "sandboxd" in (row["status_reason"] or "") for row in mine)
        for process in processes:
            assert process.poll() is None, ended(process)
        return mine if whole else None

    return until(told, DEADLINE_S, "the workers have registered and say why they wait")


def test_several_on_one_host_each_with_an_id_of_its_own_take_no_jobs_without_an_engine(db, admin, valkey, launch):
    first, second = launch(), launch("--slots", "5")
    one, other = waiting(db, first, second)
    assert (one["id"] != other["id"], one["host"], other["slots"]) == (True, other["host"], 5)
    assert (one["status"], one["labels"]) == ("alive", {"zone": "eu"})
    assert one["resources"]["memory_free"] > 0 < one["resources"]["disk_free"]
    broker = RedisBroker(valkey.url)
    make_whole(broker)
    job_id = jobs.submit(db, broker, admin)
    heard = rows(db)[first.pid]["last_heartbeat_at"]
    until(lambda: rows(db)[first.pid]["last_heartbeat_at"] > heard + 2_000, DEADLINE_S, "it has had the time")
    assert (jobs.job(db, job_id)["state"], jobs.job(db, job_id)["attempt"]) == ("pending", 0)
    broker.close()
    first.send_signal(signal.SIGTERM)
    assert ended(first)[0] == exits.STOPPED
    assert [rows(db)[first.pid][name] for name in ("status", "status_reason")] == ["dead", "stopped"]
    assert rows(db)[second.pid]["status"] == "alive"


def test_an_id_that_is_taken_or_none_is_refused_and_its_worker_goes_on(db, launch):
    worker_id = uuid7()
    first = launch("--id", worker_id)
    waiting(db, first)
    code, said = ended(launch("--id", worker_id))
    assert (code, "an id is used once" in said) == (1, True), said
    assert "Traceback" not in said
    code, said = ended(launch("--id", "../../etc"))
    assert (code, "--id is no UUIDv7" in said) == (1, True), said
    assert [row["id"] for row in rows(db).values()] == [worker_id]
    assert first.poll() is None


def test_a_drained_worker_leaves_with_an_exit_code_of_its_own(db, admin, launch):
    process = launch()
    (row,) = waiting(db, process)
    shown = Drains(db, jobs.transitions()._audit).drain(admin, row["id"])
    assert shown["status"] == "draining"
    assert ended(process)[0] == exits.DRAINED
    assert [rows(db)[process.pid][name] for name in ("status", "status_reason")] == ["dead", "drained"]


@pytest.fixture
def schema(db):
    """``set(version)`` makes the database look like another's; ``known`` is what it was, and is again at the end."""

    def put(version):
        db.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version}))

    known = db.read(lambda c: c.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
    yield SimpleNamespace(set=put, known=known)
    put(known)


def test_a_worker_of_another_schema_refuses_to_start_and_says_which(db, schema, launch):
    for version, words in (("0001", "the database's schema is 0001"), ("9999", "newer version (schema 9999)")):
        schema.set(version)
        code, said = ended(launch())
        assert code == 1
        assert words in said
        assert "Traceback" not in said
    assert rows(db) == {}, "and nobody hears of it"


def test_a_worker_whose_database_was_upgraded_meanwhile_takes_no_more_jobs_and_says_why(db, schema, launch):
    process = launch()
    waiting(db, process)
    schema.set("9999")
    words = f"the database's schema is 9999 and this worker's {schema.known}: update it, and start it again"
    until(lambda: rows(db)[process.pid]["status_reason"] == words, DEADLINE_S, "it says why")
    summary = WorkerService(db).summary()
    assert (summary["reasons"], summary["ready"]) == ([words], 0), "health checks see it"
