"""Delays, expiry, cancel in every state, runs and removal, in the database and through the sweeper."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, insert, select, update

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.states import Reason
from cloche.errors import Conflict, NotFound, StaleAttempt
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services import idempotency, past
from cloche.services import sweeper as sweeper_module
from cloche.services.leases import Leases
from cloche.services.sweeper import Retention, Sweeper
from cloche.services.workers import WorkerService
from tests.support import jobs, stores
from tests.support.queues import make_whole, take

DAY = 86_400_000


@pytest.fixture
def broker():
    made = MemoryBroker()
    make_whole(made)
    return made


def sweep(db, broker, **kept):
    name, dead = "scheduler:test", lambda worker: None
    sweeper = Sweeper(db, broker, jobs.transitions(), WorkerService(db), dead, name, Retention(**kept))
    return sweeper.run_once(100)


def change(db, job_id, **columns):
    db.write(lambda c: c.execute(update(t.job).where(t.job.c.id == job_id).values(**columns)))


def state(db, job_id):
    row = jobs.job(db, job_id)
    return row["state"], row["reason"]


# --- delays -----------------------------------------------------------------------------------------------------------------


def test_a_delayed_job_waits_for_its_time_and_then_runs(db, broker, admin):
    job_id = jobs.submit(db, broker, admin, scheduled_at=now_ms() + 60_000)
    assert state(db, job_id) == ("scheduled", "waits_for_time")
    assert jobs.claim(db, broker, [job_id]) == []
    assert sweep(db, broker) == 0
    assert take(broker, "default", 9) == []
    assert db.read(lambda c: c.execute(select(func.count()).select_from(t.outbox)).scalar_one()) == 0
    change(db, job_id, ready_at=now_ms() - 1)
    assert sweep(db, broker) == 1
    assert state(db, job_id) == ("pending", "due")
    assert take(broker, "default", 9) == [job_id]
    assert [row["id"] for row in jobs.claim(db, broker, [job_id])] == [job_id]
    assert jobs.trace(db, job_id) == ["accepted", "due", "claimed"]


def test_a_time_that_has_passed_means_now(db, broker, admin):
    job_id = jobs.submit(db, broker, admin, scheduled_at=now_ms() - 60_000)
    assert state(db, job_id) == ("pending", "submitted")


def test_those_longest_due_come_first_and_a_full_round_says_so(db, broker, admin):
    made = [jobs.submit(db, broker, admin, scheduled_at=now_ms() + 60_000) for _ in range(4)]
    for n, job_id in enumerate(made):
        change(db, job_id, ready_at=now_ms() - 1_000 * (n + 1))
    done = db.write(lambda c: jobs.transitions().due(c, now_ms(), 2))
    assert {one.job_id for one in done.ready} == set(made[2:])
    name, dead = "scheduler:test", lambda worker: None
    assert Sweeper(db, broker, jobs.transitions(), WorkerService(db), dead, name).run_once(2) == 2


# --- expiry -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", ["pending", "scheduled", "blocked"])
def test_what_nobody_has_begun_in_its_time_is_canceled(db, broker, admin, waits):
    upstream = jobs.submit(db, broker, admin)
    more = {
        "pending": {},
        "scheduled": {"scheduled_at": now_ms() + DAY},
        "blocked": jobs.after(upstream),
    }[waits]
    job_id = jobs.submit(db, broker, admin, expires_at=now_ms() + 60_000, **more)
    assert state(db, job_id)[0] == waits
    sweep(db, broker)
    assert state(db, job_id)[0] == waits
    change(db, job_id, expires_at=now_ms() - 1)
    sweep(db, broker)
    assert state(db, job_id) == ("canceled", "expired")
    assert job_id not in take(broker, "default", 9)
    assert jobs.audit_actions(db, job_id) == ["job:submit", "job:cancel"]


def test_an_expired_job_is_not_begun_even_before_the_sweeper_comes(db, broker, admin):
    job_id = jobs.submit(db, broker, admin, expires_at=now_ms() - 1)
    assert jobs.claim(db, broker, [job_id]) == []


def test_what_has_been_begun_does_not_expire(db, broker, admin):
    retry = {"max_retries": 1, "backoff": "fixed", "initial_delay_ms": 1, "max_delay_ms": 1}
    job_id = jobs.submit(db, broker, admin, expires_at=now_ms() + 60_000, retry=retry)
    jobs.claim(db, broker, [job_id])
    jobs.fail(db, broker, job_id)
    change(db, job_id, expires_at=now_ms() - 1)
    db.write(lambda c: jobs.transitions().due(c, now_ms() + 10, 100))
    sweep(db, broker)
    assert state(db, job_id) == ("pending", "due")
    assert jobs.claim(db, broker, [job_id])[0]["attempt"] == 2


@pytest.mark.parametrize(
    ("where", "index"),
    [
        (f"{t.MAY_EXPIRE} AND expires_at <= ? ORDER BY expires_at LIMIT 1", "ix_job_expires_at"),
        (f"tenant_id = ? AND job.{t.DEAD_LETTER} ORDER BY finished_at DESC, id DESC LIMIT 1", "ix_job_dead_letters"),
        ("finished_at < ? AND state != 'failed' ORDER BY finished_at LIMIT 50", "ix_job_finished_at"),
    ],
)
def test_rounds_and_lists_find_their_jobs_by_an_index(sqlite_template, where, index):
    db = Database(f"sqlite:///{sqlite_template}")
    plan = db.read(lambda c: c.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT id FROM job WHERE {where}", (5,)).all())
    assert index in str(plan)
    assert "TEMP B-TREE" not in str(plan)
    db.close()


# --- cancel -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", ["pending", "scheduled", "blocked"])
def test_every_waiting_state_is_canceled_at_once(db, broker, admin, waits):
    upstream = jobs.submit(db, broker, admin)
    more = {"pending": {}, "scheduled": {"scheduled_at": now_ms() + DAY}, "blocked": jobs.after(upstream)}[waits]
    job_id = jobs.submit(db, broker, admin, **more)
    jobs.cancel(db, broker, admin, job_id)
    assert state(db, job_id) == ("canceled", "canceled_by_user")
    with pytest.raises(Conflict, match="already canceled"):
        jobs.cancel(db, broker, admin, job_id)


def test_an_ended_job_is_not_canceled(db, broker, admin):
    for end in (jobs.succeed, jobs.fail):
        job_id = jobs.submit(db, broker, admin)
        jobs.claim(db, broker, [job_id])
        end(db, broker, job_id)
        with pytest.raises(Conflict, match="already"):
            jobs.cancel(db, broker, admin, job_id)


# --- the policy -------------------------------------------------------------------------------------------------------------


def test_a_failure_that_the_policy_does_not_name_ends_the_job(db, broker, admin):
    retry = {"max_retries": 5, "initial_delay_ms": 1, "max_delay_ms": 1, "retry_on": ["timed_out"]}
    job_id = jobs.submit(db, broker, admin, retry=retry)
    jobs.claim(db, broker, [job_id])
    jobs.fail(db, broker, job_id, reason=Reason.TIMED_OUT)
    assert state(db, job_id) == ("scheduled", "retry_backoff")
    db.write(lambda c: jobs.transitions().due(c, now_ms() + 10, 100))
    jobs.claim(db, broker, [job_id])
    jobs.fail(db, broker, job_id, 2, reason=Reason.OUT_OF_MEMORY)
    assert state(db, job_id) == ("failed", "out_of_memory")


# --- runs -------------------------------------------------------------------------------------------------------------------


def test_a_retry_by_hand_begins_a_new_run_and_keeps_the_old_attempts(db, broker, admin):
    retry = {"max_retries": 1, "backoff": "fixed", "initial_delay_ms": 1, "max_delay_ms": 1}
    job_id = jobs.submit(db, broker, admin, retry=retry, expires_at=now_ms() + DAY)
    for attempt in (1, 2):
        jobs.claim(db, broker, [job_id])
        jobs.fail(db, broker, job_id, attempt)
        db.write(lambda c: jobs.transitions().due(c, now_ms() + 10, 100))
    assert state(db, job_id) == ("failed", "plugin_failed")
    jobs.rerun(db, broker, admin, job_id)
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"], row["run"], row["attempt"]) == ("pending", "retried", 2, 2)
    emptied = ("started_at", "finished_at", "error", "usage", "result", "expires_at", "cancel_requested_at")
    assert [row[name] for name in emptied] == [None] * len(emptied)
    assert (row["retries_used"], row["platform_failures"], row["worker_deaths"]) == (0, 0, 0)
    assert job_id in take(broker, "default", 9)
    jobs.claim(db, broker, [job_id])
    jobs.fail(db, broker, job_id, 3)
    assert state(db, job_id) == ("scheduled", "retry_backoff"), "the new run has retries of its own"
    db.write(lambda c: jobs.transitions().due(c, now_ms() + 10, 100))
    jobs.claim(db, broker, [job_id])
    jobs.succeed(db, broker, job_id, 4)
    query = select(t.attempt.c.number, t.attempt.c.run, t.attempt.c.outcome).order_by(t.attempt.c.number)
    assert [tuple(row) for row in db.read(lambda c: c.execute(query).all())] == [
        (1, 1, "failed"),
        (2, 1, "failed"),
        (3, 2, "failed"),
        (4, 2, "completed"),
    ]
    assert jobs.audit_actions(db, job_id)[4:6] == ["job:fail", "job:rerun"]


def test_a_canceled_job_is_retried_at_once_whatever_it_waited_for(db, broker, admin):
    job_id = jobs.submit(db, broker, admin, scheduled_at=now_ms() + DAY)
    jobs.cancel(db, broker, admin, job_id)
    jobs.rerun(db, broker, admin, job_id)
    assert state(db, job_id) == ("pending", "retried")


def test_a_retry_in_every_wrong_state_says_what_is_in_the_way(db, broker, admin):
    pending, scheduled = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin, scheduled_at=now_ms() + DAY)
    blocked = jobs.submit(db, broker, admin, **jobs.after(pending))
    running, completed = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [running, completed])
    jobs.succeed(db, broker, completed)
    found = {}
    for job_id in (pending, scheduled, blocked, running, completed):
        before = jobs.audit_actions(db, job_id)
        with pytest.raises(Conflict) as refused:
            jobs.rerun(db, broker, admin, job_id)
        found[jobs.job(db, job_id)["state"]] = refused.value.code
        assert jobs.audit_actions(db, job_id) == before
    live = dict.fromkeys(("pending", "scheduled", "blocked", "processing"), "job-not-ended")
    assert found == {**live, "completed": "job-completed"}
    other = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    with pytest.raises(NotFound):
        jobs.rerun(db, broker, other, pending)


def test_what_was_removed_meanwhile_is_not_found(db, broker, admin):
    job_id = ended(db, broker, admin)
    purge(db, admin, job_id)
    for act in (jobs.cancel, jobs.rerun):
        with pytest.raises(NotFound):
            act(db, broker, admin, job_id)


def test_a_late_worker_of_an_older_run_changes_nothing(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    leases = Leases(db, broker, jobs.transitions())
    for attempt in (1, 2, 3):
        assert jobs.claim(db, broker, [job_id], f"w{attempt}")[0]["attempt"] == attempt
        leases.take_back(f"w{attempt}", Reason.LEASE_LAPSED, "test")
    assert state(db, job_id) == ("failed", "quarantined")
    jobs.rerun(db, broker, admin, job_id)
    assert jobs.claim(db, broker, [job_id], "w9")[0]["attempt"] == 4
    for attempt in (1, 2, 3):
        with pytest.raises(StaleAttempt):
            jobs.succeed(db, broker, job_id, attempt, f"w{attempt}")
    assert state(db, job_id) == ("processing", "claimed")


# --- removal ----------------------------------------------------------------------------------------------------------------

_HANGING = (t.attempt, t.job_log, t.job_output, t.trace_event, t.job_dependency, t.callback_delivery)
_CALLBACK = {"url": "https://shop.example/hook", "events": ["completed", "failed", "canceled"]}


def ended(db, broker, admin, **columns):
    """A failed job with a row in every table that hangs on it."""
    upstream = jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [upstream])
    jobs.succeed(db, broker, upstream)
    job_id = jobs.submit(db, broker, admin, callback=_CALLBACK, **jobs.after(upstream))
    jobs.claim(db, broker, [job_id])
    log = {"job_id": job_id, "attempt": 1, "seq": 1, "at": now_ms(), "stream": "stdout", "text": "x"}
    output = {"job_id": job_id, "attempt": 1, "path": "a", "size": 1, "sha256": "a" * 64}
    db.write(lambda c: (c.execute(insert(t.job_log), log), c.execute(insert(t.job_output), output)))
    jobs.fail(db, broker, job_id)
    if columns:
        change(db, job_id, **columns)
    return job_id


def told(db, job_id):
    mine = update(t.callback_delivery).where(t.callback_delivery.c.job_id == job_id)
    db.write(lambda c: c.execute(mine.values(status="delivered")))


def hanging(db, job_id):
    return {
        table.name: db.read(
            lambda c, table=table: c.execute(
                select(func.count()).select_from(table).where(table.c.job_id == job_id)
            ).scalar_one()
        )
        for table in _HANGING
    }


def purge(db, admin, *ids):
    return db.write(lambda c: jobs.transitions().purge(c, admin, list(ids), now_ms()))


def test_a_purge_leaves_the_audit_events_and_nothing_else(db, broker, admin):
    job_id = ended(db, broker, admin)
    assert all(hanging(db, job_id).values())
    assert purge(db, admin, job_id) == [job_id]
    assert not any(hanging(db, job_id).values())
    assert db.read(lambda c: c.execute(select(t.job.c.id).where(t.job.c.id == job_id)).first()) is None
    assert jobs.audit_actions(db, job_id)[-2:] == ["job:fail", "job:purge"]
    assert purge(db, admin, job_id) == []


def test_what_is_counted_over_all_time_never_falls(db, broker, admin):
    """Ends are counted from rows; a retry and a purge take them away and leave them in the sums of the past."""

    def counted():
        rows = db.read(lambda c: c.execute(select(t.job.c.state, func.count()).group_by(t.job.c.state)).all())
        gone = db.read(past.totals)
        return {end: dict(map(tuple, rows)).get(end, 0) + gone[end] for end in ("completed", "failed", "canceled")}

    assert db.read(past.totals) == dict.fromkeys(past.NAMES, 0)
    job_id = ended(db, broker, admin, started_at=1_000, finished_at=1_700)
    canceled = jobs.submit(db, broker, admin)
    jobs.cancel(db, broker, admin, canceled)
    assert counted() == {"completed": 1, "failed": 1, "canceled": 1}
    jobs.rerun(db, broker, admin, job_id)
    assert counted() == {"completed": 1, "failed": 1, "canceled": 1}
    jobs.claim(db, broker, [job_id])
    jobs.fail(db, broker, job_id, 2)
    change(db, job_id, started_at=1_000, finished_at=1_005)
    purge(db, admin, job_id, canceled)
    assert counted() == {"completed": 1, "failed": 2, "canceled": 1}
    gone = db.read(past.totals)
    assert (gone["took_count"], gone["took_ms"]) == (2, 705), "of those that had begun"
    assert [gone[f"took_le_{edge}"] for edge in (10, 500, 1_000, 1_800_000)] == [1, 1, 2, 2]


def in_batch(db, admin, *ids):
    """A batch of these jobs."""
    batch = {
        "id": uuid7(),
        "tenant_id": admin.tenant_id,
        "name": None,
        "count": len(ids),
        "submitted_by": admin.user_id,
    }

    def unit(connection):
        connection.execute(insert(t.batch).values(**batch, created_at=now_ms()))
        connection.execute(update(t.job).where(t.job.c.id.in_(ids)).values(batch_id=batch["id"]))

    db.write(unit)
    return batch["id"]


def batches(db):
    return set(db.read(lambda c: c.execute(select(t.batch.c.id)).scalars()))


def test_a_batch_goes_with_the_last_of_its_jobs(db, broker, admin):
    ids = [jobs.submit(db, broker, admin) for _ in range(3)]
    batch, other = in_batch(db, admin, *ids[:2]), in_batch(db, admin, ids[2])
    for job_id in ids:
        jobs.cancel(db, broker, admin, job_id)
    purge = jobs.transitions().purge
    assert db.write(lambda c: purge(c, admin, [ids[0]], now_ms())) == [ids[0]]
    assert batches(db) == {batch, other}
    db.write(lambda c: purge(c, None, [ids[1]], now_ms()))
    assert batches(db) == {other}
    db.write(lambda c: purge(c, None, [ids[2]], now_ms()))
    assert batches(db) == set()


def test_a_batch_whose_last_jobs_go_at_once_is_not_left(db, broker, admin):
    ids = [jobs.submit(db, broker, admin) for _ in range(16)]
    in_batch(db, admin, *ids)
    for job_id in ids:
        jobs.cancel(db, broker, admin, job_id)
    purge = jobs.transitions().purge
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: db.write(lambda c: purge(c, admin, [one], now_ms())), ids))
    assert batches(db) == set()


def test_batches_that_were_left_without_jobs_are_found_in_time(db, broker, admin, monkeypatch):
    monkeypatch.setattr(sweeper_module, "_BATCH_PAGE", 2)
    job_id = jobs.submit(db, broker, admin)
    left = [in_batch(db, admin) for _ in range(5)]
    kept = in_batch(db, admin, job_id)
    sweeper = Sweeper(db, broker, jobs.transitions(), WorkerService(db), lambda _: None, "test")
    for looks in range(1, 5):
        sweeper._next_purge = 0.0
        sweeper.run_once(100)
        assert len(batches(db) & set(left)) == max(0, 5 - 2 * looks)
    assert batches(db) == {kept}


def test_a_job_that_is_removed_as_it_is_revealed_is_not_found(db, admin):
    with pytest.raises(NotFound):
        db.write(lambda c: jobs.transitions().revealed(c, admin, uuid7(), "job", now_ms()))


def test_live_jobs_are_never_purged(db, broker, admin):
    pending, scheduled = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin, scheduled_at=now_ms() + DAY)
    blocked, running = jobs.submit(db, broker, admin, **jobs.after(pending)), jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [running])
    done = ended(db, broker, admin)
    assert purge(db, admin, pending, scheduled, blocked, running, done) == [done]
    assert [state(db, one)[0] for one in (pending, scheduled, blocked, running)] == [
        "pending",
        "scheduled",
        "blocked",
        "processing",
    ]


def test_retention_removes_what_ended_long_ago_by_kind(db, broker, admin):
    old = now_ms() - 3 * DAY
    failed = ended(db, broker, admin, finished_at=old)
    young = ended(db, broker, admin)
    told(db, failed)
    canceled, pending = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    jobs.cancel(db, broker, admin, canceled)
    change(db, canceled, finished_at=old)
    change(db, pending, created_at=old)

    def left():
        return set(db.read(lambda c: c.execute(select(t.job.c.id)).scalars()))

    sweep(db, broker)
    assert {failed, young, canceled, pending} <= left(), "nothing is removed unless the operator says so"
    sweep(db, broker, jobs=2 * DAY)
    assert canceled not in left()
    assert {failed, young, pending} <= left()
    sweep(db, broker, dead_letters=2 * DAY)
    assert failed not in left()
    assert {young, pending} <= left()
    query = select(t.audit_event.c.actor, t.audit_event.c.action).where(t.audit_event.c.object == f"job:{failed}")
    assert ("system", "job:purge") in [tuple(row) for row in db.read(lambda c: c.execute(query).all())]


def old_ones(db, broker, admin):
    """Five canceled jobs and a failed one that ended long ago."""
    ids = [jobs.submit(db, broker, admin) for _ in range(6)]
    for job_id in ids[:5]:
        jobs.cancel(db, broker, admin, job_id)
    jobs.claim(db, broker, ids[5:])
    jobs.fail(db, broker, ids[5])
    for job_id in ids:
        change(db, job_id, finished_at=now_ms() - 3 * DAY)
    return ids


def test_retention_goes_on_until_nothing_old_is_left_and_holds_up_nothing_else(db, broker, admin, monkeypatch):
    """A step a round here: what is due comes first in every round, kinds take turns, and no round waits for its time while there is more."""
    monkeypatch.setattr(sweeper_module, "_RETAIN_STEP", 2)
    monkeypatch.setattr(sweeper_module, "_REMOVE_S", 0.0)
    *canceled, failed = old_ones(db, broker, admin)
    kept = Retention(jobs=2 * DAY, dead_letters=2 * DAY)
    sweeper = Sweeper(db, broker, jobs.transitions(), WorkerService(db), lambda _: None, "test", kept)
    left = []
    for _ in range(8):
        due = jobs.submit(db, broker, admin, scheduled_at=now_ms() + DAY)
        change(db, due, ready_at=now_ms() - 1)
        sweeper.run_once(100)
        assert state(db, due)[0] == "pending"
        there = set(db.read(lambda c: c.execute(select(t.job.c.id)).scalars()))
        left.append((len(there & set(canceled)), failed in there))
    assert left[:2] == [(3, True), (3, False)]
    assert left[-1] == (0, False)


def test_keys_that_are_too_old_go_a_few_at_a_time(db, admin, broker, monkeypatch):
    monkeypatch.setattr(sweeper_module, "_KEYS_STEP", 2)
    monkeypatch.setattr(sweeper_module, "_REMOVE_S", 0.0)
    now = now_ms()
    ages = {"a": 9, "b": 8, "c": 7, "d": 6, "e": 5, "young": 0}

    def fill(connection):
        for key, days in ages.items():
            idempotency.remember(connection, admin, key, "f" * 64, {"id": uuid7()}, now - days * DAY)

    db.write(fill)
    sweeper = Sweeper(db, broker, jobs.transitions(), WorkerService(db), lambda _: None, "test")
    keys = select(t.idempotency.c.key).order_by(t.idempotency.c.created_at)
    left = []
    for _ in range(4):
        sweeper.run_once(100)
        left.append("".join(db.read(lambda c: c.execute(keys).scalars().all())))
    assert left == ["cdeyoung", "eyoung", "young", "young"]


def test_retention_waits_for_callbacks_that_are_still_to_be_delivered(db, broker, admin):
    old = now_ms() - 3 * DAY
    failed, canceled = ended(db, broker, admin, finished_at=old), jobs.submit(db, broker, admin, callback=_CALLBACK)
    jobs.cancel(db, broker, admin, canceled)
    change(db, canceled, finished_at=old)
    kept = {"jobs": 2 * DAY, "dead_letters": 2 * DAY}

    def left():
        return {failed, canceled} & set(db.read(lambda c: c.execute(select(t.job.c.id)).scalars()))

    sweep(db, broker, **kept)
    assert left() == {failed, canceled}
    told(db, failed)
    sweep(db, broker, **kept)
    assert left() == {canceled}
    sweep(db, broker, **kept, told_first=False)
    assert left() == set(), "where nothing is delivered, nothing is waited for"
