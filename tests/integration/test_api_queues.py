"""Queues over REST: created, limited, paused by whom it concerns, removed; jobs that name them, and why they wait."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.domain.jobs import Success
from cloche.domain.permissions import BUILTIN_ROLES, PLATFORM_PERMISSIONS, Permission
from cloche.domain.queues import MAX_QUEUES, Scope
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from cloche.queueing.broker import Rules
from cloche.services import effects, index, queue_rows
from cloche.services.sweeper import Sweeper
from cloche.services.workers import WorkerService
from tests.support import jobs, stores
from tests.support.queues import make_whole, take
from tests.support.web import API, problem, running_site, where


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        for name, role in (("olga", "operator"), ("anna", "submitter"), ("adam", "admin")):
            running.add(name, role)
        upload = running.upload(user="anna")
        running.body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
        make_whole(running.services.broker)
        yield running


@pytest.fixture
def queue(site, request):
    """A queue of the test's own; gone afterwards, with what is in it."""
    name = f"q{abs(hash(request.node.name)) % 10**9}"
    answer = site.request("POST", "/queues", json={"name": name})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"{API}/queues/{name}"
    yield name
    values = {"state": "canceled", "reason": "canceled_by_user", "finished_at": now_ms()}
    site.services.db.write(lambda c: c.execute(update(t.job).where(t.job.c.queue == name).values(**values)))
    site.request("DELETE", f"/queues/{name}", headers={"If-Match": "*"})


def submit(site, user="anna", **more):
    answer = site.request("POST", "/jobs", user, json={**site.body, **more})
    assert answer.status_code == 202, answer.text
    return answer.json


@contextmanager
def served(site, queue, reason=None):
    """While a worker takes jobs from the queue, or says why it does not."""
    worker_id = uuid7()
    site.services.workers.register(worker_id, "host-1", 7, ["other", queue], 2, reason)
    yield
    site.services.db.write(lambda c: c.execute(t.worker.delete().where(t.worker.c.id == worker_id)))


def waits_for(site, job):
    shown = site.request("GET", f"/jobs/{job['id']}", "anna").json
    return shown["waiting_for"], shown["reason_text"]


def tag(site, name, numbers):
    """The ETag of the queue, as it was made, at that version."""
    made = site.services.db.read(lambda c: c.scalar(select(t.queue.c.created_at).where(t.queue.c.name == name)))
    return f'"v{numbers}.{made:x}"'


def change(site, name, user="admin", match="*", **said):
    return site.request("PATCH", f"/queues/{name}", user, json=said, headers={"If-Match": match})


def changed(site, name, user="admin", **said):
    answer = change(site, name, user, **said)
    assert answer.status_code == 200, answer.text
    return answer.json


def audited(site, name):
    event = t.audit_event
    query = select(event.c.action, event.c.details).where(event.c.object == f"queue:{name}").order_by(event.c.id)
    rows = site.services.db.read(lambda c: c.execute(query).all())
    return [(row.action, json.loads(row.details or "{}")) for row in rows]


def test_both_built_in_are_there_and_stay(site):
    items = site.request("GET", "/queues", "anna").json["items"]
    assert [item["name"] for item in items][:2] == ["default", "sensitive"]
    assert all(item["built_in"] and not item["paused"] for item in items[:2])
    for name in ("default", "sensitive"):
        problem(site.request("DELETE", f"/queues/{name}", headers={"If-Match": "*"}), 409, "queue-built-in")


def test_a_queue_is_created_shown_and_removed(site, queue):
    found = site.request("GET", f"/queues/{queue}", "anna")
    assert (found.status_code, found.headers["ETag"]) == (200, tag(site, queue, "1.0"))
    assert found.json["depth"]["pending"] == 0
    assert (found.json["paused"], found.json["max_concurrency"], found.json["built_in"]) == (False, None, False)
    problem(site.request("POST", "/queues", json={"name": queue}), 409, "queue-exists")
    job = submit(site, queue=queue)
    assert job["queue"] == queue
    assert take(site.services.broker, queue) == [job["id"]]
    assert site.request("GET", f"/queues/{queue}", "anna").json["depth"]["pending"] == 1
    busy = problem(site.request("DELETE", f"/queues/{queue}", headers={"If-Match": "*"}), 409, "queue-busy")
    assert "1 job that has not ended" in busy["detail"]
    site.request("POST", f"/jobs/{job['id']}/cancel", "anna")
    assert site.request("DELETE", f"/queues/{queue}", headers={"If-Match": "*"}).status_code == 204
    problem(site.request("GET", f"/queues/{queue}"), 404)
    assert queue not in site.services.broker.queues()
    assert [action for action, _ in audited(site, queue)] == ["queue:create", "queue:delete"]
    gone = problem(site.request("POST", f"/jobs/{job['id']}/retry", "anna"), 409, "queue-gone")
    assert "create it again" in gone["detail"]
    assert site.request("POST", "/queues", json={"name": queue}).status_code == 201
    assert site.request("POST", f"/jobs/{job['id']}/retry", "anna").json["status"] == "pending"


