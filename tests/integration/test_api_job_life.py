"""Delays, dependencies, expiry, retries, dead letters and removal over REST."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, insert, select, update

from cloche import wiring
from cloche.clock import now_ms, to_rfc3339, uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.domain.permissions import Actor
from cloche.domain.retries import PlatformBudget
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services.transitions import Transitions
from tests.support.web import problem, running_site, where


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        for name, role in (("anna", "submitter"), ("bert", "submitter"), ("olga", "operator"), ("vera", "viewer")):
            running.add(name, role)
        running.body = {
            "type": "csv_profile",
            "inputs": [{"from": f"artifact:{running.upload(user='anna')['id']}"}],
        }
        yield running


def post(site, user="anna", headers=None, **more):
    return site.request("POST", "/jobs", user, json={**site.body, **more}, headers=headers or {})


def submit(site, user="anna", **more):
    answer = post(site, user, **more)
    assert answer.status_code == 202, answer.text
    return answer.json


@scope.across_tenants("as a worker would, also where a request is in the middle of something")
def change(site, job, **columns):
    site.services.db.write(lambda c: c.execute(update(t.job).where(t.job.c.id == job["id"]).values(**columns)))


def fail(site, job, user="anna", **columns):
    """The job failed as a worker would have it, then as ``columns`` say."""
    db, life = site.services.db, Transitions(site.services.audit_log, PlatformBudget(5, 3))
    change(site, job, retry={"max_retries": 0})
    rows, _ = db.write(lambda c: life.claim(c, [job["id"]], "w1", now_ms(), 15_000))
    boom = PluginFailure(Reason.PLUGIN_FAILED, "boom")
    db.write(lambda c: life.fail(c, job["id"], rows[0]["attempt"], "w1", boom, now_ms()))
    if columns:
        change(site, job, **columns)
    return job


def get(site, job):
    return site.request("GET", f"/jobs/{job['id']}").json


def ahead(**delta):
    return (datetime.now(UTC) + timedelta(**delta)).isoformat(timespec="seconds")


# --- when it runs -----------------------------------------------------------------------------------------------------------


def test_a_delayed_job(site):
    asked = "2026-01-31T12:00:00+01:00"
    assert submit(site, schedule_at=asked)["status"] == "pending", "a time that has passed means now"
    job = submit(site, schedule_at=ahead(hours=1))
    assert (job["status"], job["reason"]) == ("scheduled", "waits_for_time")
    assert job["next_run_at"] == job["schedule_at"]
    assert site.request("POST", f"/jobs/{job['id']}/cancel", "anna").json["status"] == "canceled"


def test_times_that_cannot_be(site):
    for body, pointer in (
        ({"schedule_at": ahead(days=367)}, "/schedule_at"),
        ({"schedule_at": "9999-12-31T23:59:59Z"}, "/schedule_at"),
        ({"schedule_at": "9999-12-31T23:59:59-14:00"}, "/schedule_at"),
        ({"schedule_at": "0001-01-01T00:00:00+14:00"}, "/schedule_at"),
        ({"expires_at": ahead(seconds=-5)}, "/expires_at"),
        ({"expires_at": ahead(days=733)}, "/expires_at"),
        ({"expires_in": 0}, "/expires_in"),
        ({"expires_in": "800d"}, "/expires_in"),
        ({"expires_in": "1h", "expires_at": ahead(hours=1)}, "/expires_in"),
        ({"expires_in": "1h", "schedule_at": ahead(hours=2)}, "/expires_in"),
        ({"timeout": 0}, "/timeout"),
        ({"retry": {"initial_delay": "2s", "max_delay": "1s"}}, "/retry/initial_delay"),
    ):
        assert where(problem(post(site, **body), 422, "invalid")) == {pointer}, body
    assert submit(site, schedule_at=ahead(days=365), expires_at=ahead(days=370))["status"] == "scheduled"
    assert submit(site, schedule_at="0001-01-01T00:00:00Z")["schedule_at"] == "0001-01-01T00:00:00.000Z"


def test_an_expiry(site):
    job = submit(site, expires_in="1h")
    assert to_rfc3339(now_ms()) < job["expires_at"] <= to_rfc3339(now_ms() + 3_600_000)


def test_a_retry_policy_arrives_whole_and_one_that_is_left_out_is_the_default(site):
    asked = {
        "max_retries": 7,
        "backoff": "linear",
        "initial_delay": "2s",
        "max_delay": 60,
        "retry_on": ["timed_out", "out_of_memory"],
    }
    assert submit(site, retry=asked)["retry"] == {
        "max_retries": 7,
        "backoff": "linear",
        "initial_delay_ms": 2_000,
        "max_delay_ms": 60_000,
        "retry_on": ["timed_out", "out_of_memory"],
    }
    assert submit(site)["retry"]["retry_on"] is None
    assert submit(site, retry={"initial_delay": "1h"})["retry"]["max_delay_ms"] == 3_600_000


# --- dependencies -----------------------------------------------------------------------------------------------------------


def test_a_job_that_waits_for_another(site):
    upstream = submit(site)
    job = submit(site, depends_on=[upstream["id"]])
    assert (job["status"], job["reason"], job["depends_on"]) == ("blocked", "waits_for_jobs", [upstream["id"]])
    assert (job["depends_on_condition"], job["on_upstream_failure"]) == ("all_completed", "cancel")
    resolved = submit(site, depends_on=[upstream["id"]], depends_on_condition="all_resolved")
    assert resolved["on_upstream_failure"] == "continue"
    assert site.request("GET", "/jobs?status=blocked").json["items"][0]["id"] == resolved["id"]
    site.request("POST", f"/jobs/{upstream['id']}/cancel", "anna")
    assert get(site, job)["reason_text"] == (
        f"a job that it depends on did not complete: job {upstream['id']} was canceled"
    )
    assert get(site, resolved)["status"] == "pending"


def test_dependencies_that_cannot_be(site):
    upstream, unknown = submit(site)["id"], uuid7()
    other = uuid7()
    theirs = submit(site)

    def move(connection):
        connection.execute(insert(t.tenant).values(id=other, name=other[:20], created_at=now_ms()))
        connection.execute(update(t.job).where(t.job.c.id == theirs["id"]).values(tenant_id=other))

    site.services.db.write(move)
    found = problem(post(site, depends_on=[upstream, unknown, theirs["id"]]), 422, "invalid")
    assert where(found) == {"/depends_on/1", "/depends_on/2"}
    assert len({item["detail"] for item in found["errors"]}) == 1, "nobody learns which of them exists"
    assert where(problem(post(site, depends_on=[upstream, upstream]), 422)) == {"/depends_on/1"}
    assert where(problem(post(site, depends_on=[uuid7() for _ in range(101)]), 422)) == {"/depends_on"}
    assert where(problem(post(site, on_upstream_failure="cancel"), 422)) == {"/on_upstream_failure"}
    assert where(problem(post(site, depends_on=[], depends_on_condition="all_resolved"), 422)) == {
        "/depends_on_condition"
    }
    assert submit(site, depends_on=[])["status"] == "pending"


def test_a_failed_upstream_at_once(site):
    upstream = fail(site, submit(site))
    job = submit(site, depends_on=[upstream["id"]])
    assert (job["status"], job["reason"], job["error"]["details"]) == (
        "canceled",
        "upstream_failed",
        {"upstream": upstream["id"]},
    )


# --- retry and removal ------------------------------------------------------------------------------------------------------


def test_a_retry_keeps_the_attempts_and_is_audited(site):
    job = fail(site, submit(site))
    answer = site.request("POST", f"/jobs/{job['id']}/retry", "anna")
    assert answer.status_code == 202
    assert answer.headers["Location"].endswith(job["id"])
    assert (answer.json["status"], answer.json["reason"], answer.json["run"]) == ("pending", "retried", 2)
    fail(site, job)
    items = site.request("GET", f"/jobs/{job['id']}/attempts").json["items"]
    assert [(item["number"], item["run"], item["outcome"]) for item in items] == [(1, 1, "failed"), (2, 2, "failed")]
    assert "retried" in [item["event_type"] for item in site.request("GET", f"/trace/{job['id']}").json["items"]]
    shown = site.request("GET", f"/audit?object=job:{job['id']}&action=job:rerun").json["items"]
    assert [(item["actor"], item["outcome"], item["details"]["run"]) for item in shown] == [("anna", "allowed", 2)]


def test_who_may_retry_and_remove(site):
    job = fail(site, submit(site))
    problem(site.request("POST", f"/jobs/{job['id']}/retry", "vera"), 403)
    problem(site.request("POST", f"/jobs/{job['id']}/retry", "bert"), 403)
    problem(site.request("DELETE", f"/jobs/{job['id']}", "anna"), 403)
    assert site.request("POST", f"/jobs/{job['id']}/retry", "olga").status_code == 202
    assert "job-not-ended" in site.request("POST", f"/jobs/{job['id']}/retry", "anna").text
    problem(site.request("DELETE", f"/jobs/{job['id']}", "olga"), 409, "job-live")
    problem(site.request("POST", f"/jobs/{uuid7()}/retry", "olga"), 404)
    problem(site.request("DELETE", f"/jobs/{uuid7()}", "olga"), 404)


def test_a_removed_job_is_gone_and_its_record_is_not(site):
    job = fail(site, submit(site))
    answer = site.request("DELETE", f"/jobs/{job['id']}", "olga")
    assert (answer.status_code, answer.data) == (204, b"")
    problem(site.request("GET", f"/jobs/{job['id']}"), 404)
    problem(site.request("DELETE", f"/jobs/{job['id']}", "olga"), 404)
    actions = [item["action"] for item in site.request("GET", f"/audit?object=job:{job['id']}").json["items"]]
    assert actions == ["job:purge", "job:fail", "job:start", "job:submit"]
    assert site.request("GET", "/audit/verify").json["status"] in ("valid", "incomplete")


# --- dead letters -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def letters(site):
    """Three dead letters of this test's own label, the oldest first, beside jobs that are none."""
    label = {"batch": uuid7()[-12:]}
    site.label = f"batch={label['batch']}"
    made = [
        fail(site, submit(site, labels=label), finished_at=1_000_000 + n, reason=reason)
        for n, reason in enumerate(("timed_out", "plugin_failed", "quarantined"))
    ]
    submit(site, labels=label)
    site.request("POST", f"/jobs/{submit(site, labels=label)['id']}/cancel", "anna")
    return [job["id"] for job in made]


