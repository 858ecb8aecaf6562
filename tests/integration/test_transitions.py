"""The life of a job in the database: guarded, fenced, with a trace and a record at every step."""

import threading
import time

import pytest
from sqlalchemy import select, update

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.db.engine import now_ms as db_now_ms
from cloche.domain.jobs import OutputFile, Success
from cloche.domain.states import Reason
from cloche.errors import Conflict, PlatformFailure, PluginFailure, StaleAttempt
from cloche.queueing.broker import Rules
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services import index
from cloche.services import sweeper as sweeper_module
from cloche.services.leases import Leases
from cloche.services.relay import Relay
from cloche.services.sweeper import Sweeper
from cloche.services.workers import WorkerService
from tests.support import jobs, stores
from tests.support.queues import make_whole, take

HASH = "a" * 64


@pytest.fixture
def broker():
    made = MemoryBroker()
    make_whole(made)
    return made


def finish(db, job_id, attempt, worker="w1", result=None, outputs=()):
    outcome = Success(result=result or {"ok": True}, outputs=outputs, usage={"cpu_ms": 12})
    return db.write(lambda c: jobs.transitions().succeed(c, job_id, attempt, worker, outcome, now_ms()))


def fail(db, job_id, attempt, failure, worker="w1"):
    return db.write(lambda c: jobs.transitions().fail(c, job_id, attempt, worker, failure, now_ms()))


def test_an_accepted_job_is_recorded_and_queued(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"], row["attempt"]) == ("pending", "submitted", 0)
    assert jobs.audit_actions(db, job_id) == ["job:submit"]
    assert jobs.trace(db, job_id) == ["accepted"]
    assert take(broker, "default", 9) == [job_id]
    assert db.read(lambda c: c.execute(select(t.outbox.c.job_id)).scalars().all()) == [job_id]


def test_a_claim_opens_an_attempt_and_a_second_claim_gets_nothing(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    assert [row["id"] for row in jobs.claim(db, broker, [job_id])] == [job_id]
    assert jobs.claim(db, broker, [job_id], "w2") == []
    row = jobs.job(db, job_id)
    assert (row["state"], row["attempt"], row["lease_owner"]) == ("processing", 1, "w1")


def test_many_claimers_share_the_jobs_without_overlap(db, broker, admin):
    ids = [jobs.submit(db, broker, admin) for _ in range(30)]
    got, lock = [], threading.Lock()

    def claimer(name):
        rows = jobs.claim(db, broker, ids, name)
        with lock:
            got.extend((row["id"], name) for row in rows)

    threads = [threading.Thread(target=claimer, args=(f"w{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job_id for job_id, _ in got) == sorted(ids)


def test_success_stores_result_outputs_and_one_terminal_record(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [job_id])
    finish(db, job_id, 1, result={"n": 3}, outputs=(OutputFile("a.txt", 4, HASH, None, "store:a.txt"),))
    row = jobs.job(db, job_id)
    assert (row["state"], row["result"], row["lease_owner"]) == ("completed", {"n": 3}, None)
    assert (row["usage"]["cpu_ms"], row["usage"]["total"]["cpu_ms"], row["usage"]["total"]["attempts"]) == (12, 12, 1)
    assert jobs.audit_actions(db, job_id) == ["job:submit", "job:start", "job:complete"]
    with pytest.raises(StaleAttempt):
        finish(db, job_id, 1)
    assert jobs.audit_actions(db, job_id) == ["job:submit", "job:start", "job:complete"]


def test_a_late_worker_changes_nothing(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [job_id])
    Leases(db, broker, jobs.transitions()).take_back("w1", Reason.LEASE_LAPSED, "test")
    jobs.claim(db, broker, [job_id], "w2")
    for attempt, worker in ((1, "w1"), (2, "w1"), (1, "w2")):
        with pytest.raises(StaleAttempt):
            finish(db, job_id, attempt, worker)
        with pytest.raises(StaleAttempt):
            fail(db, job_id, attempt, PluginFailure(Reason.PLUGIN_FAILED, "x"), worker)
    assert jobs.job(db, job_id)["state"] == "processing"
    finish(db, job_id, 2, "w2")
    assert jobs.job(db, job_id)["state"] == "completed"


def test_the_plugins_failures_wait_and_then_end_the_job(db, broker, admin):
    retry = {"max_retries": 1, "backoff": "exponential", "initial_delay_ms": 1, "max_delay_ms": 1}
    job_id = jobs.submit(db, broker, admin, retry=retry)
    jobs.claim(db, broker, [job_id])
    fail(db, job_id, 1, PluginFailure(Reason.PLUGIN_FAILED, "boom"))
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"], row["retries_used"]) == ("scheduled", "retry_backoff", 1)
    db.write(lambda c: jobs.transitions().due(c, now_ms() + 10, 100))
    assert jobs.claim(db, broker, [job_id])[0]["attempt"] == 2
    fail(db, job_id, 2, PluginFailure(Reason.OUT_OF_MEMORY, "too big"))
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"], row["error"]["message"]) == ("failed", "out_of_memory", "too big")
    assert jobs.audit_actions(db, job_id)[-2:] == ["job:start", "job:fail"]


def test_our_failures_are_never_charged_to_the_job(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [job_id])
    fail(db, job_id, 1, PlatformFailure(Reason.ENGINE_UNAVAILABLE, "no engine"))
    row = jobs.job(db, job_id)
    assert (row["state"], row["retries_used"], row["platform_failures"]) == ("pending", 0, 1)


def test_a_waiting_job_is_canceled_at_once(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, now_ms()))
    assert jobs.job(db, job_id)["state"] == "canceled"
    assert jobs.claim(db, broker, [job_id]) == []
    with pytest.raises(Conflict):
        db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, now_ms()))


def test_a_running_job_is_asked_once_and_canceled_by_its_worker(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [job_id])
    for _ in range(2):
        db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, now_ms()))
    assert jobs.job(db, job_id)["state"] == "processing"
    held = db.write(lambda c: jobs.transitions().renew(c, {job_id: 1}, "w1", now_ms() + 1))
    assert held == {job_id: True}
    db.write(lambda c: jobs.transitions().canceled(c, job_id, 1, "w1", now_ms(), None))
    assert jobs.job(db, job_id)["state"] == "canceled"
    assert jobs.audit_actions(db, job_id) == ["job:submit", "job:start", "job:cancel", "job:cancel"]


