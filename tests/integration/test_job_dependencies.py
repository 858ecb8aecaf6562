"""Jobs that wait for jobs: released and canceled with the end of their upstreams, in chains, crowds and races."""

import threading

import pytest
from sqlalchemy import func, insert, select, update

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.states import Reason
from cloche.errors import Conflict, Invalid
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services import dependents as dependents_module
from cloche.services import effects
from cloche.services.dependents import PER_TRANSACTION
from cloche.services.sweeper import Sweeper
from cloche.services.workers import WorkerService
from tests.support import jobs, stores
from tests.support.queues import make_whole, take

DAY = 86_400_000


@pytest.fixture
def broker():
    made = MemoryBroker()
    make_whole(made)
    return made


def state(db, job_id):
    row = jobs.job(db, job_id)
    return row["state"], row["reason"]


def end(db, broker, job_id, how="completed", admin=None):
    if how == "canceled":
        jobs.cancel(db, broker, admin, job_id)
        return
    number = jobs.claim(db, broker, [job_id])[0]["attempt"]
    (jobs.succeed if how == "completed" else jobs.fail)(db, broker, job_id, number)


def test_a_dependent_runs_once_all_have_completed(db, broker, admin):
    first, second = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    job_id = jobs.submit(db, broker, admin, **jobs.after(first, second))
    assert state(db, job_id) == ("blocked", "waits_for_jobs")
    take(broker, "default", 9)
    assert jobs.claim(db, broker, [job_id]) == []
    end(db, broker, first)
    assert state(db, job_id) == ("blocked", "waits_for_jobs")
    end(db, broker, second)
    assert state(db, job_id) == ("pending", "dependencies_met")
    assert take(broker, "default", 9) == [job_id]
    assert jobs.trace(db, job_id) == ["accepted", "dependencies_met"]
    assert db.read(lambda c: c.execute(select(t.outbox.c.job_id)).scalars().all()).count(job_id) == 1


def test_nobody_of_another_tenant_is_told_whatever_the_rows_say(db, broker, admin):
    """A dependency goes from a tenant to itself; one that does not (a mistake, an old backup) frees nobody's job."""
    other = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    first = jobs.submit(db, broker, admin)
    mine, theirs = jobs.submit(db, broker, admin, **jobs.after(first)), jobs.submit(db, broker, other)
    blocked = {"state": "blocked", "reason": "waits_for_jobs"}

    def stray(connection):
        connection.execute(update(t.job).where(t.job.c.id == theirs).values(blocked))
        connection.execute(insert(t.job_dependency), {"job_id": theirs, "upstream_id": first})

    db.write(stray)
    end(db, broker, first)
    assert state(db, mine) == ("pending", "dependencies_met")
    assert state(db, theirs) == ("blocked", "waits_for_jobs")


@pytest.mark.parametrize("how", ["failed", "canceled"])
@pytest.mark.parametrize(
    ("condition", "on_failure", "after_first", "after_both"),
    [
        ("all_completed", "cancel", "canceled", "canceled"),
        ("all_completed", "continue", "blocked", "pending"),
        ("all_resolved", "cancel", "blocked", "canceled"),
        ("all_resolved", "continue", "blocked", "pending"),
    ],
)
def test_what_a_failure_means(db, broker, admin, how, condition, on_failure, after_first, after_both):
    first, second = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    job_id = jobs.submit(db, broker, admin, **jobs.after(first, second, condition=condition, on_failure=on_failure))
    end(db, broker, first, how, admin)
    assert state(db, job_id)[0] == after_first
    end(db, broker, second)
    assert state(db, job_id)[0] == after_both
    row = jobs.job(db, job_id)
    if after_both == "canceled":
        assert row["reason"] == "upstream_failed"
        assert row["error"]["reason"] == "upstream_failed"
        assert jobs.audit_actions(db, job_id) == ["job:submit", "job:cancel"]


