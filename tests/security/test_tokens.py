"""Tokens against those who would make more of them than they are."""

from __future__ import annotations

import base64

import pytest
from sqlalchemy import delete, insert, update

from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.permissions import NAMED_ONLY
from cloche.services.actors import changed
from tests.support.web import ADMIN_PASSWORD, API, PASSWORD, problem, running_site, where


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), database=module_database_url) as running:
        running.add("anna", "submitter")
        yield running


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def me(site, headers, **environ):
    return site.client().get(f"{API}/me", headers=headers, environ_overrides=environ)


def from_elsewhere(site, *statements):
    """A change by another process of the platform."""
    other = Database(site.services.db.url)

    def unit(connection):
        for statement in statements:
            connection.execute(statement)
        changed(connection)

    other.write(unit)
    other.close()


def user_id(site, name):
    return next(user["id"] for user in site.request("GET", "/users").json["items"] if user["username"] == name)


def test_a_token_after_it_was_revoked(site):
    made = site.client().post(f"{API}/tokens", json={"name": "x"}, auth=("anna", PASSWORD)).json
    assert me(site, bearer(made["token"])).status_code == 200
    client, csrf = site.browser("anna")
    assert client.delete(f"{API}/tokens/{made['id']}", headers={"X-CSRFToken": csrf}).status_code == 204
    problem(me(site, bearer(made["token"])), 401, "token-revoked")


def test_a_token_after_another_process_revoked_it(site):
    made = site.client().post(f"{API}/tokens", json={"name": "x"}, auth=("anna", PASSWORD)).json
    assert me(site, bearer(made["token"])).status_code == 200
    from_elsewhere(site, update(t.token).where(t.token.c.id == made["id"]).values(revoked_at=1))
    problem(me(site, bearer(made["token"])), 401, "token-revoked")


def test_credentials_after_their_user_was_disabled_in_another_process(site):
    site.add("berta", "submitter")
    headers, (client, _) = site.headers("berta"), site.browser("berta")
    assert me(site, headers).status_code == client.get(f"{API}/me").status_code == 200
    berta = t.user.c.id == user_id(site, "berta")
    from_elsewhere(site, update(t.user).where(berta).values(disabled=True))
    problem(me(site, headers), 401, "account-disabled")
    problem(client.get(f"{API}/me"), 401)


def test_credentials_after_a_role_shrank_in_another_process(site):
    site.add("carla", "operator")
    headers, (client, _) = site.headers("carla"), site.browser("carla")
    assert "job:cancel_any" in me(site, headers).json["permissions"]
    carla = user_id(site, "carla")
    mine = t.user_role.c.user_id == carla
    tenant = site.services.access.default_tenant()
    from_elsewhere(
        site,
        delete(t.user_role).where(mine),
        insert(t.user_role).values(user_id=carla, tenant_id=tenant, role="viewer"),
    )
    assert "job:cancel_any" not in me(site, headers).json["permissions"]
    assert "job:cancel_any" not in client.get(f"{API}/me").json["permissions"]
    problem(site.client().post(f"{API}/jobs", json={"type": "x"}, headers=headers), 403)


def test_a_scope_that_the_user_lost_is_lost_and_one_they_never_had_is_refused(site):
    problem(
        site.client().post(f"{API}/tokens", json={"name": "x", "scopes": ["user:manage"]}, auth=("anna", PASSWORD)),
        403,
        "grant-exceeds-own",
    )
    site.add("dora", "operator")
    token = site.token("dora", scopes=["job:cancel_any", "job:read"])
    assert me(site, bearer(token)).json["permissions"] == ["job:cancel_any", "job:read"]
    dora = t.user_role.c.user_id == user_id(site, "dora")
    from_elsewhere(site, update(t.user_role).where(dora).values(role="viewer"))
    assert me(site, bearer(token)).json["permissions"] == ["job:read"]


def test_a_token_without_scopes_does_not_hand_on_power(site):
    plain = site.headers()
    held = set(me(site, plain).json["permissions"])
    assert not held & {str(permission) for permission in NAMED_ONLY}
    problem(site.client().post(f"{API}/tokens", json={"name": "child"}, headers=plain), 403)
    problem(site.client().get(f"{API}/tokens", headers=plain), 403)
    body = {"username": "ernst", "password": PASSWORD, "roles": ["submitter"]}
    assert site.client().post(f"{API}/users", json=body, headers=plain).status_code == 201
    problem(
        site.client().post(f"{API}/users", json=body | {"username": "mallory", "roles": ["admin"]}, headers=plain), 403
    )


