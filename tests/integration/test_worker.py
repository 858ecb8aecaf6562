"""The worker's loop, holds and execution on a real database and queue, over scripted sandboxes."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from itertools import repeat
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select, text

from cloche import clock
from cloche.db import migrate
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain.egress import Endpoint, platform_egress
from cloche.domain.events import Action
from cloche.domain.jobs import OutputFile
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import OutcomeUnknown, PlatformFailure, PluginFailure, Unavailable
from cloche.isolation.egress import EgressConnection, EgressReport
from cloche.isolation.scripted import Script, ScriptedBackend, error, result
from cloche.queueing.broker import Rules
from cloche.queueing.memory_broker import MemoryBroker
from cloche.queueing.redis_broker import RedisBroker
from cloche.queueing.redis_hints import Together
from cloche.registry.manifest import parse
from cloche.services import effects, egress
from cloche.services.attempts import AttemptRecorder
from cloche.services.egress import EgressService
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService
from cloche.staging.stager import StagedFile
from cloche.worker import execute
from cloche.worker.execute import Tools
from cloche.worker.files import check_inputs
from cloche.worker.holds import Holds
from cloche.worker.loop import WorkerLoop, claimed
from cloche.worker.renewal import Renewal
from tests.support import jobs
from tests.support.queues import make_whole
from tests.support.stores import until

ANSWER = {"answer": 42}


class NoFiles:
    """A job's files when it has none."""

    def bundle(self, _job):
        return "b" * 64, None

    def own_image(self, _job):
        return None

    def limits(self, _job):
        return Limits()

    def runtime(self, _job):
        return "runc"

    def isolation(self, _job):
        return "container"

    def preload(self, _job):
        return ()

    def stage_in(self, _job, _folder, _stop):
        return []

    def stage_out(self, _job, _remains, _stop):
        return []


@pytest.fixture
def start(db, valkey, tmp_path):
    """Start a worker over a script; everything is stopped at the end."""
    running = []

    def begin(
        script, *, worker="w1", lease_ms=15_000, heartbeat_ms=100, grace_ms=100, slots=2, allow=(), retired=False
    ):
        broker = RedisBroker(valkey.url)
        make_whole(broker)
        hub = EventHub(broker)
        backend = ScriptedBackend(tmp_path / worker, script)
        outbound = allow if callable(allow) else lambda _: allow
        workers = WorkerService(db)
        workers.register(worker, "host", 1, ["default"], slots)
        holds = Holds(db, hub, jobs.transitions(), workers, worker, lease_ms=lease_ms, heartbeat_ms=heartbeat_ms)
        holds.on_effects = lambda done: effects.apply(broker, done)
        renewal = Renewal(broker, holds, lease_ms, heartbeat_ms / 1000)
        transitions, recorder = jobs.transitions(), AttemptRecorder(db, worker)
        tools = Tools(db, broker, backend, transitions, recorder, NoFiles(), worker, outbound, lambda _bundle: retired)
        loop = WorkerLoop(tools, holds, slots=slots, lease_ms=lease_ms, poll_ms=100, grace_ms=grace_ms)
        holds.start()
        renewal.start()
        thread = threading.Thread(target=loop.run, name="worker-loop")
        thread.start()
        made = SimpleNamespace(broker=broker, backend=backend, holds=holds, loop=loop, thread=thread, hub=hub)
        made.renewal = renewal
        running.append(made)
        return made

    yield begin
    for made in running:
        made.loop.stop()
        made.thread.join(20)
        assert not made.thread.is_alive()
        made.renewal.close()
        made.holds.close()
        made.hub.close()
        made.broker.close()


def ended(db, job_id):
    def look():
        row = jobs.job(db, job_id)
        return row if row["state"] in ("completed", "failed", "canceled") else None

    return until(look, 15, "the job ends")


def in_state(db, job_id, state):
    return until(lambda: jobs.job(db, job_id)["state"] == state, 15, f"the job is {state}")


def test_a_job_runs_and_its_sandbox_is_destroyed(start, db, admin):
    worker = start(Script(running=[{"type": "log", "stream": "stdout", "text": "hi"}, result(ANSWER)]))
    row = ended(db, jobs.submit(db, worker.broker, admin))
    assert (row["state"], row["result"]) == ("completed", ANSWER)
    until(lambda: all(box.destroyed for box in worker.backend.sandboxes), 5, "destroyed")
    until(lambda: not worker.holds.all(), 5, "nothing is held")