def test_a_failure_after_a_cancel_is_a_cancel(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [job_id])
    db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, now_ms()))
    fail(db, job_id, 1, PluginFailure(Reason.PLUGIN_CRASHED, "killed"))
    assert jobs.job(db, job_id)["state"] == "canceled"


def test_a_poison_job_is_set_aside_after_three_workers(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    leases = Leases(db, broker, jobs.transitions())
    for attempt in (1, 2, 3):
        assert jobs.claim(db, broker, [job_id], f"w{attempt}")[0]["attempt"] == attempt
        assert leases.take_back(f"w{attempt}", Reason.LEASE_LAPSED, "test") == 1
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"], row["worker_deaths"]) == ("failed", "quarantined", 3)
    assert row["error"]["reason"] == "lease_lapsed"


def sweeper(db, broker, dead=None):
    confirmed = dead if dead is not None else []
    return Sweeper(db, broker, jobs.transitions(), WorkerService(db), confirmed.append, "scheduler:test")


def test_the_sweeper_confirms_the_dead_before_it_takes_their_leases(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    take(broker, "default", 1)
    jobs.claim(db, broker, [job_id], lease_ms=-1)
    dead = []
    sweeper(db, broker, dead).take_back_lapsed(100)
    assert dead == ["w1"]
    assert jobs.job(db, job_id)["state"] == "pending"
    assert take(broker, "default", 1) == [job_id]


def test_a_lease_that_lapses_during_the_confirmation_waits_for_its_own(db, broker, admin):
    first, second = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    jobs.claim(db, broker, [first], "w1", lease_ms=-1)
    jobs.claim(db, broker, [second], "w2")

    def confirm(worker):
        assert worker == "w1"
        db.write(lambda c: c.execute(update(t.job).where(t.job.c.id == second).values(lease_until=now_ms() - 1)))

    Sweeper(db, broker, jobs.transitions(), WorkerService(db), confirm, "scheduler:test").take_back_lapsed(100)
    assert jobs.job(db, first)["state"] == "pending"
    assert jobs.job(db, second)["state"] == "processing"


def test_a_flushed_index_is_rebuilt_with_every_pending_job(db, broker, admin):
    ids = {jobs.submit(db, broker, admin) for _ in range(50)}
    broker.flush()
    sweeper(db, broker).run_once(100)
    assert set(take(broker, "default", 100)) == ids


def test_an_id_that_was_taken_and_never_claimed_comes_back(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    take(broker, "default", 1)
    db.write(lambda c: c.execute(update(t.job).values(ready_at=now_ms() - 10_000)))
    sweeper(db, broker).run_once(100)
    assert take(broker, "default", 1) == [job_id]


def test_what_a_dead_worker_took_and_never_claimed_is_back_at_once(db, broker, admin):
    job_id = jobs.submit(db, broker, admin)
    take(broker, "default", 1)
    Leases(db, broker, jobs.transitions()).put_back_taken()
    assert take(broker, "default", 1) == [job_id]


def taken_behind_a_backlog(db, broker, admin, hold_ms=60_000):
    """A job of another tenant that a worker has taken, younger than the many that wait (and were never pushed)."""
    old, write = now_ms() - 60_000, jobs.transitions().submit
    db.write(lambda c: [write(c, admin, jobs.row(admin), old + n) for n in range(12)])
    other = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    job_id = jobs.submit(db, broker, other, priority=0)
    assert [one.job_id for one in broker.take(["default"], 1, hold_ms)] == [job_id]
    return job_id


def test_what_a_dead_worker_took_does_not_wait_behind_a_backlog_of_others(db, broker, admin, monkeypatch):
    monkeypatch.setattr(index, "PAGE", 2)
    job_id = taken_behind_a_backlog(db, broker, admin)
    Leases(db, broker, jobs.transitions()).put_back_taken()
    assert take(broker, "default", 9) == [job_id]


@pytest.mark.parametrize("hold_ms", [60_000, 1], ids=["in flight", "long ago"])
def test_the_sweeper_puts_back_what_was_taken_whoever_waits_before_it(db, broker, admin, monkeypatch, hold_ms):
    monkeypatch.setattr(index, "PAGE", 2)
    monkeypatch.setattr(sweeper_module, "_REPUSH_EVERY_S", 0.0)
    job_id = taken_behind_a_backlog(db, broker, admin, hold_ms)
    if hold_ms == 1:
        stores.until(lambda: not broker.in_flight("default"), 5, "its hold is over")
    rounds = sweeper(db, broker)
    rounds.run_once(100)
    assert broker.in_flight("default", over=True) == [job_id], "it may be on its way to be claimed"
    rounds.run_once(100)
    assert broker.in_flight("default", over=True) == []
    assert job_id in take(broker, "default", 99)


def test_what_is_being_claimed_is_left_to_its_worker(db, broker, admin, monkeypatch):
    monkeypatch.setattr(sweeper_module, "_REPUSH_EVERY_S", 0.0)
    job_id = jobs.submit(db, broker, admin)
    assert take(broker, "default", 1) == [job_id]
    rounds = sweeper(db, broker)
    rounds.run_once(100)
    jobs.claim(db, broker, [job_id])
    rounds.run_once(100)
    assert (broker.in_flight("default"), take(broker, "default", 9)) == ([job_id], [])


def test_a_limit_is_not_held_by_what_a_dead_worker_took(db, broker, admin):
    first, second = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    broker.set_rules([Rules("default", 2, limit=1)])
    assert take(broker, "default", 9) == [first]
    assert take(broker, "default", 9) == []
    Leases(db, broker, jobs.transitions()).put_back_taken()
    assert take(broker, "default", 9) == [first]
    jobs.claim(db, broker, [first])
    Leases(db, broker, jobs.transitions()).put_back_taken()
    assert take(broker, "default", 9) == [], "what runs counts"
    jobs.succeed(db, broker, first)
    assert take(broker, "default", 9) == [second]


def test_an_interrupted_job_keeps_its_place_in_the_queue(db, broker, admin):
    first = jobs.submit(db, broker, admin)
    db.write(lambda c: c.execute(update(t.job).values(ready_at=now_ms() - 60_000)))
    take(broker, "default", 1)
    jobs.claim(db, broker, [first])
    later = jobs.submit(db, broker, admin)
    Leases(db, broker, jobs.transitions()).take_back("w1", Reason.LEASE_LAPSED, "supervisor")
    assert take(broker, "default", 2) == [first, later]
    jobs.claim(db, broker, [first], "w2")
    claims = select(t.trace_event.c.details).where(
        t.trace_event.c.event_type == "claimed", t.trace_event.c.attempt == 2
    )
    assert db.read(lambda c: c.scalar(claims))["waited_ms"] < 60_000, "counted from its return, not from its first wait"


def test_an_urgent_job_that_the_index_lost_does_not_wait_behind_the_backlog(db, broker, admin):
    old = now_ms() - 60_000

    def many(connection):
        for n in range(600):
            jobs.transitions().submit(connection, admin, jobs.row(admin, priority=0), old + n)

    db.write(many)
    urgent = jobs.submit(db, MemoryBroker(), admin, priority=9)
    db.write(lambda c: c.execute(update(t.job).where(t.job.c.id == urgent).values(ready_at=now_ms() - 10_000)))
    sweeper(db, broker).run_once(100)
    assert take(broker, "default", 1) == [urgent]


def test_the_relay_pushes_what_its_writer_could_not_and_forgets_it(db, broker, admin, monkeypatch):
    monkeypatch.setattr("cloche.services.relay._GRACE_MS", 60_000)  # however slow the machine is
    pending = jobs.submit(db, MemoryBroker(), admin)  # pushed into the void
    done = jobs.submit(db, MemoryBroker(), admin)
    db.write(lambda c: jobs.transitions().cancel(c, admin, done, now_ms()))
    relay = Relay(db, broker)
    assert relay.run_once(100) == 0, "the writer gets a moment for its own push"
    db.write(lambda c: c.execute(update(t.outbox).values(created_at=now_ms() - 65_000)))
    assert relay.run_once(100) == 2
    assert take(broker, "default", 9) == [pending]
    assert relay.run_once(100) == 0


def test_two_sweepers_at_once_do_the_work_once(db, broker, admin):
    ids = [jobs.submit(db, broker, admin) for _ in range(10)]
    take(broker, "default", 100)
    jobs.claim(db, broker, ids, lease_ms=-1)
    threads = [threading.Thread(target=sweeper(db, broker).take_back_lapsed, args=(100,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job_id in ids:
        assert jobs.audit_actions(db, job_id) == ["job:submit", "job:start", "job:release"]


def test_priorities_order_the_queue(db, broker, admin):
    low, high = jobs.submit(db, broker, admin, priority=0), jobs.submit(db, broker, admin, priority=9)
    assert take(broker, "default", 2) == [high, low]


def test_workers_name_no_job_of_another_tenant(db, broker, admin):
    other = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    workers = WorkerService(db)
    workers.register("w1", "host", 1, ["default"], 4)
    mine, theirs = jobs.submit(db, broker, admin), jobs.submit(db, broker, other)
    jobs.claim(db, broker, [mine, theirs])
    assert [(w["busy"], w["current_job_ids"]) for w in workers.list(admin)] == [(2, [mine])]
    assert [(w["busy"], w["current_job_ids"]) for w in workers.list(other)] == [(2, [theirs])]


@pytest.mark.parametrize("hours", [2, -2])
def test_a_hosts_wrong_clock_costs_no_lease_on_postgresql(postgres_server, broker, monkeypatch, hours):
    """Claimed, renewed and looked at by programs whose clocks differ by hours: the server's alone counts."""
    with postgres_server.database() as url:
        db = Database(url)
        admin = stores.add_actor(db, stores.add_tenant(db), "alma")
        workers = WorkerService(db)
        workers.register("w1", "host", 1, ["default"], 2)
        workers.register("w2", "host", 2, ["default"], 2)
        silent = update(t.worker).where(t.worker.c.id == "w2")
        db.write(lambda c: c.execute(silent.values(last_heartbeat_at=db_now_ms(c) - 120_000)))
        job_id = jobs.submit(db, broker, admin)
        sweeper = Sweeper(db, broker, jobs.transitions(), workers, lambda _worker: None, "sweeper")
        real = time.time_ns
        monkeypatch.setattr("cloche.clock.time.time_ns", lambda: real() + hours * 3_600_000_000_000)
        db.write(lambda c: jobs.transitions().claim(c, [job_id], "w1", db_now_ms(c), 15_000))
        lease = jobs.job(db, job_id)["lease_until"]
        assert abs(lease - 15_000 - real() // 1_000_000) < 60_000
        assert workers.mark_stale() == ["w2"]
        monkeypatch.undo()
        assert sweeper.take_back_lapsed(10) == 0
        assert workers.mark_stale() == []
        monkeypatch.setattr("cloche.clock.time.time_ns", lambda: real() - hours * 3_600_000_000_000)
        assert sweeper.take_back_lapsed(10) == 0
        assert workers.mark_stale() == []
        assert {w["id"]: w["status"] for w in workers.list(admin)} == {"w1": "alive", "w2": "dead"}
        assert workers.summary()["count"] == 1
        monkeypatch.undo()
        db.write(lambda c: c.execute(update(t.job).values(lease_until=db_now_ms(c) - 1)))
        assert sweeper.take_back_lapsed(10) == 1
        db.close()