def test_a_batch_whose_queue_is_gone_is_not_retried_and_says_so(site, queue):
    batch = {"jobs": [site.body, {**site.body, "queue": queue}]}
    made = site.request("POST", "/jobs/batch", "anna", json=batch).json
    path = f"/batches/{made['id']}/retry"
    values = {"state": "failed", "reason": "timed_out", "finished_at": now_ms()}
    site.services.db.write(lambda c: c.execute(update(t.job).where(t.job.c.batch_id == made["id"]).values(**values)))
    assert site.request("DELETE", f"/queues/{queue}", headers={"If-Match": "*"}).status_code == 204
    gone = problem(site.request("POST", path, "anna"), 409, "queue-gone")
    assert f"'{queue}'" in gone["detail"]
    assert site.request("GET", f"/batches/{made['id']}", "anna").json["jobs"]["failed"] == 2, "nothing half done"
    assert site.request("GET", f"/audit?object=batch:{made['id']}&action=batch:retry").json["items"] == []
    assert site.request("POST", "/queues", json={"name": queue}).status_code == 201
    assert site.request("POST", path, "anna").json["jobs"]["pending"] == 2


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, {"/name"}),
        ({"name": ""}, {"/name"}),
        ({"name": "Fast"}, {"/name"}),
        ({"name": "a:b"}, {"/name"}),
        ({"name": "a\n"}, {"/name"}),
        ({"name": "q" * 65}, {"/name"}),
        ({"name": "../etc"}, {"/name"}),
        ({"name": "{cloche}"}, {"/name"}),
        ({"name": 7}, {"/name"}),
        ({"name": "ok", "max_concurrency": 0}, {"/max_concurrency"}),
        ({"name": "ok", "max_concurrency": -1}, {"/max_concurrency"}),
        ({"name": "ok", "max_concurrency": 10**12}, {"/max_concurrency"}),
        ({"name": "ok", "max_concurrency": True}, {"/max_concurrency"}),
        ({"name": "ok", "max_concurrency": 1.5}, {"/max_concurrency"}),
        ({"name": "ok", "max_concurrency": "2"}, {"/max_concurrency"}),
        ({"name": "ok", "paused": 1}, {"/paused"}),
        ({"name": "ok", "paused": None}, {"/paused"}),
        ({"name": "ok", "description": "x" * 201}, {"/description"}),
        ({"name": "ok", "description": "a\x1bb"}, {"/description"}),
        ({"name": "ok", "weight": 2}, {"/weight"}),
    ],
)
def test_queues_that_do_not_fit_say_where(site, body, pointers):
    assert where(problem(site.request("POST", "/queues", json=body), 422, "invalid")) == pointers


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, {""}),
        ({"scope": "platform"}, {""}),
        ({"scope": "everybody", "paused": True}, {"/scope"}),
        ({"paused": "yes"}, {"/paused"}),
        ({"paused": None}, {"/paused"}),
        ({"max_concurrency": 3}, {"/max_concurrency"}),
        ({"paused": True, "description": "x", "weights": {"default": 2}}, {"/description", "/weights"}),
        ({"scope": "platform", "max_concurrency": 0}, {"/max_concurrency"}),
        ({"scope": "platform", "weights": {"default": 0}}, {"/weights/default"}),
        ({"scope": "platform", "weights": {"default": 101}}, {"/weights/default"}),
        ({"scope": "platform", "weights": {"default": True}}, {"/weights/default"}),
        ({"scope": "platform", "weights": {"no/body": 1}}, {"/weights/no~1body"}),
        ({"scope": "platform", "revision": 7}, {"/revision"}),
    ],
)
def test_changes_that_do_not_fit_change_nothing(site, queue, body, pointers):
    found = problem(change(site, queue, **body), 422, "invalid")
    assert where(found) == pointers
    assert site.request("GET", f"/queues/{queue}").json["version"].startswith("1.0.")


