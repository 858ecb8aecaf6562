"""Who tries to become more than they are: by roles, by others, by names, by fields, by being fast."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.domain.permissions import BUILTIN_ROLES, Permission
from cloche.services.actors import Origin
from cloche.services.members import MAX_ROLES_HELD
from tests.support.people import add, add_tenant, sign_in, submit
from tests.support.web import API, PASSWORD, problem, running_site, where


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        yield running


@pytest.fixture(scope="module")
def root(site):
    return sign_in(site)


@pytest.fixture(scope="module")
def helper(site, root):
    """Who may manage users and roles, and little else."""
    own = ["user:read", "user:manage", "role:read", "role:manage", "job:read", "token:manage"]
    root.made("/roles", name="helpdesk", permissions=own)
    add(root, "helper", "helpdesk")
    return sign_in(site, "helper")


# Within what one holds


def test_nobody_gives_what_they_do_not_hold(root, helper):
    for role in ("admin", "submitter", "auditor"):
        body = {"username": "puppet", "password": PASSWORD, "roles": [role]}
        problem(helper.ask("POST", "/users", json=body), 403, "grant-exceeds-own")
    for permission in set(Permission) - {
        "user:read",
        "user:manage",
        "role:read",
        "role:manage",
        "job:read",
        "token:manage",
    }:
        body = {"name": "trick", "permissions": ["job:read", permission]}
        assert helper.ask("POST", "/roles", json=body).status_code in (403, 422), permission
    victim = add(root, "victim", "helpdesk")
    refused = helper.change("PUT", f"/users/{victim}/roles", {"roles": ["helpdesk", "submitter"]})
    problem(refused, 403, "grant-exceeds-own")
    assert helper.change("PUT", f"/users/{victim}/roles", {"roles": ["helpdesk"]}).status_code == 200


def test_nobody_raises_themselves(root, helper):
    me = helper.got("/me")["id"]
    problem(helper.change("PUT", f"/users/{me}/roles", {"roles": ["helpdesk", "admin"]}), 403, "grant-exceeds-own")
    # Not through the role that they have themselves, ...
    more = {"permissions": ["user:read", "user:manage", "role:read", "role:manage", "job:read", "audit:read"]}
    problem(helper.change("PUT", "/roles/helpdesk", more), 403, "grant-exceeds-own")
    # ... nor through one that they make and fill later, ...
    helper.made("/roles", name="later", permissions=["job:read"])
    problem(helper.change("PUT", "/roles/later", {"permissions": ["job:read", "audit:read"]}), 403, "grant-exceeds-own")
    # ... nor by appointment, ...
    problem(helper.change("PUT", f"/users/{me}/platform-admin"), 403)
    # ... nor by a service account that somebody else has made strong.
    bot = root.made("/users", username="strong-bot", kind="service", roles=["operator"])["id"]
    token = helper.made(f"/users/{bot}/tokens", name="t")
    assert token["scopes"] == ["job:read"]
    problem(helper.ask("POST", f"/users/{bot}/tokens", json={"name": "t", "scopes": ["job:purge"]}), 403)
    assert set(helper.got("/me")["permissions"]) == {
        "user:read",
        "user:manage",
        "role:read",
        "role:manage",
        "job:read",
        "token:manage",
    }


def test_nobody_brings_down_those_above_them(root, helper):
    chief = add(root, "chief-above", "admin")
    for refused in (
        helper.change("PATCH", f"/users/{chief}", {"disabled": True}),
        helper.change("DELETE", f"/users/{chief}"),
        helper.change("PUT", f"/users/{chief}/roles", {"roles": ["helpdesk"]}),
    ):
        problem(refused, 403, "user-exceeds-own")
    root.made("/roles", name="above", permissions=["audit:read", "job:read"])
    problem(helper.change("PUT", "/roles/above", {"permissions": ["job:read"]}), 403, "grant-exceeds-own")
    problem(helper.change("DELETE", "/roles/above"), 403, "grant-exceeds-own")
    assert root.got(f"/users/{chief}")["roles"] == ["admin"]


def test_a_token_gives_no_more_than_it_names(site, root):
    """Of an administrator who is afraid of losing it."""
    token = root.made("/tokens", name="narrow", scopes=["user:manage", "user:read", "role:manage", "job:read"])
    headers = {"Authorization": f"Bearer {token['token']}", "If-Match": "*"}

    def ask(method, path, body):
        return site.client().open(f"{API}{path}", method=method, json=body, headers=headers)

    problem(ask("POST", "/users", {"username": "x1", "password": PASSWORD, "roles": ["submitter"]}), 403)
    problem(ask("POST", "/roles", {"name": "wide", "permissions": ["audit:read"]}), 403, "grant-exceeds-own")
    assert ask("POST", "/roles", {"name": "narrow", "permissions": ["job:read"]}).status_code == 201
    me = root.got("/me")["id"]
    problem(ask("PATCH", f"/users/{me}", {"disabled": True}), 403, "user-exceeds-own")
    problem(ask("PUT", f"/users/{me}/platform-admin", None), 403)
    problem(ask("GET", "/users?scope=platform", None), 403)


def test_a_token_appoints_nobody_to_more_than_it_names(site, root):
    puppet = add(root, "puppet-chief", "viewer")
    scopes = sorted(BUILTIN_ROLES["viewer"] | {"tenant:manage", "platform:manage", "user:manage", "user:read"})
    token = root.made("/tokens", name="narrow", scopes=scopes)["token"]
    headers = {"Authorization": f"Bearer {token}", "If-Match": "*"}
    appointing = site.client().put(f"{API}/users/{puppet}/platform-admin", headers=headers)
    problem(appointing, 403, "grant-exceeds-own")
    body = {"name": "puppet-state", "admin": "puppet-chief"}
    problem(site.client().post(f"{API}/tenants", json=body, headers=headers), 403, "grant-exceeds-own")
    assert root.got("/tenants?name=puppet-state")["items"] == []
    assert site.client().post(f"{API}/tenants", json={"name": "puppet-state"}, headers=headers).status_code == 201


# The last one stays


def test_the_last_administrator_stays(site, root):
    add(root, "only-chief", "viewer")
    add_tenant(root, "lonely", "only-chief")
    there, chief = root.within("lonely"), sign_in(site, "only-chief", "lonely")
    me = chief.got("/me")["id"]
    add(chief, "not-chief", "operator")
    chief.made("/users", username="chief-bot", kind="service", roles=["admin"])
    off = add(chief, "chief-off", "admin")
    assert chief.change("PATCH", f"/users/{off}", {"disabled": True}).status_code == 200
    for asker in (chief, there):
        problem(asker.change("PUT", f"/users/{me}/roles", {"roles": ["viewer"]}), 409, "last-admin")
        problem(asker.change("DELETE", f"/users/{me}"), 409, "last-admin")
    problem(there.change("PATCH", f"/users/{me}", {"disabled": True}), 409, "last-admin")
    problem(root.change("DELETE", f"/users/{me}?scope=platform"), 409, "last-admin")
    add(chief, "second-chief", "admin")
    assert chief.change("PUT", f"/users/{me}/roles", {"roles": ["viewer"]}).status_code == 200


def test_the_last_platform_administrator_stays(root):
    me = root.got("/me")["id"]
    problem(root.change("DELETE", f"/users/{me}/platform-admin"), 409, "last-platform-admin")
    add(root, "another-admin", "admin")
    problem(root.change("PATCH", f"/users/{me}", {"disabled": True}), 409, "last-platform-admin")
    problem(root.change("DELETE", f"/users/{me}?scope=platform"), 409)
    off = add(root, "was-platform", "viewer")
    assert root.change("PUT", f"/users/{off}/platform-admin").status_code == 200
    assert root.change("PATCH", f"/users/{off}", {"disabled": True}).status_code == 200
    problem(root.change("DELETE", f"/users/{me}/platform-admin"), 409, "last-platform-admin")


def at_once(*acts):
    """Each in a thread of its own, all let go at one moment."""
    gate = threading.Barrier(len(acts))

    def run(act):
        gate.wait(30)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result(60) for future in [pool.submit(run, act) for act in acts]]


def demote(who, whom, way):
    if way == "roles":
        return who.change("PUT", f"/users/{whom}/roles", {"roles": ["viewer"]})
    if way == "disable":
        return who.change("PATCH", f"/users/{whom}", {"disabled": True})
    return who.change("DELETE", f"/users/{whom}")


def able_admins(site, tenant):
    held, user = t.user_role.c, t.user.c
    query = select(user.id).join(t.user_role, held.user_id == user.id)
    able = query.where(held.tenant_id == tenant, held.role == "admin", ~user.disabled)
    return site.services.db.read(lambda c: c.scalars(able).all())


def duel(site, root, name, way):
    """Two administrators of a tenant, and nobody else in it; the answers both got."""
    first, second = add(root, f"{name}-a", "viewer"), add(root, f"{name}-b", "viewer")
    tenant = add_tenant(root, name, f"{name}-a")
    root.within(name).change("PUT", f"/users/{second}/roles?scope=platform", {"roles": ["admin"]})
    for user_id in (first, second):  # the accounts are to be this tenant's alone
        assert root.change("DELETE", f"/users/{user_id}").status_code == 204
    one, other = sign_in(site, f"{name}-a", name), sign_in(site, f"{name}-b", name)
    assert len(able_admins(site, tenant)) == 2
    answers = at_once(lambda: demote(one, second, way), lambda: demote(other, first, way))
    assert len(able_admins(site, tenant)) == 1
    return answers


@pytest.mark.parametrize("way", ["roles", "disable", "remove"])
def test_two_administrators_who_demote_each_other_at_once(site, root, way):
    for number in range(2, 6):
        statuses = sorted(answer.status_code for answer in duel(site, root, f"duel-{way}-{number}", way))
        assert statuses[0] in (200, 204), statuses
        assert statuses[1] in (401, 403, 404, 409), statuses


def platform_admins(site):
    able = select(t.user.c.id).where(t.user.c.platform_admin, ~t.user.c.disabled)
    return site.services.db.read(lambda c: c.scalars(able).all())


def dismiss(who, whom):
    return who.change("DELETE", f"/users/{whom}/platform-admin")


def test_two_platform_administrators_who_dismiss_each_other_at_once(site, root):
    me = root.got("/me")["id"]
    for number in range(2, 5):
        other = add(root, f"rival-{number}", "viewer")
        assert root.change("PUT", f"/users/{other}/platform-admin").status_code == 200
        rival = sign_in(site, f"rival-{number}")
        acts = [(root, other), (rival, me)]
        answers = at_once(*(lambda who=who, whom=whom: dismiss(who, whom) for who, whom in acts))
        assert sorted(answer.status_code for answer in answers)[0] == 200
        left = platform_admins(site)
        assert len(left) == 1
        if left != [me]:  # as it was, for the tests that follow
            assert rival.change("PUT", f"/users/{me}/platform-admin").status_code == 200
            assert dismiss(root, other).status_code == 200


def test_whoever_is_demoted_while_they_ask_changes_nothing_more(site, root):
    """What they may do is looked at again where the change is made."""
    user_id = add(root, "was-admin", "admin")
    stale = sign_in(site, "was-admin")
    users = site.services.users
    person = site.services.access.check_credentials("was-admin", PASSWORD, Origin("192.0.2.7"))
    victim = add(root, "standing", "viewer")
    assert root.change("PUT", f"/users/{user_id}/roles", {"roles": ["viewer"]}).status_code == 200
    with pytest.raises(Exception, match="user:manage"):
        users.set_roles(person, victim, ["admin"])
    with pytest.raises(Exception, match="role:manage"):
        site.services.roles.create(person, "too-late", "", ["job:read"])
    problem(stale.change("PUT", f"/users/{victim}/roles", {"roles": ["admin"]}), 403)


# Tenants


def test_a_tenant_is_none_of_the_others_business(site, root):
    add(root, "mallory", "admin")
    add_tenant(root, "target")
    there, mallory = root.within("target"), sign_in(site, "mallory")
    victim = add(there, "target-user", "viewer")
    there.made("/roles", name="target-role", permissions=["job:read"])
    for answer in (
        mallory.ask("GET", f"/users/{victim}"),
        mallory.ask("GET", f"/users/{victim}/permissions"),
        mallory.ask("GET", f"/users/{victim}/tokens"),
        mallory.ask("POST", f"/users/{victim}/tokens", json={"name": "t"}),
        mallory.change("PATCH", f"/users/{victim}", {"disabled": True}),
        mallory.change("DELETE", f"/users/{victim}"),
        mallory.change("PUT", f"/users/{victim}/roles", {"roles": ["viewer"]}),
        mallory.ask("GET", "/roles/target-role"),
        mallory.change("PUT", "/roles/target-role", {"permissions": ["job:read"]}),
        mallory.change("DELETE", "/roles/target-role"),
    ):
        problem(answer, 404)
    never = mallory.within("never-was").ask("GET", "/me")
    theirs = mallory.within("target").ask("GET", "/me")
    assert problem(never, 404, "tenant-unknown")["detail"] == problem(theirs, 404, "tenant-unknown")["detail"]


@pytest.mark.parametrize(
    "header",
    ["", " ", "x" * 5_000, "default,target", "%64efault", "défault", "'; --", "00000000-0000-7000-8000-000000000000"],
)
def test_headers_that_name_no_tenant(root, header):
    problem(root.within(header.encode().decode("latin-1")).ask("GET", "/me"), 404, "tenant-unknown")


def test_an_administrator_of_one_tenant_does_not_reach_into_another(site, root):
    """An account of two tenants is neither's alone."""
    shared = add(root, "shared", "viewer")
    add(root, "half-chief", "admin")
    add_tenant(root, "second")
    root.within("second").change("PUT", f"/users/{shared}/roles?scope=platform", {"roles": ["viewer"]})
    chief = sign_in(site, "half-chief")
    problem(chief.change("PATCH", f"/users/{shared}", {"disabled": True}), 403, "user-of-others")
    assert chief.change("DELETE", f"/users/{shared}").status_code == 204
    assert sign_in(site, "shared").got("/me")["tenants"][0]["name"] == "second"
    assert root.got(f"/users/{shared}?scope=platform")["disabled"] is False