def test_a_stopped_worker_hands_its_job_back_and_nobody_is_charged(start, db, admin):
    worker = start(Script())  # never answers
    job_id = jobs.submit(db, worker.broker, admin)
    in_state(db, job_id, "processing")
    until(lambda: worker.backend.sandboxes, 5, "it runs")
    worker.loop.stop()
    worker.thread.join(20)
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"]) == ("pending", "worker_stopped")
    assert (row["retries_used"], row["platform_failures"], row["worker_deaths"]) == (0, 0, 0)
    assert jobs.audit_actions(db, job_id) == ["job:submit", "job:start", "job:release"]
    start(Script(running=[result(ANSWER)]), worker="w2")
    assert ended(db, job_id)["state"] == "completed"


@pytest.mark.parametrize("script", [Script(), Script(reads=False)], ids=["running", "deaf"])
def test_a_cancel_reaches_a_running_job(start, db, admin, script):
    worker = start(script)
    job_id = jobs.submit(db, worker.broker, admin)
    in_state(db, job_id, "processing")
    done = db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, 1))
    effects.apply(worker.broker, done)
    assert ended(db, job_id)["state"] == "canceled"


@pytest.fixture
def without_heartbeat(start, admin, monkeypatch):
    """Start a worker that hears of cancels by their events alone, and hears them already."""
    monkeypatch.setattr(Holds, "_beat", lambda _: None)

    def begin(script):
        worker = start(script, lease_ms=3_600_000)
        probe = worker.holds.add(attempt(admin, 1))

        def heard():
            worker.broker.publish({"type": "cancel", "id": probe.job.id, "attempt": 1})
            return probe.cancel.wait(0.1)

        until(heard, 15, "it listens")
        worker.holds.remove(probe)
        return worker

    return begin


def attempt(admin, number):
    return claimed({**jobs.row(admin), "attempt": number, "lease_until": 0, "sensitive": False})


def cancel(db, broker, admin, job_id):
    effects.apply(broker, db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, clock.now_ms())))


@pytest.mark.parametrize("script", [Script(), Script(reads=False)], ids=["running", "deaf"])
def test_a_cancel_kills_the_sandbox_without_waiting_for_a_heartbeat(without_heartbeat, db, admin, script, monkeypatch):
    worker = without_heartbeat(script)
    job_id = jobs.submit(db, worker.broker, admin)
    sandbox = until(lambda: next(iter(worker.backend.sandboxes), None), 15, "it runs")
    killed_while, finish = [], sandbox.finish

    def kill():
        killed_while.append(jobs.job(db, job_id)["state"])
        return finish()

    monkeypatch.setattr(sandbox, "finish", kill)
    cancel(db, worker.broker, admin, job_id)
    assert ended(db, job_id)["state"] == "canceled"
    assert killed_while == ["processing"], "canceled is said of what is dead"
    assert sandbox.channel.sent[-1:] == ([{"type": "cancel"}] if script.reads else [])


def test_a_cancel_that_comes_between_the_claim_and_the_hold_is_not_lost(without_heartbeat, db, admin, monkeypatch):
    worker = without_heartbeat(Script())
    add = worker.holds.add

    def late(job):
        cancel(db, worker.broker, admin, job.id)
        after = add(replace(job, id=clock.uuid7()))  # its own cancel comes after that one
        worker.broker.publish({"type": "cancel", "id": after.job.id, "attempt": job.attempt})
        assert after.cancel.wait(15)
        worker.holds.remove(after)
        return add(job)

    monkeypatch.setattr(worker.holds, "add", late)
    assert ended(db, jobs.submit(db, worker.broker, admin))["state"] == "canceled"