def test_a_tokens_child_reaches_no_further_and_goes_with_it(site):
    body = {"name": "parent", "scopes": ["job:read", "token:manage"], "expires_in": "1h", "addresses": ["127.0.0.0/8"]}
    parent = site.client().post(f"{API}/tokens", json=body, auth=("anna", PASSWORD)).json
    headers = bearer(parent["token"])

    def make(**more):
        return site.client().post(f"{API}/tokens", json={"name": "child", **more}, headers=headers)

    child = make().json
    assert child["scopes"] == ["job:read"]
    assert child["expires_at"] == parent["expires_at"]
    assert child["addresses"] == ["127.0.0.0/8"]
    problem(make(scopes=["job:submit"]), 403, "grant-exceeds-own")
    problem(make(scopes=["token:manage"]), 403, "grant-exceeds-own")
    assert make(expires_in="2h").json["expires_at"] == parent["expires_at"]
    assert make(expires_in="1m").json["expires_at"] < parent["expires_at"]
    assert make(addresses=["127.0.0.1"]).json["addresses"] == ["127.0.0.1/32"]
    for wider in ("0.0.0.0/0", "10.0.0.1", "::/0"):
        assert where(problem(make(addresses=[wider]), 422)) == {"/addresses/0"}
    assert me(site, bearer(child["token"])).status_code == 200
    client, csrf = site.browser("anna")
    client.delete(f"{API}/tokens/{parent['id']}", headers={"X-CSRFToken": csrf})
    problem(me(site, bearer(child["token"])), 401, "token-revoked")


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (
            ["192.0.2.0/24"],
            ["192.0.2.1", "::ffff:192.0.2.1"],
            ["192.0.3.1", "2002:c000:201::1", "64:ff9b::c000:201", ""],
        ),
        (["2001:db8::/32"], ["2001:db8::1"], ["192.0.2.1", "2001:db9::1", "2001:db8::1%eth0"]),
        (["198.51.100.7", "2001:db8::/64"], ["198.51.100.7", "2001:db8::5"], ["198.51.100.8", "2001:db8:0:1::5"]),
    ],
)
def test_a_token_is_taken_only_from_its_addresses(site, networks, inside, outside):
    headers = bearer(site.token("anna", addresses=networks))
    for address in inside:
        assert me(site, headers, REMOTE_ADDR=address).status_code == 200, address
    for address in outside:  # remembered from the ones before, and all the same
        problem(me(site, headers, REMOTE_ADDR=address), 401, "token-address")
        forwarded = {**headers, "X-Forwarded-For": inside[0]}
        problem(me(site, forwarded, REMOTE_ADDR=address), 401, "token-address")


@pytest.mark.parametrize(
    "address", ["192.0.2.1/24", "x", "", "192.0.2.0/33", "1.2.3", "fe80::1%eth0/64", "192.0.2.0/24 "]
)
def test_what_is_no_network_is_refused(site, address):
    body = {"name": "x", "addresses": [address]}
    answer = site.client().post(f"{API}/tokens", json=body, auth=("anna", PASSWORD))
    assert where(problem(answer, 422)) == {"/addresses/0"}


def test_at_most_so_many_addresses(site):
    body = {"name": "x", "addresses": [f"192.0.2.{n}" for n in range(33)]}
    problem(site.client().post(f"{API}/tokens", json=body, auth=("anna", PASSWORD)), 422)
    problem(site.client().post(f"{API}/tokens", json={"name": "x", "addresses": []}, auth=("anna", PASSWORD)), 422)


@pytest.mark.parametrize("name", ["anna", "", "somebody else", "token"])
def test_a_token_is_taken_as_the_password_of_basic_everywhere(site, name):
    token = site.token("anna", scopes=["job:read"])
    answer = me(site, basic(name, token))
    assert answer.json["username"] == "anna"
    assert answer.json["permissions"] == ["job:read"]
    assert site.client().get(f"{API}/jobs", headers=basic(name, token)).status_code == 200
    problem(me(site, basic(name, token[:-1])), 401, "token-invalid")


def test_basic_from_another_sites_page_gets_nowhere(site):
    token = site.token("anna", scopes=["token:manage"])
    headers = {**basic("x", token), "Origin": "https://evil.example"}
    problem(site.client().post(f"{API}/tokens", json={"name": "x"}, headers=headers), 403, "cross-site")
    headers = {**basic("anna", PASSWORD), "Sec-Fetch-Site": "cross-site"}
    problem(site.client().post(f"{API}/tokens", json={"name": "x"}, headers=headers), 403, "cross-site")
    assert site.client().post(f"{API}/tokens", json={"name": "x"}, headers=basic("anna", PASSWORD)).status_code == 201


def test_only_so_many_tokens_of_one_user(site, monkeypatch):
    from cloche.services import tokens

    site.add("fritz", "viewer")
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    for status in (201, 201, 409):
        assert site.client().post(f"{API}/tokens", json={"name": "x"}, auth=("fritz", PASSWORD)).status_code == status


def test_secrets_are_of_256_bits_and_no_two_alike(site):
    texts = {site.token("admin") for _ in range(20)}
    secrets = {text.split("_", 3)[3] for text in texts}
    assert len(secrets) == 20
    assert all(len(base64.urlsafe_b64decode(secret + "=")) == 32 for secret in secrets)
    assert ADMIN_PASSWORD not in "".join(texts)