def test_a_queue_changes_only_at_the_version_one_has_read(site, queue):
    path, body = f"/queues/{queue}", {"scope": "platform", "max_concurrency": 3}
    problem(site.request("PATCH", path, json=body), 428)
    problem(site.request("DELETE", path), 428)
    first, second, third = (tag(site, queue, numbers) for numbers in ("1.0", "2.0", "2.1"))
    for wrong in ('"v9.9"', '"v1"', '"v1.0"', "nonsense", f"W/{first}", first.strip('"'), first[:-1]):
        problem(change(site, queue, match=wrong, **body), 412)
    made = change(site, queue, match=first, **body)
    assert (made.status_code, made.headers["ETag"], made.json["max_concurrency"]) == (200, second, 3)
    problem(change(site, queue, match=first, **body), 412)
    problem(site.request("DELETE", path, headers={"If-Match": first}), 412)
    made = change(site, queue, match=second, paused=True)
    assert (made.headers["ETag"], made.json["paused_scopes"]) == (third, ["tenant"])
    assert change(site, queue, match=third, scope="platform", max_concurrency=None).json["max_concurrency"] is None
    problem(change(site, "nosuch", paused=True), 404)
    problem(change(site, "No%20such", paused=True), 404)
    problem(site.request("DELETE", "/queues/nosuch", headers={"If-Match": "*"}), 404)


def test_a_queue_that_was_created_again_is_another_one(site, queue):
    path, read = f"/queues/{queue}", site.request("GET", f"/queues/{queue}").headers["ETag"]
    assert site.request("DELETE", path, headers={"If-Match": read}).status_code == 204
    assert site.request("POST", "/queues", json={"name": queue, "max_concurrency": 2}).status_code == 201
    problem(change(site, queue, match=read, scope="platform", max_concurrency=None), 412)
    problem(site.request("DELETE", path, headers={"If-Match": read}), 412)
    assert site.request("GET", path).json["max_concurrency"] == 2


def test_of_many_changes_at_once_of_one_version_one_is_made(site, queue):
    codes, first = [], tag(site, queue, "1.0")

    def work(n):
        codes.append(change(site, queue, match=first, scope="platform", max_concurrency=n).status_code)

    site.headers()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(codes) == [200, 412, 412, 412]


def test_a_tenants_operator_pauses_for_the_tenant_alone(site, queue):
    for user in ("olga", "adam"):
        problem(site.request("POST", "/queues", user, json={"name": "theirs"}), 403)
        problem(change(site, queue, user, scope="platform", paused=True), 403)
        problem(site.request("DELETE", f"/queues/{queue}", user, headers={"If-Match": "*"}), 403)
    problem(change(site, queue, "anna", paused=True), 403)
    other = stores.add_actor(
        site.services.db, stores.add_tenant(site.services.db, f"t-{queue}"), f"o-{queue}", "operator"
    )
    mine = submit(site, queue=queue)
    theirs = jobs.submit(site.services.db, site.services.broker, other, queue=queue)
    before = site.services.queues.get(other, queue)
    shown = changed(site, queue, "olga", paused=True)
    assert (shown["paused"], shown["paused_scopes"]) == (True, ["tenant"])
    assert shown["updated_at"] > before["updated_at"]
    seen = site.services.queues.get(other, queue)
    said = ("paused", "paused_scopes", "version", "updated_at")
    assert [seen[key] for key in said] == [before[key] for key in said], "nothing of it is seen by others"
    assert take(site.services.broker, queue, 9) == [theirs]
    waits = site.request("GET", f"/jobs/{mine['id']}", "anna").json
    assert waits["waiting_for"] == "share_paused"
    assert waits["reason_text"].endswith("its queue is paused for its tenant")
    assert submit(site, queue=queue)["waiting_for"] == "share_paused", "jobs are still accepted"
    assert changed(site, queue, "olga", paused=False)["paused"] is False
    assert mine["id"] in take(site.services.broker, queue, 9)
    with served(site, queue):
        assert waits_for(site, mine)[0] is None
    assert audited(site, queue)[1:] == [
        ("queue:update", {"scope": "tenant", "paused": True}),
        ("queue:update", {"scope": "tenant", "paused": False}),
    ]


def test_the_platform_pauses_for_everybody_and_only_it_resumes(site, queue):
    job = submit(site, queue=queue)
    assert changed(site, queue, scope="platform", paused=True)["paused_scopes"] == ["platform"]
    assert changed(site, queue, "olga", paused=False)["paused"] is True
    assert take(site.services.broker, queue, 9) == []
    assert site.request("GET", f"/jobs/{job['id']}", "anna").json["waiting_for"] == "queue_paused"
    listed = site.request("GET", "/jobs", "anna", query_string={"queue": queue}).json["items"]
    assert [item["waiting_for"] for item in listed] == ["queue_paused"]
    changed(site, queue, scope="platform", paused=False)
    assert take(site.services.broker, queue, 9) == [job["id"]]