def listed(site, query=""):
    return [item["id"] for item in site.request("GET", f"/dead-letters?label={site.label}{query}").json["items"]]


def test_dead_letters_are_listed_with_their_attempts(site, letters):
    assert listed(site) == letters[::-1]
    item = site.request("GET", f"/dead-letters?label={site.label}", "vera").json["items"][0]
    assert item["error"]["message"] == "boom"
    assert [(one["number"], one["run"], one["message"]) for one in item["attempts"]] == [(1, 1, "boom")]
    seen, path = [], f"/dead-letters?label={site.label}&limit=2"
    while path:
        answer = site.request("GET", path)
        seen += [one["id"] for one in answer.json["items"]]
        cursor = answer.json["next_cursor"]
        path = f"/dead-letters?label={site.label}&limit=2&cursor={cursor}" if cursor else None
    assert seen == letters[::-1]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("&reason=timed_out", [0]),
        ("&reason=quarantined", [2]),
        ("&type=csv_profile", [2, 1, 0]),
        ("&type=other", []),
        ("&queue=default", [2, 1, 0]),
        ("&since=1970-01-01T00:16:40.001Z", [2, 1]),
        ("&until=1970-01-01T00:16:40.001Z", [0]),
    ],
)
def test_filters_of_dead_letters(site, letters, query, found):
    assert listed(site, query) == [letters[n] for n in found]


