"""Signing in against those who would come in by another's browser, by guessing, or by asking too often."""

from __future__ import annotations

import json
import re
import threading

import pytest
from sqlalchemy import func, select

from cloche.db import tables as t
from cloche.services import sign_in, turns
from cloche.services.passwords import PasswordVault
from cloche.web.app import API_PREFIX, api_routes
from tests.support.stores import until
from tests.support.web import ADMIN_PASSWORD, API, PASSWORD, problem, running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        running.add("anna", "submitter")
        running.add("mallory", "submitter")
        yield running


def cookie(client):
    return client.get_cookie("cloche_session").value


def test_a_session_that_was_planted_does_not_become_the_victims(site):
    attacker, csrf = site.browser("mallory")
    planted = cookie(attacker)
    victim = site.client()
    victim.set_cookie("cloche_session", planted)
    body = {"username": "anna", "password": PASSWORD}
    problem(victim.post(f"{API}/session", json=body), 403, "csrf")  # from a page of another site: it has no token
    answer = victim.post(f"{API}/session", json=body, headers={"X-CSRFToken": csrf})
    assert answer.status_code == 200
    assert cookie(victim) != planted
    assert victim.get(f"{API}/me").json["username"] == "anna"
    problem(attacker.get(f"{API}/me"), 401)  # the planted session ended, and is nobody's
    problem(victim.post(f"{API}/tokens", json={"name": "x"}, headers={"X-CSRFToken": csrf}), 403, "csrf")


def test_a_cookie_without_a_session_is_not_signed_into(site):
    attacker = site.client()
    attacker.get("/ui/sign-in")
    planted = attacker.get_cookie("cloche_session")
    victim = site.client()
    if planted is not None:
        victim.set_cookie("cloche_session", planted.value)
    assert victim.post(f"{API}/session", json={"username": "anna", "password": PASSWORD}).status_code == 200
    if planted is not None:
        assert cookie(victim) != planted.value
    problem(attacker.get(f"{API}/me"), 401)


def test_every_sign_in_has_a_secret_of_its_own(site):
    first, csrf = site.browser("anna")
    before = cookie(first)
    body = {"username": "anna", "password": PASSWORD}
    assert first.post(f"{API}/session", json=body, headers={"X-CSRFToken": csrf}).status_code == 200
    assert cookie(first) != before
    stale = site.client()
    stale.set_cookie("cloche_session", before)
    problem(stale.get(f"{API}/me"), 401)


