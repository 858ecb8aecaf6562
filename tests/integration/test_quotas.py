"""Quotas: what is refused, by whose limit, never too late; and counters that stay true."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.domain.metering import Metered
from cloche.domain.permissions import system_actor
from cloche.domain.quotas import DAY_MS, Whose
from cloche.domain.states import TERMINAL, Reason
from cloche.services import quota_rows, usage_rows
from tests.support import jobs, stores
from tests.support.plugins import write_bundle
from tests.support.web import problem, running_site, where

BODY = {"type": "noop"}
ENDED = {state.value for state in TERMINAL}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    write_bundle(folder, "noop")
    return folder


@pytest.fixture
def site(tmp_path, database_url, plugins):
    with running_site(tmp_path / "home", plugins, database=database_url) as made:
        yield made


@pytest.fixture
def lite(tmp_path, sqlite_template, plugins):
    """On one kind of database, for what is no matter of SQL."""
    shutil.copyfile(sqlite_template, tmp_path / "lite.db")
    with running_site(tmp_path / "home", plugins, database=f"sqlite:///{tmp_path / 'lite.db'}") as made:
        yield made


def tenant(site) -> str:
    return site.services.access.default_tenant()


def user_id(site, name: str) -> str:
    return site.services.db.read(lambda c: c.execute(select(t.user.c.id).where(t.user.c.username == name)).scalar_one())


def limit_tenant(site, **limits):
    answer = site.request("PUT", f"/tenants/{tenant(site)}/quotas", json=limits, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text
    return answer.json


def limit_user(site, name: str, **limits):
    answer = site.request("PUT", f"/users/{user_id(site, name)}/quotas", json=limits, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text
    return answer.json


def submit(site, user: str = "admin", **body):
    return site.request("POST", "/jobs", user, json={**BODY, **body})


def accepted(site, user: str = "admin", **body) -> str:
    answer = submit(site, user, **body)
    assert answer.status_code == 202, answer.text
    return str(answer.json["id"])


def live(site) -> int:
    query = select(func.count()).select_from(t.job).where(t.job.c.state.not_in(ENDED))
    return int(site.services.db.read(lambda c: c.execute(query).scalar_one()))


def counted(site, name: str = "admin") -> dict[Whose, tuple[int, int]]:
    return site.services.db.read(lambda c: quota_rows.used(c, tenant(site), user_id(site, name)))


def assert_true(site) -> None:
    """The counters say what the jobs and files say."""
    job, file = t.job.c, t.artifact.c

    def unit(connection):
        alive = job.state.not_in(ENDED)
        query = select(job.submitted_by, func.count()).where(alive, job.quota_counted).group_by(job.submitted_by)
        own = dict(connection.execute(query).all())
        stored = dict(connection.execute(select(file.created_by, func.sum(file.size)).group_by(file.created_by)).all())
        users = connection.scalars(select(t.user.c.id)).all()
        found = {one: quota_rows.used(connection, tenant(site), one) for one in users}
        for one in users:
            assert found[one][Whose.USER] == (own.get(one, 0), stored.get(one, 0))
            assert found[one][Whose.TENANT] == (sum(own.values()), sum(stored.values()))

    site.services.db.read(unit)


# --- jobs in flight --------------------------------------------------------------------------------------------------------


def test_twenty_at_once_never_overshoot_a_quota_of_five(site):
    limit_tenant(site, jobs=5)
    site.headers()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: submit(site), range(20)))
    assert sorted(answer.status_code for answer in answers) == [202] * 5 + [403] * 15
    refused = next(answer for answer in answers if answer.status_code == 403)
    body = problem(refused, 403, "quota-jobs")
    assert "Your tenant's quota of 5 jobs" in body["detail"]
    assert live(site) == 5
    assert_true(site)


def test_batches_count_as_their_size_all_or_nothing(site):
    limit_tenant(site, jobs=5)
    four = {"jobs": [BODY] * 4}
    with ThreadPoolExecutor(6) as pool:
        site.headers()
        answers = list(pool.map(lambda _: site.request("POST", "/jobs/batch", json=four), range(6)))
    assert sorted(answer.status_code for answer in answers) == [202] + [403] * 5
    assert live(site) == 4
    problem(site.request("POST", "/jobs/batch", json={"jobs": [BODY] * 6}), 403, "quota-jobs")
    accepted(site)
    problem(submit(site), 403, "quota-jobs")
    assert_true(site)


def test_a_users_own_limit_is_named_and_others_have_theirs(lite):
    lite.add("ann", "submitter")
    lite.add("bob", "submitter")
    limit_user(lite, "ann", jobs=1)
    accepted(lite, "ann")
    assert "Your own quota of 1 jobs" in problem(submit(lite, "ann"), 403, "quota-jobs")["detail"]
    accepted(lite, "bob")
    assert_true(lite)


ENDS = {
    "succeed": lambda db, broker, one: jobs.succeed(db, broker, one),
    "fail": lambda db, broker, one: jobs.fail(db, broker, one),
    "cancel": None,
    "canceled": lambda db, _broker, one: db.write(
        lambda c: jobs.transitions().canceled(c, one, 1, "w1", now_ms(), {"cpu_ms": 3})
    ),
    "release": lambda db, _broker, one: db.write(
        lambda c: jobs.transitions().release(c, [dict(jobs.job(db, one))], Reason.LEASE_LAPSED, "sweeper", now_ms())
    ),
}


def test_an_end_of_any_kind_makes_room(site):
    limit_tenant(site, jobs=2)
    db, broker = site.services.db, site.services.broker
    for name, end in ENDS.items():
        first, second = accepted(site, retry={"max_retries": 0}), accepted(site)
        problem(submit(site), 403, "quota-jobs")
        if end is not None:
            jobs.claim(db, broker, [first])
        if name in ("cancel", "canceled", "release"):
            assert site.request("POST", f"/jobs/{first}/cancel").status_code in (200, 202)
        if end is not None:
            end(db, broker, first)
        assert jobs.job(db, first)["state"] in ENDED, name
        assert_true(site)
        third = accepted(site)
        for one in (second, third):
            site.request("POST", f"/jobs/{one}/cancel")
        site.services.quotas.fold()
        assert_true(site)
    assert counted(site)[Whose.TENANT][0] == 0


def test_an_attempt_that_is_tried_again_keeps_its_place(site):
    limit_tenant(site, jobs=1)
    db, broker = site.services.db, site.services.broker
    first = accepted(site)
    jobs.claim(db, broker, [first])
    jobs.fail(db, broker, first)
    problem(submit(site), 403, "quota-jobs")
    db.write(lambda c: c.execute(t.job.update().where(t.job.c.id == first).values(ready_at=0)))
    db.write(lambda c: jobs.transitions().due(c, now_ms(), 10))
    jobs.claim(db, broker, [first])
    lost = dict(jobs.job(db, first))
    db.write(lambda c: jobs.transitions().release(c, [lost], Reason.LEASE_LAPSED, "sweeper", now_ms()))
    problem(submit(site), 403, "quota-jobs")
    assert_true(site)


def test_a_retry_by_hand_takes_its_place_again_or_is_refused(site):
    limit_tenant(site, jobs=1)
    db, broker = site.services.db, site.services.broker
    first = accepted(site, retry={"max_retries": 0})
    jobs.claim(db, broker, [first])
    jobs.fail(db, broker, first)
    second = accepted(site)
    problem(site.request("POST", f"/jobs/{first}/retry"), 403, "quota-jobs")
    assert jobs.job(db, first)["state"] == "failed"
    done = site.request("POST", "/dead-letters/replay", json={"ids": [first]}).json
    assert (done["done"], "quota" in done["skipped"][0]["detail"]) == (0, True)
    assert_true(site)
    site.request("POST", f"/jobs/{second}/cancel")
    assert site.request("POST", f"/jobs/{first}/retry").status_code in (200, 202)
    assert_true(site)
    problem(submit(site), 403, "quota-jobs")


def failed_batch(site, count):
    db, broker = site.services.db, site.services.broker
    batch = site.request("POST", "/jobs/batch", json={"jobs": [{**BODY, "retry": {"max_retries": 0}}] * count}).json
    ids = [row["id"] for row in site.request("GET", f"/batches/{batch['id']}/jobs").json["items"]]
    for job_id in ids:
        jobs.claim(db, broker, [job_id])
        jobs.fail(db, broker, job_id)
    return f"/batches/{batch['id']}/retry", ids


def test_a_batch_is_retried_as_far_as_there_is_room_and_says_what_was_left(site):
    path, ids = failed_batch(site, 4)
    limit_tenant(site, jobs=3)
    first = accepted(site)
    answer = site.request("POST", path)
    assert (answer.status_code, answer.json["retried"], answer.json["skipped_count"]) == (202, 2, 2)
    assert [item["id"] for item in answer.json["skipped"]] == ids[2:]
    assert all("quota" in item["detail"] for item in answer.json["skipped"])
    assert (answer.json["jobs"]["pending"], answer.json["jobs"]["failed"]) == (2, 2)
    assert_true(site)
    problem(site.request("POST", path), 403, "quota-jobs")
    site.request("POST", f"/jobs/{first}/cancel")
    assert site.request("POST", path).json["retried"] == 1
    assert_true(site)


def test_a_batch_without_cpu_time_for_one_of_its_jobs_is_not_retried_in_silence(site):
    path, ids = failed_batch(site, 2)
    limit_tenant(site, cpu_seconds_per_day=10)
    spend(site, "admin", 10_000)
    problem(site.request("POST", path), 403, "quota-cpu")
    assert {jobs.job(site.services.db, job_id)["state"] for job_id in ids} == {"failed"}
    limit_tenant(site, cpu_seconds_per_day=20)
    answer = site.request("POST", path).json
    assert (answer["retried"], answer["skipped_count"], answer["skipped"]) == (2, 0, [])


def test_jobs_from_before_there_was_a_quota_are_counted(site):
    first = accepted(site)
    accepted(site)
    assert counted(site)[Whose.TENANT][0] == 0
    limit_tenant(site, jobs=3)
    assert counted(site)[Whose.TENANT][0] == 2
    accepted(site)
    problem(submit(site), 403, "quota-jobs")
    site.request("POST", f"/jobs/{first}/cancel")
    assert_true(site)
    limit_tenant(site, jobs=None)
    for _ in range(3):
        accepted(site)
    limit_tenant(site, jobs=5)
    problem(submit(site), 403, "quota-jobs")
    assert_true(site)


def test_what_one_process_missed_the_scheduler_counts(lite):
    limit_tenant(lite, jobs=9)
    actor = replace(system_actor(tenant(lite)), user_id=user_id(lite, "admin"))
    row = jobs.row(actor)
    lite.services.db.write(lambda c: jobs.transitions().submit(c, actor, row, now_ms()))
    assert counted(lite)[Whose.TENANT][0] == 0
    assert lite.services.quotas.count_live() == 1
    assert counted(lite)[Whose.TENANT][0] == 1
    assert_true(lite)


def test_waiting_for_other_jobs_counts_and_ends_with_them(site):
    limit_tenant(site, jobs=3)
    first = accepted(site, retry={"max_retries": 0})
    accepted(site, depends_on=[first])
    accepted(site, depends_on=[first])
    problem(submit(site, depends_on=[first]), 403, "quota-jobs")
    jobs.claim(site.services.db, site.services.broker, [first])
    jobs.fail(site.services.db, site.services.broker, first)
    assert live(site) == 0
    assert_true(site)
    accepted(site)


def test_an_idempotent_repeat_is_no_new_job(lite):
    limit_tenant(lite, jobs=1)
    for _ in range(3):
        answer = lite.request("POST", "/jobs", json=BODY, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 202
    assert_true(lite)


@pytest.mark.parametrize(("kind", "status"), [("jobs", 403), ("submissions_per_minute", 429)])
def test_a_refusal_is_on_record_once_and_then_by_its_count(lite, kind, status):
    limit_tenant(lite, **{kind: 0 if kind == "jobs" else 1})
    if status == 429:
        accepted(lite)
    assert [submit(lite).status_code for _ in range(5)] == [status] * 5
    lite.app.extensions["cloche_denials"].flush(everything=True)
    event = t.audit_event.c
    query = select(event.object, event.outcome, event.reason).where(event.action == "access:deny")
    rows = lite.services.db.read(lambda c: c.execute(query).all())
    assert {(row.object, row.outcome) for row in rows} == {("POST /api/v1/jobs", "denied")}
    assert len(rows) in (2, 3, 4), "one and a count, or twice that where the minute changed"
    assert all("quota" in row.reason for row in rows)


# --- submissions a minute --------------------------------------------------------------------------------------------------


def test_submissions_a_minute(lite):
    lite.add("ann", "submitter")
    limit_tenant(lite, submissions_per_minute=5)
    limit_user(lite, "ann", submissions_per_minute=2)
    assert [submit(lite, "ann").status_code for _ in range(3)] == [202, 202, 429]
    assert [submit(lite).status_code for _ in range(4)] == [202, 202, 202, 429]
    answer = submit(lite)
    body = problem(answer, 429, "quota-submissions")
    assert 1 <= int(answer.headers["Retry-After"]) <= 61
    assert "Your tenant's quota of 5 jobs submitted within a minute" in body["detail"]
    body = problem(lite.request("POST", "/jobs/batch", json={"jobs": [BODY] * 6}), 403, "quota-submissions")
    assert "asks for 6" in body["detail"]


# --- storage ---------------------------------------------------------------------------------------------------------------


def upload(site, content: bytes, user: str = "admin"):
    return site.request("POST", "/files", user, query_string={"name": "a.bin"}, data=content)


def test_storage_is_refused_as_soon_as_it_would_be_too_much(site):
    site.upload(b"x" * 600)
    limit_tenant(site, storage_bytes=1000)
    body = problem(upload(site, b"y" * 401), 403, "quota-storage")
    assert "quota of 1000 bytes" in body["detail"] and "600 are used" in body["detail"]
    held = list(site.services.files._store.tenant(tenant(site)).digests())
    assert len(held) == 1, "nothing of it is left"
    mine = upload(site, b"y" * 400).json["id"]
    problem(upload(site, b"z"), 403, "quota-storage")
    assert upload(site, b"").status_code == 201
    assert site.request("DELETE", f"/files/{mine}").status_code == 204
    assert upload(site, b"z").status_code == 201
    assert_true(site)


def test_uploads_at_once_never_overshoot(site):
    limit_tenant(site, storage_bytes=500)
    site.headers()

    def repeated(n: int):
        """As any client does: more bodies at once than one address may send are told to come again."""
        while (answer := upload(site, bytes([n]) * 100)).status_code == 503:
            time.sleep(0.05)
        return answer

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(repeated, range(10)))
    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [403] * 5
    assert counted(site)[Whose.TENANT][1] == 500
    assert_true(site)


# --- CPU -------------------------------------------------------------------------------------------------------------------


def spend(site, user: str, cpu_ms: int, *days: int) -> None:
    """So many days from now; where none is given today, and tomorrow too: midnight may pass before somebody looks."""
    used, whose = Metered(attempts=1, cpu_ms=cpu_ms), user_id(site, user)
    now = now_ms()
    for day in days or (0, 1):
        at = now + day * DAY_MS
        site.services.db.write(lambda c, at=at: usage_rows.add(c, tenant(site), whose, uuid7(), used, at))


def test_cpu_seconds_of_a_day(site):
    site.add("ann", "submitter")
    limit_tenant(site, cpu_seconds_per_day=10)
    limit_user(site, "ann", cpu_seconds_per_day=4)
    spend(site, "ann", 3_999)
    spend(site, "ann", 50_000, -1)
    accepted(site, "ann")
    spend(site, "ann", 1)
    body = problem(submit(site, "ann"), 403, "quota-cpu")
    assert "Your own quota of 4 CPU-seconds" in body["detail"] and "T00:00:00" in body["detail"]
    accepted(site)
    spend(site, "admin", 6_000)
    assert "Your tenant's" in problem(submit(site), 403, "quota-cpu")["detail"]


def test_nobody_escapes_it_by_retrying_what_has_ended(site):
    db, broker = site.services.db, site.services.broker
    job_id = accepted(site, retry={"max_retries": 0})
    jobs.claim(db, broker, [job_id])
    jobs.fail(db, broker, job_id)
    limit_tenant(site, cpu_seconds_per_day=10)
    spend(site, "admin", 10_000)
    problem(site.request("POST", f"/jobs/{job_id}/retry"), 403, "quota-cpu")
    done = site.request("POST", "/dead-letters/replay", json={"ids": [job_id]}).json
    assert (done["done"], "CPU-seconds" in done["skipped"][0]["detail"]) == (0, True)
    assert jobs.job(db, job_id)["state"] == "failed"
    assert_true(site)
    limit_tenant(site, cpu_seconds_per_day=20)
    assert site.request("POST", f"/jobs/{job_id}/retry").status_code in (200, 202)


# --- setting them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 1.5, True, "5", "none", 10**15 + 1, 10**40, [], {}])
def test_what_is_no_limit_is_refused(lite, value):
    path = f"/tenants/{tenant(lite)}/quotas"
    for name in ("jobs", "submissions_per_minute", "storage_bytes", "cpu_seconds_per_day"):
        body = problem(lite.request("PUT", path, json={name: value}, headers={"If-Match": "*"}), 422)
        assert any(pointer.startswith(f"/{name}") for pointer in where(body))
    problem(lite.request("PUT", path, json={"tenant_id": "x"}, headers={"If-Match": "*"}), 422)
    assert lite.request("GET", path).json["version"] == 0


def test_a_quota_is_read_and_set_with_its_etag(lite):
    path = f"/tenants/{tenant(lite)}/quotas"
    first = lite.request("GET", path)
    assert first.headers["ETag"] == '"v0"'
    assert first.json["effective"]["jobs"] == "unlimited"
    problem(lite.request("PUT", path, json={"jobs": 5}), 428)
    problem(lite.request("PUT", path, json={"jobs": 5}, headers={"If-Match": '"v7"'}), 412)
    made = lite.request("PUT", path, json={"jobs": 5, "storage_bytes": "unlimited"}, headers={"If-Match": '"v0"'})
    assert (made.status_code, made.headers["ETag"]) == (200, '"v1"')
    assert made.json["limits"] == {
        "jobs": 5,
        "submissions_per_minute": None,
        "storage_bytes": "unlimited",
        "cpu_seconds_per_day": None,
    }
    problem(lite.request("PUT", path, json={"jobs": 6}, headers={"If-Match": '"v0"'}), 412)
    event = t.audit_event.c
    query = select(event.action, event.object, event.before_sha256, event.after_sha256).where(
        event.action == "quota:update"
    )
    ((action, target, before, after),) = lite.services.db.read(lambda c: c.execute(query).all())
    assert (action, target) == ("quota:update", f"tenant:{tenant(lite)}")
    assert before and after and before != after


def test_two_who_set_one_at_once(site):
    path = f"/tenants/{tenant(site)}/quotas"
    site.headers()
    with ThreadPoolExecutor(8) as pool:
        codes = list(
            pool.map(
                lambda n: site.request("PUT", path, json={"jobs": n}, headers={"If-Match": '"v0"'}).status_code,
                range(8),
            )
        )
    assert sorted(codes) == [200] + [412] * 7


def test_who_may_set_what(lite):
    admin = stores.add_actor(lite.services.db, tenant(lite), "tom", "admin")
    lite.tokens["tom"] = lite.services.access.create_token(admin, "test")["token"]
    lite.add("ann", "submitter")
    ann, tom = user_id(lite, "ann"), user_id(lite, "tom")
    any_version = {"If-Match": "*"}
    for user in ("tom", "ann"):
        problem(lite.request("GET", f"/tenants/{tenant(lite)}/quotas", user), 403)
        problem(lite.request("PUT", f"/tenants/{tenant(lite)}/quotas", user, json={}, headers=any_version), 403)
    for method in ("GET", "PUT", "DELETE"):
        problem(
            lite.request(
                method, f"/users/{ann}/quotas", "ann", json=None if method != "PUT" else {}, headers=any_version
            ),
            403,
        )
    limit_tenant(lite, jobs=10)
    body = problem(lite.request("PUT", f"/users/{ann}/quotas", "tom", json={"jobs": 11}, headers=any_version), 422)
    assert where(body) == {"/jobs"}
    assert lite.request("PUT", f"/users/{ann}/quotas", "tom", json={"jobs": 10}, headers=any_version).status_code == 200
    problem(lite.request("PUT", f"/users/{tom}/quotas", "tom", json={"jobs": 10}, headers=any_version), 403)
    problem(lite.request("DELETE", f"/users/{tom}/quotas", "tom", headers=any_version), 403)
    assert lite.request("DELETE", f"/users/{ann}/quotas", "tom", headers=any_version).status_code == 204
    problem(lite.request("DELETE", f"/users/{ann}/quotas", "tom", headers=any_version), 404)


def test_whoever_assigns_quotas_takes_nothing_from_those_who_may_do_more(lite):
    admin = stores.add_actor(lite.services.db, tenant(lite), "tom", "admin")
    lite.services.roles.create(admin, "counter", "", ["quota:assign", "job:read", "token:manage"])
    lite.add("clerk", "counter")
    lite.add("ann", "counter")
    any_version = {"If-Match": "*"}
    for mighty in (admin.user_id, user_id(lite, "admin")):
        for method, body in (("PUT", {"jobs": 0}), ("DELETE", None)):
            answer = lite.request(method, f"/users/{mighty}/quotas", "clerk", json=body, headers=any_version)
            problem(answer, 403, "user-exceeds-own")
    path = f"/users/{user_id(lite, 'ann')}/quotas"
    assert lite.request("PUT", path, "clerk", json={"jobs": 0}, headers=any_version).status_code == 200


@pytest.mark.parametrize("refused", [{"headers": {"If-Match": '"v7"'}}, {"json": {"jobs": 11}}])
def test_what_is_refused_counts_no_jobs(lite, refused, monkeypatch):
    lite.add("ann", "submitter")
    limit_tenant(lite, jobs=10)
    monkeypatch.setattr(quota_rows, "count_live", lambda *_: pytest.fail("counted"))
    asked = {"json": {"jobs": 5}, "headers": {"If-Match": "*"}} | refused
    answer = lite.request("PUT", f"/users/{user_id(lite, 'ann')}/quotas", **asked)
    assert answer.status_code in (412, 422)


def test_another_tenants_user_is_not_there(lite):
    other = stores.add_tenant(lite.services.db, "other")
    stranger = stores.add_actor(lite.services.db, other, "stranger").user_id
    for target in (stranger, uuid7(), "x", "%20"):
        for method in ("GET", "PUT", "DELETE"):
            options = {"json": {"jobs": 1}} if method == "PUT" else {}
            problem(lite.request(method, f"/users/{target}/quotas", headers={"If-Match": "*"}, **options), 404)
    problem(lite.request("GET", f"/tenants/{uuid7()}/quotas"), 404)
    assert lite.request("GET", f"/tenants/{other}/quotas").status_code == 200


def test_ones_own_limits(lite):
    lite.add("ann", "viewer")
    limit_tenant(lite, jobs=10, storage_bytes=1000)
    lite.upload(b"12345")
    found = lite.request("GET", "/usage/limits", "ann").json
    assert found["tenant"]["storage_bytes"] == {"limit": 1000, "used": 5, "resets_at": None}
    assert found["user"]["jobs"] == {"limit": "unlimited", "used": 0, "resets_at": None}
    assert found["tenant"]["cpu_seconds_per_day"]["resets_at"].endswith("T00:00:00.000Z")


def test_defaults_come_from_the_settings(tmp_path, plugins):
    with running_site(tmp_path / "home", plugins, quota={"tenant_jobs": 2, "user_jobs": 1}) as site:
        accepted(site)
        assert "Your own quota of 1" in problem(submit(site), 403, "quota-jobs")["detail"]
        limit_tenant(site, jobs=0)
        limit_user(site, "admin", jobs="unlimited")
        assert "Your tenant's quota of 0" in problem(submit(site), 403, "quota-jobs")["detail"]


def test_refusals_are_counted_by_kind(lite):
    limit_tenant(lite, jobs=0)
    for _ in range(3):
        submit(lite)
    lite.services.gate.flush()
    rows = lite.services.db.read(
        lambda c: dict(c.execute(select(t.quota_refusal.c.kind, t.quota_refusal.c.count)).all())
    )
    assert rows == {"jobs": 3}