@pytest.mark.parametrize("how", ["completed", "failed", "canceled"])
def test_an_upstream_that_has_already_ended_counts_at_once(db, broker, admin, how):
    upstream = jobs.submit(db, broker, admin)
    end(db, broker, upstream, how, admin)
    job_id = jobs.submit(db, broker, admin, **jobs.after(upstream))
    goes_on = jobs.submit(db, broker, admin, **jobs.after(upstream, condition="all_resolved", on_failure="continue"))
    assert state(db, goes_on) == ("pending", "submitted")
    if how == "completed":
        assert state(db, job_id) == ("pending", "submitted")
    else:
        assert state(db, job_id) == ("canceled", "upstream_failed")
        assert upstream in jobs.job(db, job_id)["error"]["message"]
        assert jobs.trace(db, job_id) == ["accepted", "canceled"]
        assert jobs.audit_actions(db, job_id) == ["job:submit", "job:cancel"]


def test_a_dependent_with_a_time_of_its_own_waits_for_both(db, broker, admin):
    upstream = jobs.submit(db, broker, admin)
    job_id = jobs.submit(db, broker, admin, scheduled_at=now_ms() + DAY, **jobs.after(upstream))
    end(db, broker, upstream)
    assert state(db, job_id) == ("scheduled", "waits_for_time")
    db.write(lambda c: jobs.transitions().due(c, now_ms() + 2 * DAY, 10))
    assert state(db, job_id) == ("pending", "due")


def test_a_job_that_is_not_there_and_one_of_another_tenant_are_the_same(db, broker, admin):
    other = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    theirs, mine = jobs.submit(db, broker, other), jobs.submit(db, broker, admin)
    texts = set()
    for unknown in (theirs, uuid7()):
        with pytest.raises(Invalid) as refused:
            jobs.submit(db, broker, admin, **jobs.after(mine, unknown))
        assert [problem.pointer for problem in refused.value.problems] == ["/depends_on/1"]
        texts.add(refused.value.problems[0].detail)
    assert len(texts) == 1
    own = jobs.row(admin)
    row = {**own, **jobs.after(own["id"])}
    with pytest.raises(Invalid):  # on itself: it is not there yet
        db.write(lambda c: jobs.transitions().submit(c, admin, row, now_ms()))
    assert db.read(lambda c: c.execute(select(func.count()).select_from(t.job)).scalar_one()) == 2
    assert db.read(lambda c: c.execute(select(func.count()).select_from(t.job_dependency)).scalar_one()) == 0


def test_every_way_to_end_tells_the_dependents(db, broker, admin):
    def chained(**more):
        upstream = jobs.submit(db, broker, admin, **more)
        return upstream, jobs.submit(db, broker, admin, **jobs.after(upstream))

    running, waits = chained()
    jobs.claim(db, broker, [running])
    jobs.cancel(db, broker, admin, running)
    assert state(db, waits) == ("blocked", "waits_for_jobs"), "not before the worker has stopped it"
    effects.apply(broker, db.write(lambda c: jobs.transitions().canceled(c, running, 1, "w1", now_ms(), None)))
    assert state(db, waits) == ("canceled", "upstream_failed")

    expired, waits = chained(expires_at=now_ms() - 1)
    db.write(lambda c: jobs.transitions().expire(c, now_ms(), 10))
    assert state(db, expired) == ("canceled", "expired")
    assert state(db, waits) == ("canceled", "upstream_failed")

    poison, waits = chained()
    for worker in ("p1", "p2", "p3"):
        rows = jobs.claim(db, broker, [poison], worker)
        db.write(lambda c, rows=rows: jobs.transitions().release(c, rows, Reason.LEASE_LAPSED, "test", now_ms()))
    assert state(db, poison) == ("failed", "quarantined")
    assert state(db, waits) == ("canceled", "upstream_failed")

    retried, waits = chained(retry={"max_retries": 1, "initial_delay_ms": 1, "max_delay_ms": 1})
    end(db, broker, retried, "failed")
    assert state(db, waits) == ("blocked", "waits_for_jobs"), "an attempt's failure is no end"


