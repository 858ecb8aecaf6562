"""Statistics on both databases: what they count, whose jobs, how they are bounded, and that no query reads the whole table."""

from __future__ import annotations

import pytest
from sqlalchemy import event, insert, select, text

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.domain import statistics as rules
from cloche.domain.states import State
from cloche.services import counting
from tests.support import jobs, stores
from tests.support.web import problem, running_site, where

MINUTE = 60_000
LIFE = {"attempt": 0, "retries_used": 0, "platform_failures": 0, "worker_deaths": 0, "run": 1, "audit_seq": 1}


@pytest.fixture
def site(tmp_path, database_url):
    with running_site(tmp_path / "home", database=database_url) as running:
        running.add("vera", "viewer")
        yield running


@pytest.fixture
def actor(site):
    """The admin as the services see them."""
    query = select(t.user.c.id, t.user_role.c.tenant_id).join(t.user_role, t.user_role.c.user_id == t.user.c.id)
    user_id, tenant_id = site.services.db.read(lambda c: c.execute(query.where(t.user.c.username == "admin")).one())
    return stores.Actor(user_id, "admin", tenant_id, stores.BUILTIN_ROLES["admin"])


def put(site, actor, state, count=1, *, ago=0, wait=100, run=1_000, worker=None, **more):
    """Jobs in that state, which ended (or, of those that have not, came) ``ago`` ms ago; each waited and ran so long, in ms."""
    at = now_ms() - ago
    ended = state in ("completed", "failed", "canceled")
    started = ended and more.pop("started", True)
    rows = []
    for _ in range(count):
        row = {**jobs.row(actor), **LIFE, "has_dependents": False, "state": state, "reason": "submitted", **more}
        came = at - run - wait if ended else at
        row |= {"created_at": came, "ready_at": more.get("ready_at", came)}
        row |= {"started_at": at - run if started else None, "finished_at": at if ended else None}
        rows.append(row | ({"attempt": 1} if started or worker else {}))
    tries = [
        {"job_id": row["id"], "number": 1, "run": 1, "worker_id": worker, "phase": "staging_out", "outcome": state}
        | {"reason": "succeeded", "started_at": at - run, "finished_at": at}
        for row in rows
        if worker
    ]

    def unit(connection):
        connection.execute(insert(t.job), rows)
        if tries:
            connection.execute(insert(t.attempt), tries)

    site.services.db.write(unit)
    return [row["id"] for row in rows]


def get(site, path, user="admin", **query):
    answer = site.request("GET", path, user, query_string=query)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_a_platform_without_jobs_has_zeros_and_no_percentiles(site):
    found = get(site, "/stats", "vera")
    assert set(found["jobs"].values()) == {0}
    assert (found["dead_letters"], found["counts_complete"]) == (0, True)
    assert {window["failure_share"] for window in found["windows"].values()} == {None}
    assert found["times"] == {"window": "1h", "jobs_looked_at": 0, "complete": True, "wait_s": None, "run_s": None}
    assert found["slots"] == {"total": 0, "busy": 0, "free": 0, "utilisation": None}
    assert [queue["name"] for queue in found["queues"]] == ["default", "sensitive"]
    stats = get(site, "/queues/default/stats", "vera")
    assert (stats["window_s"], stats["oldest_age_s"], stats["times"]["wait_s"]) == (300.0, None, None)
    assert get(site, "/workers/stats", "vera")["workers"] == []


def test_jobs_are_counted_in_the_windows_they_fall_into(site, actor):
    put(site, actor, "pending", 3, ago=20_000)
    put(site, actor, "blocked", 2, ago=2 * MINUTE)
    put(site, actor, "scheduled", queue="sensitive", ago=10 * MINUTE)
    put(site, actor, "completed", 4, ago=15_000, wait=200, run=2_000)
    put(site, actor, "failed", 1, ago=2 * MINUTE, wait=100, run=4_000)
    put(site, actor, "completed", 5, ago=30 * MINUTE, wait=100, run=1_000)
    put(site, actor, "canceled", 1, ago=30 * MINUTE, started=False)
    put(site, actor, "failed", 7, ago=3 * 60 * MINUTE)
    found = get(site, "/stats")
    assert found["jobs"] == {"scheduled": 1, "blocked": 2, "pending": 3, "processing": 0}
    assert found["dead_letters"] == 8
    minute, five, hour = (found["windows"][name] for name in ("1m", "5m", "1h"))
    names = ("arrived", "completed", "failed", "canceled", "failure_share", "complete")
    assert [minute[name] for name in names] == [7, 4, 0, 0, 0.0, True]
    assert [five[name] for name in names] == [10, 4, 1, 0, 0.2, True]
    assert [hour[name] for name in names] == [17, 9, 1, 1, 0.1, True]
    assert (minute["arrival_rate"], minute["completion_rate"]) == (0.1167, 0.0667)
    times = found["times"]
    assert (times["jobs_looked_at"], times["complete"]) == (11, True)
    assert (times["wait_s"]["p50"], times["wait_s"]["p99"]) == (0.1, 0.2)
    assert (times["run_s"]["p50"], times["run_s"]["p99"]) == (1.0, 4.0)
    default, sensitive = found["queues"]
    assert (default["depth"]["pending"], sensitive["depth"]["scheduled"]) == (3, 1)
    assert default["oldest_age_s"] >= 20 > 0
    assert sensitive["oldest_age_s"] is None, "a job that waits for its time is not late"
    assert default["windows"]["5m"]["completed"] == 4