@pytest.mark.parametrize("how", ["disable", "roles", "sign out", "suspend"])
def test_a_stream_that_is_open_ends_with_its_credential(site, root, how):
    name = f"watcher-{how.replace(' ', '-')}"
    add(root, name, "viewer")
    tenant = add_tenant(root, name, name)
    there = root.within(name)
    job = submit(there)
    watcher = sign_in(site, name, name)
    user_id = watcher.got("/me")["id"]
    answer = watcher.ask("GET", f"/jobs/{job}/events", buffered=False)
    stream = answer.iter_encoded()
    told = [next(stream), next(stream)]
    assert b"event: job" in told[1]
    if how == "disable":
        root.change("DELETE", f"/users/{user_id}")
        there.change("PUT", f"/users/{root.got('/me')['id']}/roles?scope=platform", {"roles": ["admin"]})
        assert there.change("PATCH", f"/users/{user_id}", {"disabled": True}).status_code == 200
    elif how == "roles":
        there.change("PUT", f"/users/{root.got('/me')['id']}/roles?scope=platform", {"roles": ["admin"]})
        root.made("/roles", name=name, permissions=["queue:read"])
        there.made("/roles", name=name, permissions=["queue:read"])
        assert there.change("PUT", f"/users/{user_id}/roles", {"roles": [name]}).status_code == 200
    elif how == "sign out":
        assert watcher.ask("DELETE", "/session").status_code == 204
    else:
        assert root.change("PATCH", f"/tenants/{tenant}", {"suspended": True}).status_code == 200
    assert there.ask("POST", f"/jobs/{job}/cancel").status_code == 202
    assert b"canceled" not in b"".join(stream)
    answer.close()


