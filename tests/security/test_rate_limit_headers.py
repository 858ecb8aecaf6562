"""Rate limits over HTTP: the headers, 429, whose limit it is, and what is never limited."""

from __future__ import annotations

import re

import pytest

from cloche.clock import now_ms
from tests.support import stores
from tests.support.web import problem, running_site

FIELD = re.compile(r'"(address|user|token)";r=(\d+);t=(\d+)\Z')
HERE = {"REMOTE_ADDR": "198.51.100.7"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home"), rate={"address": 40, "user": 25, "token": 15}) as running:
        at = now_ms()
        running.services.rates._permits._clock = lambda: at  # nothing comes back, however slow the machine is
        yield running


def ask(site, path="/api/v1/me", headers=None, address="198.51.100.7"):
    return site.client().get(path, headers=headers or {}, environ_overrides={"REMOTE_ADDR": address})


def told(answer):
    found = FIELD.match(answer.headers["RateLimit"])
    assert found, answer.headers["RateLimit"]
    return found[1], int(found[2]), int(found[3])


def test_the_policy_and_what_is_left_are_told(site):
    answer = ask(site, headers=site.headers(), address="192.0.2.50")
    assert answer.headers["RateLimit-Policy"] == '"address";q=40;w=60, "user";q=25;w=60, "token";q=15;w=60'
    policy, left, seconds = told(answer)
    assert policy in ("user", "token"), "the nearest one"
    assert left < 25
    assert seconds <= 60


def test_a_token_then_its_user_and_then_the_address(site):
    first = {"Authorization": f"Bearer {site.token()}"}
    codes = [ask(site, headers=first, address="192.0.2.51").status_code for _ in range(17)]
    assert 429 in codes
    assert codes.index(429) <= 15
    refused = ask(site, headers=first, address="192.0.2.51")
    body = problem(refused, 429, "rate-limited")
    assert "this token" in body["detail"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert told(refused)[:2] == ("token", 0)
    second = {"Authorization": f"Bearer {site.token()}"}
    answers = [ask(site, headers=second, address="192.0.2.52") for _ in range(15)]
    assert "this user" in next(one for one in answers if one.status_code == 429).json["detail"]


def test_who_sends_no_valid_credential_is_limited_by_address(site):
    wrong = {"Authorization": "Bearer cloche_pat_nothing"}
    codes = [ask(site, headers=wrong).status_code for _ in range(60)]
    assert codes[0] == 401
    assert set(codes[42:]) == {429}
    assert ask(site, "/openapi.json").status_code == 429
    assert ask(site, "/openapi.json", address="198.51.100.8").status_code == 200
    assert ask(site, "/healthz").status_code == 200
    assert "RateLimit" not in ask(site, "/healthz").headers


@pytest.mark.parametrize("tenant", ["nope", "\xff", ""])
def test_whoever_names_a_tenant_that_is_not_theirs_is_counted_all_the_same(site, tenant):
    name = f"wanderer-{len(tenant)}-{tenant.isascii()}"
    user = stores.add_actor(site.services.db, site.services.access.default_tenant(), name, "viewer")

    def asks():
        token = site.services.access.create_token(user, "wander")["token"]
        headers = {"Authorization": f"Bearer {token}", "X-Cloche-Tenant": tenant}
        return [ask(site, headers=headers, address=f"192.0.2.{100 + number}") for number in range(20)]

    answers = asks()
    assert answers[0].status_code == 404
    problem(answers[-1], 429, "rate-limited")
    assert told(answers[-1])[:2] == ("token", 0)
    answers = asks()
    assert "this user" in next(one for one in answers if one.status_code == 429).json["detail"]


def test_addresses_of_one_ipv6_network_are_one(site):
    codes = [ask(site, "/openapi.json", address=f"2001:db8:1:2::{number:x}").status_code for number in range(1, 60)]
    assert 429 in codes
    assert ask(site, "/openapi.json", address="2001:db8:1:3::1").status_code == 200


def test_without_limits_nothing_is_told(tmp_path):
    with running_site(tmp_path, rate={"address": 0, "user": 0, "token": 0}) as site:
        answer = site.request("GET", "/me")
        assert answer.status_code == 200
        assert "RateLimit" not in answer.headers