def test_a_cancelation_goes_down_a_diamond_and_stops_at_those_who_go_on(db, broker, admin):
    top = jobs.submit(db, broker, admin)
    left, right = (jobs.submit(db, broker, admin, **jobs.after(top)) for _ in range(2))
    bottom = jobs.submit(db, broker, admin, **jobs.after(left, right))
    stays = jobs.submit(db, broker, admin, **jobs.after(left, bottom, condition="all_resolved", on_failure="continue"))
    end(db, broker, top, "failed")
    for job_id in (left, right, bottom):
        assert state(db, job_id) == ("canceled", "upstream_failed")
        assert jobs.audit_actions(db, job_id) == ["job:submit", "job:cancel"]
    assert state(db, stays) == ("pending", "dependencies_met")


def sweep(db, broker):
    sweeper = Sweeper(db, broker, jobs.transitions(), WorkerService(db), lambda worker: None, "scheduler:test")
    while sweeper.run_once(100) >= 100:
        pass


def counted(db, job_state):
    return db.read(lambda c: c.execute(select(func.count()).where(t.job.c.state == job_state)).scalar_one())


def test_a_crowd_is_told_in_transactions_of_bounded_size(db, broker, admin):
    upstream = jobs.submit(db, broker, admin)
    many = 2 * PER_TRANSACTION + 7

    def crowd(connection):
        for _ in range(many):
            jobs.transitions().submit(connection, admin, jobs.row(admin, **jobs.after(upstream)), now_ms())

    db.write(crowd)
    end(db, broker, upstream)
    assert counted(db, "pending") == PER_TRANSACTION
    assert db.write(lambda c: jobs.transitions().purge(c, admin, [upstream], now_ms())) == [], "others do not know yet"
    sweep(db, broker)
    assert (counted(db, "pending"), counted(db, "blocked")) == (many, 0)
    assert db.read(lambda c: c.execute(select(func.count()).select_from(t.job_release)).scalar_one()) == 0
    assert len(set(take(broker, "default", 5_000))) >= many


def test_a_long_chain_is_canceled_to_its_end(db, broker, admin):
    first = last = jobs.submit(db, broker, admin)
    length = 2 * dependents_module._UPSTREAMS + 5

    def chain(connection):
        nonlocal last
        for _ in range(length):
            row = jobs.row(admin, **jobs.after(last))
            jobs.transitions().submit(connection, admin, row, now_ms())
            last = row["id"]

    db.write(chain)
    end(db, broker, first, "failed")
    assert 0 < counted(db, "canceled") < length
    sweep(db, broker)
    assert (counted(db, "canceled"), counted(db, "blocked")) == (length, 0)
    assert state(db, last) == ("canceled", "upstream_failed")


def test_an_upstream_that_is_retried_before_all_were_told_lets_the_rest_wait(db, broker, admin):
    upstream = jobs.submit(db, broker, admin)

    def crowd(connection):
        for _ in range(PER_TRANSACTION + 3):
            jobs.transitions().submit(connection, admin, jobs.row(admin, **jobs.after(upstream)), now_ms())

    db.write(crowd)
    end(db, broker, upstream, "failed")
    jobs.rerun(db, broker, admin, upstream)
    sweep(db, broker)
    assert (counted(db, "canceled"), counted(db, "blocked")) == (PER_TRANSACTION, 3)
    end(db, broker, upstream)
    assert (counted(db, "canceled"), counted(db, "blocked"), counted(db, "pending")) == (PER_TRANSACTION, 0, 3)


def test_retrying_an_upstream_and_then_its_dependent(db, broker, admin):
    upstream = jobs.submit(db, broker, admin)
    job_id = jobs.submit(db, broker, admin, **jobs.after(upstream))
    end(db, broker, upstream, "failed")
    with pytest.raises(Conflict) as refused:
        jobs.rerun(db, broker, admin, job_id)
    assert refused.value.code == "upstream-failed"
    assert upstream in refused.value.detail
    jobs.rerun(db, broker, admin, upstream)
    assert state(db, job_id) == ("canceled", "upstream_failed"), "it stays canceled until somebody retries it too"
    jobs.rerun(db, broker, admin, job_id)
    assert state(db, job_id) == ("blocked", "waits_for_jobs")
    end(db, broker, upstream)
    assert state(db, job_id) == ("pending", "dependencies_met")
    end(db, broker, job_id)
    assert state(db, job_id) == ("completed", "succeeded")


