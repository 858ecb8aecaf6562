"""Secrets over REST: values go in and never come out, are granted and revoked, and belong to one tenant."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select, update

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.services import secrets as module
from tests.support.plugins import write_bundle
from tests.support.sensitive import database_files, leaking_cells, leaks
from tests.support.web import problem, running_site, where

CANARY = "canary-5ec4e7-ü"
NEEDS = '[requires]\nsecrets = ["API_KEY", "OTHER"]\n'


@pytest.fixture
def site(tmp_path, database_url):
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        write_bundle(tmp_path / "plugins", "needy", version, more=NEEDS)
    write_bundle(tmp_path / "plugins", "plain")
    with running_site(tmp_path / "home", tmp_path / "plugins", database=database_url) as running:
        for name, role in (("anna", "submitter"), ("olga", "operator"), ("audi", "auditor"), ("vera", "viewer")):
            running.add(name, role)
        yield running


def create(site, name="API_KEY", value=CANARY, **more):
    return site.request("POST", "/secrets", json={"name": name, "value": value, **more})


def grant(site, name, *grants, match="*"):
    asked = [{"plugin": plugin, "versions": versions} for plugin, versions in grants]
    return site.request("PUT", f"/secrets/{name}/grants", json={"grants": asked}, headers={"If-Match": match})


def submit(site, **body):
    return site.request("POST", "/jobs", "anna", json={"type": "needy", **body})


def audited(site, kind="secret:"):
    query = select(t.audit_event.c.action, t.audit_event.c.object, t.audit_event.c.details).order_by(t.audit_event.c.id)
    rows = site.services.db.read(lambda connection: connection.execute(query).all())
    return [(row.action, row.object, json.loads(row.details)) for row in rows if row.action.startswith(kind)]


def test_a_value_goes_in_and_never_comes_out(site, tmp_path, database_url):
    made = create(site, description="of the mail service")
    assert made.status_code == 201
    assert made.headers["Location"] == "/api/v1/secrets/API_KEY"
    assert made.json["created_by"] == "admin"
    assert made.json["grants"] == []
    assert made.json["masked"] is True
    changed = site.request(
        "PUT", "/secrets/API_KEY", json={"value": f"{CANARY}-2"}, headers={"If-Match": made.headers["ETag"]}
    )
    assert (changed.status_code, changed.json["value_version"], changed.json["version"]) == (200, 2, 2)
    assert changed.json["description"] == "of the mail service"
    granted = grant(site, "API_KEY", ("needy", "==1.0.0"), match=changed.headers["ETag"])
    answers = [made, changed, granted, site.request("GET", "/secrets"), site.request("GET", "/secrets/API_KEY", "olga")]
    for answer in answers:
        assert CANARY not in answer.text
        assert "sealed" not in answer.text
        assert "key_id" not in answer.text
    assert leaks(CANARY, tmp_path / "home", *database_files(database_url)) == []
    assert leaking_cells(CANARY, database_url) == []
    kinds = [action for action, _, _ in audited(site)]
    assert kinds == ["secret:create", "secret:update", "secret:grant"]


def test_who_may_see_and_who_may_set(site):
    create(site)
    for user, status in (("olga", 200), ("audi", 200), ("vera", 403), ("anna", 403)):
        assert site.request("GET", "/secrets", user).status_code == status
        assert site.request("GET", "/secrets/API_KEY", user).status_code == status
    for user in ("olga", "audi", "vera", "anna"):
        any_ = {"If-Match": "*"}
        for method, path, body in (
            ("POST", "/secrets", {"name": "B", "value": "x"}),
            ("PUT", "/secrets/API_KEY", {"value": "x"}),
            ("PUT", "/secrets/API_KEY/grants", {"grants": []}),
            ("DELETE", "/secrets/API_KEY", None),
        ):
            problem(site.request(method, path, user, json=body, headers=any_), 403)


def test_another_tenants_secret_is_not_there(site):
    create(site)
    grant(site, "API_KEY", ("needy", "*"))
    other = uuid7()
    db = site.services.db

    def move(connection):
        tenant = connection.execute(select(t.tenant)).mappings().first()
        row = {**tenant, "id": other, "name": "other"}
        if "skeleton" in row:
            row["skeleton"] = "other"
        connection.execute(t.tenant.insert(), row)
        connection.execute(update(t.secret).values(tenant_id=other))

    db.write(move)
    assert site.request("GET", "/secrets").json == {"items": []}
    any_ = {"If-Match": "*"}
    problem(site.request("GET", "/secrets/API_KEY"), 404)
    problem(site.request("PUT", "/secrets/API_KEY", json={"value": "mine"}, headers=any_), 404)
    problem(grant(site, "API_KEY", ("needy", "*")), 404)
    problem(site.request("DELETE", "/secrets/API_KEY", headers=any_), 404)
    assert "does not have" in problem(submit(site), 422)["errors"][0]["detail"]


def test_a_removal_does_not_take_what_was_changed_meanwhile(site, monkeypatch):
    """On PostgreSQL somebody else's change can end between the removal's two statements; on SQLite nobody writes then."""
    create(site)
    read = module._at

    def meanwhile(connection, *arguments):
        row = read(connection, *arguments)
        monkeypatch.setattr(module, "_at", read)
        if site.services.db.kind == "postgresql":
            assert grant(site, "API_KEY", ("needy", "==1.0.0")).status_code == 200
        else:
            here = update(t.secret).where(module._of(arguments[0]))
            connection.execute(here.values(version=t.secret.c.version + 1))
        return row

    monkeypatch.setattr(module, "_at", meanwhile)
    answer = site.request("DELETE", "/secrets/API_KEY", headers={"If-Match": '"v1"'})
    problem(answer, 412)
    assert site.request("GET", "/secrets/API_KEY").status_code == 200


def test_changes_name_the_version_they_mean(site):
    made = create(site)
    for method, path, body in (
        ("PUT", "/secrets/API_KEY", {"value": "another value"}),
        ("PUT", "/secrets/API_KEY/grants", {"grants": []}),
        ("DELETE", "/secrets/API_KEY", None),
    ):
        problem(site.request(method, path, json=body), 428)
        for wrong in ('"v9"', "v1", 'W/"v1"', '"v1", "v2"'):
            problem(site.request(method, path, json=body, headers={"If-Match": wrong}), 412)
    gone = site.request("DELETE", "/secrets/API_KEY", headers={"If-Match": made.headers["ETag"]})
    assert gone.status_code == 204
    problem(site.request("GET", "/secrets/API_KEY"), 404)
    assert create(site).json["value_version"] == 1


@pytest.mark.parametrize("name", ["api_key", "1KEY", "", "A" * 65, "A-B", "A\n", "../A", "Ａ", "A B"])
def test_a_name_is_capital_letters_digits_and_underscores(site, name):
    assert where(problem(create(site, name), 422)) == {"/name"}


@pytest.mark.parametrize("value", ["", "x" * 65_537, "ü" * 32_769, "•••"])
def test_what_is_no_value(site, value):
    found = problem(create(site, value=value), 422)
    assert where(found) == {"/value"}
    assert value[:20] not in json.dumps(found) or not value


def test_a_refused_body_is_not_quoted(site):
    for body in (
        {"name": "API_KEY", "value": [CANARY]},
        {"name": "API_KEY", "value": CANARY, "grants": CANARY},
        {"name": CANARY, "value": CANARY},
    ):
        answer = site.request("POST", "/secrets", json=body)
        problem(answer, 422)
        assert CANARY not in answer.text
        assert "5ec4e7" not in answer.text


def test_names_are_unique_and_bounded(site, monkeypatch):
    create(site)
    problem(create(site), 409, "secret-exists")
    monkeypatch.setattr(module, "MAX_SECRETS", 1)
    assert "at most 1" in problem(create(site, "B"), 409)["detail"]


def test_grants_are_checked_and_recorded_by_what_changed(site):
    create(site)
    for versions, says in (("", "'*'"), ("new", "no version specifier"), (">=1,,x", "no version specifier")):
        found = problem(grant(site, "API_KEY", ("needy", "*"), ("needy", versions)), 422)
        assert where(found) == {"/grants/1/versions"}
        assert says in found["errors"][0]["detail"]
    assert where(problem(grant(site, "API_KEY", ("needy", ">=1"), ("needy", " >=1 ")), 422)) == {"/grants/1"}
    assert problem(grant(site, "API_KEY", ("Needy", "*")), 422)
    grant(site, "API_KEY", ("needy", "==1.0.0"), ("plain", "*"))
    grant(site, "API_KEY", ("needy", "==1.0.0"), ("needy", "==2.0.0"))
    assert audited(site)[1:] == [
        ("secret:grant", "secret:API_KEY", {"plugins": ["needy ==1.0.0", "plain *"]}),
        ("secret:grant", "secret:API_KEY", {"plugins": ["needy ==2.0.0"]}),
        ("secret:revoke", "secret:API_KEY", {"plugins": ["plain *"]}),
    ]


def test_a_job_is_taken_when_all_it_names_is_granted_to_its_version(site):
    def told(**body):
        return [item["detail"] for item in problem(submit(site, **body), 422)["errors"]]

    assert ["does not have" in one for one in told()] == [True, True]
    create(site)
    create(site, "OTHER", "another value")
    first = told(version="1.0.0")
    assert ["not granted" in one for one in first] == [True, True]
    assert "cloche secret grant API_KEY needy '==1.0.0'" in first[0]
    grant(site, "API_KEY", ("needy", "~=1.0"))
    grant(site, "OTHER", ("needy", "==1.0.0"), ("plain", "*"))
    assert submit(site, version="1.0.0").status_code == 202
    assert len(told(version="1.1.0")) == 1
    assert len(told(version="2.0.0")) == 2
    batch = {"jobs": [{"type": "needy", "version": "1.0.0"}, {"type": "needy", "version": "2.0.0"}]}
    assert site.request("POST", "/jobs/batch", "anna", json=batch).status_code == 422
    assert site.request("POST", "/jobs", "anna", json={"type": "plain"}).status_code == 202


def test_what_a_plugin_names_can_be_seen(site):
    items = site.request("GET", "/plugins").json["items"]
    shown = {item["name"]: item["configuration"]["secrets"] for item in items}
    assert (shown["needy"], shown["plain"]) == (["API_KEY", "OTHER"], [])


def test_a_missing_key_refuses_and_is_never_replaced(site):
    create(site)
    keys = site.services.settings.home / "keys"
    (keys / "secrets.key").rename(keys / "aside")
    found = problem(create(site, "B"), 503)
    assert "is missing" in found["detail"]
    assert not (keys / "secrets.key").exists()
    (keys / "aside").rename(keys / "secrets.key")
    assert create(site, "B").status_code == 201
