"""Tenants over REST: made, suspended and resumed, emptied, removed."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import select

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.services import effects, index, queue_rows
from tests.support import jobs, queues
from tests.support.people import add, add_tenant, sign_in, submit
from tests.support.web import API, PASSWORD, problem, running_site, where

NUMBERS = itertools.count(200)


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        index.rebuild(running.services.db, running.services.broker, [])
        yield running


@pytest.fixture(scope="module")
def root(site):
    return sign_in(site)


@pytest.fixture
def name():
    return f"acme-{next(NUMBERS)}"


@pytest.fixture
def tenant(root, name):
    return add_tenant(root, name)


def suspend(root, tenant_id, suspended=True):
    path = f"/tenants/{tenant_id}"
    answer = root.change("PATCH", path, {"suspended": suspended}, etag_of=path)
    assert answer.status_code == 200, answer.text
    return answer.json


def take(site, count: int = 9) -> list[str]:
    return queues.take(site.services.broker, "default", count)


def test_a_tenant_is_made_with_its_first_administrator(site, root, name):
    add(root, f"chief-{name}", "viewer")
    answer = root.ask("POST", "/tenants", json={"name": name.upper(), "admin": f"Chief-{name}"})
    assert answer.status_code == 201, answer.text
    made = answer.json
    assert (made["name"], made["suspended"], made["users"]) == (name, False, 1)
    assert answer.headers["Location"] == f"{API}/tenants/{made['id']}"
    assert root.got(f"/tenants/{made['id']}") == made
    assert made in root.got("/tenants?limit=100")["items"]
    chief = sign_in(site, f"chief-{name}", name)
    assert chief.got("/me")["roles"] == ["admin"]
    assert chief.got("/me")["tenant_id"] == made["id"]
    problem(chief.ask("GET", "/tenants"), 403)
    assert where(problem(root.ask("POST", "/tenants", json={"name": f"x{name}", "admin": "nobody"}), 422)) == {"/admin"}
    problem(root.ask("POST", "/tenants", json={"name": name}), 409, "tenant-exists")
    pages = root.got("/tenants?limit=1")
    assert root.got(f"/tenants?limit=1&cursor={pages['next_cursor']}")["items"] != pages["items"]


def test_nobody_but_the_platforms_administrators_gets_into_a_suspended_tenant(site, root, name, tenant):
    there = root.within(name)
    add(there, f"u-{name}", "submitter")
    person = sign_in(site, f"u-{name}")
    made = person.made("/tokens", name="t")
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert site.client().get(f"{API}/jobs", headers=headers).status_code == 200
    stored = there.ask("POST", "/files", query_string={"name": "table.csv"}, data=b"a,b\n1,2\n").json
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{stored['id']}"}]}
    batch = there.ask("POST", "/jobs/batch", json={"jobs": [body]}).json["id"]
    assert there.ask("POST", f"/batches/{batch}/cancel").status_code in (200, 202)
    shown = suspend(root, tenant)
    assert (shown["suspended"], shown["version"]) == (True, 2)
    problem(person.ask("GET", "/jobs"), 401)
    problem(site.client().get(f"{API}/jobs", headers=headers), 401, "tenant-suspended")
    credentials = {"username": f"u-{name}", "password": PASSWORD}
    problem(site.client().post(f"{API}/session", json=credentials), 401, "tenant-suspended")
    assert there.got("/users")["items"], "the platform's administrators look after it"
    problem(there.ask("POST", "/jobs", json=body), 409, "tenant-suspended")
    problem(there.ask("POST", "/jobs/batch", json={"jobs": [body]}), 409, "tenant-suspended")
    problem(there.ask("POST", f"/batches/{batch}/retry"), 409, "tenant-suspended")
    suspend(root, tenant, False)
    assert site.client().get(f"{API}/jobs", headers=headers).status_code == 200
    assert sign_in(site, f"u-{name}").got("/me")["username"] == f"u-{name}"


def test_who_has_another_tenant_signs_in_to_that(site, root, name, tenant):
    user_id = add(root, f"two-{name}", "viewer")
    path = f"/users/{user_id}/roles?scope=platform"
    assert root.within(name).change("PUT", path, {"roles": ["operator"]}).status_code == 200
    suspend(root, tenant)
    person = sign_in(site, f"two-{name}")
    assert person.got("/me")["roles"] == ["viewer"]
    assert {one["name"]: one["suspended"] for one in person.got("/me")["tenants"]} == {"default": False, name: True}
    problem(person.within(name).ask("GET", "/me"), 401)


def test_queued_jobs_of_a_suspended_tenant_do_not_start(site, root, name, tenant):
    there, services = root.within(name), site.services
    first, second = submit(there), submit(there)
    assert take(site, 1) == [first], "already in a worker's hand, and not claimed yet"
    suspend(root, tenant)
    other = submit(root)
    assert take(site) == [other]
    assert jobs.claim(services.db, services.broker, [first, second]) == []
    asked = [first, second, other]
    assert services.db.read(lambda c: queue_rows.waiting(c, asked, now_ms() + 1_000)) == {other}
    index.refresh(services.db, services.broker)
    services.broker.push([effects.queue_entry(jobs.job(services.db, one)) for one in (first, second)])
    assert take(site) == [], "the index is told again, and still nothing is taken"
    problem(there.ask("POST", f"/jobs/{first}/retry"), 409)
    suspend(root, tenant, False)
    assert set(take(site)) == {first, second}
    claimed = jobs.claim(services.db, services.broker, [first, second])
    assert {row["id"] for row in claimed} == {first, second}


def test_a_tenant_goes_only_when_it_is_suspended_and_empty(site, root, name, tenant):
    there, services, path = root.within(name), site.services, f"/tenants/{tenant}"
    user_id = add(there, f"u-{name}", "submitter")
    member = add(root, f"m-{name}", "viewer")
    there.change("PUT", f"/users/{member}/roles?scope=platform", {"roles": ["viewer"]})
    sign_in(site, f"u-{name}").made("/tokens", name="t")
    there.made("/roles", name="own", permissions=["job:read"])
    submit(there)
    runs = submit(there)
    take(site)
    assert jobs.claim(services.db, services.broker, [runs])
    problem(root.ask("DELETE", path), 428)
    problem(root.change("DELETE", path), 409, "tenant-active")
    problem(root.change("POST", f"{path}/empty", {"confirm": name}), 409, "tenant-active")
    suspend(root, tenant)
    problem(root.change("DELETE", path), 409, "tenant-not-empty")
    assert where(problem(root.change("POST", f"{path}/empty", {"confirm": "default"}), 422)) == {"/confirm"}
    problem(root.change("POST", f"{path}/empty", {"confirm": name}, match='"v1"'), 412)
    first = root.change("POST", f"{path}/empty", {"confirm": name}, etag_of=path).json
    assert first == {"removed": {"jobs": 1, "files": 0}, "left": {"jobs": 1, "files": 2}, "done": False}
    # Its worker kills what runs, and says so.
    row = jobs.job(services.db, runs)
    services.db.write(lambda c: jobs.transitions().canceled(c, runs, row["attempt"], "w1", now_ms(), None))
    last = root.change("POST", f"{path}/empty", {"confirm": name}).json
    assert last == {"removed": {"jobs": 1, "files": 2}, "left": {"jobs": 0, "files": 0}, "done": True}
    problem(there.change("DELETE", path), 409, "tenant-in-use")
    assert root.change("DELETE", path, etag_of=path).status_code == 204
    problem(root.ask("GET", path), 404)
    problem(root.ask("GET", f"/users/{user_id}?scope=platform"), 404)
    assert root.got(f"/users/{member}")["tenants"] == ["default"]
    for table in t.metadata.sorted_tables:
        # The record stays, and what was used, for the bill.
        if "tenant_id" in table.c and not table.name.startswith(("audit_", "usage_day")):
            mine = select(table).where(table.c.tenant_id == tenant)
            assert services.db.read(lambda c, mine=mine: c.execute(mine).all()) == [], table.name


def test_the_first_tenant_stays(root):
    default = next(one for one in root.got("/tenants")["items"] if one["name"] == "default")
    problem(root.change("DELETE", f"/tenants/{default['id']}"), 409, "tenant-active")


def test_what_is_done_to_tenants_is_in_the_record(site, root, name, tenant):
    suspend(root, tenant)
    suspend(root, tenant, False)
    suspend(root, tenant)
    path = f"/tenants/{tenant}"
    root.change("POST", f"{path}/empty", {"confirm": name})
    root.change("DELETE", path)
    found = t.audit_event.c
    query = select(found.action).where(found.object == f"tenant:{tenant}").order_by(found.id)
    actions = site.services.db.read(lambda c: c.scalars(query).all())
    expected = ["create", "suspend", "resume", "suspend", "empty", "delete"]
    assert actions == [f"tenant:{verb}" for verb in expected]