@pytest.mark.parametrize(
    ("method", "path", "user"), [("POST", "/dead-letters/replay", "olga"), ("DELETE", "/dead-letters", "olga")]
)
@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, {""}),
        ({"ids": [], "filter": {}}, {"/ids"}),
        ({"ids": ["x"]}, {"/ids/0"}),
        ({"ids": [str(n) for n in range(1_001)]}, {"/ids"}),
        ({"filter": {"status": "failed"}}, {"/filter/status"}),
        ({"filter": {"reason": "bad luck"}}, {"/filter/reason"}),
        ({"filter": {"since": "yesterday"}}, {"/filter/since"}),
        ({"filter": {}, "limit": 1_001}, {"/limit"}),
        ({"filter": {}, "limit": 0}, {"/limit"}),
        ({"ids": [uuid7()], "limit": 5}, {""}),
        ({"filter": {}, "dry_run": "yes"}, {"/dry_run"}),
    ],
)
def test_choices_that_do_not_fit(site, method, path, user, body, pointers):
    assert where(problem(site.request(method, path, user, json=body), 422, "invalid")) == pointers


def test_who_may_replay_and_purge(site):
    for method, path in (("POST", "/dead-letters/replay"), ("DELETE", "/dead-letters")):
        problem(site.request(method, path, "anna", json={"filter": {}}), 403)