# Names


LOOK_ALIKES = ["ROOT-USER", "ＲＯＯＴ-user", "r00t-user", "root_user", "rOOt.UsEr"]
NOT_NAMES = [
    "rооt",  # Cyrillic
    "rοοt",  # Greek
    "root\u200b",
    "ro\u00adot",
    "root\n",
    "root\r\nSet-Cookie: a=b",
    "root\x1b[2J",
    "\u202eroot",
    "a b",
    "../root",
    "root/x",
    "root%00",
    "<b>root",
    "${jndi:x}",
    "",
    "x",
    "x" * 64,
    "系统",
    "01900000-0000-7000-8000-000000000000",
]


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_user_names_that_look_alike_are_one(root, name):
    if not root.got("/users?username=root-user")["items"]:
        add(root, "root-user", "viewer")
    body = {"username": name, "password": PASSWORD, "roles": ["viewer"]}
    problem(root.ask("POST", "/users", json=body), 409, "username-taken")


@pytest.mark.parametrize("name", NOT_NAMES)
def test_what_is_no_name_of_a_user_role_or_tenant(root, name):
    body = {"username": name, "password": PASSWORD, "roles": ["viewer"]}
    assert where(problem(root.ask("POST", "/users", json=body), 422)) == {"/username"}
    assert where(problem(root.ask("POST", "/roles", json={"name": name, "permissions": ["job:read"]}), 422)) == {
        "/name"
    }
    assert where(problem(root.ask("POST", "/tenants", json={"name": name}), 422)) == {"/name"}


