"""What was proved, made or handed over before something changed, and is used after it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from cloche.services import tokens, user_tokens
from cloche.services.actors import Origin
from tests.support.people import add, add_tenant, sign_in, submit
from tests.support.stores import until
from tests.support.web import API, PASSWORD, problem, running_site

NEW = "quite another password"


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        yield running


@pytest.fixture(scope="module")
def root(site):
    return sign_in(site)


def use(site, code):
    return site.client().post(f"{API}/password-resets", json={"code": code, "new_password": NEW})


def reset(person, user_id):
    answer = person.ask("POST", f"/users/{user_id}/password-reset")
    assert answer.status_code == 201, answer.text
    return answer.json["code"]


# Codes for new passwords


RISES = ["platform", "role", "tenant", "role grows", "platform, and out of the tenant"]


@pytest.mark.parametrize("rise", RISES)
def test_a_code_does_not_outlive_its_makers_reach(site, root, rise):
    """A helper makes codes for everybody, and waits until somebody has become more than the helper."""
    number = RISES.index(rise)
    helper, victim, role = f"helper-{number}", f"victim-{number}", f"role-{number}"
    root.made("/roles", name=f"desk-{number}", permissions=["user:read", "user:manage", "job:read"])
    root.made("/roles", name=role, permissions=["job:read"])
    add(root, helper, f"desk-{number}")
    victim_id = add(root, victim, role)
    code = reset(sign_in(site, helper), victim_id)
    if rise.startswith("platform"):
        assert root.change("PUT", f"/users/{victim_id}/platform-admin").status_code == 200
        if rise != "platform":
            assert root.change("DELETE", f"/users/{victim_id}").status_code == 204
    elif rise == "role":
        assert root.change("PUT", f"/users/{victim_id}/roles", {"roles": ["admin"]}).status_code == 200
    elif rise == "tenant":
        add_tenant(root, f"tenant-{number}", victim)
    else:
        assert root.change("PUT", f"/roles/{role}", {"permissions": ["job:read", "audit:read"]}).status_code == 200
    problem(use(site, code), 401, "reset-invalid")
    sign_in(site, victim)


@pytest.mark.parametrize("end", ["demoted", "disabled", "removed"])
def test_a_code_ends_with_its_makers_power(site, root, end):
    maker_id = add(root, f"maker-{end}", "admin")
    victim_id = add(root, f"of-maker-{end}", "viewer")
    code = reset(sign_in(site, f"maker-{end}"), victim_id)
    if end == "demoted":
        assert root.change("PUT", f"/users/{maker_id}/roles", {"roles": ["viewer"]}).status_code == 200
    elif end == "disabled":
        assert root.change("PATCH", f"/users/{maker_id}", {"disabled": True}).status_code == 200
    else:
        assert root.change("DELETE", f"/users/{maker_id}").status_code == 204
    problem(use(site, code), 401, "reset-invalid")


def test_a_code_ends_when_its_user_is_disabled(site, root):
    user_id = add(root, "off-and-on", "viewer")
    code = reset(root, user_id)
    for disabled in (True, False):
        assert root.change("PATCH", f"/users/{user_id}", {"disabled": disabled}).status_code == 200
    problem(use(site, code), 401, "reset-invalid")


def test_a_code_works_while_nothing_has_changed(site, root):
    user_id = add(root, "forgetful", "viewer")
    assert use(site, reset(root, user_id)).status_code == 204


# Requests that were let in before, and write after


def test_a_session_that_has_ended_makes_no_token(site, root):
    """Whoever changes their password and ends everything has ended what a thief was just doing, too."""
    add(root, "robbed", "viewer")
    thief, owner = sign_in(site, "robbed"), sign_in(site, "robbed")
    with thief.client.session_transaction() as cookie:
        actor = site.services.access.resume(cookie["_user_id"], Origin("192.0.2.1"))
    body = {"current_password": PASSWORD, "new_password": NEW, "revoke_tokens": True}
    assert owner.ask("PUT", "/me/password", json=body).status_code == 200
    with pytest.raises(Exception, match="ended meanwhile"):
        site.services.access.create_token(actor, "mine for ever")


def test_a_revoked_token_makes_no_token(site, root):
    made = root.made("/tokens", name="maker", scopes=["token:manage", "job:read"])
    actor = site.services.access.authenticate_token(made["token"], Origin("192.0.2.1"))
    assert root.ask("DELETE", f"/tokens/{made['id']}").status_code == 204
    with pytest.raises(Exception, match="ended meanwhile"):
        site.services.access.create_token(actor, "child", ["job:read"])


def test_whoever_is_disabled_while_they_ask_makes_no_token(site, root):
    user_id = add(root, "late-maker", "viewer")
    actor = site.services.access.check_credentials("late-maker", PASSWORD, Origin("192.0.2.1"))
    root.change("PATCH", f"/users/{user_id}", {"disabled": True})
    with pytest.raises(Exception, match="disabled"):
        site.services.access.create_token(actor, "late")


@pytest.mark.parametrize("change", ["password", "disabled"])
def test_a_password_that_was_right_before_its_turn_opens_no_session(site, root, monkeypatch, change):
    """Between the proof and the session lies a queue: whoever fills it chooses how long."""
    name = f"slow-{change}"
    user_id = add(root, name, "viewer")
    owner = sign_in(site, name)
    access = site.services.access
    verify = access._vault.verify

    def meanwhile(*arguments, **options):
        fits = verify(*arguments, **options)
        monkeypatch.setattr(access._vault, "verify", verify)
        if change == "password":
            body = {"current_password": PASSWORD, "new_password": NEW}
            assert owner.ask("PUT", "/me/password", json=body).status_code == 200
        else:
            for disabled in (True, False):
                assert root.change("PATCH", f"/users/{user_id}", {"disabled": disabled}).status_code == 200
        return fits

    monkeypatch.setattr(access._vault, "verify", meanwhile)
    answer = site.client().post(f"{API}/session", json={"username": name, "password": PASSWORD})
    if change == "password":
        problem(answer, 401, "bad-credentials")
    else:
        assert answer.status_code == 200  # enabled again: the same password is the right one


@pytest.mark.parametrize("end", ["the session", "the account", "the account for a while"])
def test_who_was_sent_away_before_their_turn_sets_no_password(site, root, monkeypatch, end):
    """A thief has session and password; between the proof of it and the change lies a queue."""
    name = f"thieved-{end.replace(' ', '-')}"
    user_id = add(root, name, "viewer")
    thief, owner = sign_in(site, name), sign_in(site, name)
    access = site.services.access
    verify = access._vault.verify

    def send_away():
        if end == "the session":
            assert owner.ask("DELETE", "/sessions").json == {"ended": 1}
        else:
            for disabled in [True] if end == "the account" else [True, False]:
                assert root.change("PATCH", f"/users/{user_id}", {"disabled": disabled}).status_code == 200

    def meanwhile(*arguments, **options):
        fits = verify(*arguments, **options)
        monkeypatch.setattr(access._vault, "verify", verify)
        with ThreadPoolExecutor(1) as aside:  # in this thread it would be taken for a part of the thief's request
            aside.submit(send_away).result()
        return fits

    monkeypatch.setattr(access._vault, "verify", meanwhile)
    body = {"current_password": PASSWORD, "new_password": NEW}
    problem(thief.ask("PUT", "/me/password", json=body), 401, "credential-ended")
    root.change("PATCH", f"/users/{user_id}", {"disabled": False})
    sign_in(site, name)  # with the password of before


def test_new_password_ends_what_ones_tokens_made_for_others(site, root):
    add(root, "issuer", "admin")
    issuer = sign_in(site, "issuer")
    bot = issuer.made("/users", username="issued-bot", kind="service", roles=["viewer"])["id"]
    scopes = ["user:manage", "token:manage", "job:read"]
    maker = issuer.made("/tokens", name="maker", scopes=scopes)["token"]
    headers = {"Authorization": f"Bearer {maker}"}
    body = {"name": "child", "scopes": ["job:read"]}
    child = site.client().post(f"{API}/users/{bot}/tokens", json=body, headers=headers).json["token"]
    headers = {"Authorization": f"Bearer {child}"}
    assert site.client().get(f"{API}/me", headers=headers).status_code == 200
    body = {"current_password": PASSWORD, "new_password": NEW, "revoke_tokens": True}
    assert issuer.ask("PUT", "/me/password", json=body).status_code == 200
    problem(site.client().get(f"{API}/me", headers=headers), 401, "token-revoked")


# Tokens of others


def test_a_token_that_does_not_name_it_looks_after_nobodys_tokens(site, root):
    user_id = add(root, "holder", "viewer")
    token = sign_in(site, "holder").made("/tokens", name="t")
    for scopes in (None, ["user:manage", "job:read"]):
        chief = root.made("/tokens", name="chief", **({} if scopes is None else {"scopes": scopes}))["token"]
        headers = {"Authorization": f"Bearer {chief}"}
        problem(site.client().get(f"{API}/users/{user_id}/tokens", headers=headers), 403)
        problem(site.client().delete(f"{API}/users/{user_id}/tokens/{token['id']}", headers=headers), 403)
    assert root.ask("DELETE", f"/users/{user_id}/tokens/{token['id']}").status_code == 204


@pytest.fixture
def looking_after(site, root):
    """Somebody who manages users, as they came in; a service account; a token of it."""

    def make(name):
        user_id = add(root, name, "admin")
        bot = root.made("/users", username=f"bot-of-{name}", kind="service", roles=["viewer"])["id"]
        token = root.made(f"/users/{bot}/tokens", name="first", scopes=["job:read"])["id"]
        actor = site.services.access.check_credentials(name, PASSWORD, Origin("192.0.2.1"))
        return actor, user_id, bot, token

    return make


@pytest.mark.parametrize("roles", [["viewer"], ["auditor", "operator"]])
def test_whoever_manages_users_no_more_issues_no_token_and_ends_none(site, root, looking_after, roles):
    actor, user_id, bot, token = looking_after(f"steward-{len(roles)}")
    assert root.change("PUT", f"/users/{user_id}/roles", {"roles": roles}).status_code == 200
    with pytest.raises(Exception, match="user:manage"):
        site.services.users.issue_token(actor, bot, "late", ["job:read"])
    with pytest.raises(Exception, match="user:manage"):
        site.services.users.revoke_token(actor, bot, token)
    assert [(one["name"], one["revoked_at"]) for one in root.got(f"/users/{bot}/tokens")["items"]] == [("first", None)]


@pytest.mark.parametrize("end", ["disabled", "removed", "shrunk"])
def test_an_account_that_is_ended_while_a_token_is_issued_gets_none(site, root, looking_after, monkeypatch, end):
    actor, _, bot, _ = looking_after(f"desk-{end}")
    holds = user_tokens._service_holds

    def meanwhile(*arguments, **options):
        held = holds(*arguments, **options)
        monkeypatch.setattr(user_tokens, "_service_holds", holds)
        if end == "disabled":
            assert root.change("PATCH", f"/users/{bot}", {"disabled": True}).status_code == 200
        elif end == "removed":
            assert root.change("DELETE", f"/users/{bot}").status_code == 204
        else:
            root.made("/roles", name="less", permissions=["file:read"])
            assert root.change("PUT", f"/users/{bot}/roles", {"roles": ["less"]}).status_code == 200
        return held

    monkeypatch.setattr(user_tokens, "_service_holds", meanwhile)
    with pytest.raises(Exception, match=r"disabled|no such user|both hold"):
        site.services.users.issue_token(actor, bot, "late", ["job:read"])


def test_who_disables_an_account_beside_the_issue_of_its_token_ends_that_too(site, root, looking_after, monkeypatch):
    actor, _, bot, _ = looking_after("beside")
    count = tokens._check_count
    db, ended = site.services.db, threading.Event()

    def disable():
        root.change("PATCH", f"/users/{bot}", {"disabled": True})
        ended.set()

    def waits():
        """Whether the other one waits for a lock."""
        query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(db.read(lambda connection: connection.scalar(query)))

    other = threading.Thread(target=disable)

    def meanwhile(*arguments):
        count(*arguments)
        other.start()
        if db.kind == "postgresql":  # on SQLite nobody writes beside the transaction
            until(lambda: ended.is_set() or waits(), 60, "the other one is done, or waits")

    monkeypatch.setattr(tokens, "_check_count", meanwhile)
    site.services.users.issue_token(actor, bot, "beside", ["job:read"])
    other.join()
    rows = root.got(f"/users/{bot}/tokens")["items"]
    assert [(one["name"], one["revoked_at"] is None) for one in rows] == [("beside", False), ("first", False)]


# Odd input


@pytest.mark.parametrize("name", ["ad\0min", "\0", "x" * 5_000, "ａ" * 300, "\ud7ff", "'; --"])
def test_user_names_that_cannot_be(site, name):
    answer = site.client().post(f"{API}/tokens", json={"name": "t"}, auth=(name, PASSWORD))
    problem(answer, 401, "bad-credentials")
    client = site.client()
    page = client.get("/ui/sign-in").text
    csrf = page.partition('name="csrf_token" value="')[2].partition('"')[0]
    form = {"username": name, "password": PASSWORD, "csrf_token": csrf}
    assert client.post("/ui/sign-in", data=form).status_code == 401


@pytest.mark.parametrize("value", ["\xff", "", "AAAA", "OjA=", "Og==", "/////w==", "a" * 5_001, "=" * 9])
def test_basic_credentials_that_are_none(site, value):
    answer = site.client().get(f"{API}/me", headers={"Authorization": f"Basic {value}"})
    problem(answer, 401)


@pytest.mark.parametrize("target", ["//[", "/ui/\\evil", "https://[x", "//evil", "\0", "/ui/jobs?x=//["])
def test_pages_to_go_to_that_are_none(site, target):
    browser, _ = site.browser()
    answer = browser.get("/ui/sign-in", query_string={"next": target})
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/ui/jobs")


def test_what_names_a_tenant_is_remembered_in_few_words(site, root):
    headers = {**site.headers(), "X-Cloche-Tenant": "default" + "\xa0" * 20_000}
    assert site.client().get(f"{API}/me", headers=headers).status_code in (200, 404)
    assert max(len(tenant or "") for *_, tenant in site.services.access._actors._known) <= 256


# Pages


def test_a_pages_stream_ends_with_its_session(site, root):
    add(root, "onlooker", "viewer")
    onlooker = sign_in(site, "onlooker")
    answer = onlooker.client.get("/ui/events", buffered=False)
    stream = answer.iter_encoded()
    assert b"retry" in next(stream)
    assert sign_in(site, "onlooker").ask("DELETE", "/sessions").json == {"ended": 1}
    submit(root)
    assert b"event: job" not in b"".join(stream)
    answer.close()


def test_a_flood_of_refused_pages_is_one_event_and_a_count(site, root):
    add(root, "knocking", "viewer")
    client, _ = site.browser("knocking")
    for _ in range(25):
        assert client.get("/ui/audit").status_code == 403
    denied = [
        item for item in root.got("/audit?action=access:deny&limit=100")["items"] if item["object"] == "GET /ui/audit"
    ]
    assert len(denied) <= 2  # a second one where the minute changed meanwhile


def test_the_page_of_a_user_shows_a_token_that_does_not_name_it_no_tokens(site, root):
    user_id = add(root, "shown", "viewer")
    sign_in(site, "shown").made("/tokens", name="seldom-name")
    page = site.client().get(f"/ui/users/{user_id}", headers=site.headers())
    assert page.status_code == 200
    assert "seldom-name" not in page.text
    browser, _ = site.browser()
    assert "seldom-name" in browser.get(f"/ui/users/{user_id}").text
