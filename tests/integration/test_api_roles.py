"""Roles of a tenant's own over REST: made of permissions, changed, removed; bounded in number, and cheap however many there are."""

from __future__ import annotations

import pytest
from sqlalchemy import event, insert, select

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.domain.names import skeleton
from cloche.domain.permissions import BUILTIN_ROLES, PLATFORM_PERMISSIONS
from cloche.services import roles
from cloche.services.actors import Origin, actor_of
from cloche.services.members import MAX_ROLES_HELD
from cloche.services.roles import MAX_ROLES
from tests.support.people import add, add_tenant, sign_in
from tests.support.web import API, problem, running_site, where


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        yield running


@pytest.fixture(scope="module")
def root(site):
    return sign_in(site)


def test_a_role_is_made_seen_changed_and_removed(root):
    body = {"name": "Night-Shift", "summary": "Watches at night.", "permissions": ["job:read", "job:cancel_any"]}
    answer = root.ask("POST", "/roles", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"{API}/roles/night-shift"
    made = answer.json
    assert (made["name"], made["builtin"], made["users"]) == ("night-shift", False, 0)
    assert made["permissions"] == ["job:cancel_any", "job:read"]
    path = "/roles/night-shift"
    assert root.got(path) == made
    problem(root.ask("PUT", path, json={"permissions": ["job:read"]}), 428)
    problem(root.change("PUT", path, {"permissions": ["job:read"]}, match='"v7"'), 412)
    changed = root.change("PUT", path, {"permissions": ["job:read"]}, match=answer.headers["ETag"])
    assert (changed.json["permissions"], changed.json["summary"]) == (["job:read"], "")
    assert changed.headers["ETag"] == '"v2"'
    problem(root.ask("DELETE", path), 428)
    problem(root.change("DELETE", path, match=answer.headers["ETag"]), 412)
    assert root.change("DELETE", path, match=changed.headers["ETag"]).status_code == 204
    problem(root.ask("GET", path), 404)
    problem(root.change("DELETE", path), 404)


def test_built_in_roles_stay_as_they_are(root):
    for name, allowed in BUILTIN_ROLES.items():
        shown = root.ask("GET", f"/roles/{name}")
        assert (shown.json["builtin"], shown.json["version"]) == (True, None)
        assert set(shown.json["permissions"]) == allowed
        assert "ETag" not in shown.headers
        problem(root.change("PUT", f"/roles/{name}", {"permissions": ["job:read"]}), 409, "role-built-in")
        problem(root.change("DELETE", f"/roles/{name}"), 409, "role-built-in")
    assert not BUILTIN_ROLES["admin"] & PLATFORM_PERMISSIONS


def test_a_change_of_a_role_acts_on_the_next_request_of_all_who_have_it(site, root):
    root.made("/roles", name="shrinks", permissions=["job:read", "queue:pause"])
    add(root, "sina", "shrinks")
    sina, headers = sign_in(site, "sina"), None
    assert sina.got("/me")["permissions"] == ["job:read", "queue:pause"]
    root.made("/roles", name="tokens", permissions=["token:manage"])
    problem(sina.ask("GET", "/tokens"), 403)
    root.change("PUT", "/roles/shrinks", {"permissions": ["job:read", "token:manage"]})
    headers = {"Authorization": f"Bearer {sina.made('/tokens', name='t')['token']}"}
    assert site.client().get(f"{API}/jobs", headers=headers).status_code == 200
    root.change("PUT", "/roles/shrinks", {"permissions": ["queue:read"]})
    problem(site.client().get(f"{API}/jobs", headers=headers), 403)
    assert sina.got("/me")["permissions"] == ["queue:read"]


def test_one_that_somebody_has_is_not_removed(root):
    root.made("/roles", name="in-use", permissions=["job:read"])
    user_id = add(root, "ines", "in-use", "viewer")
    assert root.got("/roles/in-use")["users"] == 1
    assert [user["id"] for user in root.got("/users?role=in-use")["items"]] == [user_id]
    refused = problem(root.change("DELETE", "/roles/in-use"), 409, "role-in-use")
    assert "1 user has this role" in refused["detail"]
    root.change("PUT", f"/users/{user_id}/roles", {"roles": ["viewer"]})
    assert root.change("DELETE", "/roles/in-use").status_code == 204


def test_what_no_role_can_be_made_of(root):
    for name in ("job:reed", "*", "role:manage ", ""):
        problem(root.ask("POST", "/roles", json={"name": "bad", "permissions": [name]}), 422)
    for name in PLATFORM_PERMISSIONS:
        found = problem(root.ask("POST", "/roles", json={"name": "bad", "permissions": ["job:read", name]}), 422)
        assert where(found) == {"/permissions/1"}
    problem(root.ask("POST", "/roles", json={"name": "bad", "permissions": []}), 422)
    problem(root.ask("POST", "/roles", json={"name": "bad"}), 422)
    problem(root.ask("GET", "/roles/bad"), 404)


def test_roles_are_a_tenants_own(site, root):
    add_tenant(root, "elsewhere")
    there = root.within("elsewhere")
    there.made("/roles", name="local", permissions=["job:read"])
    problem(root.ask("GET", "/roles/local"), 404)
    problem(root.ask("POST", "/users", json={"username": "lola", "kind": "service", "roles": ["local"]}), 422)
    root.made("/roles", name="local", permissions=["queue:read"])
    assert there.got("/roles/local")["permissions"] == ["job:read"]
    assert root.change("DELETE", "/roles/local").status_code == 204
    assert there.got("/roles/local")["permissions"] == ["job:read"]


def test_every_permission_has_a_sentence_and_says_whom_it_is_for(root):
    items = root.got("/permissions")["items"]
    assert {item["name"] for item in items if item["platform"]} == PLATFORM_PERMISSIONS
    assert all(item["summary"].endswith(".") for item in items)


def many(site, count: int, tenant_id: str) -> list[str]:
    now = now_ms()
    names = [f"bulk-{number:05d}" for number in range(count)]
    same = {"tenant_id": tenant_id, "summary": "", "version": 1, "created_at": now, "updated_at": now}
    rows = [
        {**same, "name": name, "skeleton": f"{skeleton(name)[:40]}-{n}", "permissions": ["job:read"]}
        for n, name in enumerate(names)
    ]
    site.services.db.write(lambda c: c.execute(insert(t.role), rows))
    return names


class Counted:
    """The statements that ran while it was open."""

    def __init__(self, connection) -> None:
        self.engine = connection.engine
        self.statements: list[str] = []

    def __enter__(self):
        event.listen(self.engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_):
        event.remove(self.engine, "before_cursor_execute", self._note)

    def _note(self, _connection, _cursor, statement, *_):
        self.statements.append(statement)


def test_two_thousand_roles(site, root):
    tenant_id = add_tenant(root, "crowded")
    there = root.within("crowded")
    names = many(site, MAX_ROLES, tenant_id)
    problem(there.ask("POST", "/roles", json={"name": "one-more", "permissions": ["job:read"]}), 409, "too-many-roles")
    seen, path = [], "/roles?limit=100"
    while path:
        page = there.ask("GET", path)
        assert len(page.json["items"]) <= 100
        seen += [role["name"] for role in page.json["items"]]
        path = f"/roles?limit=100&cursor={page.json['next_cursor']}" if page.json["next_cursor"] else ""
    assert seen == [*BUILTIN_ROLES, *names]
    # A user has only so many, and a request reads them in one statement, whatever else there is.
    held = names[:MAX_ROLES_HELD]
    made = there.ask("POST", "/users", json={"username": "carla", "kind": "service", "roles": held})
    assert made.status_code == 201, made.text
    too_many = {"roles": [*held, names[-1]]}
    problem(there.change("PUT", f"/users/{made.json['id']}/roles", too_many), 422)

    def unit(connection):
        with Counted(connection) as counted:
            actor = actor_of(connection, made.json["id"], tenant_id, Origin())
        return actor, counted.statements

    actor, statements = site.services.db.read(unit)
    assert (len(statements), actor.permissions, len(actor.roles)) == (1, {"job:read"}, MAX_ROLES_HELD)


def test_pages_of_every_size_meet_every_role_once(site, root):
    add_tenant(root, "paged")
    there = root.within("paged")
    for name in ("alpha", "beta", "gamma"):
        there.made("/roles", name=name, permissions=["job:read"])
    whole = [role["name"] for role in there.got("/roles?limit=100")["items"]]
    assert whole == [*BUILTIN_ROLES, "alpha", "beta", "gamma"]
    for limit in range(1, len(whole) + 2):
        seen, path = [], f"/roles?limit={limit}"
        while path:
            page = there.got(path)
            seen += [role["name"] for role in page["items"]]
            path = f"/roles?limit={limit}&cursor={page['next_cursor']}" if page["next_cursor"] else ""
        assert seen == whole, limit
    for cursor in ("x", "_", "YQ", "Li4", "%00"):
        problem(there.ask("GET", f"/roles?cursor={cursor}"), 422)


def test_an_unknown_permission_in_the_database_allows_nothing(site, root):
    """As a later version may have left it."""
    tenant_id = add_tenant(root, "from-later")
    row = {"tenant_id": tenant_id, "name": "later", "skeleton": "later", "summary": "", "version": 1}
    row |= {"permissions": ["job:read", "job:teleport", "tenant:manage"], "created_at": 1, "updated_at": 1}
    site.services.db.write(lambda c: c.execute(insert(t.role), row))
    there = root.within("from-later")
    user_id = there.made("/users", username="lara", kind="service", roles=["later"])["id"]
    actor = site.services.db.read(lambda c: actor_of(c, user_id, tenant_id, Origin()))
    assert actor.permissions == {"job:read"}


def test_every_change_of_a_role_is_in_the_record(site, root):
    root.made("/roles", name="told", permissions=["job:read"])
    root.change("PUT", "/roles/told", {"permissions": ["queue:read"]})
    root.change("DELETE", "/roles/told")
    found = t.audit_event.c
    query = select(t.audit_event).where(found.object == "role:told").order_by(found.id)
    rows = site.services.db.read(lambda c: c.execute(query).mappings().all())
    assert [row["action"] for row in rows] == ["role:create", "role:update", "role:delete"]
    assert rows[0]["after_sha256"] == rows[1]["before_sha256"]
    assert rows[1]["after_sha256"] == rows[2]["before_sha256"]
    assert roles.MAX_ROLES == 2_000