def test_a_job_says_that_its_queue_is_full(site, queue):
    changed(site, queue, scope="platform", max_concurrency=1)
    first, second = submit(site, queue=queue), submit(site, queue=queue)
    taken = take(site.services.broker, queue, 9)
    assert taken == [first["id"]]
    jobs.claim(site.services.db, site.services.broker, taken)
    assert site.request("GET", f"/jobs/{second['id']}", "anna").json["waiting_for"] == "queue_full"
    assert site.request("GET", f"/jobs/{first['id']}", "anna").json["waiting_for"] is None
    jobs.succeed(site.services.db, site.services.broker, first["id"])
    with served(site, queue):
        assert waits_for(site, second)[0] is None
    assert take(site.services.broker, queue, 9) == [second["id"]]


def test_a_job_says_that_no_worker_takes_from_its_queue(site, queue):
    job = submit(site, queue=queue)
    assert job["waiting_for"] == "no_worker"
    assert waits_for(site, job)[1].endswith("; no worker takes jobs from its queue now")
    for other in (f"x{queue}", f"{queue}x", "default"):
        with served(site, other):
            assert waits_for(site, job)[0] == "no_worker", other
    with served(site, queue, "no Docker engine answers"):
        assert waits_for(site, job)[0] == "no_worker"
    with served(site, queue):
        assert waits_for(site, job)[0] is None
        assert submit(site, queue=queue)["waiting_for"] is None


def test_a_job_names_a_queue_that_there_is(site, queue):
    found = problem(site.request("POST", "/jobs", "anna", json={**site.body, "queue": "nosuch"}), 422, "invalid")
    assert found["errors"] == [
        {"pointer": "/queue", "detail": "there is no queue 'nosuch'; GET /api/v1/queues lists them, or leave it out"}
    ]
    batch = {"jobs": [{**site.body, "queue": queue}, {**site.body, "queue": "nosuch"}]}
    assert where(problem(site.request("POST", "/jobs/batch", "anna", json=batch), 422)) == {"/jobs/1/queue"}
    batch["jobs"][1]["queue"] = "default"
    made = site.request("POST", "/jobs/batch", "anna", json=batch)
    assert made.status_code == 202, made.text
    sensitive = {**site.body, "sensitive": True, "queue": queue}
    assert where(problem(site.request("POST", "/jobs", "anna", json=sensitive), 422)) == {"/queue"}


def test_a_queue_removed_between_the_look_and_the_write_takes_no_job(site, queue, monkeypatch):
    monkeypatch.setattr(queue_rows, "known", lambda _connection, _name: True)
    assert site.request("DELETE", f"/queues/{queue}", headers={"If-Match": "*"}).status_code == 204
    assert where(problem(site.request("POST", "/jobs", "anna", json={**site.body, "queue": queue}), 422)) == {"/queue"}
    batch = {"jobs": [site.body, {**site.body, "queue": queue}]}
    assert where(problem(site.request("POST", "/jobs/batch", "anna", json=batch), 422)) == {"/jobs/1/queue"}
    waits = {**site.body, "queue": queue, "depends_on": [{"ref": "first"}]}
    turned = {"jobs": [waits, {**site.body, "ref": "first"}]}
    told = where(problem(site.request("POST", "/jobs/batch", "anna", json=turned), 422))
    assert told == {"/jobs/0/queue"}, "the place in the request, not that in the order of acceptance"
    count = select(t.job.c.id).where(t.job.c.queue == queue)
    assert site.services.db.read(lambda c: c.execute(count).all()) == []


def test_there_are_not_more_queues_than_a_platform_may_have(site, monkeypatch):
    monkeypatch.setattr("cloche.services.queues.MAX_QUEUES", len(site.request("GET", "/queues").json["items"]))
    assert MAX_QUEUES >= 2
    problem(site.request("POST", "/queues", json={"name": "one-more"}), 409, "too-many-queues")


def test_no_role_gives_what_concerns_every_tenant(site):
    for role, allowed in BUILTIN_ROLES.items():
        assert not allowed & PLATFORM_PERMISSIONS, role
    scoped = site.token(scopes=["queue:read", "queue:pause"])
    headers = {"Authorization": f"Bearer {scoped}", "If-Match": "*"}
    asked = {"scope": "platform", "paused": True}
    problem(site.client().patch(f"{API}/queues/default", json=asked, headers=headers), 403)
    assert Permission.QUEUE_MANAGE in site.request("GET", "/me").json["permissions"]


