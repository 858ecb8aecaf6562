"""Sessions and passwords over REST: listed, ended, followed by new ones; changed and reset."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select, update

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.services import sessions
from tests.support.stores import add_tenant
from tests.support.web import ADMIN_PASSWORD, API, PASSWORD, problem, running_site, where

NEW = "a rather different one"


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        for name, role in (("anna", "submitter"), ("otto", "admin"), ("vera", "viewer"), ("paul", "submitter")):
            running.add(name, role)
        yield running


def audited(site, **columns):
    event = t.audit_event
    query = select(event).where(*(event.c[name] == value for name, value in columns.items()))
    return site.services.db.read(lambda c: c.execute(query).all())


def cookie(client):
    return client.get_cookie("cloche_session").value


def signs_in(site, username, password):
    return site.client().post(f"{API}/session", json={"username": username, "password": password})


def test_sessions_are_listed_and_ended(site):
    first, csrf = site.browser("anna")
    second, other = site.browser("anna")
    items = first.get(f"{API}/sessions", headers={"User-Agent": "x"}).json["items"]
    assert [item["current"] for item in items[:2]] == [False, True]
    assert items[0]["ip"] == "127.0.0.1"
    assert items[0]["user_agent"].startswith("Werkzeug")
    assert items[0]["created_at"] < items[0]["expires_at"]
    stored = site.services.db.read(lambda c: c.execute(select(t.session.c.id)).scalars().all())
    assert not {item["id"] for item in items} & set(stored)
    assert first.delete(f"{API}/sessions/{items[0]['id']}", headers={"X-CSRFToken": csrf}).status_code == 204
    problem(second.get(f"{API}/me"), 401)
    problem(first.delete(f"{API}/sessions/{items[0]['id']}", headers={"X-CSRFToken": csrf}), 404)
    assert first.get(f"{API}/me").status_code == 200
    assert other


def test_all_other_sessions_end_at_once(site):
    keeper, csrf = site.browser("vera")
    others = [site.browser("vera")[0] for _ in range(3)]
    assert keeper.delete(f"{API}/sessions", headers={"X-CSRFToken": csrf}).json == {"ended": 3}
    for client in others:
        problem(client.get(f"{API}/me"), 401)
    assert keeper.get(f"{API}/me").status_code == 200
    assert keeper.delete(f"{API}/sessions", headers={"X-CSRFToken": csrf}).json == {"ended": 0}


def test_nobody_sees_or_ends_somebody_elses_session(site):
    anna, _ = site.browser("anna")
    mine = next(item["id"] for item in anna.get(f"{API}/sessions").json["items"] if item["current"])
    otto, csrf = site.browser("otto")
    assert mine not in otto.get(f"{API}/sessions").text
    for wrong in (mine, "x", "01900000-0000-7000-8000-000000000000"):
        problem(otto.delete(f"{API}/sessions/{wrong}", headers={"X-CSRFToken": csrf}), 404)
    assert anna.get(f"{API}/me").status_code == 200


def test_a_token_needs_the_scope_for_sessions(site):
    site.browser("anna")
    problem(site.request("GET", "/sessions", "anna"), 403)
    naming = {"Authorization": f"Bearer {site.token('anna', scopes=['token:manage'])}"}
    items = site.client().get(f"{API}/sessions", headers=naming).json["items"]
    assert items
    assert not any(item["current"] for item in items)


def test_a_session_ends_by_its_age_whatever_is_done_in_it(tmp_path):
    with running_site(tmp_path, session_life="2h") as site:
        client, _ = site.browser()
        assert client.get(f"{API}/me").status_code == 200
        old = update(t.session).values(created_at=now_ms() - 2 * 3_600_000 - 1)
        site.services.db.write(lambda c: c.execute(old))
        site.services.access._actors._known.clear()  # as in another process
        problem(client.get(f"{API}/me"), 401)


def test_a_remembered_session_ends_by_its_age_too(tmp_path):
    with running_site(tmp_path, session_life="60s", session_idle="1h") as site:
        client, _ = site.browser()
        known = site.services.access._actors
        client.get(f"{API}/me")
        [(mark, entry)] = known._known.values()
        assert entry.lives(entry.ends_at - 1)
        assert not entry.lives(entry.ends_at)
        assert mark is not None


def test_a_user_has_only_so_many_sessions(site, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    clients = [site.browser("paul")[0] for _ in range(5)]
    assert [client.get(f"{API}/me").status_code for client in clients] == [401, 401, 200, 200, 200]


def test_a_password_change_ends_what_was_and_follows_the_one_that_asked(site):
    site.add("carla", "submitter")
    client, csrf = site.browser("carla")
    elsewhere, _ = site.browser("carla")
    token = site.headers("carla")
    before = cookie(client)
    body = {"current_password": PASSWORD, "new_password": NEW}
    answer = client.put(f"{API}/me/password", json=body, headers={"X-CSRFToken": csrf})
    assert answer.status_code == 200, answer.text
    assert cookie(client) != before
    assert client.get(f"{API}/me").json["username"] == "carla"
    problem(elsewhere.get(f"{API}/me"), 401)
    client.set_cookie("cloche_session", before)
    problem(client.get(f"{API}/me"), 401)
    assert site.client().get(f"{API}/me", headers=token).status_code == 200
    problem(signs_in(site, "carla", PASSWORD), 401)
    assert signs_in(site, "carla", NEW).status_code == 200
    [event] = audited(site, action="password:change", outcome="allowed", object=f"user:{answer.json['id']}")
    assert '"sessions_ended":2' in event.details.replace(" ", "")
    assert NEW not in repr(event)


def test_the_csrf_token_of_before_a_password_change_is_worth_nothing(site):
    site.add("cora", "submitter")
    client, csrf = site.browser("cora")
    body = {"current_password": PASSWORD, "new_password": NEW}
    fresh = client.put(f"{API}/me/password", json=body, headers={"X-CSRFToken": csrf}).json["csrf_token"]
    problem(client.post(f"{API}/tokens", json={"name": "x"}, headers={"X-CSRFToken": csrf}), 403, "csrf")
    assert client.post(f"{API}/tokens", json={"name": "x"}, headers={"X-CSRFToken": fresh}).status_code == 201


def test_tokens_end_with_the_password_where_that_is_asked_for(site):
    site.add("dora", "submitter")
    token = site.headers("dora")
    body = {"current_password": PASSWORD, "new_password": NEW, "revoke_tokens": True}
    assert site.client().put(f"{API}/me/password", json=body, auth=("dora", PASSWORD)).status_code == 200
    problem(site.client().get(f"{API}/me", headers=token), 401, "token-revoked")


def test_a_password_change_takes_the_old_one_and_obeys_the_rules(site):
    client, csrf = site.browser("anna")
    headers = {"X-CSRFToken": csrf}

    def change(current, new, **more):
        body = {"current_password": current, "new_password": new, **more}
        return client.put(f"{API}/me/password", json=body, headers=headers)

    problem(change("not the old one", NEW), 401, "bad-credentials")
    assert audited(site, action="password:change", outcome="failed")
    for refused in ("short", "password12345", "x" * 1_025):
        assert where(problem(change(PASSWORD, refused), 422)) == {"/new_password"}
    problem(change(PASSWORD, NEW, username="otto"), 422)
    problem(site.request("PUT", "/me/password", "anna", json={"current_password": PASSWORD, "new_password": NEW}), 403)
    assert client.get(f"{API}/me").status_code == 200


def test_guessing_the_old_password_in_a_stolen_session_is_held_up_too(site):
    site.add("emil", "submitter")
    client, csrf = site.browser("emil")
    body = {"current_password": "guess", "new_password": NEW}
    for _ in range(10):
        problem(client.put(f"{API}/me/password", json=body, headers={"X-CSRFToken": csrf}), 401)
    problem(client.put(f"{API}/me/password", json=body, headers={"X-CSRFToken": csrf}), 429)


def user_id(site, name):
    return next(user["id"] for user in site.request("GET", "/users").json["items"] if user["username"] == name)


def reset_code(site, name):
    client, csrf = site.browser()
    answer = client.post(f"{API}/users/{user_id(site, name)}/password-reset", headers={"X-CSRFToken": csrf})
    assert answer.status_code == 201, answer.text
    return answer.json["code"]


def uses(site, code, password=NEW, **more):
    return site.client().post(f"{API}/password-resets", json={"code": code, "new_password": password, **more})


_SECRET = 43  # letters of 32 bytes in base64url, which may have a "_" among them


def test_a_reset_is_good_for_one_new_password(site):
    site.add("frida", "submitter")
    client, _ = site.browser("frida")
    code = reset_code(site, "frida")
    assert signs_in(site, "frida", PASSWORD).status_code == 200  # until it is used
    assert where(problem(uses(site, code, "short"), 422)) == {"/new_password"}
    assert uses(site, code).status_code == 204
    problem(uses(site, code), 401, "reset-invalid")
    problem(client.get(f"{API}/me"), 401)
    problem(signs_in(site, "frida", PASSWORD), 401)
    assert signs_in(site, "frida", NEW).status_code == 200
    secret = code[-_SECRET:]
    assert secret not in repr(site.services.db.read(lambda c: c.execute(select(t.audit_event)).all()))
    assert len(audited(site, action="password_reset:create", object=f"user:{user_id(site, 'frida')}")) == 1
    assert len(audited(site, action="password_reset:use", object=f"user:{user_id(site, 'frida')}")) == 1


def test_a_reset_is_stored_as_a_hash_and_ends(site):
    site.add("greta", "submitter")
    code = reset_code(site, "greta")
    kept = site.services.db.read(lambda c: c.execute(select(t.password_reset)).all())
    assert code[-_SECRET:] not in repr(kept)
    over = update(t.password_reset).values(expires_at=now_ms() - 1)
    site.services.db.write(lambda c: c.execute(over))
    problem(uses(site, code), 401, "reset-invalid")


def test_a_further_reset_and_a_password_change_void_the_code_before(site):
    site.add("hanna", "submitter")
    first = reset_code(site, "hanna")
    second = reset_code(site, "hanna")
    problem(uses(site, first), 401, "reset-invalid")
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert site.client().put(f"{API}/me/password", json=body, auth=("hanna", PASSWORD)).status_code == 200
    problem(uses(site, second), 401, "reset-invalid")


@pytest.mark.parametrize(
    "code",
    [
        "",
        "cloche_reset_",
        "cloche_reset_01900000-0000-7000-8000-000000000000_x",
        "cloche_reset_x_y",
        "ü",
        "x" * 200,
        "cloche_reset_01900000-0000-7000-8000-000000000000_ü",
    ],
)
def test_what_is_no_code_is_refused(site, code):
    problem(uses(site, code), 401, "reset-invalid")


def test_a_code_with_another_secret_is_refused(site):
    code = reset_code(site, "vera")
    problem(uses(site, code[:-1] + ("a" if code[-1] != "a" else "b")), 401, "reset-invalid")
    problem(uses(site, code + "x"), 401, "reset-invalid")


def test_nobody_resets_upward(site):
    client, csrf = site.browser("otto")
    headers = {"X-CSRFToken": csrf}
    problem(
        client.post(f"{API}/users/{user_id(site, 'admin')}/password-reset", headers=headers), 403, "user-exceeds-own"
    )
    problem(client.post(f"{API}/users/{user_id(site, 'otto')}/password-reset", headers=headers), 409, "reset-own")
    problem(client.post(f"{API}/users/01900000-0000-7000-8000-000000000000/password-reset", headers=headers), 404)
    problem(client.post(f"{API}/users/x/password-reset", headers=headers), 404)
    problem(site.request("POST", f"/users/{user_id(site, 'anna')}/password-reset", "anna"), 403)


def test_who_is_of_other_tenants_too_or_cannot_sign_in_gets_no_reset_from_an_admin(site):
    site.add("ida", "submitter")
    ida, db = user_id(site, "ida"), site.services.db
    path = f"{API}/users/{ida}/password-reset"
    client, csrf = site.browser("otto")
    other = add_tenant(db, f"other-of-{db.kind}")
    db.write(lambda c: c.execute(insert(t.user_role).values(user_id=ida, tenant_id=other, role="viewer")))
    problem(client.post(path, headers={"X-CSRFToken": csrf}), 403, "user-exceeds-own")
    root, token = site.browser()
    code = root.post(path, headers={"X-CSRFToken": token}).json["code"]
    found = root.get(f"{API}/users/{ida}")
    headers = {"X-CSRFToken": token, "If-Match": found.headers["ETag"]}
    assert root.patch(f"{API}/users/{ida}", json={"disabled": True}, headers=headers).status_code == 200
    problem(uses(site, code), 401, "reset-invalid")
    problem(root.post(path, headers={"X-CSRFToken": token}), 409, "account-disabled")
    headers["If-Match"] = root.get(f"{API}/users/{ida}").headers["ETag"]
    assert root.patch(f"{API}/users/{ida}", json={"disabled": False}, headers=headers).status_code == 200
    problem(uses(site, code), 401, "reset-invalid")  # it went with the sessions and tokens


def test_a_service_account_has_no_password_to_reset_or_to_guess(site):
    root, csrf = site.browser()
    body = {"username": "robot", "roles": ["submitter"], "kind": "service"}
    made = root.post(f"{API}/users", json=body, headers={"X-CSRFToken": csrf})
    assert made.status_code == 201, made.text
    path = f"{API}/users/{made.json['id']}/password-reset"
    problem(root.post(path, headers={"X-CSRFToken": csrf}), 409, "no-password")
    for guess in ("", "!", PASSWORD):
        problem(signs_in(site, "robot", guess), 401, "bad-credentials")


def test_a_token_makes_resets_only_where_it_names_the_scope(site):
    path = f"/users/{user_id(site, 'vera')}/password-reset"
    problem(site.request("POST", path), 403, "needs-scope")
    naming = {"Authorization": f"Bearer {site.token(scopes=['user:manage', 'job:read', 'token:manage'])}"}
    problem(site.client().post(f"{API}{path}", headers=naming), 403, "user-exceeds-own")
    every = site.request("GET", "/me").json["permissions"]
    whole = {"Authorization": f"Bearer {site.token(scopes=[*every, 'token:manage'])}"}
    assert site.client().post(f"{API}{path}", headers=whole).status_code == 201


def test_the_admins_password_is_still_the_one_of_the_first_start(site):
    assert signs_in(site, "admin", ADMIN_PASSWORD).status_code == 200
