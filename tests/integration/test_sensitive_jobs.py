"""Sensitive jobs from REST to a worker and back: sealed in every table, masked in every answer, shown to whom they belong, on record."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from itertools import count as counted
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.domain.egress import Endpoint
from cloche.domain.states import REASON_TEXT, Reason
from cloche.errors import PlatformFailure
from cloche.isolation.egress import EgressConnection, EgressReport
from cloche.isolation.scripted import Script, error, result
from cloche.services import effects
from cloche.services.sealing import CURRENT
from cloche.web.job_stream import JobStream
from tests.support import jobs
from tests.support.plugins import write_bundle
from tests.support.scripted_worker import NoFiles, scripted_worker
from tests.support.sensitive import database_files, leaking_cells, leaks
from tests.support.stores import until
from tests.support.web import problem, running_site

CANARY = "canary-c0ffee-ü"
PARAMS = """
[params]
type = "object"
additionalProperties = true
properties.host.type = "string"
[network]
allow = ["param:host"]
"""
LOG = {"type": "log", "stream": "stdout", "text": f"log {CANARY}\n"}
PROGRESS = {"type": "progress", "current": 1, "total": 3, "message": f"at {CANARY}"}


@pytest.fixture
def site(tmp_path, database_url):
    write_bundle(tmp_path / "plugins", "echo", more=PARAMS)
    egress = {"allow": "*:443"}
    with running_site(tmp_path / "home", tmp_path / "plugins", egress, database=database_url) as running:
        running.add("anna", "submitter")
        running.add("bert", "operator")
        running.add("vera", "viewer")
        policy = {"allow": ["*:443"]}
        assert running.request("PUT", "/egress-policy", json=policy, headers={"If-Match": "*"}).status_code == 200
        yield running


@pytest.fixture
def start(site, tmp_path):
    """Start a worker over a script."""
    names = (f"w{number}" for number in counted())

    @contextmanager
    def begun(script, outbound=lambda _job: ()):
        with scripted_worker(
            site.services, tmp_path, script, next(names), outbound=outbound, files=NoFiles("namespace", ("numpy",))
        ) as backend:
            yield SimpleNamespace(backend=backend)

    return begun


def submit(site, user="anna", **body):
    body = {"type": "echo", "payload": {"secret": CANARY}, "sensitive": True, "retry": {"max_retries": 0}, **body}
    return site.request("POST", "/jobs", user, json=body)


def accepted(site, user="anna", **body):
    answer = submit(site, user, **body)
    assert answer.status_code == 202, answer.text
    return answer.json


def ended(site, job, seconds=20):
    def look():
        found = site.request("GET", f"/jobs/{job['id']}", "vera").json
        return found if found["status"] in ("completed", "failed", "canceled") else None

    return until(look, seconds, "the job ends")


def revealed(site, job, user="anna", what=""):
    return site.request("GET", f"/jobs/{job['id']}{what}", user, query_string={"reveal": "true"})


def due(site):
    """What the sweeper does."""
    effects.apply(site.services.broker, site.services.db.write(lambda c: jobs.transitions().due(c, now_ms(), 10)))
    return True


def row(site, job):
    return jobs.job(site.services.db, job["id"])


def trace(site, job):
    items = site.request("GET", f"/trace/{job['id']}", "vera").json["items"]
    return {item["event_type"]: item["details"] for item in items}


def nothing_in_clear(site, capfd=None, canary=CANARY):
    settings = site.services.settings
    assert leaking_cells(canary, settings.database_url) == []
    assert leaks(canary, settings.home, *database_files(settings.database_url)) == []
    broker = site.services.broker
    assert canary not in repr(vars(broker))
    if capfd is not None:
        out, err = capfd.readouterr()
        assert canary not in out + err
        return out + err
    return ""


def test_a_job_from_its_submission_to_its_result(site, start, capfd):
    handed = []

    def running(frame):
        handed.append(frame["payload"])
        return [LOG, PROGRESS, result({"said": CANARY})]

    job = accepted(site, name="plain name")
    assert (job["sensitive"], job["masked"], job["payload"], job["queue"]) == (True, True, None, "sensitive")
    with start(Script(running=running)) as worker:
        done = ended(site, job)
        assert worker.backend.sandboxes[0].spec.sensitive
        # Nothing that belongs to a cell is asked for, and a spec that did so would be refused.
        assert (worker.backend.sandboxes[0].spec.level, worker.backend.sandboxes[0].spec.preload) == ("container", ())
    assert handed == [{"secret": CANARY}]
    assert (done["status"], done["masked"], done["payload"], done["result"], done["error"]) == (
        *("completed", True, None, None, None),
    )
    assert done["progress"]["message"] is None
    assert (done["progress"]["current"], done["progress"]["total"]) == (1, 3)
    assert trace(site, job)["sandbox_started"]["runtime_why"]
    assert trace(site, job)["accepted"]["sensitive"] is True
    nothing_in_clear(site, capfd)

    shown = revealed(site, job).json
    assert (shown["masked"], shown["payload"], shown["result"]) == (False, {"secret": CANARY}, {"said": CANARY})
    assert shown["progress"]["message"] == f"at {CANARY}"
    assert {name: part for name, part in shown.items() if name not in {"masked", "payload", "result", "progress"}} == {
        name: part for name, part in done.items() if name not in {"masked", "payload", "result", "progress"}
    }
    assert revealed(site, job, what="/logs").text == f"log {CANARY}\n"
    assert site.request("GET", f"/jobs/{job['id']}/logs", "anna").text == "•••\n"
    nothing_in_clear(site, capfd)


def test_the_search_finds_what_is_in_clear(site):
    """Else that it finds nothing of a sensitive job would say nothing."""
    accepted(site, sensitive=False)
    home, url = site.services.settings.home, site.services.settings.database_url
    assert "job.payload" in leaking_cells(CANARY, url)
    files = database_files(url)
    assert any(".db" in path for path in leaks(CANARY, *files)) is ("sqlite" in url)
    (home / "x").write_text(f"a {CANARY}")
    assert str(home / "x") in leaks(CANARY, home)


def test_every_answer_masks(site, start):
    job = accepted(site)
    with start(Script(running=[LOG, PROGRESS, error(Reason.PLUGIN_FAILED, CANARY)])):
        ended(site, job)
    site_jobs, hub = site.services.jobs, site.services.hub
    actor = SimpleNamespace(tenant_id=row(site, job)["tenant_id"])
    stream = "".join(JobStream(site_jobs, hub, actor, job["id"], threading.Event()).events(None))
    assert "event: end" in stream
    answers = [stream]
    for user in ("admin", "anna", "vera"):
        for path in ("/jobs", "", "?wait=1s", "/attempts", "/logs", "/outputs", "/events"):
            address = path if path == "/jobs" else f"/jobs/{job['id']}{path}"
            answers.append(site.request("GET", address, user).text)
        answers.append(site.request("GET", f"/trace/{job['id']}", user).text)
    answers.append(site.request("GET", "/audit").text)
    answers.append(site.request("GET", "/audit/export").text)
    client, _ = site.browser("anna")
    answers += [client.get(path).text for path in ("/ui/jobs", f"/ui/jobs/{job['id']}", f"/ui/jobs/{job['id']}/log")]
    assert [answer for answer in answers if CANARY in answer or "canary" in answer] == []
    failed = row(site, job)
    assert failed["error"]["message"] == REASON_TEXT[Reason.PLUGIN_FAILED]


def test_an_error_is_its_reason_to_all_and_its_words_to_who_may(site, start, capfd):
    job = accepted(site)
    with start(Script(running=[error(Reason.PLUGIN_FAILED, CANARY)])):
        done = ended(site, job)
    text = REASON_TEXT[Reason.PLUGIN_FAILED]
    assert (done["reason"], done["reason_text"]) == ("plugin_failed", text)
    assert done["error"] == {"reason": "plugin_failed", "message": text, "attempt": 1, "details": {}}
    assert trace(site, job)["failed"]["message"] == text
    assert "attempt failed" in nothing_in_clear(site, capfd)
    shown = revealed(site, job).json["error"]
    assert (shown["message"], shown["details"]["traceback"]) == (CANARY, f"Traceback: {CANARY}\n")
    assert CANARY in revealed(site, job).json["reason_text"]
    attempts = revealed(site, job, what="/attempts").json["items"]
    assert [attempt["error"]["message"] for attempt in attempts] == [CANARY]
    assert site.request("GET", f"/jobs/{job['id']}/attempts", "anna").json["items"][0]["error"]["message"] == text


def test_an_error_of_our_own_code_tells_the_log_where_and_not_what(site, start, capfd):

    def broken(job):
        raise ZeroDivisionError(job.payload["secret"])

    job = accepted(site)
    with start(Script(), outbound=broken):
        until(lambda: row(site, job)["platform_failures"], 15, "it fails")
        site.request("POST", f"/jobs/{job['id']}/cancel", "anna")
        until(lambda: row(site, job)["state"] == "canceled", 15, "it is canceled")
    told = nothing_in_clear(site, capfd)
    assert "ZeroDivisionError" in told
    assert "test_sensitive_jobs.py:" in told


def test_the_hosts_it_reached_are_not_written(site, start):
    host = f"{CANARY.replace('ü', 'x')}.example"
    job = accepted(site, payload={"host": f"{host}:443"})
    connection = EgressConnection(host, 443, "93.184.216.34", "ok", 10, 20, 1, 2)
    report = EgressReport((connection,), 1, 10, 20, {"ok": 1})
    outbound = lambda _job: (Endpoint(host, 443),)  # noqa: E731
    with start(Script(running=[result(None)], egress=report), outbound=outbound):
        ended(site, job)
    seen = trace(site, job)["egress_connection"]
    assert (seen["host"], seen["address"], seen["port"], seen["bytes_down"]) == (None, None, 443, 20)
    nothing_in_clear(site, canary=host)


@pytest.mark.parametrize(
    ("user", "status"),
    [("anna", 200), ("admin", 200), ("bert", 403), ("vera", 403)],
    ids=["own", "admin", "operator", "viewer"],
)
def test_who_may_read_what_it_holds(site, user, status):
    job = accepted(site)
    for what in ("", "/attempts", "/logs"):
        assert revealed(site, job, user, what).status_code == status, what
    assert revealed(site, {"id": "01900000-0000-7000-8000-000000000001"}, user).status_code == 404
    events = site.request("GET", "/audit", query_string={"object": f"job:{job['id']}"}).json["items"]
    read = [event["details"]["what"] for event in reversed(events) if event["action"] == "job:reveal"]
    assert read == (["job", "attempts", "log"] if status == 200 else [])
    if status == 403:
        denied = site.request("GET", "/audit", query_string={"action": "access:deny"}).json["items"]
        assert job["id"] in json.dumps(denied)
    assert jobs.audit_actions(site.services.db, job["id"])[0] == "job:submit"  # numbered without gaps
    assert site.request("GET", "/audit/verify").json["status"] != "tampered"


def test_a_token_reads_only_what_its_scopes_name(site):
    job = accepted(site)
    narrow = site.token("anna", scopes=["job:read"])
    headers = {"Authorization": f"Bearer {narrow}"}
    answer = site.client().get(f"/api/v1/jobs/{job['id']}?reveal=true", headers=headers)
    assert "job:reveal" in problem(answer, 403)["detail"]
    wide = site.token("anna", scopes=["job:read", "job:reveal"])
    headers = {"Authorization": f"Bearer {wide}"}
    assert site.client().get(f"/api/v1/jobs/{job['id']}?reveal=true", headers=headers).json["payload"]


def test_others_are_read_as_ever_and_nothing_is_recorded(site):
    job = accepted(site, sensitive=False)
    assert (job["sensitive"], job["masked"], job["payload"]) == (False, False, {"secret": CANARY})
    for what in ("", "/attempts", "/logs"):
        assert revealed(site, job, "vera", what).status_code == 200
    assert jobs.audit_actions(site.services.db, job["id"]) == ["job:submit"]
    problem(site.request("GET", f"/jobs/{job['id']}?reveal=1", "anna"), 422)


def test_its_queue_takes_no_others_and_it_goes_to_no_other(site):
    assert accepted(site, queue="sensitive")["queue"] == "sensitive"
    for body in ({"queue": "default"}, {"sensitive": False, "queue": "sensitive"}):
        found = problem(submit(site, **body), 422)
        assert [item["pointer"] for item in found["errors"]] == ["/queue"]
    accepted(site, sensitive=False)
    for queue, count in (("sensitive", 1), ("default", 1)):
        items = site.request("GET", "/jobs", query_string={"queue": queue}).json["items"]
        assert [item["queue"] for item in items] == [queue] * count
    site.services.workers.register("w", "host", 1, ["sensitive"], 3)
    shown = {item["name"]: item for item in site.request("GET", "/queues").json["items"]}
    assert (shown["sensitive"]["worker_count"], shown["sensitive"]["max_parallel_jobs"]) == (1, 3)
    assert shown["default"]["worker_count"] == 0
    assert [shown[name]["depth"]["pending"] for name in ("default", "sensitive")] == [1, 1]
    assert 'cloche_redis_ready_jobs{queue="sensitive"} 1.0' in site.client().get("/metrics").text


def test_the_same_submission_twice_is_one_job_and_leaves_no_guessable_digest(site):
    headers = {"Idempotency-Key": "k"}
    body = {"type": "echo", "payload": {"pin": "1234"}, "sensitive": True}
    first, second = (site.request("POST", "/jobs", "anna", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.json) == (202, first.json)
    problem(
        site.request("POST", "/jobs", "anna", json=body | {"payload": {"pin": "1235"}}, headers=headers),
        422,
        "key-reused",
    )
    problem(site.request("POST", "/jobs", "anna", json=body | {"sensitive": False}, headers=headers), 422, "key-reused")
    from cloche.audit.canonical import digest

    guesses = {digest(body), digest(body["payload"])}
    kept = site.services.db.read(lambda c: c.execute(select(t.idempotency)).mappings().one())
    stored = row(site, first.json)
    assert not guesses & {kept["body_sha256"], stored["payload_sha256"]}
    event = site.request("GET", "/audit", query_string={"action": "job:submit"}).json["items"][0]
    assert "payload_sha256" not in event["details"]
    assert event["details"]["payload_hmac"] == stored["payload_sha256"]


def test_without_its_key_the_platform_takes_none_and_keeps_what_it_has(site, start):
    job = accepted(site)
    key = site.services.settings.home / "keys" / CURRENT
    kept = key.read_bytes()
    key.unlink()
    found = problem(submit(site), 503)
    assert "sensitive.key" in found["detail"]
    assert accepted(site, sensitive=False)["status"] == "pending"
    assert "is not in" in problem(revealed(site, job), 503)["detail"]
    with start(Script(running=[result(1)])) as worker:
        until(lambda: row(site, job)["platform_failures"] >= 2, 20, "it fails")
        assert all(not box.spec.sensitive for box in worker.backend.sandboxes)  # nothing was begun
        failing = site.request("GET", f"/jobs/{job['id']}", "vera").json
        assert failing["error"]["reason"] == "key_unavailable"
        assert "restore it from a backup" in failing["error"]["message"]
        assert row(site, job)["retries_used"] == 0
        key.write_bytes(kept)
        key.chmod(0o600)
        until(lambda: due(site) and row(site, job)["state"] == "completed", 40, "it runs again")
    assert revealed(site, job).json["result"] == 1


def test_a_key_that_stays_away_ends_the_job_with_that_reason(site, start):
    job = accepted(site)
    (site.services.settings.home / "keys" / CURRENT).unlink()
    site.services.db.write(
        lambda c: c.execute(t.job.update().where(t.job.c.id == job["id"]).values(platform_failures=4))
    )
    with start(Script(running=[result(1)])):
        done = ended(site, job)
    assert (done["status"], done["reason"], done["masked"]) == ("failed", "key_unavailable", True)
    assert jobs.audit_actions(site.services.db, job["id"]) == ["job:submit", "job:start", "job:fail"]


def test_what_the_platform_says_of_itself_stays_readable(site, start):
    job = accepted(site)
    failure = PlatformFailure(Reason.ENGINE_UNAVAILABLE, "64 sandboxes are running, which is the limit")
    with start(Script(create_failure=failure)):
        until(lambda: row(site, job)["platform_failures"], 15, "it fails")
        assert "64 sandboxes" in site.request("GET", f"/jobs/{job['id']}", "vera").json["error"]["message"]
        site.request("POST", f"/jobs/{job['id']}/cancel", "anna")
        until(lambda: row(site, job)["state"] == "canceled", 15, "it is canceled")


def test_the_dashboard_submits_one_and_shows_it_on_request(site, start):
    client, token = site.browser("anna")
    page = client.get("/ui/submit?plugin=echo@1.0.0").text
    assert 'name="sensitive"' in page
    form = {"csrf_token": token, "plugin": "echo@1.0.0", "payload": json.dumps({"secret": CANARY}), "sensitive": "yes"}
    refused = client.post("/ui/submit", data={**form, "priority": "x"}).text
    assert 'name="sensitive" value="yes" aria-describedby="hint-sensitive" checked' in refused
    answer = client.post("/ui/submit", data={**form, "priority": "5", "nonce": "n"})
    assert answer.status_code == 303, answer.text
    job = {"id": answer.headers["Location"].rpartition("/")[2]}
    with start(Script(running=[LOG, result(f"<b>{CANARY}</b>")])):
        ended(site, job)
    page = client.get(f"/ui/jobs/{job['id']}").text
    assert CANARY not in page
    assert "Show it; this is recorded" in page
    assert client.get(f"/ui/jobs/{job['id']}/reveal").status_code == 404
    shown = client.post(f"/ui/jobs/{job['id']}/reveal", data={"csrf_token": token})
    assert shown.headers["Cache-Control"] == "no-store"
    assert shown.text.count(CANARY) == 3  # payload, result, log
    assert "<b>canary" not in shown.text
    other, token = site.browser("vera")
    page = other.get(f"/ui/jobs/{job['id']}").text
    assert "The one who submitted it may read it" in page
    assert other.post(f"/ui/jobs/{job['id']}/reveal", data={"csrf_token": token}).status_code == 403
    assert jobs.audit_actions(site.services.db, job["id"])[-2:] == ["job:reveal", "job:reveal"]
    nothing_in_clear(site)


def test_what_follows_an_end_shows_and_stores_nothing_either(site, start, capfd):
    """A batch with callbacks, its dependents, dead letters, a replay, a retry by hand, a removal."""
    callback = {"url": "https://shop.example/hook", "events": ["completed", "failed", "canceled"]}
    body = {"type": "echo", "payload": {"secret": CANARY}, "sensitive": True, "retry": {"max_retries": 0}}
    asked = {"jobs": [{**body, "callback": callback}] * 2}
    batch = site.request("POST", "/jobs/batch", "anna", json=asked, headers={"Idempotency-Key": "both"}).json
    both = site.request("GET", f"/batches/{batch['id']}/jobs", "anna").json["items"]
    after = accepted(site, depends_on=[both[0]["id"]], callback=callback)
    everyone = [*both, after]
    page, _ = site.browser("vera")

    def shown():
        parts = ("", "/attempts", "/logs", "/callbacks", "/outputs")
        paths = [f"/jobs/{job['id']}{part}" for job in everyone for part in parts]
        paths += [f"/trace/{job['id']}" for job in everyone]
        paths += ["/jobs", "/dead-letters", "/batches", f"/batches/{batch['id']}", f"/batches/{batch['id']}/jobs"]
        answers = [site.request("GET", path, "vera") for path in paths]
        answers += [page.get(path) for path in ("/ui/dead-letters", *(f"/ui/jobs/{job['id']}" for job in everyone))]
        assert {answer.status_code for answer in answers} == {200}
        return "".join(answer.text for answer in answers)

    with start(Script(running=[LOG, PROGRESS, error(Reason.PLUGIN_FAILED, CANARY)])):
        assert [ended(site, job)["status"] for job in everyone] == ["failed", "failed", "canceled"]
    letters = site.request("GET", "/dead-letters", "vera").json["items"]
    told = {letter["attempts"][0]["message"] for letter in letters} | {letter["error"]["message"] for letter in letters}
    assert (len(letters), told) == (2, {REASON_TEXT[Reason.PLUGIN_FAILED]})
    assert CANARY not in shown()
    nothing_in_clear(site, capfd)

    assert site.request("POST", "/dead-letters/replay", "bert", json={"filter": {}}).json["done"] == 2
    again = site.request("POST", f"/jobs/{after['id']}/retry", "anna")
    assert (again.json["status"], again.json["masked"]) == ("blocked", True)
    with start(Script(running=[LOG, PROGRESS, result({"said": CANARY})])):
        assert [ended(site, job)["status"] for job in everyone] == ["completed"] * 3
    assert CANARY not in shown()
    nothing_in_clear(site, capfd)
    for job, number in zip(everyone, (2, 2, 1), strict=True):
        clear = revealed(site, job).json
        assert (clear["result"], clear["payload"]["secret"], clear["attempt"]) == ({"said": CANARY}, CANARY, number)

    assert site.request("DELETE", f"/jobs/{both[0]['id']}", "bert").status_code == 204
    problem(revealed(site, both[0]), 404)
    assert site.request("GET", f"/batches/{batch['id']}", "vera").json["purged"] == 1
    kept = site.request("POST", "/jobs/batch", "anna", json=asked, headers={"Idempotency-Key": "both"})
    assert kept.json == batch
    nothing_in_clear(site, capfd)
