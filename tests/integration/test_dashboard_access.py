"""Who reaches which page: every address declares its permission, and nobody gets past it."""

from __future__ import annotations

import re

import pytest

from cloche.domain.permissions import Permission
from cloche.web.dashboard.blueprint import PAGES
from cloche.web.routing import Access
from tests.support.web import running_site

PUBLIC = {"/ui/sign-in", "/ui/sign-out", "/ui/password-reset"}


@pytest.fixture
def site(tmp_path):
    with running_site(tmp_path) as running:
        yield running


def example(path: str) -> str:
    return re.sub(r"<[^>]+>", "x", path)


def test_every_page_declares_its_permission_and_only_the_door_is_public():
    assert all(isinstance(page.permission, (Permission, Access)) for page in PAGES)
    assert {page.path for page in PAGES if page.permission is Access.PUBLIC} == PUBLIC


def test_every_address_of_the_dashboard_is_one_of_the_pages(site):
    rules = {rule.rule for rule in site.app.url_map.iter_rules() if rule.endpoint.startswith("dashboard.")}
    assert rules == {page.path for page in PAGES}


def test_without_a_session_every_page_leads_to_the_door(site):
    for page in PAGES:
        if page.path in PUBLIC:
            continue
        path = example(page.path)
        if "GET" in page.methods:
            answer = site.client().get(path, headers={"Accept": "text/html"})
            assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (303, "/ui/sign-in"), path
            part = site.client().get(path, headers={"Accept": "*/*", "HX-Request": "true"})
            assert part.status_code == 401, path
        if "POST" in page.methods:
            assert site.client().post(path).status_code == 403, path


def test_a_role_without_the_permission_is_refused_and_that_is_audited(site):
    site.add("vera", "viewer")
    client, token = site.browser("vera")
    assert client.get("/ui/jobs").status_code == 200
    for path in ("/ui/submit", "/ui/audit"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert "Not allowed" in answer.text
    assert client.post("/ui/submit", data={"csrf_token": token}).status_code == 403
    assert client.post("/ui/jobs/x/cancel", data={"csrf_token": token}).status_code == 403
    denied = site.request("GET", "/audit?action=access:deny").json["items"]
    assert {item["object"] for item in denied} == {
        "GET /ui/submit",
        "GET /ui/audit",
        "POST /ui/submit",
        "POST /ui/jobs/<job_id>/cancel",
    }


def test_another_sites_form_is_refused(site):
    site.add("vera", "operator")
    client, token = site.browser("vera")
    sent = client.post("/ui/sign-out", data={"csrf_token": token}, headers={"Origin": "https://elsewhere.example"})
    assert sent.status_code == 403
    assert client.post("/ui/sign-out").status_code == 403
    assert client.get("/ui/jobs").status_code == 200


def test_a_form_larger_than_its_limit_is_refused_before_it_is_read(site):
    anonymous = site.client().post("/ui/sign-in", data={"username": "x" * (300 << 10)})
    assert anonymous.status_code == 413


def test_an_address_that_is_no_page_says_so_in_words(site):
    client, _ = site.browser()
    answer = client.get("/ui/nowhere/at/all")
    assert answer.status_code == 404
    assert "There is no page at /ui/nowhere/at/all." in answer.text
