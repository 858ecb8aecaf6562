"""The tenants' egress policy over REST, and what it does to jobs that are submitted."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.isolation.egress import Verdict
from tests.support.plugins import write_bundle
from tests.support.web import problem, running_site, where

PARAMS = """[params]
type = "object"
additionalProperties = false
properties = { url = { type = "string" } }
[network]
allow = ["api.example.org:443", "param:url"]
"""


@pytest.fixture
def site(home, tmp_path):
    folder = tmp_path / "plugins"
    write_bundle(folder, "caller", more=PARAMS)
    write_bundle(folder, "quiet")
    with running_site(home, folder, egress={"allow": "*:443 mail.example:587"}) as opened:
        yield opened


def put(site, allow, user="admin", match="*"):
    headers = {"If-Match": match} if match else {}
    return site.request("PUT", "/egress-policy", user, json={"allow": allow}, headers=headers)


def submit(site, **payload):
    return site.request("POST", "/jobs", json={"type": "caller", "payload": payload})


def test_it_begins_empty_and_changes_only_at_the_version_one_has_read(site):
    first = site.request("GET", "/egress-policy")
    assert first.json == {
        "allow": [],
        "platform_allow": ["*:443", "mail.example:587"],
        "version": 0,
        "updated_at": None,
    }
    problem(put(site, ["a.example:443"], match=None), 428)
    problem(put(site, ["a.example:443"], match='"v1"'), 412)
    problem(put(site, ["a.example:443"], match="nonsense"), 412)
    made = put(site, ["A.example:443", "a.EXAMPLE:443", "bücher.example:*"], match=first.headers["ETag"])
    assert made.status_code == 200, made.text
    assert made.json["allow"] == ["a.example:443", "xn--bcher-kva.example:*"]
    assert (made.json["version"], made.headers["ETag"]) == (1, '"v1"')
    problem(put(site, [], match='"v0"'), 412)
    assert put(site, [], match='"v1"').json["allow"] == []
    assert site.request("GET", "/egress-policy").json["version"] == 2


def test_each_change_is_audited_with_what_it_changed(site):
    put(site, ["a.example:443", "b.example:443"])
    put(site, ["b.example:443", "c.example:443"])
    events = site.request("GET", "/audit?action=egress_policy:update").json["items"]
    assert [event["details"] for event in events] == [
        {"added": ["c.example:443"], "removed": ["a.example:443"]},
        {"added": ["a.example:443", "b.example:443"], "removed": []},
    ]
    event = t.audit_event.c
    query = select(event.before_sha256, event.after_sha256).where(event.action == "egress_policy:update")
    first, second = site.services.db.read(lambda c: c.execute(query.order_by(event.id)).all())
    assert first.after_sha256 == second.before_sha256
    assert len({first.before_sha256, first.after_sha256, second.after_sha256}) == 3


def test_malformed_entries_are_refused_with_pointers_and_change_nothing(site):
    body = problem(put(site, ["a.example:443", "a.example", "127.1:443", "*.*:1", "http://a.example:1"]), 422)
    assert where(body) == {"/allow/1", "/allow/2", "/allow/3", "/allow/4"}
    for allow in ("*:443", [1], [""], None, ["x:1"] * 257):
        problem(put(site, allow), 422)
    assert site.request("GET", "/egress-policy").json["version"] == 0


def test_who_may_see_it_and_who_may_set_it(site):
    site.add("sam", "submitter")
    site.add("vera", "viewer")
    assert site.request("GET", "/egress-policy", "sam").status_code == 200
    problem(put(site, [], "sam"), 403)
    problem(site.request("GET", "/egress-policy", "vera"), 403)


def test_another_tenants_policy_is_another_one(site):
    from tests.support.stores import add_actor, add_tenant

    put(site, ["*:443"])
    other = add_actor(site.services.db, add_tenant(site.services.db, "other"), "olga")
    assert site.services.egress.get(other)["allow"] == []


def test_a_job_needs_all_three(site):
    """Manifest, tenant and platform: what one of them leaves out is refused where it can be changed, and nothing is stored."""
    body = problem(submit(site), 422)
    assert where(body) == {"/type"}
    assert "this tenant's egress policy does not allow" in body["errors"][0]["detail"]
    put(site, ["api.example.org:443"])
    assert submit(site).status_code == 202
    body = problem(submit(site, url="https://files.example/x"), 422)
    assert where(body) == {"/payload/url"}
    assert "files.example:443" in body["errors"][0]["detail"]
    put(site, ["*:*"])
    assert submit(site, url="https://files.example/x").status_code == 202
    body = problem(submit(site, url="http://files.example/x"), 422)
    assert "this platform's operator does not allow" in body["errors"][0]["detail"]
    for url in ("https://u:p@files.example/", "nonsense", "https://127.1/", "ftp://files.example/"):
        assert where(problem(submit(site, url=url), 422)) == {"/payload/url"}
    assert len(site.request("GET", "/jobs").json["items"]) == 2


def test_jobs_that_declare_nothing_ask_nobody(site):
    assert site.request("POST", "/jobs", json={"type": "quiet"}).status_code == 202


def test_with_the_proxy_switched_off_nothing_is_allowed(home, tmp_path):
    write_bundle(tmp_path / "plugins", "caller", more=PARAMS)
    with running_site(home, tmp_path / "plugins", egress={"allow": "*:443", "enabled": False}) as site:
        put(site, ["*:443"])
        assert "operator does not allow" in problem(submit(site), 422)["errors"][0]["detail"]


def test_metrics_begin_at_nothing_and_count_by_verdict(site):
    from cloche.isolation.egress import EgressConnection, EgressReport
    from cloche.services import egress

    assert 'cloche_egress_bytes_total{direction="up"} 0.0' in site.client().get("/metrics").text
    one = EgressConnection("a.example", 443, "192.0.2.1", Verdict.CLOSED, 10, 20, 0, 5)
    report = EgressReport((one,), 3, 15, 20, {"closed": 2, "not_allowed": 1})
    for _ in range(2):
        site.services.db.write(lambda c: egress.count(c, report))
    shown = site.client().get("/metrics").text
    for line in (
        'cloche_egress_connections_total{verdict="closed"} 4.0',
        'cloche_egress_connections_total{verdict="not_allowed"} 2.0',
        'cloche_egress_bytes_total{direction="up"} 30.0',
        'cloche_egress_bytes_total{direction="down"} 40.0',
    ):
        assert line in shown
