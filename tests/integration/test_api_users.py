"""Users and service accounts over REST: made, given roles, disabled, removed; of one tenant and of several."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.domain.permissions import BUILTIN_ROLES, Permission
from tests.support.people import add, add_tenant, sign_in, submit
from tests.support.web import API, PASSWORD, problem, running_site, where

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        yield running


@pytest.fixture(scope="module")
def root(site):
    return sign_in(site)


@pytest.fixture
def name():
    return f"user-{next(NUMBERS) + 200}"


def test_a_user_is_made_seen_and_listed(root, name):
    answer = root.ask("POST", "/users", json={"username": name, "password": PASSWORD, "roles": ["viewer", "auditor"]})
    assert answer.status_code == 201, answer.text
    made = answer.json
    assert answer.headers["Location"] == f"{API}/users/{made['id']}"
    assert answer.headers["ETag"] == '"v1"'
    assert (made["username"], made["kind"], made["roles"]) == (name, "person", ["auditor", "viewer"])
    assert made["tenants"] == ["default"]
    assert root.got(f"/users/{made['id']}") == made
    assert root.got(f"/users?username={name.upper()}")["items"] == [made]
    assert made in root.got("/users?role=auditor&limit=100")["items"]
    assert made not in root.got("/users?role=operator&limit=100")["items"]
    assert made not in root.got("/users?kind=service&limit=100")["items"]


def test_pages_meet_every_user_once(root):
    for number in range(3):
        add(root, f"page-{number + 2}", "viewer")
    seen, path = [], "/users?limit=2"
    while True:
        page = root.got(path)
        seen += [user["id"] for user in page["items"]]
        if page["next_cursor"] is None:
            break
        path = f"/users?limit=2&cursor={page['next_cursor']}"
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen)
    assert set(seen) == {user["id"] for user in root.got("/users?limit=100")["items"]}


def test_roles_are_set_as_a_whole_and_act_on_the_next_request(site, root, name):
    user_id = add(root, name, "viewer")
    person = sign_in(site, name)
    problem(person.ask("GET", "/users"), 403)
    path = f"/users/{user_id}/roles"
    problem(root.ask("PUT", path, json={"roles": ["auditor"]}), 428)
    problem(root.change("PUT", path, {"roles": ["auditor"]}, match='"v9"'), 412)
    changed = root.change("PUT", path, {"roles": ["auditor", "submitter"]}, etag_of=f"/users/{user_id}")
    assert changed.status_code == 200, changed.text
    assert (changed.json["roles"], changed.headers["ETag"]) == (["auditor", "submitter"], '"v2"')
    assert person.got("/users")["items"]
    assert set(person.got("/me")["permissions"]) == BUILTIN_ROLES["auditor"] | BUILTIN_ROLES["submitter"]
    problem(root.change("PUT", path, {"roles": []}), 422)
    assert where(problem(root.change("PUT", path, {"roles": ["viewer", "wizard"]}), 422)) == {"/roles/1"}
    problem(root.change("PUT", f"/users/{'0' * 36}/roles", {"roles": ["viewer"]}), 404)


def test_what_a_user_could_do_says_by_which_roles(root, name):
    root.made("/roles", name=f"r-{name}", permissions=["job:read", "queue:pause"])
    user_id = add(root, name, "viewer", f"r-{name}")
    found = root.got(f"/users/{user_id}/permissions")
    held = {item["name"]: item for item in found["items"]}
    assert set(held) == set(Permission)
    assert held["job:read"]["roles"] == [f"r-{name}", "viewer"]
    assert (held["queue:pause"]["granted"], held["queue:pause"]["roles"]) == (True, [f"r-{name}"])
    assert (held["job:submit"]["granted"], held["job:submit"]["roles"]) == (False, [])
    assert all(item["summary"] for item in found["items"])
    admin = root.got("/me")["id"]
    mine = {item["name"]: item for item in root.got(f"/users/{admin}/permissions")["items"]}
    assert (mine["tenant:manage"]["granted"], mine["tenant:manage"]["roles"]) == (True, [])
    assert mine["tenant:manage"]["platform"]


def test_a_disabled_user_is_out_at_once_and_for_good(site, root, name):
    user_id = add(root, name, "viewer")
    person, headers = sign_in(site, name), site.headers(name)
    assert person.got("/me")["username"] == name
    path = f"/users/{user_id}"
    problem(root.ask("PATCH", path, json={"disabled": True}), 428)
    disabled = root.change("PATCH", path, {"disabled": True}, etag_of=path)
    assert disabled.json["disabled"] is True
    problem(person.ask("GET", "/me"), 401)
    problem(site.client().get(f"{API}/me", headers=headers), 401)
    credentials = {"username": name, "password": PASSWORD}
    problem(site.client().post(f"{API}/session", json=credentials), 401, "bad-credentials")
    enabled = root.change("PATCH", path, {"disabled": False}, match=disabled.headers["ETag"])
    assert enabled.json["disabled"] is False
    problem(person.ask("GET", "/me"), 401)
    problem(site.client().get(f"{API}/me", headers=headers), 401)
    assert sign_in(site, name).got("/me")["username"] == name


def test_who_is_removed_from_their_only_tenant_is_deleted(site, root, name):
    user_id = add(root, name, "submitter")
    person = sign_in(site, name)
    stored = person.ask("POST", "/files", query_string={"name": "a.txt"}, data=b"mine").json
    path = f"/users/{user_id}"
    problem(root.ask("DELETE", path), 428)
    assert root.change("DELETE", path, etag_of=path).status_code == 204
    problem(root.ask("GET", path), 404)
    problem(root.change("DELETE", path), 404)
    problem(person.ask("GET", "/me"), 401)
    assert root.got(f"/files/{stored['id']}")["name"] == "a.txt"
    # The name is free again, for somebody who is somebody else; of the old account nothing but its id is left.
    again = add(root, name, "viewer")
    assert again != user_id
    row = site.services.db.read(lambda c: c.execute(select(t.user).where(t.user.c.id == user_id)).mappings().one())
    assert name not in repr(dict(row))
    assert (row["disabled"], row["password_hash"], row["skeleton"]) == (True, "!", None)


def test_jobs_of_a_deleted_user_stay_visible(site, root, name):
    user_id = add(root, name, "submitter")
    person = sign_in(site, name)
    job = submit(person)
    assert root.change("DELETE", f"/users/{user_id}").status_code == 204
    assert root.got(f"/jobs/{job}")["submitted_by"] == f"deleted.{user_id}"


def test_one_user_in_two_tenants(site, root, name):
    user_id = add(root, name, "viewer")
    add_tenant(root, f"t-{name}")
    there = root.within(f"t-{name}")
    assert there.got("/users")["items"][0]["username"] == "admin"
    problem(there.change("PUT", f"/users/{user_id}/roles", {"roles": ["operator"]}), 404)
    path, every = f"/users/{user_id}", "scope=platform"
    brought = there.change("PUT", f"{path}/roles?{every}", {"roles": ["operator"]}, etag_of=f"{path}?{every}")
    assert brought.json["roles"] == ["operator"]
    assert brought.json["tenants"] == ["default", f"t-{name}"]
    person = sign_in(site, name)
    tenants = {tenant["name"]: tenant["roles"] for tenant in person.got("/me")["tenants"]}
    assert tenants == {"default": ["viewer"], f"t-{name}": ["operator"]}
    assert "job:cancel_any" not in person.got("/me")["permissions"]
    assert "job:cancel_any" in person.within(f"t-{name}").got("/me")["permissions"]
    assert there.change("DELETE", f"/users/{user_id}").status_code == 204
    problem(person.within(f"t-{name}").ask("GET", "/me"), 404, "tenant-unknown")
    assert person.got("/me")["roles"] == ["viewer"]
    assert root.got(f"/users/{user_id}")["tenants"] == ["default"]


def test_a_token_belongs_to_the_tenant_that_was_chosen(site, root, name):
    add(root, name, "viewer")
    add_tenant(root, f"t-{name}", name)
    chosen = {"X-Cloche-Tenant": f"t-{name}"}
    made = site.client().post(f"{API}/tokens", json={"name": "there"}, auth=(name, PASSWORD), headers=chosen)
    headers = {"Authorization": f"Bearer {made.json['token']}"}
    me = site.client().get(f"{API}/me", headers=headers).json
    assert (me["roles"], [tenant["name"] for tenant in me["tenants"]]) == (["admin"], [f"t-{name}"])
    assert site.client().get(f"{API}/me", headers={**headers, **chosen}).status_code == 200
    other = {**headers, "X-Cloche-Tenant": "default"}
    problem(site.client().get(f"{API}/me", headers=other), 404, "tenant-unknown")


def test_every_account_is_shown_to_those_who_manage_tenants_alone(site, root, name):
    add(root, name, "admin")
    add_tenant(root, f"t-{name}")
    theirs = add(root.within(f"t-{name}"), f"theirs-{name}", "viewer")
    assert theirs in {user["id"] for user in root.got("/users?scope=platform&limit=100")["items"]}
    assert theirs not in {user["id"] for user in root.got("/users?limit=100")["items"]}
    chief = sign_in(site, name)
    problem(chief.ask("GET", "/users?scope=platform"), 403)
    for asker in (chief, root):
        problem(asker.ask("GET", f"/users/{theirs}"), 404)
    problem(chief.ask("GET", f"/users/{theirs}?scope=platform"), 403)
    assert root.got(f"/users/{theirs}?scope=platform")["tenants"] == [f"t-{name}"]
    assert chief.got("/users")["items"][0]["tenants"] is None


def test_platform_administrators_are_appointed_and_dismissed(site, root, name):
    user_id = add(root, name, "viewer")
    path = f"/users/{user_id}/platform-admin"
    person = sign_in(site, name)
    problem(person.change("PUT", path), 403)
    problem(root.ask("PUT", path), 428)
    appointed = root.change("PUT", path, etag_of=f"/users/{user_id}")
    assert appointed.json["platform_admin"] is True
    assert "tenant:manage" in person.got("/me")["permissions"]
    assert person.got("/tenants")["items"]
    dismissed = root.change("DELETE", path, match=appointed.headers["ETag"])
    assert dismissed.json["platform_admin"] is False
    problem(person.ask("GET", "/tenants"), 403)


def test_a_service_account_has_no_password(site, root, name):
    assert where(
        problem(
            root.ask(
                "POST",
                "/users",
                json={"username": name, "kind": "service", "password": PASSWORD, "roles": ["viewer"]},
            ),
            422,
        )
    ) == {"/password"}
    problem(root.ask("POST", "/users", json={"username": name, "roles": ["viewer"]}), 422)
    made = root.made("/users", username=name, kind="service", roles=["submitter"])
    assert made["kind"] == "service"
    for password in ("!", "", PASSWORD):
        answer = site.client().post(f"{API}/session", json={"username": name, "password": password})
        problem(answer, 401, "bad-credentials")
    problem(root.change("PUT", f"/users/{made['id']}/platform-admin"), 409, "no-platform-admin")


def test_tokens_of_a_service_account_reach_no_further_than_both(site, root, name):
    root.made(
        "/roles", name=f"r-{name}", permissions=["user:manage", "user:read", "job:read", "queue:read", "token:manage"]
    )
    add(root, name, f"r-{name}")
    helper = sign_in(site, name)
    bot = root.made("/users", username=f"bot-{name}", kind="service", roles=["submitter"])["id"]
    path = f"/users/{bot}/tokens"
    made = helper.made(path, name="ci")
    assert made["scopes"] == ["job:read", "queue:read"]
    headers = {"Authorization": f"Bearer {made['token']}"}
    me = site.client().get(f"{API}/me", headers=headers).json
    assert (me["username"], me["permissions"]) == (f"bot-{name}", ["job:read", "queue:read"])
    problem(helper.ask("POST", path, json={"name": "more", "scopes": ["job:submit"]}), 403, "grant-exceeds-own")
    problem(helper.ask("POST", path, json={"name": "more", "scopes": ["user:read"]}), 403, "grant-exceeds-own")
    problem(helper.ask("POST", path, json={"name": "typo", "scopes": ["job:reed"]}), 422)
    basic = site.client().post(f"{API}{path}", json={"name": "basic", "scopes": ["job:read"]}, auth=(name, PASSWORD))
    assert basic.status_code == 201, basic.text
    # What the account is given later is not the token's.
    root.change("PUT", f"/users/{bot}/roles", {"roles": ["operator"]})
    assert site.client().get(f"{API}/me", headers=headers).json["permissions"] == ["job:read", "queue:read"]
    assert {token["name"] for token in root.got(path)["items"]} == {"ci", "basic"}
    assert "cloche_pat" not in root.ask("GET", path).text
    problem(helper.ask("DELETE", f"{path}/{made['id']}"), 403, "user-exceeds-own")
    assert root.ask("DELETE", f"{path}/{made['id']}").status_code == 204
    problem(site.client().get(f"{API}/me", headers=headers), 401, "token-revoked")
    root.change("PATCH", f"/users/{bot}", {"disabled": True})
    problem(root.ask("POST", path, json={"name": "no"}), 409, "account-disabled")
    person = root.got("/me")["id"]
    problem(root.ask("POST", f"/users/{person}/tokens", json={"name": "no"}), 409, "no-service-account")


def test_a_token_issued_with_a_token_goes_with_it(site, root, name):
    bot = root.made("/users", username=name, kind="service", roles=["viewer"])["id"]
    plain = site.token()
    ask = {"method": "POST", "json": {"name": "child"}}
    problem(site.client().open(f"{API}/users/{bot}/tokens", headers={"Authorization": f"Bearer {plain}"}, **ask), 403)
    parent = root.made("/tokens", name="p", scopes=["user:manage", "token:manage", "job:read"])
    headers = {"Authorization": f"Bearer {parent['token']}"}
    child = site.client().open(f"{API}/users/{bot}/tokens", headers=headers, **ask)
    assert child.status_code == 201, child.text
    assert child.json["scopes"] == ["job:read"]
    using = {"Authorization": f"Bearer {child.json['token']}"}
    assert site.client().get(f"{API}/jobs", headers=using).status_code == 200
    assert root.ask("DELETE", f"/tokens/{parent['id']}").status_code == 204
    problem(site.client().get(f"{API}/jobs", headers=using), 401, "token-revoked")


def test_every_change_is_in_the_record(site, root, name):
    user_id = add(root, name, "viewer")
    root.change("PUT", f"/users/{user_id}/roles", {"roles": ["operator"]})
    root.change("PATCH", f"/users/{user_id}", {"disabled": True})
    root.change("DELETE", f"/users/{user_id}")
    event = t.audit_event.c
    query = select(t.audit_event).where(event.object == f"user:{user_id}").order_by(event.id)
    rows = site.services.db.read(lambda c: c.execute(query).mappings().all())
    assert [row["action"] for row in rows] == ["user:create", "user:roles", "user:update", "user:delete"]
    assert '"added":["operator"]' in rows[1]["details"]
    assert all(row["before_sha256"] for row in rows[1:])
    assert all(row["after_sha256"] for row in rows[:3])
    assert name not in repr([dict(row) for row in rows])