def test_one_queue_over_the_window_that_was_asked_for(site, actor):
    put(site, actor, "completed", 2, ago=15_000, run=500)
    put(site, actor, "failed", 1, ago=10 * MINUTE, run=9_000)
    put(site, actor, "completed", 3, ago=15_000, queue="sensitive")
    put(site, actor, "pending", 2, ago=5_000)
    short = get(site, "/queues/default/stats")
    assert (short["name"], short["window_s"], short["depth"]["pending"]) == ("default", 300.0, 2)
    assert (short["flow"]["completed"], short["flow"]["failed"], short["flow"]["arrived"]) == (2, 0, 4)
    assert short["times"]["run_s"] == {"p50": 0.5, "p95": 0.5, "p99": 0.5}
    long = get(site, "/queues/default/stats", window="20m")
    assert (long["window_s"], long["flow"]["failed"], long["flow"]["failure_share"]) == (1_200.0, 1, 0.3333)
    assert long["times"]["run_s"]["p99"] == 9.0


def test_a_queue_is_there_once_a_job_of_the_tenant_was_in_it_and_to_nobody_else(site, actor):
    stranger = stores.add_actor(site.services.db, stores.add_tenant(site.services.db, "other"), "otto")
    put(site, stranger, "pending", 1, queue="theirs")
    put(site, actor, "pending", 1, queue="ours")
    assert get(site, "/queues/ours/stats")["depth"]["pending"] == 1
    assert [queue["name"] for queue in get(site, "/stats")["queues"]] == ["default", "ours", "sensitive"]
    for name in ("theirs", "none", "x" * 300, "a%0Ab", "'"):
        problem(site.request("GET", f"/queues/{name}/stats"), 404)


def test_the_list_of_queues_is_bounded_too(site, actor, monkeypatch):
    put(site, actor, "completed", 4)
    put(site, actor, "pending", 2, ago=5_000)

    def default():
        return get(site, "/queues")["items"][0]

    assert list(default()["depth"]) == [state.value for state in State]
    assert (default()["depth"]["completed"], default()["depth"]["pending"]) == (4, 2)
    assert (default()["depth_complete"], default()["oldest_age_s"] >= 5) == (True, True)
    monkeypatch.setattr(counting, "MOST_WAITING", 3)
    assert (default()["depth"]["completed"], default()["depth_complete"]) == (3, False)


def test_a_queue_that_was_created_has_statistics_before_its_first_job(site, actor):
    stranger = stores.add_actor(site.services.db, stores.add_tenant(site.services.db, "other"), "otto")
    assert site.request("POST", "/queues", json={"name": "night"}).status_code == 201
    put(site, stranger, "pending", 1, queue="night")
    assert set(get(site, "/queues/night/stats", "vera")["depth"].values()) == {0}, "another tenant's job"
    assert [queue["name"] for queue in get(site, "/stats")["queues"]] == ["default", "sensitive"]


