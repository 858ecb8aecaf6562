"""Jobs over REST: accepted, found, waited for, canceled, read from the inside; those of others are not there."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import insert, select, update

from cloche.clock import now_ms, to_rfc3339, uuid7, uuid7_at
from cloche.db import tables as t
from cloche.services import admission, job_pages
from tests.support.web import API, problem, running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), max_waits=2, database=module_database_url) as running:
        running.add("anna", "submitter")
        running.add("bert", "submitter")
        running.add("olga", "operator")
        running.add("vera", "viewer")
        yield running


@pytest.fixture
def job(site):
    return submit(site)


def submit(site, user: str = "anna", **body):
    upload = site.upload(user=user)
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}], **body}
    answer = site.request("POST", "/jobs", user, json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"{API}/jobs/{answer.json['id']}"
    return answer.json


def change(site, job, **columns):
    site.services.db.write(lambda c: c.execute(update(t.job).where(t.job.c.id == job["id"]).values(**columns)))


def finish(site, job, **columns):
    change(
        site,
        job,
        state="completed",
        reason="succeeded",
        attempt=1,
        finished_at=now_ms(),
        started_at=now_ms() - 20,
        **columns,
    )


def add(site, table, *rows):
    site.services.db.write(lambda c: c.execute(insert(table), list(rows)))


def log_rows(job, attempt, *texts):
    return [
        {"job_id": job["id"], "attempt": attempt, "seq": n, "at": now_ms(), "stream": "stdout", "text": text}
        for n, text in enumerate(texts)
    ]


def test_a_job_is_accepted_and_shown(site, job):
    assert (job["status"], job["reason"], job["submitted_by"], job["tenant"]) == (
        "pending",
        "submitted",
        "anna",
        "default",
    )
    assert job["plugin"]["version"] == "1.0.0"
    assert site.request("GET", f"/jobs/{job['id']}", "vera").json["id"] == job["id"]
    trace = site.request("GET", f"/trace/{job['id']}", "vera").json["items"]
    assert trace[0]["event_type"] == "accepted"


def test_every_field_of_a_body_arrives(site):
    asked = {
        "name": "profile",
        "version": "==1.*",
        "priority": 9,
        "labels": {"team": "a"},
        "payload": {"max_distinct": 5},
        "retry": {"max_retries": 1, "backoff": "exponential", "initial_delay": "2s", "max_delay": 60},
        "timeout": "30s",
        "limits": {"memory": "128MB", "cpu": 0.5},
        "outputs": [{"match": "*.md"}],
    }
    made = submit(site, **asked)
    for field in ("name", "priority", "labels"):
        assert made[field] == asked[field]
    assert made["payload"]["max_distinct"] == 5
    assert (made["limits"]["time_ms"], made["limits"]["memory"], made["limits"]["cpu"]) == (30_000, 128 << 20, 0.5)
    assert made["retry"]["initial_delay_ms"] == 2_000


def test_an_idempotency_key_makes_one_job(site):
    upload = site.upload(user="anna")
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
    headers = {"Idempotency-Key": "order-1"}
    first = site.request("POST", "/jobs", "anna", json=body, headers=headers)
    again = site.request("POST", "/jobs", "anna", json=body, headers=headers)
    assert (first.status_code, again.status_code, again.json) == (202, 202, first.json)
    problem(site.request("POST", "/jobs", "anna", json={**body, "priority": 1}, headers=headers), 422, "key-reused")
    assert site.request("POST", "/jobs", "bert", json=body, headers=headers).json["id"] != first.json["id"]


def test_pages_by_cursor_and_link(site):
    made = [submit(site, labels={"page": "x"})["id"] for _ in range(5)]
    seen, path = [], "/jobs?label=page=x&limit=2"
    while path:
        answer = site.request("GET", path)
        seen += [item["id"] for item in answer.json["items"]]
        link = answer.headers.get("Link")
        assert (link is None) == (answer.json["next_cursor"] is None)
        path = link.split(">")[0].removeprefix(f"<{API}") if link else None
        assert path is None or "label=page" in path
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("status=pending", True),
        ("status=completed", False),
        ("type=csv_profile", True),
        ("type=other", False),
        ("version=1.0.0", True),
        ("priority=3", True),
        ("submitted_by=bert", True),
        ("submitted_by=anna", False),
        ("label=colour", True),
        ("label=colour=red", True),
        ("label=colour=blue", False),
        ("since=2020-01-01T00:00:00Z", True),
        ("until=2020-01-01T00:00:00Z", False),
        ("queue=default", True),
    ],
)
def test_filters(site, query, found):
    made = submit(site, "bert", labels={"colour": "red"}, priority=3)
    ids = [item["id"] for item in site.request("GET", f"/jobs?limit=100&{query}").json["items"]]
    assert (made["id"] in ids) is found


def test_canceling(site, job):
    problem(site.request("POST", f"/jobs/{job['id']}/cancel", "vera"), 403)
    problem(site.request("POST", f"/jobs/{job['id']}/cancel", "bert"), 403)
    answer = site.request("POST", f"/jobs/{job['id']}/cancel", "anna")
    assert (answer.status_code, answer.json["status"]) == (202, "canceled")
    other = submit(site)
    assert site.request("DELETE", f"/jobs/{other['id']}/cancel", "olga").json["status"] == "canceled"
    problem(site.request("POST", f"/jobs/{job['id']}/cancel", "anna"), 409)


def test_another_tenants_job_is_not_there(site, job):
    other = uuid7()

    def move(connection):
        connection.execute(insert(t.tenant).values(id=other, name=other[:20], created_at=now_ms()))
        connection.execute(update(t.job).where(t.job.c.id == job["id"]).values(tenant_id=other))

    site.services.db.write(move)
    for path in ("", "/attempts", "/logs", "/events", "/outputs", "/outputs/x"):
        problem(site.request("GET", f"/jobs/{job['id']}{path}"), 404)
    problem(site.request("GET", f"/trace/{job['id']}"), 404)
    problem(site.request("POST", f"/jobs/{job['id']}/cancel"), 404)
    assert job["id"] not in site.request("GET", "/jobs?limit=100").text


def test_waiting_answers_when_the_job_ends(site, job):
    done = threading.Timer(0.3, lambda: finish(site, job, result={"rows": 1}))
    done.start()
    answer = site.request("GET", f"/jobs/{job['id']}?wait=30s")
    done.join()
    assert (answer.json["status"], answer.json["result"]) == ("completed", {"rows": 1})


def test_waiting_ends_with_its_time_and_beyond_the_cap_at_once(site, job):
    assert site.request("GET", f"/jobs/{job['id']}?wait=10ms").json["status"] == "pending"
    slots = site.app.extensions["cloche_slots"]
    held = [slots.take(), slots.take()]
    try:
        answer = site.request("GET", f"/jobs/{job['id']}?wait=60s")
        assert (answer.status_code, answer.json["status"], answer.headers["Retry-After"]) == (200, "pending", "1")
        refused = site.request("GET", f"/jobs/{job['id']}/events")
        problem(refused, 503)
        assert refused.headers["Retry-After"]
    finally:
        for slot in held:
            slot.release()


def events(text: str) -> list[tuple[str, str | None, dict]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


def test_the_live_stream_tells_all_and_ends(site, job):
    add(site, t.job_log, *log_rows(job, 1, "one\n", "two\n"), *log_rows(job, 2, "three\n"))
    finish(site, job)
    change(site, job, attempt=2)
    answer = site.request("GET", f"/jobs/{job['id']}/events")
    assert answer.mimetype == "text/event-stream"
    got = events(answer.text)
    assert [name for name, _, _ in got] == ["log", "log", "log", "job", "end"]
    assert [data["text"] for name, _, data in got if name == "log"] == ["one\n", "two\n", "three\n"]
    resumed = events(site.request("GET", f"/jobs/{job['id']}/events", headers={"Last-Event-ID": got[1][1]}).text)
    assert [data["text"] for name, _, data in resumed if name == "log"] == ["three\n"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "näme ☃", "labels": {"a": "b"}, "priority": 9, "payload": {"max_distinct": 5}},
        {"schedule_at": to_rfc3339(now_ms() + 3_600_000)},
        {"expires_in": "1h", "retry": {"max_retries": 2}, "limits": {"memory": "128MB", "cpu": 0.5}},
        {"sensitive": True},
    ],
    ids=["plain", "described", "later", "bounded", "sensitive"],
)
def test_what_a_submit_answers_is_what_is_there(site, body):
    """The answer is made before the job is stored, and not read back."""
    made = submit(site, **body)
    assert site.request("GET", f"/jobs/{made['id']}", "anna").json == made


def test_the_stream_of_a_job_that_is_removed_meanwhile_ends(site, job):
    response = site.request("GET", f"/jobs/{job['id']}/events", buffered=False)
    stream = response.iter_encoded()
    text = ""
    while "event: job" not in text:
        text += next(stream).decode()
    finish(site, job)
    assert site.request("DELETE", f"/jobs/{job['id']}").status_code == 204
    text += b"".join(stream).decode()
    assert events(text)[-1] == ("end", None, {"status": "removed"})


def test_the_stream_gives_its_slot_back(site, job):
    slots = site.app.extensions["cloche_slots"]
    finish(site, job)
    for method in ("GET", "HEAD"):
        for _ in range(4):
            site.request(method, f"/jobs/{job['id']}/events").close()
    held = [slots.take(), slots.take()]
    assert all(held)
    for slot in held:
        slot.release()


def test_a_stopping_process_ends_its_streams(site, job):
    slots = site.app.extensions["cloche_slots"]
    slots.stopping.set()
    try:
        assert "event: end" not in site.request("GET", f"/jobs/{job['id']}/events").text
        assert site.request("GET", f"/jobs/{job['id']}?wait=60s").json["status"] == "pending"
    finally:
        slots.stopping.clear()


def test_logs_are_text_of_one_attempt_or_all(site, job):
    add(site, t.job_log, *log_rows(job, 1, "<script>a", "b\n"), *log_rows(job, 2, "c\n"))
    change(site, job, attempt=2)
    answer = site.request("GET", f"/jobs/{job['id']}/logs", "vera")
    assert (answer.mimetype, answer.text) == ("text/plain", "<script>ab\nc\n")
    assert site.request("GET", f"/jobs/{job['id']}/logs?attempt=2").text == "c\n"
    problem(site.request("GET", f"/jobs/{job['id']}/logs?attempt=0"), 422)


def test_outputs_are_listed_and_downloaded_by_path(site, job):
    stored = site.upload(b"# report\n", "report.md", user="anna")
    shared = {"job_id": job["id"], "attempt": 1, "size": 9, "sha256": stored["sha256"]}
    add(
        site,
        t.job_output,
        {**shared, "path": "a/report.md", "artifact_id": stored["id"], "destination": None},
        {**shared, "path": "away.md", "artifact_id": None, "destination": "box:away.md"},
    )
    finish(site, job)
    items = site.request("GET", f"/jobs/{job['id']}/outputs").json["items"]
    assert [item["path"] for item in items] == ["a/report.md", "away.md"]
    got = site.request("GET", f"/jobs/{job['id']}/outputs/a/report.md")
    assert got.data == b"# report\n"
    part = site.request("GET", f"/jobs/{job['id']}/outputs/a/report.md", headers={"Range": "bytes=2-7"})
    assert (part.status_code, part.data) == (206, b"report")
    for path in ("away.md", "nothing", "a/../a/report.md", "%2e%2e/x"):
        problem(site.request("GET", f"/jobs/{job['id']}/outputs/{path}"), 404)


def test_attempts(site, job):
    row = {
        "job_id": job["id"],
        "number": 1,
        "worker_id": "w",
        "phase": "running",
        "outcome": "failed",
        "reason": "timed_out",
    }
    add(site, t.attempt, {**row, "error": None, "usage": None, "started_at": 1_000, "finished_at": 3_500})
    item = site.request("GET", f"/jobs/{job['id']}/attempts").json["items"][0]
    assert (item["number"], item["reason"], item["duration_ms"]) == (1, "timed_out", 2_500)


def pages(site, path: str, limit: int, **query: Any) -> list[list[dict[str, Any]]]:
    """Following ``Link`` to the end."""
    found, following = [], f"{path}?{urlencode({**query, 'limit': limit})}"
    while following:
        answer = site.request("GET", following)
        assert answer.status_code == 200, answer.text
        found.append(answer.json["items"])
        following = None
        if answer.json["next_cursor"]:
            following = answer.headers["Link"].split(">")[0].removeprefix("<").removeprefix(API)
    return found


def test_attempts_and_trace_come_in_pages(site, job):
    row = {"job_id": job["id"], "worker_id": "w", "phase": "running", "outcome": "failed", "reason": "timed_out"}
    times = {"error": None, "usage": None, "started_at": 1_000, "finished_at": 3_500}
    add(site, t.attempt, *({**row, **times, "number": number} for number in range(1, 121)))
    # Of one moment, and with ids that go the other way than time does: workers' clocks differ.
    at, ids = now_ms() + 5_000, sorted(uuid7() for _ in range(1_050))
    event = {"job_id": job["id"], "attempt": 1, "event_type": "egress_connection", "details": {}}
    add(site, t.trace_event, *({**event, "id": one, "at": at + (n < 500)} for n, one in enumerate(ids)))

    whole = site.request("GET", f"/jobs/{job['id']}/attempts").json
    assert (len(whole["items"]), whole["next_cursor"] is None) == (100, False)
    found = pages(site, f"/jobs/{job['id']}/attempts", 50)
    assert [len(page) for page in found] == [50, 50, 20]
    assert [item["number"] for page in found for item in page] == list(range(1, 121))

    whole = site.request("GET", f"/trace/{job['id']}").json
    assert (len(whole["items"]), whole["next_cursor"] is None) == (1_000, False)
    found = pages(site, f"/trace/{job['id']}", 400)
    shown = [item for page in found for item in page]
    assert [len(page) for page in found] == [400, 400, 251]
    assert [item["id"] for item in shown[1:]] == ids[500:] + ids[:500]
    for path in (f"/jobs/{job['id']}/attempts", f"/trace/{job['id']}"):
        for cursor in ("x", "é", "LTE", "MS4y", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5"):
            problem(site.request("GET", path, query_string={"cursor": cursor}), 422)
        problem(site.request("GET", f"{path}?limit=1001"), 422)

    client, _ = site.browser("admin")
    page = client.get(f"/ui/jobs/{job['id']}").text
    assert "Only the last 500 steps are shown" in page


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_web_host_whose_clock_is_wrong_loses_no_job_of_a_list(site, monkeypatch, hours):
    label = f"skew{hours % 24}"
    before = submit(site, labels={label: "1"})
    with monkeypatch.context() as patched:
        patched.setattr(admission, "uuid7", lambda: uuid7_at((now_ms() + hours * 3_600_000) * 1_000))
        wrong = submit(site, labels={label: "2"})
    after = submit(site, labels={label: "3"})
    assert (wrong["id"] < before["id"]) is (hours < 0)

    def listed(**query):
        found = site.request("GET", "/jobs", query_string={"label": label, **query}).json["items"]
        return [item["id"] for item in found]

    everyone = [after["id"], wrong["id"], before["id"]]
    assert listed() == listed(since=before["created_at"]) == everyone
    assert listed(until=after["created_at"])[-2:] == everyone[1:]
    assert listed(since=wrong["created_at"], until=to_rfc3339(now_ms() + 60_000))[:2] == everyone[:2]
    assert [item["id"] for page in pages(site, "/jobs", 1, label=label) for item in page] == everyone


def test_a_page_looks_at_so_many_jobs_and_goes_on_behind_them(site, monkeypatch):
    monkeypatch.setattr(job_pages, "LOOKED_AT", 4)
    rare = [submit(site, "bert", labels={"rare": "yes"}, priority=7)["id"] for _ in range(2)]
    for _ in range(9):
        submit(site, "bert", priority=2)
    rare += [submit(site, "bert", labels={"rare": "yes"}, priority=7)["id"] for _ in range(3)]
    for query in (
        {"label": "rare"},
        {"label": "rare=yes", "type": "csv_profile"},
        {"priority": 7, "status": "pending"},
    ):
        found = pages(site, "/jobs", 2, submitted_by="bert", **query)
        assert [item["id"] for page in found for item in page][:5] == rare[::-1]
        assert [] in found  # short, and not the last
    # What an index answers is never short.
    for query in ({}, {"status": "pending"}, {"type": "csv_profile"}, {"submitted_by": "bert"}):
        assert all(len(page) == 2 for page in pages(site, "/jobs", 2, **query)[:-1])
    problem(site.request("GET", "/jobs?cursor=MDE5"), 422)
    assert site.request("GET", "/jobs?submitted_by=nobody").json == {"items": [], "next_cursor": None}


def test_an_accepted_job_has_its_audit_event(site, job):
    query = select(t.audit_event.c.action).where(t.audit_event.c.object == f"job:{job['id']}")
    assert site.services.db.read(lambda c: c.execute(query).scalars().all()) == ["job:submit"]