def test_a_cancel_of_an_earlier_attempt_is_none_of_the_next(without_heartbeat, admin):
    worker = without_heartbeat(Script())
    second, first = (worker.holds.add(attempt(admin, number)) for number in (2, 1))
    for hold in (second, first):
        worker.broker.publish({"type": "cancel", "id": hold.job.id, "attempt": 1})
    assert first.cancel.wait(15)
    assert not second.cancel.is_set()
    for hold in (second, first):
        worker.holds.remove(hold)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (Script(running=[error(Reason.PLUGIN_FAILED, "boom")]), "plugin_failed"),
        (Script(ending="exit", exit_code=137, oom_killed=True), "out_of_memory"),
        (Script(ending="exit", exit_code=139), "plugin_crashed"),
        (Script(ending="exit", exit_code=0), "no_result"),
        (Script(ending="garbage"), "bad_result"),
        (Script(running=repeat({"type": "log", "stream": "stdout", "text": "x" * 1_000})), "bad_result"),
        (Script(loading=[error(Reason.PLUGIN_FAILED, "import")]), "plugin_failed"),
    ],
)
def test_a_plugins_end_has_a_name(start, db, admin, script, reason):
    worker = start(script)
    row = ended(db, jobs.submit(db, worker.broker, admin))
    assert (row["state"], row["reason"]) == ("failed", reason)


@pytest.mark.parametrize("script", [Script(), Script(reads=False)], ids=["hangs", "deaf"])
def test_the_deadline_holds_for_a_guest_that_does_nothing(start, db, admin, script):
    worker = start(script)
    row = ended(db, jobs.submit(db, worker.broker, admin, limits={**Limits().to_dict(), "time_ms": 200}))
    assert (row["state"], row["reason"]) == ("failed", "timed_out")
    assert row["error"]["details"]["limit"] == 200 <= row["error"]["details"]["used"]


def test_our_failure_is_tried_again_and_not_charged(start, db, admin):
    tries = []

    def script(spec):
        tries.append(spec.attempt)
        if spec.attempt == 1:
            return Script(create_failure=PlatformFailure(Reason.ENGINE_UNAVAILABLE, "away"))
        return Script(running=[result(ANSWER)])

    worker = start(script)
    row = ended(db, jobs.submit(db, worker.broker, admin))
    assert (row["state"], row["retries_used"], tries) == ("completed", 0, [1, 2])


def test_an_attempt_that_was_taken_away_changes_nothing(start, db, admin):
    worker = start(Script())
    job_id = jobs.submit(db, worker.broker, admin)
    in_state(db, job_id, "processing")
    until(lambda: worker.backend.sandboxes, 5, "it runs")
    row = jobs.job(db, job_id)
    db.write(lambda c: jobs.transitions().release(c, [row], Reason.LEASE_LAPSED, "test", 1))
    until(lambda: jobs.claim(db, worker.broker, [job_id], "other"), 5, "another worker has it")
    until(lambda: worker.backend.sandboxes[0].destroyed, 10, "the old sandbox is gone")
    row = jobs.job(db, job_id)
    assert (row["state"], row["lease_owner"], row["attempt"]) == ("processing", "other", 2)


def lose_an_answer(monkeypatch, db, whose, seen, *, stored=True):
    """The first write of the thread so named after which ``seen()`` holds says that its outcome is not known. Returns what tells of it."""
    write, lost = db.write, []

    def losing(unit):
        if lost or not threading.current_thread().name.startswith(whose):
            return write(unit)
        if not stored:
            lost.append(1)
            raise OutcomeUnknown
        value = write(unit)
        if seen():
            lost.append(1)
            raise OutcomeUnknown
        return value

    monkeypatch.setattr(db, "write", losing)
    return lost


def stale_writes(db):
    query = select(t.audit_event.c.object).where(t.audit_event.c.action == Action.JOB_STALE_WRITE.value)
    return db.read(lambda c: c.execute(query).scalars().all())


