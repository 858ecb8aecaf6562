"""When an attempt's trace is written: with its end, or meanwhile where it takes longer."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.domain.events import Trace
from cloche.errors import StaleAttempt
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services.attempts import AttemptRecorder
from cloche.worker import tracing
from cloche.worker.loop import claimed
from tests.support import jobs


@pytest.fixture
def attempt(db, admin):
    """A claimed job, and its trace as its worker ``w1`` keeps it."""
    broker = MemoryBroker()
    row = jobs.claim(db, broker, [jobs.submit(db, broker, admin)])[0]
    job = claimed(row)
    return job, tracing.AttemptTrace(AttemptRecorder(db, "w1"), job)


def phase(db, job):
    return db.read(lambda c: c.execute(select(t.attempt.c.phase).where(t.attempt.c.job_id == job.id)).scalar_one())


def test_what_is_kept_is_written_in_the_transaction_of_the_end(db, attempt):
    job, trace = attempt
    trace.add("starting", (Trace.SANDBOX_STARTED, {"level": "namespace"}), image="i" * 64)
    trace.add("running", (Trace.STARTED, {}))
    assert jobs.trace(db, job.id)[-1] == "claimed"

    def failing(connection):
        trace.write(connection)
        raise ValueError("the end was not written")

    with pytest.raises(ValueError, match="not written"):
        db.write(failing)
    assert jobs.trace(db, job.id)[-1] == "claimed"
    db.write(trace.write)
    assert jobs.trace(db, job.id)[-2:] == ["sandbox_started", "started"]
    assert phase(db, job) == "running"
    assert jobs.job(db, job.id)["image_digest"] == "i" * 64


def test_what_was_kept_for_its_moment_is_sent_off_once(db, attempt, monkeypatch):
    job, trace = attempt
    trace.add("starting", (Trace.SANDBOX_STARTED, {}))
    monkeypatch.setattr(tracing, "_KEEP_S", 1e9)
    trace.tick()
    trace.check(wait=True)
    assert phase(db, job) == "staging_in"
    monkeypatch.setattr(tracing, "_KEEP_S", 0.0)
    trace.tick()
    trace.tick()
    trace.check(wait=True)
    assert phase(db, job) == "starting"
    db.write(trace.write)
    assert jobs.trace(db, job.id).count("sandbox_started") == 1


def test_an_attempt_that_was_taken_away_writes_nothing_more(db, admin, attempt):
    job, trace = attempt
    jobs.succeed(db, MemoryBroker(), job.id)
    before = jobs.trace(db, job.id)
    trace.add("staging_out", (Trace.FINISHED, {}))
    with pytest.raises(StaleAttempt):
        db.write(trace.write)
    with pytest.raises(StaleAttempt):
        trace.send(wait=True)
    assert jobs.trace(db, job.id) == before
