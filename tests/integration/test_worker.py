"""The worker's loop, holds and execution on a real database and queue, over scripted sandboxes."""

from __future__ import annotations

import threading
from itertools import repeat
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain.egress import Endpoint, platform_egress
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure, PluginFailure
from cloche.isolation.egress import EgressConnection, EgressReport
from cloche.isolation.scripted import Script, ScriptedBackend, error, result
from cloche.queueing.redis_broker import RedisBroker
from cloche.registry.manifest import parse
from cloche.services import effects, egress
from cloche.services.attempts import AttemptRecorder
from cloche.services.egress import EgressService
from cloche.services.watch import EventHub
from cloche.services.workers import WorkerService
from cloche.staging.stager import StagedFile
from cloche.worker.execute import Tools
from cloche.worker.files import check_inputs
from cloche.worker.holds import Holds
from cloche.worker.loop import WorkerLoop
from tests.support import jobs
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
        broker.rebuild([])
        hub = EventHub(broker)
        backend = ScriptedBackend(tmp_path / worker, script)
        outbound = allow if callable(allow) else lambda _: allow
        workers = WorkerService(db)
        workers.register(worker, "host", 1, ["default"], slots)
        holds = Holds(db, hub, jobs.transitions(), workers, worker, lease_ms=lease_ms, heartbeat_ms=heartbeat_ms)
        holds.on_effects = lambda done: effects.apply(broker, done)
        transitions, recorder = jobs.transitions(), AttemptRecorder(db, worker)
        tools = Tools(db, broker, backend, transitions, recorder, NoFiles(), worker, outbound, lambda _bundle: retired)
        loop = WorkerLoop(tools, holds, slots=slots, lease_ms=lease_ms, poll_ms=100, grace_ms=grace_ms)
        holds.start()
        thread = threading.Thread(target=loop.run)
        thread.start()
        made = SimpleNamespace(broker=broker, backend=backend, holds=holds, loop=loop, thread=thread, hub=hub)
        running.append(made)
        return made

    yield begin
    for made in running:
        made.loop.stop()
        made.thread.join(20)
        assert not made.thread.is_alive()
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
    jobs.claim(db, worker.broker, [job_id], "other")
    until(lambda: worker.backend.sandboxes[0].destroyed, 10, "the old sandbox is gone")
    row = jobs.job(db, job_id)
    assert (row["state"], row["lease_owner"], row["attempt"]) == ("processing", "other", 2)


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
    worker.broker.push([effects.ready(job_id, "default", row["ready_at"], row["priority"])])  # what the relay does
    assert ended(db, job_id)["state"] == "completed"


def test_an_engine_that_is_away_keeps_jobs_waiting(start, db, admin):
    worker = start(Script(running=[result(ANSWER)]))
    worker.backend.problem = "no engine answers"
    until(lambda: worker.holds.reason == "no engine answers", 10, "the worker says so")
    job_id = jobs.submit(db, worker.broker, admin)
    until(lambda: WorkerService(db).summary()["reasons"] == ["no engine answers"], 10, "operators see it")
    assert jobs.job(db, job_id)["state"] == "pending"
    worker.backend.problem = None
    assert ended(db, job_id)["state"] == "completed"


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