def test_a_change_while_redis_is_away_is_told_by_the_sweeper(site, queue, monkeypatch):
    services = site.services

    def away(_rules):
        raise Unavailable("Redis does not answer")

    job = submit(site, queue=queue)
    with monkeypatch.context() as patched:
        patched.setattr(services.broker, "set_rules", away)
        changed(site, queue, scope="platform", paused=True)
    services.broker.flush()
    sweeper = Sweeper(services.db, services.broker, jobs.transitions(), WorkerService(services.db), lambda _: None, "s")
    sweeper.run_once(100)
    assert services.broker.whole()
    assert take(services.broker, queue, 9) == [], "a flush does not end a pause"
    changed(site, queue, scope="platform", paused=False)
    assert take(services.broker, queue, 9) == [job["id"]]


def test_a_refresh_mends_rules_and_what_is_in_flight(site, queue):
    services = site.services
    changed(site, queue, scope="platform", max_concurrency=2)
    ended, runs = submit(site, queue=queue), submit(site, queue=queue)
    waits = submit(site, queue=queue)
    taken = take(services.broker, queue, 2)
    jobs.claim(services.db, services.broker, taken)
    outcome = Success(result={})
    services.db.write(
        lambda c: jobs.transitions().succeed(c, ended["id"], 1, "w1", outcome, now_ms())
    )  # and nobody is told
    assert take(services.broker, queue, 9) == []
    services.broker.drop(queue, now_ms())
    services.broker.set_rules([Rules("left-over", 1)])
    index.refresh(services.db, services.broker)
    assert "left-over" not in services.broker.queues()
    assert services.broker.in_flight(queue) == [runs["id"]]
    services.broker.push([effects.queue_entry(jobs.job(services.db, waits["id"]))])
    assert take(services.broker, queue, 9) == [waits["id"]]


def test_what_runs_counts_until_it_is_taken_from_a_worker_that_stands_still(site, queue):
    services = site.services
    changed(site, queue, scope="platform", max_concurrency=1)
    asked = {submit(site, queue=queue)["id"] for _ in range(2)}
    ((stands,),) = [take(services.broker, queue)]
    (waits,) = asked - {stands}
    assert [row["id"] for row in jobs.claim(services.db, services.broker, [stands])] == [stands]
    over = update(t.job).where(t.job.c.id == stands).values(lease_until=now_ms() - 60_000)
    services.db.write(lambda c: c.execute(over))
    services.broker.drop(queue, now_ms())
    index.refresh(services.db, services.broker)
    services.broker.push([effects.queue_entry(jobs.job(services.db, waits))])
    assert take(services.broker, queue) == [], "its sandbox may be alive"
    killed = []
    sweeper = Sweeper(services.db, services.broker, jobs.transitions(), services.workers, killed.append, "s")
    sweeper.take_back_lapsed(100)
    assert killed == ["w1"]
    assert len(take(services.broker, queue, 9)) == 1, "and not for longer"


def test_the_service_refuses_what_the_api_would(site, queue):
    services = site.services
    tenant = services.access.default_tenant()
    viewer = stores.add_actor(services.db, tenant, f"v-{queue}", "viewer")
    with pytest.raises(Forbidden):
        services.queues.create(viewer, "x", None, None)
    with pytest.raises(Forbidden):
        services.queues.change(viewer, queue, Scope.TENANT, {"paused": True})
    with pytest.raises(Forbidden):
        services.queues.delete(viewer, queue)
    chief = replace(stores.add_actor(services.db, tenant, f"c-{queue}"), permissions=frozenset(Permission))
    with pytest.raises(Invalid):
        services.queues.create(chief, "a:b", None, None)
    with pytest.raises(NotFound):
        services.queues.change(chief, "nosuch", Scope.TENANT, {"paused": True})
    with pytest.raises(Conflict):
        services.queues.delete(chief, "default")


def test_metrics_follow_the_queues_there_are(site, queue):
    submit(site, queue=queue)
    changed(site, queue, scope="platform", paused=True)
    text = site.client().get("/metrics").text
    assert f'cloche_redis_ready_jobs{{queue="{queue}"}} 1.0' in text
    assert f'cloche_redis_in_flight_jobs{{queue="{queue}"}} 0.0' in text
    assert f'cloche_queue_paused{{queue="{queue}"}} 1.0' in text
    assert 'cloche_queue_paused{queue="default"} 0.0' in text