@pytest.mark.parametrize(
    ("says", "retries", "outcomes"),
    [
        (result(ANSWER), 0, ["completed"]),
        (error(Reason.PLUGIN_FAILED, "no"), 0, ["failed"]),
        (error(Reason.PLUGIN_FAILED, "no"), 1, ["failed", "failed"]),
    ],
    ids=["success", "failure", "retry"],
)
def test_an_end_that_was_stored_without_an_answer_stands(start, db, admin, monkeypatch, says, retries, outcomes):
    """The worker writes it again, finds its own, and takes nothing of it back: the result, the outputs, the files."""
    made = OutputFile("out.txt", 1, "a" * 64, clock.uuid7())
    monkeypatch.setattr(NoFiles, "stage_out", lambda *_: [made])
    job = jobs.row(
        admin, retry={"max_retries": retries, "backoff": "exponential", "initial_delay_ms": 1, "max_delay_ms": 1}
    )

    def attempts():
        query = select(t.attempt.c.outcome).where(t.attempt.c.job_id == job["id"]).order_by(t.attempt.c.number)
        return db.read(lambda c: c.execute(query).scalars().all())

    lost = lose_an_answer(monkeypatch, db, "slot", lambda: attempts()[:1] not in ([], [None]))
    worker = start(Script(running=[says]), heartbeat_ms=60_000)  # which would notice it first, and let it be
    effects.apply(worker.broker, db.write(lambda c: jobs.transitions().submit(c, admin, job, clock.now_ms())))
    if retries:
        until(lambda: lost and worker.backend.sandboxes[0].destroyed, 15, "the first attempt has ended")
        effects.apply(worker.broker, db.write(lambda c: jobs.transitions().due(c, clock.now_ms() + 60_000, 10)))
    row = ended(db, job["id"])
    until(lambda: not worker.holds.all(), 10, "the worker is done with it")
    assert (lost, attempts(), row["state"], row["platform_failures"]) == ([1], outcomes, outcomes[-1], 0)
    assert stale_writes(db) == []
    kept = [1, 1] if outcomes == ["completed"] else [0, 0]
    assert [
        db.read(lambda c, table=table: c.scalar(select(func.count()).select_from(table)))
        for table in (t.artifact, t.job_output)
    ] == kept
    assert row["result"] == (ANSWER if kept[0] else None)


def test_an_end_that_was_not_stored_and_came_too_late_is_refused(start, db, admin, monkeypatch):
    """Without an answer too, an attempt that was taken away meanwhile is another's."""
    gate = threading.Event()
    worker = start(Script(running=[result(ANSWER)]), heartbeat_ms=60_000)
    monkeypatch.setattr(execute, "_SETTLE_RETRY_S", 0.0)
    lost = lose_an_answer(monkeypatch, db, "slot", None, stored=False)
    losing = db.write

    def slow(unit):
        if lost and threading.current_thread().name.startswith("slot"):
            gate.wait(20)
        return losing(unit)

    monkeypatch.setattr(db, "write", slow)
    job_id = jobs.submit(db, worker.broker, admin)
    until(lambda: lost, 15, "the answer is lost")
    row = jobs.job(db, job_id)
    db.write(lambda c: jobs.transitions().release(c, [row], Reason.LEASE_LAPSED, "test", clock.now_ms()))
    until(lambda: jobs.claim(db, worker.broker, [job_id], "other"), 5, "another worker has it")
    gate.set()
    until(lambda: not worker.holds.all(), 10, "the worker is done with it")
    row = jobs.job(db, job_id)
    assert (row["state"], row["lease_owner"], row["result"]) == ("processing", "other", None)
    assert stale_writes(db) == [f"attempt:{job_id}/1"]


def test_a_trace_that_cannot_be_written_does_not_keep_the_attempt_from_ending(start, db, admin, monkeypatch):
    def refused(*_):
        raise ValueError("no such thing can be written")

    monkeypatch.setattr(AttemptRecorder, "write", refused)
    worker = start(Script(running=[result(ANSWER)]))
    job_id = jobs.submit(db, worker.broker, admin)
    until(lambda: jobs.job(db, job_id)["platform_failures"], 15, "the attempt has ended, and is ours to answer for")


def test_output_that_was_stored_without_an_answer_is_there_once(start, db, admin, monkeypatch):
    submit, lost = db.submit, []

    def losing(unit):
        future = submit(unit)
        future.result()
        if not lost and db.read(lambda c: c.scalar(select(func.count()).select_from(t.job_log))):
            lost.append(1)
            future = Future()
            future.set_exception(OutcomeUnknown())
        return future

    monkeypatch.setattr(db, "submit", losing)
    worker = start(Script(running=[{"type": "log", "stream": "stdout", "text": "once"}, result(ANSWER)]))
    row = ended(db, jobs.submit(db, worker.broker, admin))
    until(lambda: not worker.holds.all(), 10, "the worker is done with it")
    texts = db.read(lambda c: c.execute(select(t.job_log.c.text)).scalars().all())
    assert (lost, row["state"], row["attempt"], texts) == ([1], "completed", 1, ["once"])