@pytest.mark.parametrize(
    "name", ["system", "System", "anonymous", "bootstrap", "worker-7", "deleted.x", "p1atform", "sweeper"]
)
def test_nobody_is_called_like_a_part_of_the_platform(root, name):
    body = {"username": name, "password": PASSWORD, "roles": ["viewer"]}
    problem(root.ask("POST", "/users", json=body), 422)


@pytest.mark.parametrize("name", ["ADMIN", "adrnin", "Viewer", "vievver", "ａｄｍｉｎ"])
def test_no_role_looks_like_a_built_in_one(root, name):
    problem(root.ask("POST", "/roles", json={"name": name, "permissions": ["job:read"]}), 409, "role-exists")


def test_no_tenant_looks_like_another(root):
    for name in ("DEFAULT", "defau1t"):
        problem(root.ask("POST", "/tenants", json={"name": name}), 409, "tenant-exists")


# Fields


FORBIDDEN = {
    "tenant": "default",
    "tenant_id": "x",
    "platform_admin": True,
    "id": "01900000-0000-7000-8000-000000000000",
    "permissions": ["tenant:manage"],
    "kind": "service",
    "version": 9,
    "disabled": False,
    "password_hash": "!",
    "created_at": "2020-01-01T00:00:00Z",
    "submitted_by": "admin",
    "builtin": True,
    "suspended": False,
    "roles": ["admin"],
}
BODIES = {
    ("POST", "/users"): ({"username": "massed", "password": PASSWORD, "roles": ["viewer"]}, {"kind", "roles"}),
    ("PATCH", "/users/{user}"): ({"disabled": False}, {"disabled"}),
    ("PUT", "/users/{user}/roles"): ({"roles": ["viewer"]}, {"roles"}),
    ("POST", "/users/{bot}/tokens"): ({"name": "t"}, set()),
    ("POST", "/roles"): ({"name": "massed", "permissions": ["job:read"]}, {"permissions"}),
    ("PUT", "/roles/massive"): ({"permissions": ["job:read"]}, {"permissions"}),
    ("POST", "/tenants"): ({"name": "massed"}, set()),
    ("PATCH", "/tenants/{tenant}"): ({"suspended": False}, {"suspended"}),
}