def test_another_tenants_jobs_never_count(site, actor):
    db = site.services.db
    stranger = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    worker = uuid7()
    site.services.workers.register(worker, "host-1", 7, ["default"], 4)
    for state in ("pending", "scheduled", "completed", "failed", "canceled"):
        put(site, stranger, state, 5, ago=1_000, worker=worker if state in ("completed", "failed") else None)
    job = put(site, stranger, "pending", 1)
    db.write(lambda c: jobs.transitions().claim(c, job, worker, now_ms(), 60_000))
    found = get(site, "/stats")
    assert (set(found["jobs"].values()), found["dead_letters"], found["times"]["jobs_looked_at"]) == ({0}, 0, 0)
    assert {window["arrived"] for window in found["windows"].values()} == {0}
    assert {window["completion_rate"] for window in found["windows"].values()} == {0}
    assert get(site, "/queues/default/stats", window="1h")["flow"]["arrived"] == 0
    workers = get(site, "/workers/stats", window="1h")
    # How busy workers are is the platform's, as `GET /workers` says it.
    assert (workers["slots"]["busy"], workers["jobs_looked_at"], workers["workers"][0]["completed"]) == (1, 0, 0)
    theirs = site.services.statistics.workers(stranger, 3_600_000)
    assert [theirs["workers"][0][name] for name in ("completed", "failed")] == [5, 5]


def test_workers_and_what_each_finished(site, actor):
    service, db = site.services.workers, site.services.db
    alive, draining, dead = uuid7(), uuid7(), uuid7()
    for worker_id, slots in ((alive, 4), (draining, 2), (dead, 8)):
        service.register(worker_id, "host-1", 7, ["default"], slots)
    site.services.drains.drain(actor, draining)
    service.leave(dead, "stopped")
    put(site, actor, "completed", 3, ago=1_000, worker=alive)
    put(site, actor, "failed", 2, ago=1_000, worker=dead)
    put(site, actor, "completed", 9, ago=10 * MINUTE, worker=alive)
    job = put(site, actor, "pending")
    db.write(lambda c: jobs.transitions().claim(c, job, alive, now_ms(), 60_000))
    found = get(site, "/workers/stats")
    assert found["count"] == {"alive": 1, "draining": 1, "dead": 1}
    assert found["slots"] == {"total": 4, "busy": 1, "free": 3, "utilisation": 0.25}
    by_id = {row["id"]: row for row in found["workers"]}
    assert (by_id[alive]["completed"], by_id[alive]["busy"], by_id[alive]["status"]) == (3, 1, "alive")
    assert (by_id[dead]["failed"], by_id[dead]["status"]) == (2, "dead")
    assert (found["jobs_looked_at"], found["complete"]) == (5, True)
    assert get(site, "/workers/stats", window="1h")["jobs_looked_at"] == 14
    overall = get(site, "/stats")
    assert (overall["workers"], overall["slots"]) == (found["count"], found["slots"])


def test_a_try_that_did_not_end_the_job_is_nobodys(site, actor):
    worker = uuid7()
    site.services.workers.register(worker, "host-1", 7, ["default"], 4)
    (job,) = put(site, actor, "canceled", ago=1_000, worker=worker)
    failed = t.attempt.update().where(t.attempt.c.job_id == job).values(outcome="failed")
    site.services.db.write(lambda c: c.execute(failed))  # it waited for a retry when it was canceled
    found = get(site, "/workers/stats")
    assert (found["jobs_looked_at"], found["workers"][0]["completed"], found["workers"][0]["failed"]) == (1, 0, 0)


def test_looking_stops_and_the_answer_says_so(site, actor, monkeypatch):
    for module in (counting, rules):
        monkeypatch.setattr(module, "MOST_COUNTED", 10)
        monkeypatch.setattr(module, "MOST_WAITING", 5)
    put(site, actor, "completed", 20, ago=20_000)
    put(site, actor, "failed", 12, ago=10 * MINUTE)
    put(site, actor, "pending", 8, ago=25_000)
    found = get(site, "/queues/default/stats", window="1h")
    assert (found["depth"]["pending"], found["depth_complete"]) == (5, False)
    flow = found["flow"]
    assert (flow["completed"], flow["arrived"], flow["complete"]) == (10, 10, False)
    assert 0.3 < flow["completion_rate"] <= 0.5, (
        "ten within the twenty seconds that were looked at, not within the hour"
    )
    overall = get(site, "/stats")
    assert (overall["dead_letters"], overall["counts_complete"]) == (10, False)
    some, complete = site.services.db.read(
        lambda c: counting.timed(c, actor.tenant_id, ["default", "sensitive"], now_ms() - 3_600_000, 25)
    )
    assert ([job.state for job in some], complete) == (["completed"] * 20 + ["failed"] * 5, False), "the newest"