def test_a_forged_or_altered_cookie_is_nobodys(site):
    client, _ = site.browser("anna")
    good = cookie(client)
    signed, _, signature = good.rpartition(".")
    # The first character: of the last one two bits stand for nothing, so that another one may say the same.
    altered = f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    for bad in (altered, "x", good.split(".")[0] + ".x.y", "." * 50):
        forged = site.client()
        forged.set_cookie("cloche_session", bad)
        problem(forged.get(f"{API}/me"), 401)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_json_that_calls_itself_something_a_form_may_send_is_refused(site, kind):
    client, csrf = site.browser("anna")
    answer = client.post(f"{API}/tokens", data=b'{"name": "x"}', content_type=kind, headers={"X-CSRFToken": csrf})
    problem(answer, 415)
    answer = site.client().post(
        f"{API}/session", data=b'{"username": "anna", "password": "%s"}' % PASSWORD.encode(), content_type=kind
    )
    problem(answer, 415)
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("name", ["_method", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_no_get_is_taken_for_something_else(site, name):
    client, _ = site.browser("anna")
    answer = client.get(f"{API}/session", headers={name: "DELETE"}, query_string={"_method": "DELETE"})
    assert answer.status_code in (405, 422)
    assert client.get(f"{API}/me", headers={name: "DELETE"}).status_code == 200


def test_a_get_reaches_nothing_that_changes(site):
    client, _ = site.browser("anna")
    reading = {route.path for route in api_routes() if route.method == "GET"}
    for route in api_routes():
        if route.method != "GET" and route.path not in reading:
            path = API_PREFIX + re.sub(r"<[^>]+>", "x", route.path)
            for method in ("GET", "HEAD"):
                answer = client.open(path, method=method)
                assert answer.status_code in (404, 405), f"{method} {path}"


def test_reading_by_cookie_writes_nothing_but_when_it_was(site):
    client, _ = site.browser("anna")
    everything = {table.name: select(func.count()).select_from(table) for table in t.metadata.sorted_tables}

    def counts():
        return site.services.db.read(
            lambda c: {name: c.execute(query).scalar_one() for name, query in everything.items()}
        )

    client.get(f"{API}/me")
    site.app.extensions["cloche_denials"].close()  # or it tells now what was refused in a minute that is over
    before = counts()
    for path in ("/me", "/jobs", "/sessions", "/tokens", "/plugins", "/queues", "/permissions"):
        assert client.get(API + path, headers={"Origin": "https://evil.example"}).status_code == 200
    assert counts() == before


def test_names_are_not_told_by_answer_or_by_hash(site, monkeypatch):
    verified = []
    vault = site.services.access._vault
    real = vault._hasher

    class Counting:
        hash = real.hash

        def verify(self, encoded, password):
            verified.append(encoded[:30])
            return real.verify(encoded, password)

    monkeypatch.setattr(vault, "_hasher", Counting())
    answers = []
    for name in ("anna", "nobody-there", "x" * 256, "ANNA", "", "änne"):
        answer = site.client().post(f"{API}/session", json={"username": name, "password": "wrong one"})
        body = problem(answer, 401, "bad-credentials")
        answers.append((answer.status_code, body["detail"], body["title"], sorted(answer.headers.keys())))
    assert len(verified) == len(answers)
    assert len(set(verified)) == 1  # one algorithm, one cost
    assert all(answer == answers[0] for answer in answers)


def test_a_flood_waits_in_a_short_line_and_lets_others_pass(tmp_path, monkeypatch):
    """Thirty sign-ins from one address while nothing gets hashed: a few wait, the rest is sent away at once, and everybody else goes on."""
    monkeypatch.setattr(turns, "_PATIENCE_S", 300)  # however slow the machine is
    with running_site(tmp_path) as site:
        access = site.services.access
        access._vault = vault = PasswordVault(1, waiting=4)
        headers, (browser, _) = site.headers(), site.browser()
        entered, go, real = threading.Semaphore(0), threading.Event(), vault._hasher

        class Slow:
            def verify(self, encoded, password):
                entered.release()
                go.wait(300)
                return real.verify(encoded, password)

        vault._hasher = Slow()
        answers = []

        def sign_in(address):
            body = {"username": "admin", "password": ADMIN_PASSWORD}
            environ = {"REMOTE_ADDR": address}
            answers.append(site.client().post(f"{API}/session", json=body, environ_overrides=environ))

        flood = [threading.Thread(target=sign_in, args=("192.0.2.1",)) for _ in range(30)]
        for one in flood:
            one.start()
        entered.acquire()
        until(lambda: len(answers) == 25, 120, "all but those who wait are sent away")
        assert {answer.status_code for answer in answers} == {503}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
        assert site.client().get(f"{API}/me", headers=headers).status_code == 200
        assert browser.get(f"{API}/me").status_code == 200
        other = threading.Thread(target=sign_in, args=("198.51.100.1",))
        other.start()
        until(lambda: len(answers) == 26, 120, "the flood makes room")
        go.set()
        for one in [*flood, other]:
            one.join()
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 26


def test_many_guesses_at_once_are_not_let_through_together(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "_PATIENCE_S", 300)  # however slow the machine is
    with running_site(tmp_path) as site:
        site.services.access._vault._turns._waiting = 100
        answers = []

        def guess():
            body = {"username": "admin", "password": "not the one"}
            answers.append(site.client().post(f"{API}/session", json=body).status_code)

        guesses = [threading.Thread(target=guess) for _ in range(25)]
        for one in guesses:
            one.start()
        for one in guesses:
            one.join()
        assert sorted(answers) == [401] * 10 + [429] * 15


def test_a_stranger_elsewhere_does_not_lock_the_owner_out(tmp_path):
    with running_site(tmp_path) as site:

        def sign_in(password, address):
            body = {"username": "admin", "password": password}
            return site.client().post(f"{API}/session", json=body, environ_overrides={"REMOTE_ADDR": address})

        assert sign_in(ADMIN_PASSWORD, "203.0.113.9").status_code == 200
        for n in range(12):
            assert sign_in("guess", "192.0.2.1").status_code == (401 if n < 10 else 429)
        assert sign_in(ADMIN_PASSWORD, "192.0.2.1").status_code == 429
        assert sign_in(ADMIN_PASSWORD, "203.0.113.9").status_code == 200
        assert sign_in(ADMIN_PASSWORD, "198.51.100.1").status_code == 200


def test_over_tls_the_cookie_is_bound_to_the_host(tmp_path):
    with running_site(tmp_path, secure_cookies=True) as site:
        body = {"username": "admin", "password": ADMIN_PASSWORD}
        answer = site.client().post(f"{API}/session", json=body, base_url="https://localhost")
        kept = answer.headers["Set-Cookie"]
        assert kept.startswith("__Host-cloche_session=")
        for part in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
            assert part in kept
        assert "Domain" not in kept


def test_failures_are_recorded_one_by_one_only_so_often_and_counted_always(tmp_path, monkeypatch):
    monkeypatch.setattr(sign_in, "RECORDED", 3)
    with running_site(tmp_path) as site:
        for n in range(12):
            answer = site.client().post(f"{API}/session", json={"username": "admin", "password": "guess"})
            assert answer.status_code == (401 if n < 10 else 429)
        site.app.extensions["cloche_denials"].close()
        event = t.audit_event

        def recorded(action, outcome):
            query = select(event).where(event.c.action == action, event.c.outcome == outcome)
            return site.services.db.read(lambda c: c.execute(query).all())

        assert 3 <= len(recorded("session:create", "failed")) <= 6  # the minute may have changed meanwhile
        counted = recorded("access:deny", "denied")
        assert sum(json.loads(found.details)["count"] for found in counted) == 12