def test_a_claim_that_was_stored_without_an_answer_is_given_back(start, db, admin, monkeypatch):
    """Nobody here runs it, and nobody waits for its lease to lapse."""
    job = jobs.row(admin)

    def claimed():
        return db.read(lambda c: c.scalar(select(t.job.c.attempt).where(t.job.c.id == job["id"]))) == 1

    lost = lose_an_answer(monkeypatch, db, "worker-loop", claimed)
    worker = start(Script(running=[result(ANSWER)]), lease_ms=600_000)
    effects.apply(worker.broker, db.write(lambda c: jobs.transitions().submit(c, admin, job, clock.now_ms())))
    row = ended(db, job["id"])
    assert (lost, row["state"], row["attempt"], row["worker_deaths"]) == ([1], "completed", 2, 0)


def test_redis_out_of_memory_neither_stops_the_worker_nor_loses_a_job(start, db, admin, valkey):
    worker = start(Script(running=[result(ANSWER)]))
    raw = worker.broker._client
    raw.config_set("maxmemory", "100kb")
    try:
        job_id = jobs.submit(db, worker.broker, admin)
    finally:
        raw.config_set("maxmemory", "0")
    assert worker.thread.is_alive()
    row = jobs.job(db, job_id)
    worker.broker.push([effects.queue_entry(row)])  # what the relay does
    assert ended(db, job_id)["state"] == "completed"


def test_what_could_not_be_claimed_is_back_at_its_place(start, db, admin, monkeypatch):
    worker = start(Script(running=[result(ANSWER)]), slots=1)
    returned, give_back, write = [], Together.give_back, db.write
    broken = threading.Event()
    broken.set()

    def failing(unit):
        if broken.is_set() and threading.current_thread().name == "worker-loop":
            raise Unavailable("the database does not answer")
        return write(unit)

    def noting(said, taken):
        returned.extend(taken := list(taken))
        give_back(said, taken)

    monkeypatch.setattr(db, "write", failing)
    monkeypatch.setattr(Together, "give_back", noting)
    job_id = jobs.submit(db, worker.broker, admin, priority=9)
    until(lambda: len(returned) >= 2, 10, "it was taken and given back, again and again")
    broken.clear()
    assert ended(db, job_id)["state"] == "completed"
    row = jobs.job(db, job_id)
    place = effects.queue_entry(row)
    assert {(one.job_id, one.queue, one.tenant, one.score) for one in returned} == {
        (job_id, "default", admin.tenant_id, place.score)
    }
    until(lambda: worker.broker.in_flight("default") == [], 5, "nothing of it is left in flight")


def test_a_row_that_somebody_holds_just_now_is_claimed_as_soon_as_it_is_free(start, db, admin):
    """A heartbeat that came as the attempt before ended holds it for a moment. Nothing here would push the id again."""
    worker = start(Script(running=[result(ANSWER)]))
    job = jobs.row(admin)
    done = db.write(lambda c: jobs.transitions().submit(c, admin, job, clock.now_ms()))
    took, take = [], worker.broker.take

    def noting(*asked):
        taken = take(*asked)
        took.extend(taken)
        return taken

    worker.broker.take = noting

    def holding(connection):
        connection.execute(select(t.job.c.id).where(t.job.c.id == job["id"]).with_for_update())
        effects.apply(worker.broker, done)
        until(lambda: db.kind == "sqlite" or len(took) >= 2, 10, "it was taken, and taken again")

    db.write(holding)
    assert ended(db, job["id"])["state"] == "completed"
    until(lambda: worker.broker.in_flight("default") == [], 5, "nothing of it is left in flight")


def test_a_heartbeat_that_began_before_the_next_attempt_leaves_that_alone(db, admin):
    broker = MemoryBroker()
    job_id = jobs.submit(db, broker, admin)
    holds = Holds(
        db, EventHub(broker), jobs.transitions(), WorkerService(db), "w1", lease_ms=15_000, heartbeat_ms=60_000
    )
    first = holds.add(claimed(jobs.claim(db, broker, [job_id])[0]))
    write, again = db.write, []

    def later(unit):
        if not again:  # while the beat is on its way, the attempt ends and the worker claims the job once more
            holds.remove(first)
            row = jobs.job(db, job_id)
            write(lambda c: jobs.transitions().release(c, [row], Reason.ENGINE_UNAVAILABLE, "w1", clock.now_ms()))
            rows, _ = write(lambda c: jobs.transitions().claim(c, [job_id], "w1", db.now_ms(), 15_000))
            again.append(holds.add(claimed(rows[0])))
        return write(unit)

    db.write = later
    holds._beat()
    assert again[0].job.attempt == 2
    assert not again[0].lost.is_set()