def replay(site, **body):
    answer = site.request("POST", "/dead-letters/replay", "olga", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_a_dry_run_counts_and_does_nothing(site, letters):
    found = replay(site, filter={"label": site.label}, dry_run=True, limit=2)
    assert (found["matched"], found["done"], found["remaining"], found["ids"]) == (3, 0, 3, letters[:2])
    assert listed(site) == letters[::-1]


def test_replay_by_filter_takes_the_oldest_first(site, letters):
    found = replay(site, filter={"label": site.label}, limit=2)
    assert (found["matched"], found["done"], found["remaining"], found["ids"]) == (3, 2, 1, letters[:2])
    assert listed(site) == letters[2:]
    assert [get(site, {"id": one})["status"] for one in letters] == ["pending", "pending", "failed"]


def test_replay_by_ids_says_what_it_left(site, letters):
    canceled, unknown = submit(site, labels={"x": "y"}), uuid7()
    site.request("POST", f"/jobs/{canceled['id']}/cancel", "anna")
    upstream = fail(site, submit(site))
    hindered = submit(site, depends_on=[upstream["id"]])
    change(site, hindered, state="failed", reason="plugin_failed", finished_at=5)
    asked = [letters[0], canceled["id"], unknown, hindered["id"]]
    found = replay(site, ids=asked)
    assert (found["ids"], found["matched"], found["done"]) == ([letters[0]], 2, 1)
    assert {item["id"]: item["detail"] for item in found["skipped"]} == {
        canceled["id"]: "is not a dead letter",
        unknown: "is not a dead letter",
        hindered["id"]: f"it depends on job {upstream['id']}, which is failed; retry that one first",
    }
    assert get(site, canceled)["status"] == "canceled"


@pytest.fixture
def meanwhile(site, monkeypatch):
    """``meanwhile(act)``: done by somebody else between the choice of dead letters and the first transaction."""

    def put(act):
        service = site.services.ended
        chosen = service._chosen

        def choose(*asked):
            found = chosen(*asked)
            act()
            return found

        monkeypatch.setattr(service, "_chosen", choose)

    return put


def test_what_others_did_meanwhile_is_neither_done_nor_left(site, letters, meanwhile):
    first, second, third = letters
    meanwhile(lambda: site.request("POST", f"/jobs/{second}/retry", "olga"))
    found = replay(site, filter={"label": site.label})
    assert (found["matched"], found["done"], found["remaining"]) == (3, 2, 0)
    assert found["ids"] == [first, third]
    assert found["skipped"] == [{"id": second, "detail": "is no such dead letter any more"}]


def test_one_that_failed_again_for_another_reason_is_not_what_was_chosen(site, letters, meanwhile):
    meanwhile(lambda: change(site, {"id": letters[0]}, reason="timed_out"))
    found = replay(site, filter={"label": site.label, "reason": "plugin_failed"})
    assert (found["matched"], found["done"], found["remaining"]) == (1, 1, 0)
    change(site, {"id": letters[2]}, reason="timed_out")
    meanwhile(lambda: change(site, {"id": letters[2]}, reason="bad_result"))
    found = replay(site, filter={"label": site.label, "reason": "timed_out"})
    assert (found["done"], found["remaining"], found["ids"]) == (1, 0, [letters[0]])
    assert get(site, {"id": letters[2]})["status"] == "failed"


def test_ids_that_are_named_twice_count_once(site, letters):
    unknown = uuid7()
    found = replay(site, ids=[letters[0], letters[0], unknown, unknown])
    assert (found["matched"], found["done"], found["remaining"]) == (1, 1, 0)
    assert [item["id"] for item in found["skipped"]] == [unknown]


def test_refused_ones_stay_and_are_counted_as_left(site, letters):
    change(
        site,
        {"id": letters[1]},
        depends_on=[letters[0]],
        depends_on_condition="all_completed",
        on_upstream_failure="cancel",
    )
    found = replay(site, ids=[letters[1]])
    assert (found["matched"], found["done"], found["remaining"], len(found["skipped"])) == (1, 0, 1, 1)


def test_a_purge_of_dead_letters_touches_nothing_else(site, letters):
    def others():
        query = select(func.count()).where(t.job.c.state != "failed")
        return site.services.db.read(lambda c: c.execute(query).scalar_one())

    before = others()
    answer = site.request("DELETE", "/dead-letters", "olga", json={"filter": {"label": site.label}})
    assert (answer.status_code, answer.json["done"], answer.json["remaining"]) == (200, 3, 0)
    assert listed(site) == []
    problem(site.request("GET", f"/jobs/{letters[0]}"), 404)
    assert others() == before


# --- idempotency ------------------------------------------------------------------------------------------------------------


def test_one_key_used_by_many_at_once_makes_one_job(site):
    """Two sets of services over one database write as two processes do: each has a writer of its own."""
    second = wiring.build(site.services.settings, "second", broker=MemoryBroker())
    user = site.services.db.read(
        lambda c: c.execute(
            select(t.user.c.id, t.user_role.c.tenant_id).join(t.user_role).where(t.user.c.username == "anna")
        ).one()
    )
    anna = Actor(user.id, "anna", user.tenant_id, frozenset())
    start, answers = threading.Barrier(8), []

    def ask(services):
        start.wait()
        for key in ("a", "b", "c", "d", "e"):
            _, job = services.jobs.submit(anna, site.body, idempotency_key=f"many-{key}")
            answers.append((key, job["id"]))

    threads = [threading.Thread(target=ask, args=(services,)) for services in (site.services, second) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        second.close()
    assert len(answers) == 40
    assert len(set(answers)) == 5, "each key has one job, whoever asked"


def test_an_answer_kept_by_an_older_version_is_given_as_one_of_today(site):
    headers = {"Idempotency-Key": uuid7()}
    first = post(site, headers=headers).json
    newer = {"sensitive", "masked", "batch_id", "callback", "run", "schedule_at", "expires_at"}
    newer |= {"depends_on", "depends_on_condition", "on_upstream_failure"}
    kept = {name: value for name, value in first.items() if name not in newer}
    mine = update(t.idempotency).where(t.idempotency.c.job_id == first["id"]).values(response=kept)
    site.services.db.write(lambda c: c.execute(mine))
    assert post(site, headers=headers).json == first


def test_one_key_with_two_bodies(site):
    headers = {"Idempotency-Key": uuid7()}
    assert post(site, headers=headers).status_code == 202
    problem(post(site, headers=headers, schedule_at=ahead(hours=1)), 422, "key-reused")