def test_a_blocked_dependent_counts_the_newer_end_of_a_retried_upstream(db, broker, admin):
    first, second = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    job_id = jobs.submit(db, broker, admin, **jobs.after(first, second, condition="all_resolved", on_failure="cancel"))
    end(db, broker, first, "failed")
    jobs.rerun(db, broker, admin, first)
    end(db, broker, first)
    end(db, broker, second)
    assert state(db, job_id) == ("pending", "dependencies_met")


def test_a_purged_upstream_counts_as_it_ended(db, broker, admin):
    completed, failed = jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)
    job_id = jobs.submit(db, broker, admin, **jobs.after(completed))
    other = jobs.submit(db, broker, admin, **jobs.after(failed))
    never = jobs.submit(db, broker, admin, **jobs.after(jobs.submit(db, broker, admin)))
    end(db, broker, completed)
    end(db, broker, failed, "failed")
    end(db, broker, job_id, "failed")
    jobs.cancel(db, broker, admin, never)
    gone = [completed, failed, *jobs.job(db, never)["depends_on"]]
    jobs.cancel(db, broker, admin, gone[2])
    db.write(lambda c: jobs.transitions().purge(c, admin, gone, now_ms()))
    jobs.rerun(db, broker, admin, job_id)
    assert state(db, job_id) == ("pending", "retried")
    with pytest.raises(Conflict, match="failed"):
        jobs.rerun(db, broker, admin, other)
    with pytest.raises(Conflict) as refused:
        jobs.rerun(db, broker, admin, never)
    assert refused.value.code == "upstream-gone"


def test_upstreams_that_end_while_their_dependents_are_submitted(database_url, db, broker, admin):
    """Two processes' worth of writers: whichever is first, nobody is left blocked and nobody runs twice."""
    url = database_url
    upstreams = [jobs.submit(db, broker, admin) for _ in range(40)]
    jobs.claim(db, broker, upstreams)
    other, made, start = Database(url), [], threading.Barrier(2)

    def submits():
        start.wait()
        made.extend(jobs.submit(other, MemoryBroker(), admin, **jobs.after(one)) for one in upstreams)

    def ends():
        start.wait()
        for n, upstream in enumerate(upstreams):
            (jobs.fail if n % 2 else jobs.succeed)(db, broker, upstream)

    threads = [threading.Thread(target=target) for target in (submits, ends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    found = [state(db, job_id)[0] for job_id in made]
    assert found == ["pending", "canceled"] * 20
    for job_id in made:
        events = jobs.trace(db, job_id)
        assert events.count("dependencies_met") + events.count("canceled") <= 1


def test_two_upstreams_that_end_at_once_tell_their_dependent_together(database_url, db, broker, admin):
    """Whoever is second sees that it is the last, whichever writer that is."""
    other, start = Database(database_url), threading.Barrier(2)
    pairs = [(jobs.submit(db, broker, admin), jobs.submit(db, broker, admin)) for _ in range(25)]
    waits = [jobs.submit(db, broker, admin, **jobs.after(*pair)) for pair in pairs]
    jobs.claim(db, broker, [job_id for pair in pairs for job_id in pair])

    def ends(store, mine):
        start.wait()
        for job_id in mine:
            jobs.succeed(store, MemoryBroker(), job_id)

    threads = [
        threading.Thread(target=ends, args=(store, [pair[n] for pair in pairs])) for n, store in enumerate((db, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert [state(db, job_id) for job_id in waits] == [("pending", "dependencies_met")] * 25
    assert {jobs.trace(db, job_id).count("dependencies_met") for job_id in waits} == {1}