def test_a_limit_holds_over_workers_and_heartbeats_keep_it(start, db, admin):
    """Two workers with room for four, a queue that runs one: longer than the lease by which it is counted."""
    first = start(Script(), slots=2, lease_ms=1_000, heartbeat_ms=100)
    start(Script(), worker="w2", slots=2, lease_ms=1_000, heartbeat_ms=100)
    first.broker.set_rules([Rules("default", 2, limit=1)])
    ids = [jobs.submit(db, first.broker, admin) for _ in range(3)]
    running = select(t.job.c.id).where(t.job.c.state == "processing")
    until(lambda: db.read(lambda c: c.scalars(running).all()), 10, "one runs")
    first_lease = db.read(lambda c: c.scalar(select(func.max(t.job.c.lease_until))))
    until(lambda: db.now_ms() > first_lease, 10, "the lease that it began with is over")
    held = db.read(lambda c: c.scalars(running).all())
    assert len(held) == 1
    assert first.broker.in_flight("default") == held
    jobs.cancel(db, first.broker, admin, held[0])
    in_state(db, held[0], "canceled")
    (other,) = until(lambda: db.read(lambda c: c.scalars(running).all()), 10, "the next has its place")
    assert other in ids
    assert other != held[0]


def test_a_pause_stops_nothing_that_runs_and_ends_by_a_wake_up(start, db, admin):
    worker = start(Script())
    runs = jobs.submit(db, worker.broker, admin)
    in_state(db, runs, "processing")
    worker.broker.set_rules([Rules("default", 2, paused=True)])
    waits = jobs.submit(db, worker.broker, admin)
    renewed = jobs.job(db, runs)["lease_until"]
    until(lambda: jobs.job(db, runs)["lease_until"] > renewed, 10, "a heartbeat has passed")
    assert (jobs.job(db, runs)["state"], jobs.job(db, waits)["state"]) == ("processing", "pending")
    worker.broker.set_rules([Rules("default", 3)])
    in_state(db, waits, "processing")


def test_an_engine_that_is_away_keeps_jobs_waiting(start, db, admin):
    worker = start(Script(running=[result(ANSWER)]))
    worker.backend.problem = "no engine answers"
    until(lambda: worker.holds.reason == "no engine answers", 10, "the worker says so")
    job_id = jobs.submit(db, worker.broker, admin)
    until(lambda: WorkerService(db).summary()["reasons"] == ["no engine answers"], 10, "operators see it")
    assert jobs.job(db, job_id)["state"] == "pending"
    worker.backend.problem = None
    assert ended(db, job_id)["state"] == "completed"


def drain(db, worker):
    asked = t.worker.update().where(t.worker.c.id == worker).values(drain_requested_at=clock.now_ms())
    db.write(lambda c: c.execute(asked))


def test_a_drained_worker_finishes_what_runs_takes_nothing_more_and_leaves(start, db, admin):
    go = threading.Event()

    def running():
        go.wait(60)
        yield result(ANSWER)

    worker = start(lambda _spec: Script(running=running()), slots=2, grace_ms=0)
    first = jobs.submit(db, worker.broker, admin)
    in_state(db, first, "processing")
    drain(db, "w1")
    until(lambda: worker.holds.status == "draining", 10, "it has heard of it")
    second = jobs.submit(db, worker.broker, admin)
    shown = until(lambda: WorkerService(db).list(admin)[0]["status_reason"], 10, "operators see why")
    assert shown == "it was asked to drain"
    assert worker.thread.is_alive(), "however long it takes: grace is for those who are stopped"
    go.set()
    worker.thread.join(20)
    assert not worker.thread.is_alive()
    row = jobs.job(db, first)
    assert (row["state"], row["attempt"], row["result"]) == ("completed", 1, ANSWER)
    row = jobs.job(db, second)
    assert (row["state"], row["attempt"]) == ("pending", 0)


