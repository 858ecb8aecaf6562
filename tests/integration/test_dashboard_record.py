"""The record and secrets as forms send them: whose they are not finds nothing, and no page repeats a value."""

from __future__ import annotations

import pytest

from cloche.services.sealer import Sealer
from tests.support import people
from tests.support.web import running_site

VALUE = "hunter2-and-some-more"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        chief = people.sign_in(running)
        chief.made("/roles", name="reader", permissions=["audit:read", "secret:read"])
        for name, role in (("vera", "viewer"), ("otto", "auditor"), ("boss", "admin"), ("rita", "reader")):
            people.add(chief, name, role)
        people.add_tenant(chief, "elsewhere")
        chief.within("elsewhere").made("/secrets", name="THEIRS", value=VALUE)
        yield running


def test_who_may_not_finds_no_page_and_no_way_there(site):
    client, token = site.browser("vera")
    for path in ("/ui/audit", "/ui/audit/checkpoints", "/ui/audit/0", "/ui/secrets", "/ui/secrets/new"):
        assert client.get(path).status_code == 403, path
    for path in ("/ui/audit", "/ui/secrets/new", "/ui/secrets/X/value", "/ui/secrets/X/grants", "/ui/secrets/X/delete"):
        assert client.post(path, data={"csrf_token": token, "version": "1"}).status_code == 403, path


def test_who_may_read_and_not_export_is_offered_no_export(site):
    assert 'id="export"' not in site.browser("rita")[0].get("/ui/audit").text
    assert 'href="/api/v1/audit/export"' in site.browser("otto")[0].get("/ui/audit").text


def test_the_export_has_the_filters_in_the_apis_form(site):
    page = site.browser("otto")[0].get("/ui/audit?actor=vera&since=2026-01-02T03:04&object=&outcome=denied").text
    assert "/api/v1/audit/export?actor=vera&amp;outcome=denied&amp;since=2026-01-02T03%3A04%3A00Z" in page
    answer = site.browser("otto")[0].get(
        "/api/v1/audit/export?actor=vera&outcome=denied&since=2026-01-02T03%3A04%3A00Z"
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "since=never",
        "until=2026-13-01",
        "outcome=perhaps",
        "since=2026-01-01T25:00",
        "since=9999999-01-01",
        "until=%00",
    ],
)
def test_a_filter_that_is_none_is_told_beside_it(site, query):
    answer = site.browser("otto")[0].get(f"/ui/audit?{query}")
    assert answer.status_code == 200
    assert f'id="wrong-{query.partition("=")[0]}"' in answer.text


@pytest.mark.parametrize(
    "query", ["cursor=nonsense", "actor=" + "x" * 5_000, "action=%00", "ip=%F0%9F%91%BB", "actor=%E2%80%AE"]
)
def test_a_strange_query_is_no_failure_of_ours(site, query):
    assert site.browser("otto")[0].get(f"/ui/audit?{query}").status_code in (200, 422)


def test_an_event_of_another_tenant_is_not_there_and_a_new_one_is_not_sealed_yet(site):
    chief = people.sign_in(site)
    theirs = chief.within("elsewhere").got("/audit?action=secret:create")["items"][0]["id"]
    client, _ = site.browser("otto")
    mine = chief.got("/audit?limit=1")["items"][0]["id"]
    fresh = client.get(f"/ui/audit/{mine}")
    assert (fresh.status_code, "Not sealed yet" in fresh.text) == (409, True)
    Sealer(site.services.db, site.services.keyring, "sealer-test").run_once()
    assert client.get(f"/ui/audit/{mine}").status_code == 200
    for place in (theirs, "999999", "x", "-1"):
        assert client.get(f"/ui/audit/{place}").status_code == 404, place


def test_verifying_is_recorded_and_takes_a_form_of_ours(site):
    client, token = site.browser("otto")
    assert client.post("/ui/audit").status_code == 403
    answer = client.post("/ui/audit?actor=otto", data={"csrf_token": token})
    assert 'id="verdict"' in answer.text
    assert people.sign_in(site).got("/audit?action=audit:verify&actor=otto")["items"]


def test_a_secret_of_another_tenant_is_not_there(site):
    client, token = site.browser("boss")
    assert "THEIRS" not in client.get("/ui/secrets").text
    assert client.get("/ui/secrets/THEIRS").status_code == 404
    for act in ("value", "grants", "delete"):
        data = {"csrf_token": token, "version": "1", "value": "x", "grants": ""}
        assert client.post(f"/ui/secrets/THEIRS/{act}", data=data).status_code == 404, act


def test_no_page_repeats_a_value_whether_taken_or_refused(site):
    client, token = site.browser("boss")
    data = {"csrf_token": token, "name": "TOKEN", "value": VALUE, "description": "<b>what\u202e"}
    refused = client.post("/ui/secrets/new", data={**data, "name": "no name"})
    assert (refused.status_code, VALUE in refused.text) == (422, False)
    assert client.post("/ui/secrets/new", data=data).status_code == 303
    for page in ("/ui/secrets", "/ui/secrets/TOKEN"):
        text = client.get(page).text
        assert VALUE not in text
        assert "&lt;b&gt;what" in text
    again = client.post("/ui/secrets/new", data=data)
    assert (again.status_code, VALUE in again.text, 'id="wrong-name"' in again.text) == (409, False, True)
    stale = {"csrf_token": token, "version": "7", "value": VALUE, "description": ""}
    answer = client.post("/ui/secrets/TOKEN/value", data=stale)
    assert (answer.status_code, VALUE in answer.text) == (409, False)
    assert VALUE not in str(people.sign_in(site).got("/audit?object=secret:TOKEN"))


def test_who_may_only_read_secrets_finds_no_form(site):
    client, token = site.browser("rita")
    page = client.get("/ui/secrets/TOKEN").text
    assert "Who gets it" in page
    for form in ("grants-form", "value-form", "delete-secret"):
        assert form not in page
    assert client.post("/ui/secrets/TOKEN/grants", data={"csrf_token": token, "version": "1"}).status_code == 403