def test_what_has_ended_is_part_of_a_queues_depth_and_bounded_too(site, actor, monkeypatch):
    put(site, actor, "completed", 4)
    put(site, actor, "failed", 2, ago=MINUTE)
    put(site, actor, "pending", 3)
    put(site, actor, "canceled", 5, queue="sensitive", started=False)

    def depth():
        return site.services.db.read(lambda c: counting.depth(c, actor.tenant_id, "default"))

    assert {state: count for state, count in depth().depth.items() if count} == {
        "completed": 4,
        "failed": 2,
        "pending": 3,
    }
    assert (len(depth().depth), depth().complete) == (7, True)
    monkeypatch.setattr(counting, "MOST_WAITING", 5)
    assert (depth().depth["completed"], depth().depth["failed"], depth().complete) == (4, 1, False), "the newest"


def test_many_queues_are_looked_at_and_no_more_than_that(site, actor):
    built_in = len(get(site, "/stats")["queues"])
    for number in range(counting.MOST_QUEUES - built_in):
        put(site, actor, "completed", queue=f"q{number:03}")
    found = get(site, "/stats")
    assert (len(found["queues"]), *whole(found)) == (counting.MOST_QUEUES, *[True] * 5), "as many as are looked at"
    for number in range(3):
        put(site, actor, "completed", queue=f"r{number}")
    found = get(site, "/stats")
    assert whole(found) == [False] * 5, "it says that there are more"
    assert (len(found["queues"]), found["times"]["jobs_looked_at"]) == (counting.MOST_QUEUES, counting.MOST_QUEUES - 2)
    busy = get(site, "/workers/stats")
    assert (busy["jobs_looked_at"], busy["complete"]) == (counting.MOST_QUEUES - 2, False)


def whole(stats):
    """Each place of ``/stats`` that says whether everything was looked at."""
    flows = [window["complete"] for window in stats["windows"].values()]
    return [stats["counts_complete"], stats["times"]["complete"], *flows]


@pytest.mark.parametrize("path", ["/queues/default/stats", "/workers/stats"])
@pytest.mark.parametrize("window", ["", "1s", "25h", "-5m", "x", "5m 5m", "999999999999"])
def test_a_window_that_is_none_is_refused(site, path, window):
    assert where(problem(site.request("GET", path, query_string={"window": window}), 422)) == {"window"}


def test_an_unknown_parameter_is_refused(site):
    problem(site.request("GET", "/stats", query_string={"window": "5m"}), 422)
    problem(site.request("GET", "/workers/stats", query_string={"since": "5m"}), 422)


def test_who_may_see_queues_alone_hears_nothing_of_workers(site):
    headers = {"Authorization": f"Bearer {site.token('admin', scopes=['queue:read'])}"}
    answer = site.client().get("/api/v1/stats", headers=headers)
    assert (answer.status_code, answer.json["workers"], answer.json["slots"]) == (200, None, None)
    assert site.client().get("/api/v1/workers/stats", headers=headers).status_code == 403
    headers = {"Authorization": f"Bearer {site.token('admin', scopes=['worker:read'])}"}
    for path in ("/stats", "/queues/default/stats"):
        assert site.client().get(f"/api/v1{path}", headers=headers).status_code == 403


def test_no_query_reads_the_whole_table(site, actor):
    db, asked = site.services.db, []
    put(site, actor, "completed", 3)

    def unit(connection):
        def note(_connection, _cursor, statement, parameters, *_):
            if statement.startswith(("SELECT", "WITH")):
                asked.append((statement, parameters))

        event.listen(connection, "before_cursor_execute", note)
        now, queues = now_ms(), ["default", "sensitive"]
        counting.queue_names(connection, actor.tenant_id)
        counting.queue_exists(connection, actor.tenant_id, "some")
        counting.depth(connection, actor.tenant_id, "default")
        counting.flows(connection, actor.tenant_id, "default", [MINUTE, 5 * MINUTE], now)
        counting.timed(connection, actor.tenant_id, queues, now - MINUTE)
        counting.finished_by(connection, actor.tenant_id, queues, now - MINUTE)
        counting.dead_letters(connection, actor.tenant_id)
        event.remove(connection, "before_cursor_execute", note)
        if db.kind == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # or so few rows are read as they are
        explain = "EXPLAIN QUERY PLAN" if db.kind == "sqlite" else "EXPLAIN"
        return [
            [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
            for statement, parameters in asked
        ]

    plans = db.read(unit)
    assert len(plans) >= 8
    for plan in plans:
        steps = [step for step in plan if any(f" {table}" in step for table in ("job", "attempt", "queue"))]
        assert steps, plan
        assert not [step for step in steps if "Seq Scan" in step or step.startswith("SCAN ")], plan