@pytest.fixture(scope="module")
def ids(root):
    root.made("/roles", name="massive", permissions=["job:read"])
    return {
        "user": add(root, "massuser", "viewer"),
        "bot": root.made("/users", username="massbot", kind="service", roles=["viewer"])["id"],
        "tenant": add_tenant(root, "masstenant"),
    }


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_nobody_sets_a_field_by_naming_it(root, ids, method, path):
    body, own = BODIES[method, path]
    for field, value in FORBIDDEN.items():
        if field in own:
            continue
        answer = root.change(method, path.format(**ids), {**body, field: value})
        assert where(problem(answer, 422)) == {f"/{field}"}, field
    twice = json.dumps(body)[:-1] + ', "roles": ["viewer"], "roles": ["admin"]}'
    headers = {"If-Match": "*", "Content-Type": "application/json"}
    assert root.ask(method, path.format(**ids), data=twice, headers=headers).status_code in (400, 422)
    assert root.got(f"/users/{ids['user']}")["roles"] == ["viewer"]


@pytest.mark.parametrize("user_id", ["x", "..", "1 or 1=1", "%00", "0" * 36, "01900000-0000-7000-8000-00000000dead"])
def test_ids_that_are_nobodys(root, user_id):
    none = (400,) if user_id == "%00" else (404, 405)  # the edge lets no zero byte in
    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"disabled": True}),
        ("DELETE", "", None),
        ("PUT", "/roles", {"roles": ["viewer"]}),
        ("GET", "/permissions", None),
    ):
        answer = root.change(method, f"/users/{user_id}{tail}", body)
        assert answer.status_code in none, (method, tail, answer.text)
    assert root.change("PATCH", f"/tenants/{user_id}", {"suspended": True}).status_code in none
    assert root.change("DELETE", f"/roles/{user_id}").status_code in none


def test_a_flood_of_roles_is_refused(root):
    many = [f"r{number}" for number in range(MAX_ROLES_HELD + 1)]
    body = {"username": "flooded", "password": PASSWORD, "roles": many}
    problem(root.ask("POST", "/users", json=body), 422)
    problem(root.ask("POST", "/roles", json={"name": "flood", "permissions": ["job:read"] * 201}), 422)
    doubled = {"name": "doubled", "permissions": ["job:read"] * 200}
    assert root.ask("POST", "/roles", json=doubled).json["permissions"] == ["job:read"]
