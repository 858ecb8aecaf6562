"""The page of queues: what it shows and to whom it offers what, as a form sends it."""

from __future__ import annotations

import pytest

from tests.support.web import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        for name, role in (("olga", "operator"), ("vera", "viewer"), ("anna", "submitter")):
            running.add(name, role)
        answer = running.request("POST", "/queues", json={"name": "fast", "description": "<b>in a hurry"})
        assert answer.status_code == 201
        upload = running.upload(user="anna")
        running.body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}], "queue": "fast"}
        yield running


def scopes(site):
    return site.request("GET", "/queues/fast").json["paused_scopes"]


def test_everybody_sees_queues_and_who_may_is_offered_to_pause_them(site):
    offered = {}
    for user in ("vera", "olga", "admin"):
        page = site.browser(user)[0].get("/ui/workers").text
        assert "Queue fast" in page
        assert "&lt;b&gt;in a hurry" in page
        offered[user] = ('id="pause-tenant-fast"' in page, 'id="pause-platform-fast"' in page)
    assert offered == {"vera": (False, False), "olga": (True, False), "admin": (True, True)}


def test_a_queue_is_paused_and_resumed_and_its_jobs_say_why_they_wait(site):
    client, token = site.browser("olga")
    data = {"csrf_token": token, "scope": "tenant"}
    answer = client.post("/ui/queues/fast/pause", data=data)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/workers")
    page = client.get("/ui/workers").text
    assert "paused for your tenant" in page
    assert 'id="resume-tenant-fast"' in page
    job = site.request("POST", "/jobs", "anna", json=site.body).json
    assert "its queue is paused for its tenant." in client.get(f"/ui/jobs/{job['id']}").text
    assert "its queue is paused for its tenant." in client.get("/ui/jobs").text
    assert client.post("/ui/queues/fast/resume", data=data).status_code == 303
    assert scopes(site) == []
    boss, token = site.browser()
    assert boss.post("/ui/queues/fast/pause", data={"csrf_token": token, "scope": "platform"}).status_code == 303
    assert scopes(site) == ["platform"]
    assert boss.post("/ui/queues/fast/resume", data={"csrf_token": token, "scope": "platform"}).status_code == 303
    assert scopes(site) == []


def test_who_may_not_is_refused_and_a_strange_form_too(site):
    client, token = site.browser("olga")
    assert client.post("/ui/queues/fast/pause", data={"csrf_token": token, "scope": "platform"}).status_code == 403
    assert client.post("/ui/queues/fast/pause", data={"csrf_token": token, "scope": "all"}).status_code == 422
    assert client.post("/ui/queues/fast/pause", data={"scope": "tenant"}).status_code == 403
    assert client.post("/ui/queues/nosuch/pause", data={"csrf_token": token, "scope": "tenant"}).status_code == 404
    other, token = site.browser("anna")
    assert other.post("/ui/queues/fast/pause", data={"csrf_token": token, "scope": "tenant"}).status_code == 403
    assert scopes(site) == []