def test_a_worker_that_drains_can_still_be_stopped(start, db, admin):
    worker = start(Script(), grace_ms=0)  # its job never answers
    job_id = jobs.submit(db, worker.broker, admin)
    in_state(db, job_id, "processing")
    drain(db, "w1")
    until(lambda: worker.holds.status == "draining", 10, "it drains")
    worker.loop.stop()
    worker.thread.join(20)
    row = jobs.job(db, job_id)
    assert (row["state"], row["reason"]) == ("pending", "worker_stopped")


def test_a_worker_that_was_forgotten_registers_again(start, db, admin):
    worker = start(Script(running=[result(ANSWER)]))
    worker.holds.on_forgotten = lambda: WorkerService(db).register("w1", "host", 1, ["default"], 2)
    db.write(lambda c: c.execute(t.worker.delete()))
    until(lambda: WorkerService(db).list(admin), 10, "it is there again")


def test_an_attempt_without_an_engine_has_the_next_claim_look_first(start, db, admin):
    away = PlatformFailure(Reason.ENGINE_UNAVAILABLE, "no engine answers")
    tries = []

    def script(_spec):
        tries.append(1)
        worker.backend.problem = "no engine answers"  # it stays away, and health says so
        return Script(create_failure=away)

    worker = start(script, slots=1)
    ids = [jobs.submit(db, worker.broker, admin) for _ in range(3)]

    def failures():
        return sorted(jobs.job(db, job_id)["platform_failures"] for job_id in ids)

    until(lambda: worker.holds.reason == "no engine answers", 30, "the worker says so")
    until(lambda: sum(failures()) == 1, 30, "the attempt has been given up")
    assert len(tries) == 1, "only the first one met the absence"
    assert failures() == [0, 0, 1]


def test_a_cancel_ends_the_job_although_the_engine_went_as_well(start, db, admin):
    gone = PlatformFailure(Reason.ENGINE_UNAVAILABLE, "sandboxd does not answer")
    worker = start(Script(finish_failure=gone))
    job_id = jobs.submit(db, worker.broker, admin)
    in_state(db, job_id, "processing")
    until(lambda: worker.backend.sandboxes, 5, "it runs")
    effects.apply(worker.broker, db.write(lambda c: jobs.transitions().cancel(c, admin, job_id, 1)))
    row = ended(db, job_id)
    assert (row["state"], row["reason"]) == ("canceled", "canceled_by_user")


def test_what_a_pattern_found_is_held_to_the_manifest():
    manifest = parse(
        '[plugin]\nname = "p"\nversion = "1.0.0"\napi = 1\nsummary = "s"\nentry = "plugin"\n'
        '[params]\ntype = "object"\n[inputs]\nmin = 1\nmax = 2\naccept = ["image/*"]\n'
    )

    def files(*names):
        return [StagedFile(name, 1, "a" * 64, f"store:{name}") for name in names]

    check_inputs(files("a.png", "b.jpg"), manifest)
    for wrong in (files(), files("a.png", "b.png", "c.png"), files("a.exe")):
        with pytest.raises(PluginFailure) as caught:
            check_inputs(wrong, manifest)
        assert caught.value.reason == "input_unavailable"


@pytest.mark.parametrize(
    ("limits", "retired", "warm", "why"),
    [
        ({}, False, True, "the backend is scripted"),
        ({"time_ms": 5, "log": 5, "result": 500}, False, True, "the backend is scripted"),
        ({"memory": 64 << 20}, False, False, "its limits are not the plugin's own"),
        ({}, True, False, "its version takes no new jobs"),
    ],
)
def test_a_warm_sandbox_is_asked_for_where_one_may_serve(start, db, admin, limits, retired, warm, why):
    worker = start(Script(running=[result(ANSWER)]), retired=retired)
    asked = {**Limits().to_dict(), **limits}
    job_id = jobs.submit(db, worker.broker, admin, limits={**asked, "time_ms": 60_000}, priority=7)
    ended(db, job_id)
    (sandbox,) = worker.backend.sandboxes
    assert (sandbox.spec.warm, sandbox.spec.priority) == (warm, 7)
    query = select(t.trace_event.c.details).where(t.trace_event.c.event_type == "sandbox_started")
    details = db.read(lambda c: c.execute(query).scalar_one())
    assert (details["start"], details["why"]) == ("cold", why)


