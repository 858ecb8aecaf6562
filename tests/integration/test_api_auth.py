"""Who may ask: sessions, tokens, Basic, cross-site requests, and what of it is audited."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import select, update

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.services.actors import changed
from tests.support.web import ADMIN_PASSWORD, API, PASSWORD, problem, running_site, where


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        running.add("anna", "submitter")
        running.add("vera", "viewer")
        yield running


def audited(site, **columns):
    event = t.audit_event
    query = select(event).where(*(event.c[name] == value for name, value in columns.items()))
    return site.services.db.read(lambda c: c.execute(query).all())


def test_without_credentials_nothing_is_shown(site):
    for path in ("/me", "/jobs", "/files/x", "/users", "/audit", "/plugins", "/remotes", "/tokens"):
        answer = site.client().get(API + path)
        problem(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_session_from_sign_in_to_sign_out(site):
    client = site.client()
    answer = client.post(f"{API}/session", json={"username": "Anna", "password": PASSWORD})
    assert answer.json["user"]["username"] == "anna"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    csrf = answer.json["csrf_token"]
    assert client.get(f"{API}/me").json["csrf_token"]
    assert client.delete(f"{API}/session", headers={"X-CSRFToken": csrf}).status_code == 204
    problem(client.get(f"{API}/me"), 401)


def test_an_old_cookie_is_worth_nothing_after_sign_out(site):
    client, csrf = site.browser("anna")
    kept = client.get_cookie("cloche_session").value
    client.delete(f"{API}/session", headers={"X-CSRFToken": csrf})
    client.set_cookie("cloche_session", kept)
    problem(client.get(f"{API}/me"), 401)


def test_signing_in_again_needs_the_token_of_the_session_that_is_there(site):
    client, csrf = site.browser("anna")
    body = {"username": "vera", "password": PASSWORD}
    problem(client.post(f"{API}/session", json=body), 403, "csrf")
    assert client.post(f"{API}/session", json=body, headers={"X-CSRFToken": csrf}).json["user"]["username"] == "vera"


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 10_000])
def test_an_unsafe_request_by_cookie_needs_the_csrf_token(site, token):
    client, _ = site.browser("anna")
    headers = {} if token is None else {"X-CSRFToken": token}
    problem(client.post(f"{API}/tokens", json={"name": "x"}, headers=headers), 403, "csrf")


def test_the_csrf_token_of_another_session_does_not_count(site):
    client, _ = site.browser("anna")
    _, other = site.browser("vera")
    problem(client.post(f"{API}/tokens", json={"name": "x"}, headers={"X-CSRFToken": other}), 403, "csrf")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_sites_page_gets_nowhere_even_with_the_token(site, headers):
    client, csrf = site.browser("anna")
    answer = client.post(f"{API}/tokens", json={"name": "x"}, headers={"X-CSRFToken": csrf, **headers})
    problem(answer, 403, "cross-site")
    sign_in = site.client().post(f"{API}/session", json={"username": "anna", "password": PASSWORD}, headers=headers)
    problem(sign_in, 403, "cross-site")


def test_ones_own_page_gets_through(site):
    client, csrf = site.browser("anna")
    headers = {"X-CSRFToken": csrf, "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert client.post(f"{API}/tokens", json={"name": "x"}, headers=headers).status_code == 201


@pytest.mark.parametrize("path", ["/api/v1/me", "/api/v1/jobs", "/healthz", "/docs"])
def test_two_credentials_at_once_are_refused(site, path):
    client, _ = site.browser("anna")
    problem(client.get(path, headers=site.headers("anna")), 400, "two-credentials")


def test_two_credentials_are_refused_on_writes_too(site):
    client, csrf = site.browser("anna")
    headers = {**site.headers("anna"), "X-CSRFToken": csrf}
    problem(client.post(f"{API}/tokens", json={"name": "x"}, headers=headers), 400, "two-credentials")
    basic = base64.b64encode(f"anna:{PASSWORD}".encode()).decode()
    answer = client.post(f"{API}/tokens", json={"name": "x"}, headers={"Authorization": f"Basic {basic}"})
    problem(answer, 400, "two-credentials")


def test_basic_is_for_tokens_alone(site):
    assert site.client().post(f"{API}/tokens", json={"name": "x"}, auth=("anna", PASSWORD)).status_code == 201
    problem(site.client().get(f"{API}/me", auth=("anna", PASSWORD)), 401, "unsupported-scheme")
    problem(site.client().post(f"{API}/tokens", json={"name": "x"}, auth=("anna", "wrong")), 401, "bad-credentials")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("Bearer", "token-malformed"),
        ("Bearer x", "token-malformed"),
        ("Bearer cloche_pat_", "token-malformed"),
        ("Bearer cloche_pat_01900000-0000-7000-8000-000000000000_x", "token-invalid"),
        ("Basic !!!", "basic-malformed"),
        ("Basic YWJj", "basic-malformed"),
        ("Digest x", "unsupported-scheme"),
        ("x", "unsupported-scheme"),
    ],
)
def test_bad_credentials_have_codes_of_their_own(site, value, code):
    answer = site.client().post(f"{API}/tokens", json={"name": "x"}, headers={"Authorization": value})
    problem(answer, 401, code)


def test_expired_and_revoked_tokens(site):
    body = {"name": "short", "expires_in": "30s"}
    assert "scopes name it" in problem(site.request("POST", "/tokens", "anna", json=body), 403)["detail"]
    made = site.client().post(f"{API}/tokens", json=body, auth=("anna", PASSWORD)).json
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert site.client().get(f"{API}/me", headers=headers).status_code == 200
    mine = t.token.c.id == made["id"]

    def ends(connection):
        connection.execute(update(t.token).where(mine).values(expires_at=now_ms() - 1))
        changed(connection)

    site.services.db.write(ends)
    problem(site.client().get(f"{API}/me", headers=headers), 401, "token-expired")
    problem(site.request("DELETE", f"/tokens/{made['id']}", "anna"), 403)  # its token does not name token:manage
    naming = {"Authorization": f"Bearer {site.token('anna', scopes=['token:manage'])}"}
    assert site.client().delete(f"{API}/tokens/{made['id']}", headers=naming).status_code == 204
    problem(site.client().get(f"{API}/me", headers=headers), 401, "token-revoked")
    client, csrf = site.browser("vera")
    problem(client.delete(f"{API}/tokens/{made['id']}", headers={"X-CSRFToken": csrf}), 404)


def test_a_denial_is_audited_with_who_and_what(site):
    site.app.extensions["cloche_denials"].close()  # or it tells now what was refused in a minute that is over
    before = len(audited(site, action="access:deny"))
    answer = site.request(
        "POST", "/jobs", "vera", json={"type": "csv_profile"}, headers={"X-Request-ID": "denied-request-1"}
    )
    assert "job:submit" in problem(answer, 403, "forbidden")["detail"]
    assert len(audited(site, action="access:deny")) == before + 1
    [event] = audited(site, request_id="denied-request-1")
    assert (event.object, event.outcome) == ("POST /api/v1/jobs", "denied")


def test_permission_is_asked_before_the_body(site):
    problem(site.request("POST", "/users", "vera", data=b"{", content_type="application/json"), 403)


def test_users_get_no_role_beyond_their_creators(site):
    body = {"username": "mallory", "password": PASSWORD, "roles": ["admin"]}
    problem(site.request("POST", "/users", "anna", json=body), 403)
    bad = {"username": "x", "password": "short", "roles": []}
    assert "/roles" in where(problem(site.request("POST", "/users", json=bad), 422))
    taken = {"username": "ANNA", "password": PASSWORD, "roles": ["viewer"]}
    problem(site.request("POST", "/users", json=taken), 409, "username-taken")


def test_lockout_says_when_to_try_again(tmp_path):
    with running_site(tmp_path) as site:
        for _ in range(10):
            problem(site.client().post(f"{API}/session", json={"username": "admin", "password": "no"}), 401)
        answer = site.client().post(f"{API}/session", json={"username": "admin", "password": ADMIN_PASSWORD})
        problem(answer, 429)
        assert int(answer.headers["Retry-After"]) > 0


def test_anonymous_failures_become_one_event(tmp_path):
    with running_site(tmp_path) as site:
        denials, at = site.app.extensions["cloche_denials"], now_ms()
        denials._clock = lambda: at  # all in one minute
        for _ in range(25):
            site.client().get(f"{API}/me", headers={"Authorization": "Bearer nonsense"})
        assert audited(site, action="access:deny") == []
        denials.close()
        [event] = audited(site, action="access:deny")
        assert int(event.details.split(":")[1].rstrip("}")) == 25


def test_secure_cookies_when_tls_ends_in_front(tmp_path):
    with running_site(tmp_path, secure_cookies=True) as site:
        body = {"username": "admin", "password": ADMIN_PASSWORD}
        answer = site.client().post(f"{API}/session", json=body, base_url="https://localhost")
        assert answer.headers["Set-Cookie"].startswith("__Host-cloche_session=")
        assert "Secure" in answer.headers["Set-Cookie"]
        assert "Strict-Transport-Security" in answer.headers


def test_every_answer_carries_the_guards_headers(site):
    for path in ("/api/v1/me", "/docs", "/healthz", "/nope", "/static/vendor/swagger/swagger-ui.css"):
        headers = site.client().get(path).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("given", "kept"), [("my-request-0001", True), ("short", False), ("a b c d e f g", False), ("x" * 65, False)]
)
def test_a_request_id_is_echoed_when_it_is_one(site, given, kept):
    answer = site.client().get("/healthz", headers={"X-Request-ID": given})
    assert (answer.headers["X-Request-ID"] == given) is kept
