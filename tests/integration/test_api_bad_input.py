"""Bad input over HTTP: each with a clear problem document, nothing stored."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.errors import Unavailable
from tests.support.web import API, PASSWORD, problem, running_site, where

NOBODYS = "0190a0b0-0000-7000-8000-000000000000"  # a valid id, of nothing


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), max_body=20_000, database=module_database_url) as running:
        running.add("anna", "submitter")
        yield running


def jobs(site) -> int:
    return site.services.db.read(lambda c: c.execute(select(func.count()).select_from(t.job)).scalar_one())


def post(site, raw: bytes, content_type: str = "application/json"):
    return site.request("POST", "/jobs", "anna", data=raw, content_type=content_type)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"type": "csv_profile",}',
        b'{"type": "csv_profile", "type": "text_stats"}',
        b'{"type": "csv_profile", "payload": {"a": NaN}}',
        b'{"type": "csv_profile", "payload": {"a": 1e999}}',
        b'{"type": "csv_profile", "name": "\\ud800"}',
        b'{"type": "csv_profile", "name": "\\u0000"}',
        b'{"type": "\xff"}',
        b"[" * 9_000,
    ],
)
def test_malformed_json(site, raw):
    problem(post(site, raw), 400, "malformed-json")
    assert jobs(site) == 0


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ([], {""}),
        (5, {""}),
        ({}, {"/type"}),
        ({"type": 5}, {"/type"}),
        ({"type": "csv_profile", "colour": 1}, {"/colour"}),
        ({"type": "csv_profile", "schedule_at": "2030-01-01T00:00:00"}, {"/schedule_at"}),
        ({"type": "csv_profile", "schedule_at": "2030-01-01"}, {"/schedule_at"}),
        ({"type": "csv_profile", "schedule_at": "soon"}, {"/schedule_at"}),
        ({"type": "csv_profile", "schedule_at": 1893456000}, {"/schedule_at"}),
        ({"type": "csv_profile", "expires_at": "2030-01-01"}, {"/expires_at"}),
        ({"type": "csv_profile", "expires_in": "-5s"}, {"/expires_in"}),
        ({"type": "csv_profile", "expires_in": "1e9"}, {"/expires_in"}),
        ({"type": "csv_profile", "depends_on": "x"}, {"/depends_on"}),
        ({"type": "csv_profile", "depends_on": [1]}, {"/depends_on/0"}),
        ({"type": "csv_profile", "depends_on": ["x"]}, {"/depends_on/0"}),
        ({"type": "csv_profile", "depends_on": [None]}, {"/depends_on/0"}),
        ({"type": "csv_profile", "depends_on_condition": "some"}, {"/depends_on_condition"}),
        ({"type": "csv_profile", "on_upstream_failure": "fail"}, {"/on_upstream_failure"}),
        ({"type": "csv_profile", "sensitive": 1}, {"/sensitive"}),
        ({"type": "csv_profile", "sensitive": "true"}, {"/sensitive"}),
        ({"type": "csv_profile", "sensitive": None}, {"/sensitive"}),
        ({"type": "csv_profile", "callback": "http://x"}, {"/callback"}),
        ({"type": "csv_profile", "callback": {}}, {"/callback/url"}),
        ({"type": "csv_profile", "callback": {"url": "ftp://a.example"}}, {"/callback/url"}),
        ({"type": "csv_profile", "callback": {"url": "https://user@a.example"}}, {"/callback/url"}),
        ({"type": "csv_profile", "callback": {"url": "https://a.example/#x"}}, {"/callback/url"}),
        ({"type": "csv_profile", "callback": {"url": "https://a.example", "events": []}}, {"/callback/events"}),
        ({"type": "csv_profile", "callback": {"url": "https://a.example", "events": ["due"]}}, {"/callback/events/0"}),
        ({"type": "csv_profile", "callback": {"url": "https://a.example", "secret": "x"}}, {"/callback/secret"}),
        ({"type": "text_stats", "callback": {"url": "http://127.0.0.1:8080/"}}, {"/callback/url", "/inputs"}),
        ({"type": "text_stats", "callback": {"url": "http://169.254.169.254/"}}, {"/callback/url", "/inputs"}),
        ({"type": "text_stats", "callback": {"url": "http://localhost/"}}, {"/callback/url", "/inputs"}),
        ({"type": "csv_profile", "queue": "fast"}, {"/queue", "/inputs"}),
        ({"type": "csv_profile", "queue": ""}, {"/queue"}),
        ({"type": "csv_profile", "queue": "a:b"}, {"/queue"}),
        ({"type": "csv_profile", "queue": "default\n"}, {"/queue"}),
        ({"type": "csv_profile", "queue": "q" * 65}, {"/queue"}),
        ({"type": "csv_profile", "queue": 1}, {"/queue"}),
        ({"type": "csv_profile", "priority": "9"}, {"/priority"}),
        ({"type": "csv_profile", "priority": 10}, {"/priority"}),
        ({"type": "csv_profile", "priority": True}, {"/priority"}),
        ({"type": "csv_profile", "priority": -1}, {"/priority"}),
        ({"type": "csv_profile", "priority": 10**30}, {"/priority"}),
        ({"type": "csv_profile", "priority": 1.5}, {"/priority"}),
        ({"type": "csv_profile", "payload": []}, {"/payload"}),
        ({"type": "csv_profile", "labels": {"a": 1}}, {"/labels/a"}),
        ({"type": "csv_profile", "timeout": "soon"}, {"/timeout"}),
        ({"type": "csv_profile", "timeout": -1}, {"/timeout"}),
        ({"type": "csv_profile", "timeout": True}, {"/timeout"}),
        ({"type": "csv_profile", "timeout": "-5s"}, {"/timeout"}),
        ({"type": "csv_profile", "timeout": "-PT5S"}, {"/timeout"}),
        ({"type": "csv_profile", "timeout": "P99999D"}, {"/timeout"}),
        ({"type": "csv_profile", "timeout": 10**18}, {"/timeout"}),
        ({"type": "csv_profile", "retry": {"backoff": "fibonacci"}}, {"/retry/backoff"}),
        ({"type": "csv_profile", "retry": {"max_retries": -1}}, {"/retry/max_retries"}),
        ({"type": "csv_profile", "retry": {"max_retries": 101}}, {"/retry/max_retries"}),
        ({"type": "csv_profile", "retry": {"initial_delay": 0}}, {"/retry/initial_delay"}),
        ({"type": "csv_profile", "retry": {"initial_delay": -1}}, {"/retry/initial_delay"}),
        ({"type": "csv_profile", "retry": {"max_delay": "8d"}}, {"/retry/max_delay"}),
        ({"type": "csv_profile", "retry": {"max_delay": True}}, {"/retry/max_delay"}),
        ({"type": "csv_profile", "retry": {"retry_on": []}}, {"/retry/retry_on"}),
        ({"type": "csv_profile", "retry": {"retry_on": ["lease_lapsed"]}}, {"/retry/retry_on/0"}),
        ({"type": "csv_profile", "retry": {"retry_on": ["timed_out", "tired"]}}, {"/retry/retry_on/1"}),
        ({"type": "csv_profile", "retry": {"initial_delay": "x"}}, {"/retry/initial_delay"}),
        ({"type": "csv_profile", "limits": {"memory": "lots"}}, {"/limits/memory"}),
        ({"type": "csv_profile", "limits": {"gpu": 1}}, {"/limits/gpu"}),
        ({"type": "csv_profile", "inputs": [{"from": 1}]}, {"/inputs/0/from"}),
        ({"type": "csv_profile", "inputs": [{"path": "x"}]}, {"/inputs/0/from", "/inputs/0/path"}),
        ({"type": "csv_profile", "outputs": [{"to": "r:x"}]}, {"/outputs/0/match"}),
        ({"type": "no_such_plugin"}, {"/type"}),
        ({"type": "csv_profile", "version": "==99"}, {"/version"}),
        ({"type": "csv_profile", "version": "newest!"}, {"/version"}),
    ],
)
def test_bodies_that_do_not_fit_say_where(site, body, pointers):
    found = problem(site.request("POST", "/jobs", "anna", json=body), 422, "invalid")
    assert where(found) == pointers
    assert jobs(site) == 0


@pytest.mark.parametrize(
    ("asked", "pointer", "words"),
    [
        ({"timeout": 0}, "/timeout", "at least 100ms"),
        ({"timeout": "0s"}, "/timeout", "at least 100ms"),
        ({"timeout": "PT0S"}, "/timeout", "at least 100ms"),
        ({"timeout": "99ms"}, "/timeout", "at least 100ms"),
        ({"timeout": "301s"}, "/timeout", "only tighten"),
        ({"timeout": 999_999_999}, "/timeout", "only tighten"),
        ({"timeout": "36500d"}, "/timeout", "only tighten"),
        ({"limits": {"cpu": 1.01}}, "/limits/cpu", "only tighten"),
        ({"limits": {"memory": "257MB"}}, "/limits/memory", "only tighten"),
        ({"limits": {"memory": "9999999TB"}}, "/limits/memory", ""),
        ({"limits": {"pids": 17}}, "/limits/pids", "only tighten"),
        ({"limits": {"output": "17MB"}}, "/limits/output", "only tighten"),
        ({"limits": {"cpu": 0}}, "/limits/cpu", "greater than 0"),
        ({"limits": {"cpu": -1}}, "/limits/cpu", "greater than 0"),
        ({"limits": {"memory": 0}}, "/limits", "memory is 0"),
        ({"limits": {"memory": "-1MB"}}, "/limits/memory", ""),
    ],
)
def test_a_job_neither_widens_its_plugins_limits_nor_asks_for_none(site, asked, pointer, words):
    upload = site.upload(user="anna")
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}], **asked}
    found = problem(site.request("POST", "/jobs", "anna", json=body), 422, "invalid")
    assert [each["pointer"].startswith(pointer) for each in found["errors"]] == [True]
    assert words in found["errors"][0]["detail"]
    assert jobs(site) == 0


def test_a_payload_against_the_plugins_schema(site):
    upload = site.upload(user="anna")
    body = {
        "type": "csv_profile",
        "payload": {"max_distinct": "many"},
        "inputs": [{"from": f"artifact:{upload['id']}"}],
    }
    found = problem(site.request("POST", "/jobs", "anna", json=body), 422)
    assert "/payload/max_distinct" in where(found)
    assert jobs(site) == 0


@pytest.mark.parametrize(
    "source",
    [
        "artifact:nonsense",
        f"artifact:{NOBODYS}",
        ":local:/etc/hostname",
        "/etc/hostname",
        "box:../other",
        "box:/etc/hostname",
        "box:-x",
        "box,bearer_token_command=x:y",
        "box:a\nb",
        "nobody:path",
        "-",
        "x" * 2_000,
    ],
)
def test_inputs_that_name_what_they_must_not(site, source):
    body = {"type": "csv_profile", "inputs": [{"from": source}]}
    assert "/inputs/0/from" in where(problem(site.request("POST", "/jobs", "anna", json=body), 422))
    assert jobs(site) == 0


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx", "multipart/form-data"]
)
def test_a_wrong_content_type(site, content_type):
    problem(post(site, b'{"type": "csv_profile"}', content_type), 415, "unsupported-media-type")


def test_a_body_over_the_limit(site):
    problem(post(site, b'{"type": "' + b"x" * 30_000 + b'"}'), 413, "too-large")


def test_an_unknown_address_and_method(site):
    problem(site.request("GET", "/nothing/here"), 404, "not-found")
    answer = site.request("PUT", "/jobs")
    problem(answer, 405, "method-not-allowed")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("limit=1&limit=2", "limit"),
        ("colour=red", "colour"),
        ("status=lost", "status"),
        ("since=yesterday", "since"),
        ("since=2026-01-01T00:00:00", "since"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%ff", "cursor"),
        ("label=a%22b", "label"),
        ("type=%00", "type"),
    ],
)
def test_queries_that_do_not_fit_say_where(site, query, name):
    found = problem(site.request("GET", f"/jobs?{query}"), 422)
    assert {item.lstrip("/") for item in where(found)} == {name}


def test_addresses_without_parameters_take_none(site):
    assert where(problem(site.request("GET", "/me?x=1"), 422)) == {"x"}


def test_addresses_without_body_take_none(site):
    problem(site.request("POST", f"/jobs/{uuid7()}/cancel", json={"reason": "because"}), 422)
    problem(site.request("POST", f"/jobs/{uuid7()}/cancel", json={}), 404)


@pytest.mark.parametrize("job_id", ["nonsense", NOBODYS, "%00", "..%2f..", "'%20OR%201=1", "%F0%9F%98%80"])
def test_jobs_that_are_not_there(site, job_id):
    status = 400 if job_id == "%00" else 404  # a zero byte is in no path at all
    for path in (
        f"/jobs/{job_id}",
        f"/jobs/{job_id}/logs",
        f"/jobs/{job_id}/events",
        f"/trace/{job_id}",
        f"/jobs/{job_id}/outputs/x",
    ):
        problem(site.request("GET", path), status)


@pytest.mark.parametrize("wait", ["61s", "-1", "soon", "1e9", "nan"])
def test_waits_that_are_none(site, wait):
    assert where(problem(site.request("GET", f"/jobs/{uuid7()}?wait={wait}"), 422)) == {"wait"}


@pytest.mark.parametrize("key", ["", "x" * 256, "ä"])
def test_idempotency_keys_that_are_none(site, key):
    answer = site.request("POST", "/jobs", "anna", json={"type": "csv_profile"}, headers={"Idempotency-Key": key})
    problem(answer, 400, "bad-idempotency-key")


def test_a_store_that_does_not_answer_is_503_with_retry_after(site, monkeypatch):
    def away(*_args, **_kwargs):
        raise Unavailable("the database does not answer", retry_after=7)

    monkeypatch.setattr(site.services.jobs, "list", away)
    answer = site.request("GET", "/jobs")
    problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "7"


def test_a_bug_of_ours_shows_no_inside(site, monkeypatch):
    def broken(*_args, **_kwargs):
        raise KeyError("secret inside")

    monkeypatch.setattr(site.services.jobs, "list", broken)
    answer = site.request("GET", "/jobs")
    problem(answer, 500, "internal")
    assert "secret inside" not in answer.text


def test_passwords_never_come_back_in_an_error(site):
    body = {"username": "x!", "password": PASSWORD, "roles": ["viewer"], "extra": PASSWORD}
    assert PASSWORD not in site.client().post(f"{API}/users", json=body, headers=site.headers()).text
    assert PASSWORD not in site.client().post(f"{API}/session", json={"username": "admin", "password": [PASSWORD]}).text