def test_what_a_job_reached_is_in_its_trace_and_in_the_sums(start, db, admin):
    one = EgressConnection("a.example", 443, "192.0.2.1", "closed", 10, 20, 3, 5)
    report = EgressReport((one,), 3, 15, 20, {"closed": 2, "not_allowed": 1})
    allow = (Endpoint("a.example", 443),)
    worker = start(Script(running=[result(ANSWER)], egress=report), allow=allow)
    row = ended(db, jobs.submit(db, worker.broker, admin))
    assert row["state"] == "completed"
    assert row["usage"] | {"egress_connections": 3, "egress_up": 15, "egress_down": 20} == row["usage"]
    [box] = worker.backend.sandboxes
    assert box.spec.egress
    assert box.allowed == allow
    [frame] = [frame for frame in box.channel.sent if frame["type"] == "job"]
    assert frame["egress"] == ["a.example:443"]
    assert jobs.trace(db, row["id"])[-5:-1] == ["egress_connection", "egress_closed", "finished", "staged_out"]
    sums = {line["verdict"]: line["connections"] for line in db.read(egress.totals)}
    assert sums == {"closed": 2, "not_allowed": 1}


def test_a_job_without_egress_has_neither_socket_nor_word_of_it(start, db, admin):
    worker = start(Script(running=[result(ANSWER)]))
    row = ended(db, jobs.submit(db, worker.broker, admin))
    [box] = worker.backend.sandboxes
    assert not box.spec.egress
    assert "egress" not in box.channel.sent[0]
    assert not [event for event in jobs.trace(db, row["id"]) if event.startswith("egress")]


def test_without_the_proxy_the_attempt_is_ours_and_runs_again(start, db, admin):
    away = PlatformFailure(Reason.EGRESS_UNAVAILABLE, "the egress proxy does not answer")
    scripts = iter([Script(running=[result(ANSWER)], egress_failure=away)])
    worker = start(lambda spec: next(scripts, Script(running=[result(ANSWER)])), allow=(Endpoint("a.example", 443),))
    row = ended(db, jobs.submit(db, worker.broker, admin))
    assert (row["state"], row["attempt"], row["platform_failures"], row["retries_used"]) == ("completed", 2, 1, 0)


def test_a_policy_that_became_narrower_fails_the_job_by_name(start, db, admin):
    """Checked again when the job runs, before anything is started for it."""
    manifest = parse(
        '[plugin]\nname = "p"\nversion = "1.0.0"\napi = 1\nsummary = "s"\n[network]\nallow = ["a.example:443"]\n'
    )
    service = EgressService(db, AuditLog(b"k" * 32), platform_egress(True, "*:443", ""))
    service.put(admin, ["*:443"], 0)
    worker = start(
        Script(running=[result(ANSWER)]), allow=lambda job: service.for_attempt(job.tenant_id, manifest, job.payload)
    )
    assert ended(db, jobs.submit(db, worker.broker, admin))["state"] == "completed"
    service.put(admin, [], 1)
    row = ended(db, jobs.submit(db, worker.broker, admin))
    assert (row["state"], row["reason"]) == ("failed", "egress_denied")
    assert "a.example:443, which this tenant's egress policy does not allow" in row["error"]["message"]
    assert len(worker.backend.sandboxes) == 1


def test_a_worker_that_stops_while_its_database_is_away_leaves_in_good_order(start, db, monkeypatch):
    worker = start(Script())

    def away(_unit):
        raise Unavailable("the database does not answer")

    monkeypatch.setattr(db, "write", away)
    worker.loop.stop()
    worker.thread.join(20)
    assert not worker.thread.is_alive()
    monkeypatch.undo()


def test_a_worker_whose_schema_was_changed_takes_no_jobs_and_says_why(start, db, admin):
    worker = start(Script(running=[result(ANSWER)]))
    known = db.read(migrate.seen)
    worker.holds._schema = known
    db.write(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    try:
        until(
            lambda: any("9999" in reason for reason in WorkerService(db).summary()["reasons"]), 20, "operators see it"
        )
        job_id = jobs.submit(db, worker.broker, admin)
        assert jobs.job(db, job_id)["state"] == "pending"
    finally:
        db.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": known}))
    assert ended(db, job_id)["state"] == "completed"
