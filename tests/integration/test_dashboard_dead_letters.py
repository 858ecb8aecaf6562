"""The page of dead letters, and what a job's page offers after its end: without JavaScript, as a form sends it."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import update

from cloche.clock import now_ms, to_rfc3339, uuid7
from cloche.db import tables as t
from tests.support.web import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        for name, role in (("anna", "submitter"), ("olga", "operator"), ("vera", "viewer")):
            running.add(name, role)
        upload = running.upload(user="anna")
        running.body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
        yield running


def submit(site, **more):
    answer = site.request("POST", "/jobs", "anna", json={**site.body, **more})
    assert answer.status_code == 202, answer.text
    return answer.json


def failed(site, message="boom", reason="plugin_failed", **more):
    job = submit(site, **more)
    error = {"reason": reason, "message": message, "attempt": 1, "details": {}}
    values = {"state": "failed", "reason": reason, "error": error, "attempt": 1, "finished_at": now_ms()}
    site.services.db.write(lambda c: c.execute(update(t.job).where(t.job.c.id == job["id"]).values(**values)))
    return job


def state(site, job):
    return site.request("GET", f"/jobs/{job['id']}").json["status"]


def rows(page):
    return re.findall(r'data-job="([^"]+)"', page.text)


def test_failed_jobs_are_listed_and_narrowed(site):
    slow, broken = failed(site, reason="timed_out"), failed(site, "<b>\x1b[31m", name="<script>")
    waits = submit(site)
    client, _ = site.browser("vera")
    page = client.get("/ui/dead-letters")
    assert rows(page)[:2] == [broken["id"], slow["id"]]
    assert waits["id"] not in page.text
    assert "<script>" not in page.text.replace("<script src", "")
    assert "&lt;b&gt;" in page.text
    assert "replay" not in re.findall(r'<button id="([^"]+)"', page.text), "a viewer is offered nothing to do"
    assert rows(client.get("/ui/dead-letters?reason=timed_out")) == [slow["id"]]
    assert "No job has failed for this reason" in client.get("/ui/dead-letters?reason=bad_result").text


def test_those_that_are_ticked_are_replayed_and_the_page_says_what_was_left(site):
    first, second, gone = failed(site), failed(site), submit(site)
    client, token = site.browser("olga")
    ids = [first["id"], gone["id"]]
    answer = client.post("/ui/dead-letters/replay?reason=plugin_failed", data={"csrf_token": token, "id": ids})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/dead-letters?reason=plugin_failed")
    page = client.get("/ui/dead-letters")
    assert "1 job was replayed." in page.text
    assert "is not a dead letter" in page.text
    assert [state(site, one) for one in (first, second, gone)] == ["pending", "failed", "pending"]
    assert "1 job was replayed." not in client.get("/ui/dead-letters").text, "said once"
    assert client.post("/ui/dead-letters/replay", data={"csrf_token": token}).status_code == 303
    assert "Nothing was ticked." in client.get("/ui/dead-letters").text
    crowd = {"csrf_token": token, "id": [uuid7() for _ in range(51)]}
    assert client.post("/ui/dead-letters/replay", data=crowd).status_code == 422
    assert client.post("/ui/dead-letters/replay", data={"csrf_token": token, "id": "x"}).status_code == 422


def test_of_many_that_were_left_some_are_named(site):
    client, token = site.browser("olga")
    data = {"csrf_token": token, "id": [uuid7() for _ in range(50)]}
    answer = client.post("/ui/dead-letters/replay", data=data)
    assert answer.status_code == 303
    assert len(answer.headers["Set-Cookie"]) < 4_000, "more than a browser keeps"
    page = client.get("/ui/dead-letters")
    assert page.text.count("is not a dead letter") == 10
    assert "and 40 more" in page.text


def test_those_that_are_ticked_are_removed(site):
    job = failed(site)
    client, token = site.browser("olga")
    answer = client.post("/ui/dead-letters/purge", data={"csrf_token": token, "id": job["id"]})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/dead-letters")
    assert "1 job was removed." in client.get("/ui/dead-letters").text
    assert site.request("GET", f"/jobs/{job['id']}").status_code == 404


def test_who_may_not_is_refused(site):
    job = failed(site)
    client, token = site.browser("anna")
    for path in ("replay", "purge"):
        data = {"csrf_token": token, "id": job["id"]}
        assert client.post(f"/ui/dead-letters/{path}", data=data).status_code == 403
    assert client.post("/ui/dead-letters/replay", data={"id": job["id"]}).status_code == 403
    assert state(site, job) == "failed"


def test_a_job_is_retried_from_its_page(site):
    job = failed(site)
    client, token = site.browser("anna")
    assert 'id="retry"' in client.get(f"/ui/jobs/{job['id']}").text
    assert 'id="retry"' not in site.browser("vera")[0].get(f"/ui/jobs/{job['id']}").text
    for _ in range(2):  # the second finds it retried, and shows it
        answer = client.post(f"/ui/jobs/{job['id']}/retry", data={"csrf_token": token})
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/ui/jobs/{job['id']}")
    page = client.get(f"/ui/jobs/{job['id']}").text
    assert "Retried by hand" in page
    assert "run 2" in page


def test_what_a_job_waits_for_is_in_words(site):
    upstream = submit(site)
    job = submit(site, depends_on=[upstream["id"]])
    later = submit(site, schedule_at=to_rfc3339(now_ms() + 3_600_000))
    client, _ = site.browser("vera")
    page = client.get(f"/ui/jobs/{job['id']}").text
    assert "Jobs that it depends on have not ended yet." in page
    assert f'href="/ui/jobs/{upstream["id"]}"' in page
    assert "Jobs that it depends on have not ended yet." in client.get("/ui/jobs?status=blocked").text
    assert "It was asked to start later. It starts" in client.get(f"/ui/jobs/{later['id']}").text
