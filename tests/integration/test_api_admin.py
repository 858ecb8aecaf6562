"""Remotes with ETags, the audit trail, queues, workers, plugins, health and metrics over REST."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cloche.clock import now_ms
from cloche.errors import Unavailable
from cloche.sandboxd import syscalls
from cloche.services.sealer import Sealer
from tests.support.web import problem, running_site, where

S3 = {
    "provider": "AWS",
    "region": "eu-central-1",
    "bucket": "demo",
    "access_key_id": "AKIDEXAMPLE12",
    "secret_access_key": "secret-of-the-remote",
}
DAV = {"url": "https://192.0.2.10/dav", "user": "u", "pass": "secret-of-the-remote"}


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    home = tmp_path_factory.mktemp("home")
    with running_site(home, database=module_database_url) as running:
        running.add("anna", "submitter")
        running.add("olaf", "auditor")
        yield running


@pytest.fixture
def remote(site, request):
    name = f"r{abs(hash(request.node.name)) % 10**8}"
    answer = site.request("POST", "/remotes", json={"name": name, "type": "s3", "options": S3})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"].endswith(f"/remotes/{name}")
    return answer


def test_secrets_go_in_and_never_come_out(site, remote):
    name = remote.json["name"]
    for answer in (remote, site.request("GET", f"/remotes/{name}", "anna"), site.request("GET", "/remotes", "anna")):
        assert "secret-of-the-remote" not in answer.text
        assert name in answer.text
    assert "secret-of-the-remote" not in site.request("GET", "/audit?limit=100").text


def test_a_remote_changes_only_at_the_version_one_has_read(site, remote):
    name, etag = remote.json["name"], remote.headers["ETag"]
    path, body = f"/remotes/{name}", {"options": {"region": "eu-west-1", "secret_access_key": "another-secret"}}
    problem(site.request("PATCH", path, json=body), 428)
    problem(site.request("DELETE", path), 428)
    for wrong in ('"v99"', "nonsense", 'W/"v1"', etag.strip('"')):
        problem(site.request("PATCH", path, json=body, headers={"If-Match": wrong}), 412)
    changed = site.request("PATCH", path, json=body, headers={"If-Match": etag})
    assert changed.status_code == 200, changed.text
    assert changed.headers["ETag"] != etag
    problem(site.request("PATCH", path, json=body, headers={"If-Match": etag}), 412)
    problem(site.request("DELETE", path, headers={"If-Match": etag}), 412)
    assert site.request("DELETE", path, headers={"If-Match": changed.headers["ETag"]}).status_code == 204
    problem(site.request("GET", path), 404)
    problem(site.request("DELETE", path, headers={"If-Match": "*"}), 404)


@pytest.mark.parametrize(
    "body",
    [
        {"name": ":local", "type": "s3", "options": S3},
        {"name": "a,bearer_token_command=x", "type": "s3", "options": S3},
        {"name": "../x", "type": "s3", "options": S3},
        {"name": "ok", "type": "local", "options": {}},
        {"name": "ok", "type": "alias", "options": {"remote": "/etc"}},
        {"name": "ok", "type": "webdav", "options": {**DAV, "bearer_token_command": "touch /tmp/x"}},
        {"name": "ok", "type": "webdav", "options": {**DAV, "url": "http://127.0.0.1:1"}},
        {"name": "ok", "type": "webdav", "options": {**DAV, "url": "file:///etc"}},
        {"name": "ok", "type": "webdav", "options": {"url": ["x"]}},
        {"name": "ok", "type": "webdav"},
        {"name": "ok", "type": "webdav", "options": DAV, "grant": "all"},
    ],
)
def test_remotes_that_are_refused(site, body):
    found = problem(site.request("POST", "/remotes", json=body), 422)
    assert where(found)
    problem(site.request("GET", "/remotes/ok"), 404)


def test_a_name_is_taken_once_and_managing_needs_the_permission(site, remote):
    body = {"name": remote.json["name"], "type": "s3", "options": S3}
    problem(site.request("POST", "/remotes", json=body), 409, "remote-exists")
    problem(site.request("POST", "/remotes", "anna", json=body), 403)
    problem(site.request("POST", f"/remotes/{remote.json['name']}/test", "anna"), 403)


def test_the_trail_is_read_filtered_verified_and_exported(site):
    site.request("GET", "/users", "anna")  # refused, so there is one denial at least
    page = site.request("GET", "/audit?outcome=denied&actor=anna", "olaf")
    assert {item["action"] for item in page.json["items"]} == {"access:deny"}
    assert site.request("GET", "/audit?action=user:create&until=2020-01-01T00:00:00Z", "olaf").json["items"] == []
    first = site.request("GET", "/audit?limit=1", "olaf")
    second = site.request("GET", f"/audit?limit=1&cursor={first.json['next_cursor']}", "olaf")
    assert first.json["items"][0]["id"] > second.json["items"][0]["id"]
    assert 'rel="next"' in first.headers["Link"]
    # What the tests before this one did may be older than the sealer gets for it, and no sealer runs here.
    sealer = Sealer(site.services.db, site.services.keyring, "test")
    while sealer.run_once():
        pass
    sealer.close()
    assert site.request("GET", "/audit/verify", "olaf").json["status"] == "valid"
    lines = site.request("GET", "/audit/export", "olaf").text.splitlines()
    assert "export" in json.loads(lines[0])
    assert site.request("GET", "/audit/checkpoints", "olaf").json["public_key"]
    for path in ("/audit", "/audit/verify", "/audit/export", "/audit/checkpoints"):
        problem(site.request("GET", path, "anna"), 403)
    problem(site.request("GET", "/audit?cursor=x", "olaf"), 422)


def test_plugins_queues_workers_roles_permissions(site):
    items = site.request("GET", "/plugins", "anna").json["items"]
    assert {"csv_profile", "text_stats", "thumbnail"} <= {item["name"] for item in items}
    one = site.request("GET", "/plugins/text_stats?version=1.0.0", "anna").json
    assert (one["version"], set(one["versions"]) >= {"1.0.0", "2.0.0"}) == ("1.0.0", True)
    problem(site.request("GET", "/plugins/nothing", "anna"), 404)
    assert site.request("GET", "/queues", "anna").json["items"][0]["name"] == "default"
    assert site.request("GET", "/workers", "anna").json == {"items": []}
    assert {role["name"] for role in site.request("GET", "/roles").json["items"]} >= {"viewer", "submitter", "admin"}
    assert len(site.request("GET", "/permissions", "anna").json["items"]) > 10


def test_health_tells_people_and_readiness_tells_machines(site):
    client = site.client()
    assert client.get("/healthz").text == "ok\n"
    health = client.get("/health").json
    assert (health["status"], health["workers"]) == ("degraded", {"running": False, "count": 0})
    ready = client.get("/readyz")
    body = ready.json
    (part,) = body.pop("parts")
    assert (ready.status_code, body) == (
        503,
        {"ready": False, "reasons": ["no worker is alive"], "warnings": []},
    )
    assert (part["part"], part["reason"]) == ("workers", "no worker is alive")
    assert "cloche worker" in part["advice"]
    assert client.get("/readyz").json["parts"] == [part]  # since is when it was first so, not now
    worker = "01900000-0000-7000-8000-000000000001"
    site.services.workers.register(worker, "host", 1, ["default"], 2)
    assert client.get("/readyz").json == {"ready": True, "reasons": [], "parts": [], "warnings": []}
    assert client.get("/health").json["status"] == "ok"
    why = "the container engine does not answer"
    site.services.db.write(lambda c: site.services.workers.beat(c, worker, "alive", why, now_ms()))
    assert client.get("/readyz").json["reasons"] == [f"no worker takes jobs: {why}"]
    site.services.workers.leave(worker, "stopped")


def test_a_full_disk_is_said_at_once(tmp_path):
    syscalls.mount_tmpfs(tmp_path, "size=48m,nr_inodes=200")
    try:
        with running_site(tmp_path) as site:
            site.services.workers.register("01900000-0000-7000-8000-000000000002", "host", 1, ["default"], 2)
            client = site.client()
            assert client.get("/readyz").json == {"ready": True, "reasons": [], "parts": [], "warnings": []}
            with (tmp_path / "big").open("wb") as big:
                os.posix_fallocate(big.fileno(), 0, 20 << 20)
                assert client.get("/readyz").json["reasons"] == ["the home's disk is full: less than 32 MB are free"]
                assert client.get("/health").json["status"] == "degraded"
            (tmp_path / "big").unlink()
            for number in range(_inodes(tmp_path)):
                (tmp_path / f"small-{number}").touch()
            assert "no more files" in client.get("/readyz").json["reasons"][0]
    finally:
        syscalls.unmount(tmp_path)


def _inodes(folder: Path) -> int:
    return os.statvfs(folder).f_favail


def test_redis_being_away_is_said(site, monkeypatch):
    def away():
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(site.services.broker, "ping", away)
    assert "Redis does not answer" in site.client().get("/readyz").json["reasons"]


def test_metrics_are_for_this_machine_or_a_token(site):
    text = site.client().get("/metrics").text
    for name in (
        "job_queue_processed_total",
        "job_queue_failed_total",
        "job_queue_duration_seconds_bucket",
        "job_queue_active_jobs",
        "job_queue_pending_jobs",
    ):
        assert f"\n{name}" in text
    away = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.1"}}
    problem(site.client().get("/metrics", **away), 401)
    problem(site.client().get("/metrics", headers={"X-Forwarded-For": "192.0.2.1"}), 401)
    assert site.client().get("/metrics", headers=site.headers("anna"), **away).status_code == 200
    problem(site.client().get("/metrics", headers=site.headers("olaf"), **away), 403)
