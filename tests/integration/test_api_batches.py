"""Batches over REST: all of them or none, in order, each job with its own record; counted, paged and canceled together."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, insert, select, update

from cloche.audit.canonical import digest
from cloche.clock import now_ms, to_rfc3339, uuid7
from cloche.db import tables as t
from cloche.db.bulk import BulkInsert
from cloche.errors import Unavailable
from cloche.services import bulk_submit
from cloche.services.sealer import Sealer
from cloche.web.batch_body import MAX_JOBS
from tests.support import jobs
from tests.support.plugins import write_bundle
from tests.support.queues import make_whole, take
from tests.support.web import API, problem, running_site, where

PARAMS = """[params]
type = "object"
additionalProperties = false
properties = { n = { type = "integer", minimum = 0, default = 7 } }
"""
NO_SUCH = "01920000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    folder = tmp_path_factory.mktemp("plugins")
    write_bundle(folder, "counted", more=PARAMS)
    write_bundle(folder, "texts", more='[params]\ntype = "object"\nproperties = { text = { type = "string" } }\n')
    server = {"max_body": 20_000, "max_batch": 2_000_000}
    with running_site(tmp_path_factory.mktemp("home"), folder, database=module_database_url, **server) as running:
        running.add("anna", "submitter")
        running.add("bert", "submitter")
        running.add("olga", "operator")
        running.add("vera", "viewer")
        yield running


def counted(n: int, **more):
    return {"type": "counted", "payload": {"n": n}, **more}


def post(site, body, user="anna", **options):
    return site.request("POST", "/jobs/batch", user, json=body, **options)


def accepted(site, count=3, user="anna", **more):
    answer = post(site, {"jobs": [counted(n) for n in range(count)], **more}, user)
    assert answer.status_code == 202, answer.text
    return answer.json


def rows(site, batch):
    query = select(t.job).where(t.job.c.batch_id == batch["id"]).order_by(t.job.c.id)
    return site.services.db.read(lambda c: c.execute(query).mappings().all())


def stored(site) -> list[int]:
    """How many rows there are of each kind that a batch makes."""
    tables = (t.batch, t.job, t.trace_event, t.outbox, t.idempotency)
    queries = [select(func.count()).select_from(table) for table in tables]
    queries.append(select(func.count()).where(t.audit_event.c.action.in_(["batch:submit", "job:submit"])))
    return site.services.db.read(lambda c: [c.scalar(query) for query in queries])


def end(site, job_ids, state="completed"):
    done = {"state": state, "reason": "succeeded", "started_at": now_ms() - 5, "finished_at": now_ms()}
    site.services.db.write(lambda c: c.execute(update(t.job).where(t.job.c.id.in_(list(job_ids))).values(done)))


def test_all_jobs_are_accepted_in_order_each_with_its_record(site):
    answer = post(site, {"name": "tiles", "jobs": [counted(5), {"type": "counted"}, counted(9, priority=9)]})
    batch = answer.json
    assert (answer.status_code, batch["count"], batch["name"]) == (202, 3, "tiles")
    assert answer.headers["Location"] == f"{API}/batches/{batch['id']}"
    made = rows(site, batch)
    assert [(row["payload"]["n"], row["priority"], row["state"]) for row in made] == [
        (5, 5, "pending"),
        (7, 5, "pending"),
        (9, 9, "pending"),
    ]
    taken = site.services.broker
    make_whole(taken)
    assert {row["id"] for row in made} <= set(take(taken, "default", 1_000))
    db = site.services.db
    outbox = set(db.read(lambda c: c.scalars(select(t.outbox.c.job_id)).all()))
    for row in made:
        assert jobs.audit_actions(db, row["id"]) == ["job:submit"]
        assert jobs.trace(db, row["id"]) == ["accepted"]
        assert row["id"] in outbox
    (event,) = site.request("GET", f"/audit?object=batch:{batch['id']}").json["items"]
    assert (event["action"], event["actor"], event["details"]["types"]) == (
        "batch:submit",
        "anna",
        {"counted==1.0.0": 3},
    )


def test_a_job_in_a_batch_is_recorded_as_one_that_came_alone(site):
    alone = site.request("POST", "/jobs", "anna", json=counted(4)).json
    together = rows(site, accepted(site, 5))[4]
    shown = site.request("GET", f"/jobs/{together['id']}", "anna").json
    different = {"id", "batch_id", "created_at"}
    assert {key: value for key, value in shown.items() if key not in different} == {
        key: value for key, value in alone.items() if key not in different
    }
    mine, its = (
        site.request("GET", f"/audit?object=job:{job_id}").json["items"][0] for job_id in (alone["id"], shown["id"])
    )
    assert its["details"] == mine["details"] | {"batch": shown["batch_id"]}
    assert (its["actor"], its["ip"], its["token_id"]) == (mine["actor"], mine["ip"], mine["token_id"])


def test_the_trail_verifies_with_batches_in_it(site):
    accepted(site, 40)
    # Or it tells after the sealing what was refused in a minute that is over.
    site.app.extensions["cloche_denials"].close()
    sealer = Sealer(site.services.db, site.services.keyring, "test")
    while sealer.run_once():
        pass
    sealer.close()
    verdict = site.request("GET", "/audit/verify").json
    assert (verdict["status"], verdict["first_bad"]) == ("valid", None)
    unsealed = ~select(t.audit_leaf.c.event_id).where(t.audit_leaf.c.event_id == t.audit_event.c.id).exists()
    late = site.services.db.read(lambda c: c.scalars(select(t.audit_event.c.action).where(unsealed)).all())
    assert len(late) == verdict["unsealed"], "what was done since is the reading itself, and perhaps its token"
    assert set(late) <= {"audit:verify", "token:create"}


def test_one_bad_job_and_none_is_stored(site):
    before = stored(site)
    body = {
        "jobs": [counted(1), counted(-1), {"type": "none"}, counted(1), {"type": "counted", "payload": {"m": 1}}],
    }
    found = where(problem(post(site, body, headers={"Idempotency-Key": "bad"}), 422))
    assert found == {"/jobs/1/payload/n", "/jobs/2/type", "/jobs/4/payload/m"}
    assert stored(site) == before


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ([], {""}),
        ({}, {"/jobs"}),
        ({"jobs": {}}, {"/jobs"}),
        ({"jobs": []}, {"/jobs"}),
        ({"jobs": [1, []]}, {"/jobs/0", "/jobs/1"}),
        ({"jobs": [{"type": "counted"}], "colour": 1, "name": ""}, {"/colour", "/name"}),
        ({"jobs": [{"type": "counted"}, {"type": "counted", "colour": 1, "priority": "9"}]}, None),
        (
            {"jobs": [{"type": "counted", "inputs": [{"from": f"artifact:{NO_SUCH}"}]}]},
            {"/jobs/0/inputs", "/jobs/0/inputs/0/from"},
        ),
        ({"jobs": [{"type": "counted", "batch": 1}]}, {"/jobs/0/batch"}),
    ],
)
def test_what_does_not_fit_is_pointed_at(site, body, pointers):
    before = stored(site)
    assert where(problem(post(site, body), 422)) == (pointers or {"/jobs/1/colour", "/jobs/1/priority"})
    assert stored(site) == before


def test_problems_are_told_up_to_a_bound(site):
    for bad in ({"type": "counted", "colour": 1}, counted(-1)):
        assert len(problem(post(site, {"jobs": [bad] * 3_000}), 422)["errors"]) == 100
    assert (
        len(problem(post(site, {"jobs": [{"type": "counted", **{f"f{n}": 1 for n in range(200)}}]}), 422)["errors"])
        == 50
    )


def test_sizes_are_bounded(site):
    before = stored(site)
    too_many = problem(post(site, {"jobs": [{"type": "x"}] * (MAX_JOBS + 1)}), 422)
    assert where(too_many) == {"/jobs"}
    problem(post(site, {"jobs": [counted(1, name="x" * 100)] * 20_000}), 413, "too-large")
    long = {"jobs": [counted(1), {"type": "counted", "payload": {"text": "x" * 20_000}}]}
    assert where(problem(post(site, long), 422)) == {"/jobs/1"}
    wide = {"jobs": [{"type": "counted", "inputs": [{f"f{n}": 1 for n in range(6_000)}]}]}
    assert where(problem(post(site, wide), 422)) == {"/jobs/0"}
    problem(
        post(site, None, data=b'{"jobs": [' + b"[" * 100 + b"]" * 100 + b"]}", content_type="application/json"), 400
    )
    assert stored(site) == before


def test_a_transaction_that_fails_leaves_nothing(site, monkeypatch):
    before = stored(site)
    real = BulkInsert.execute

    def execute(self, connection, rows):
        real(self, connection, rows)
        if self is bulk_submit._AUDIT:
            raise Unavailable("the database's disk is full")

    monkeypatch.setattr(BulkInsert, "execute", execute)
    problem(post(site, {"jobs": [counted(n) for n in range(50)]}), 503)
    assert stored(site) == before


def test_an_idempotency_key_makes_one_batch(site):
    body, headers = {"jobs": [counted(1), counted(2)]}, {"Idempotency-Key": "tiles-1"}
    first = post(site, body, headers=headers)
    before = stored(site)
    again = post(site, {"jobs": [{"payload": {"n": 1}, "type": "counted"}, counted(2)]}, headers=headers)
    assert (again.status_code, again.json) == (202, first.json)
    problem(post(site, {"jobs": [counted(1)]}, headers=headers), 422, "key-reused")
    problem(site.request("POST", "/jobs", "anna", json=counted(1), headers=headers), 422, "key-reused")
    assert stored(site) == before
    assert post(site, body, "bert", headers=headers).json["id"] != first.json["id"]
    problem(post(site, body, headers={"Idempotency-Key": ""}), 400, "bad-idempotency-key")


def test_a_key_used_twice_at_once_makes_one_batch(site):
    body, headers = {"jobs": [counted(n) for n in range(200)]}, {"Idempotency-Key": "twice"}
    before = stored(site)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(site, body, headers=headers).json["id"], range(4)))
    assert len(set(answers)) == 1
    assert stored(site)[:2] == [before[0] + 1, before[1] + 200]


def test_the_batch_says_how_far_it_is(site):
    batch = accepted(site, 4)
    made = [row["id"] for row in rows(site, batch)]
    path = f"/batches/{batch['id']}"
    shown = site.request("GET", path, "vera").json
    assert (shown["status"], shown["done"], shown["jobs"]["pending"], shown["submitted_by"]) == (
        "waiting",
        0,
        4,
        "anna",
    )
    end(site, made[:1])
    end(site, made[1:2], "failed")
    shown = site.request("GET", path, "vera").json
    assert (shown["status"], shown["done"], shown["finished_at"]) == ("running", 0.5, None)
    assert (shown["jobs"]["completed"], shown["jobs"]["failed"], shown["jobs"]["pending"]) == (1, 1, 2)
    end(site, made[2:])
    shown = site.request("GET", path, "vera").json
    assert (shown["status"], shown["done"], shown["jobs"]["completed"]) == ("ended", 1, 3)
    assert shown["started_at"] < shown["finished_at"]
    assert batch["id"] in [item["id"] for item in site.request("GET", "/batches").json["items"]]


def test_jobs_that_were_purged_have_ended(site):
    batch = accepted(site, 2)
    first = rows(site, batch)[0]["id"]

    def purge(connection):
        connection.execute(t.trace_event.delete().where(t.trace_event.c.job_id == first))
        connection.execute(t.job.delete().where(t.job.c.id == first))

    site.services.db.write(purge)
    shown = site.request("GET", f"/batches/{batch['id']}").json
    assert (shown["purged"], shown["done"], sum(shown["jobs"].values())) == (1, 0.5, 1)


def test_pages_of_its_jobs_keep_the_order_of_the_request(site):
    batch = accepted(site, 7)
    made = [row["id"] for row in rows(site, batch)]
    end(site, made[2:5])
    for query, wanted in (("", made), ("status=completed&", made[2:5]), ("status=failed&", [])):
        seen, path = [], f"/batches/{batch['id']}/jobs?{query}limit=2"
        while path:
            answer = site.request("GET", path, "vera")
            seen += [item["id"] for item in answer.json["items"]]
            link = answer.headers.get("Link")
            path = link.split(">")[0].removeprefix(f"<{API}") if link else None
        assert seen == wanted
    problem(site.request("GET", f"/batches/{batch['id']}/jobs?status=none"), 422)
    problem(site.request("GET", f"/batches/{batch['id']}/jobs?cursor=none"), 422)


def test_canceling_a_batch(site):
    batch = accepted(site, 250)
    made = [row["id"] for row in rows(site, batch)]
    end(site, made[:1])
    path = f"/batches/{batch['id']}/cancel"
    problem(site.request("POST", path, "vera"), 403)
    problem(site.request("POST", path, "bert"), 403)
    answer = site.request("POST", path, "anna")
    assert answer.status_code == 202
    assert (answer.json["status"], answer.json["jobs"]["canceled"], answer.json["jobs"]["completed"]) == (
        "ended",
        249,
        1,
    )
    assert jobs.audit_actions(site.services.db, made[-1]) == ["job:submit", "job:cancel"]
    (event, _) = site.request("GET", f"/audit?object=batch:{batch['id']}").json["items"]
    assert (event["action"], event["details"]) == ("batch:cancel", {"live": 249})
    problem(site.request("POST", path, "anna"), 409, "batch-ended")
    other = accepted(site, 1, "bert")
    assert site.request("POST", f"/batches/{other['id']}/cancel", "olga").json["jobs"]["canceled"] == 1


def test_sensitive_jobs_in_a_batch_are_sealed_and_masked(site):
    hidden = "0123456789 nobody shall see"
    body = {"jobs": [{"type": "texts", "payload": {"text": hidden}, "sensitive": True}, {"type": "texts"}]}
    headers = {"Idempotency-Key": "secret-batch"}
    batch = post(site, body, headers=headers).json
    assert post(site, body, headers=headers).json == batch
    first, second = rows(site, batch)
    assert (first["sensitive"], first["queue"], second["queue"]) == (True, "sensitive", "default")
    items = site.request("GET", f"/batches/{batch['id']}/jobs", "anna").json["items"]
    assert [(item["masked"], item["payload"]) for item in items] == [(True, None), (False, {})]
    (event,) = site.request("GET", f"/audit?object=job:{first['id']}").json["items"]
    assert "payload_hmac" in event["details"]
    assert event["details"]["sensitive"] is True
    assert "payload_sha256" not in event["details"]
    kept = site.services.db.read(
        lambda c: c.scalar(select(t.idempotency.c.body_sha256).where(t.idempotency.c.job_id == batch["id"]))
    )
    assert kept != digest({"name": None, "jobs": body["jobs"]})
    tables = (t.batch, t.job, t.trace_event, t.audit_event, t.idempotency, t.outbox)
    held = {
        table.name: repr(site.services.db.read(lambda c, table=table: c.execute(select(table)).all()))
        for table in tables
    }
    assert [name for name, text in held.items() if hidden in text] == []
    assert all(row["id"] in held["job"] for row in (first, second))
    files = [path for path in site.services.settings.home.glob("cloche.db*") if path.is_file()]  # none on PostgreSQL
    assert all(hidden.encode() not in path.read_bytes() for path in files)


def test_retrying_a_batch(site):
    batch = accepted(site, 5)
    made = [row["id"] for row in rows(site, batch)]
    path = f"/batches/{batch['id']}/retry"
    problem(site.request("POST", path, "anna"), 409, "nothing-failed")
    end(site, made[:3], "failed")
    end(site, made[3:])
    problem(site.request("POST", path, "vera"), 403)
    problem(site.request("POST", path, "bert"), 403)
    answer = site.request("POST", path, "anna")
    assert (answer.status_code, answer.json["status"]) == (202, "running")
    assert (answer.json["jobs"]["pending"], answer.json["jobs"]["completed"]) == (3, 2)
    assert jobs.audit_actions(site.services.db, made[0]) == ["job:submit", "job:rerun"]
    (event, _) = site.request("GET", f"/audit?object=batch:{batch['id']}").json["items"]
    assert (event["action"], event["details"]) == ("batch:retry", {"failed": 3})
    end(site, made[:1], "failed")
    assert site.request("POST", path, "olga").json["jobs"]["pending"] == 3


def test_jobs_that_wait_for_a_time_or_for_others(site):
    upstream = site.request("POST", "/jobs", "anna", json=counted(1)).json["id"]
    later = "2100-01-01T00:00:00Z"
    soon = to_rfc3339(now_ms() + 3_600_000)
    problem(post(site, {"jobs": [counted(1), counted(2, schedule_at=later)]}), 422)
    bad = {"jobs": [counted(1), counted(2, depends_on=[NO_SUCH])]}
    assert where(problem(post(site, bad), 422)) == {"/jobs/1/depends_on/0"}
    body = {"jobs": [counted(1), counted(2, schedule_at=soon), counted(3, depends_on=[upstream]), counted(4)]}
    batch = post(site, body).json
    assert [row["state"] for row in rows(site, batch)] == ["pending", "scheduled", "blocked", "pending"]
    assert [row["payload"]["n"] for row in rows(site, batch)] == [1, 2, 3, 4]
    queued = set(site.services.db.read(lambda c: c.scalars(select(t.outbox.c.job_id)).all()))
    assert [row["id"] in queued for row in rows(site, batch)] == [True, False, False, True]
    site.request("POST", f"/jobs/{upstream}/cancel", "anna")
    shown = site.request("GET", f"/batches/{batch['id']}").json["jobs"]
    assert (shown["canceled"], shown["scheduled"], shown["pending"]) == (1, 1, 2)
    alone = post(site, {"jobs": [counted(5, depends_on=[upstream])]})
    assert site.request("GET", f"/batches/{alone.json['id']}").json["status"] == "ended"


def test_who_may_and_whose_it_is(site):
    problem(post(site, {"jobs": [counted(1)]}, "vera"), 403)
    batch, other = accepted(site, 1), uuid7()

    def move(connection):
        connection.execute(insert(t.tenant).values(id=other, name=other[:20], created_at=now_ms()))
        connection.execute(update(t.batch).where(t.batch.c.id == batch["id"]).values(tenant_id=other))
        connection.execute(update(t.job).where(t.job.c.batch_id == batch["id"]).values(tenant_id=other))

    site.services.db.write(move)
    for method, path in (("GET", ""), ("GET", "/jobs"), ("POST", "/cancel"), ("POST", "/retry")):
        problem(site.request(method, f"/batches/{batch['id']}{path}"), 404)
        problem(site.request(method, f"/batches/nonsense{path}"), 404)
    assert batch["id"] not in json.dumps(site.request("GET", "/batches?limit=100").json)


def test_a_file_that_many_jobs_share_is_looked_up_for_all(site, tmp_path):
    upload = site.upload(user="anna")
    entry = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
    answer = post(site, {"jobs": [entry] * 600})
    assert answer.status_code == 202
    assert {row["inputs"][0]["sha256"] for row in rows(site, answer.json)} == {upload["sha256"]}
    (event,) = site.request("GET", f"/audit?object=job:{rows(site, answer.json)[599]['id']}").json["items"]
    assert event["details"]["inputs"][0]["sha256"] == upload["sha256"]
