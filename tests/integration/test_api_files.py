"""Uploads stream, half ones are never stored, downloads have ranges, and names chosen by users stay data."""

from __future__ import annotations

import hashlib
import io

import pytest
from sqlalchemy import func, select

from cloche.clock import uuid7
from cloche.db import tables as t
from tests.support.web import API, problem, running_site, where

LIMIT = 200_000


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    with running_site(tmp_path_factory.mktemp("home"), max_upload=LIMIT, database=module_database_url) as running:
        running.add("anna", "submitter")
        running.add("vera", "viewer")
        yield running


def files(site) -> int:
    return site.services.db.read(lambda c: c.execute(select(func.count()).select_from(t.artifact)).scalar_one())


def raw(site, content: bytes, name: str = "x.bin", **options):
    return site.request("POST", "/files", "anna", query_string={"name": name}, data=content, **options)


def part(content: bytes, filename: str, field: str = "file", boundary: str = "b0undary", end: bool = True) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + (f"\r\n--{boundary}--\r\n".encode() if end else b"")


def form(site, body: bytes, user: str = "anna", **options):
    return site.request(
        "POST", "/files", user, data=body, content_type="multipart/form-data; boundary=b0undary", **options
    )


def test_raw_and_form_store_the_same(site):
    content = b"line\r\n--b0undar\r\n\r\n" * 3_000
    digest = hashlib.sha256(content).hexdigest()
    first = raw(site, content, "a.txt")
    second = form(site, part(content, "a.txt"))
    assert (first.status_code, second.status_code) == (201, 201)
    for answer in (first, second):
        assert (answer.json["sha256"], answer.json["size"], answer.json["name"]) == (digest, len(content), "a.txt")
        assert answer.headers["Location"] == f"{API}/files/{answer.json['id']}"
        assert answer.json["media_type"] == "text/plain"
        assert site.request("GET", f"/files/{answer.json['id']}/content", "vera").data == content


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, LIMIT])
def test_sizes_at_the_edges(site, size):
    content = bytes(range(256)) * (size // 256 + 1)
    for answer in (raw(site, content[:size]), form(site, part(content[:size], "x.bin"))):
        assert answer.status_code == 201, answer.text
        assert answer.json["size"] == size
        assert site.request("GET", f"/files/{answer.json['id']}/content", "anna").data == content[:size]


def test_over_the_limit_is_413_and_stores_nothing(site):
    before = files(site)
    problem(raw(site, b"x" * (LIMIT + 1)), 413, "too-large")
    problem(form(site, part(b"x" * (LIMIT + 1), "x.bin")), 413, "too-large")
    problem(form(site, part(b"x" * (LIMIT * 2), "x.bin")), 413, "too-large")
    assert files(site) == before


def test_half_an_upload_is_never_stored(site):
    before = files(site)
    for terminated in (True, False):
        environ = {
            "wsgi.input_terminated": terminated,
            "CONTENT_LENGTH": "5000",
            "wsgi.input": io.BytesIO(b"only half"),
        }
        problem(raw(site, b"", environ_overrides=environ), 400)
    problem(form(site, part(b"x" * 9_000, "x.bin", end=False)), 400, "truncated-body")
    problem(form(site, part(b"", "x.bin")[:40]), 400, "truncated-body")
    assert files(site) == before


def test_a_raw_body_needs_a_length(site):
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = site.client().post(
        f"{API}/files?name=x", input_stream=io.BytesIO(b"abc"), headers=site.headers("anna"), environ_overrides=environ
    )
    problem(answer, 411, "length-required")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (part(b"x", "a.txt", field="other"), "/file"),
        (part(b"x", ""), "/file"),
        (b'--b0undary\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b0undary--\r\n', "/file"),
        (b"--b0undary--\r\n", "/file"),
        (part(b"x", "a.txt", end=False) + b"\r\n" + part(b"y", "b.txt", field="more"), "/more"),
    ],
)
def test_forms_that_do_not_fit(site, body, pointer):
    before = files(site)
    found = form(site, body)
    assert found.status_code in (400, 422), found.text
    if found.status_code == 422:
        assert where(problem(found, 422)) == {pointer}
    assert files(site) == before


@pytest.mark.parametrize(
    "body", [b"nonsense", b"--b0undary\r\nnonsense\r\n\r\nx\r\n--b0undary--\r\n", b"\r\n" * 40_000]
)
def test_malformed_forms(site, body):
    assert problem(form(site, body), 400)["code"] in ("truncated-body", "malformed-multipart")


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "a\\b", "-rf", "a\nb", "a\x00b", "a\r\nSet-Cookie: x=1", "x" * 256]
)
def test_names_that_are_refused(site, name):
    before = files(site)
    assert raw(site, b"x", name).status_code == 422
    assert files(site) == before


def test_the_name_is_asked_for(site):
    answer = site.request("POST", "/files", "anna", data=b"x")
    assert where(problem(answer, 422)) == {"name"}
    assert where(problem(form(site, part(b"x", "a"), query_string={"name": "b"}), 422)) == {"name"}


def test_header_injection_through_a_form_filename(site):
    answer = form(site, part(b"x", "a%0d%0aX-Evil: 1.txt"))
    if answer.status_code == 201:
        got = site.request("GET", f"/files/{answer.json['id']}/content", "anna")
        assert "X-Evil" not in got.headers
        assert "\n" not in got.headers["Content-Disposition"]


@pytest.mark.parametrize(
    ("asked", "status", "data", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=5-", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=5-2", 416, None, None),
        ("lines=1-2", 416, None, None),
    ],
)
def test_ranges(site, asked, status, data, content_range):
    made = raw(site, b"0123456789", "digits.bin").json
    answer = site.request("GET", f"/files/{made['id']}/content", "anna", headers={"Range": asked})
    assert answer.status_code == status
    if data is not None:
        assert answer.data == data
    if content_range is not None:
        assert answer.headers["Content-Range"] == content_range


def test_etags(site):
    made = raw(site, b"0123456789", "digits.bin").json
    path = f"/files/{made['id']}/content"
    etag = site.request("GET", path, "anna").headers["ETag"]
    assert etag == f'"{made["sha256"]}"'
    assert site.request("GET", path, "anna", headers={"If-None-Match": etag}).status_code == 304
    assert site.request("GET", path, "anna", headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert site.request("GET", path, "anna", headers={"Range": "bytes=0-1", "If-Range": '"old"'}).status_code == 200
    head = site.request("HEAD", path, "anna")
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", "10")


@pytest.mark.parametrize(
    ("name", "plain", "shown", "kind"),
    [
        ("a.png", "image/png", "image/png", "inline"),
        ("a.jpg", "image/jpeg", "image/jpeg", "inline"),
        ("a.html", "text/html", "text/plain", "inline"),
        ("a.csv", "text/csv", "text/plain", "inline"),
        ("a.json", "application/json", "text/plain", "inline"),
        ("a.svg", "image/svg+xml", "image/svg+xml", "attachment"),
        ("a.pdf", "application/pdf", "application/pdf", "attachment"),
        ("a.js", "application/javascript", "application/javascript", "attachment"),
    ],
)
def test_only_harmless_types_are_shown_inline(site, name, plain, shown, kind):
    made = raw(site, b"<script>alert(1)</script>", name).json
    path = f"/files/{made['id']}/content"
    answer = site.request("GET", path, "anna")
    assert (answer.mimetype, answer.headers["Content-Disposition"].partition(";")[0]) == (plain, "attachment")
    inline = site.request("GET", f"{path}?inline=1", "anna")
    assert (inline.mimetype, inline.headers["Content-Disposition"].partition(";")[0]) == (shown, kind)
    for each in (answer, inline):
        assert "sandbox" in each.headers["Content-Security-Policy"]
        assert each.headers["X-Content-Type-Options"] == "nosniff"


def test_deleting(site):
    made = raw(site, b"mine").json
    problem(site.request("DELETE", f"/files/{made['id']}", "vera"), 403)
    assert site.request("DELETE", f"/files/{made['id']}", "anna").status_code == 204
    for path in (f"/files/{made['id']}", f"/files/{made['id']}/content"):
        problem(site.request("GET", path, "anna"), 404)
    problem(site.request("DELETE", f"/files/{uuid7()}", "anna"), 404)


def test_another_tenants_file_is_not_there(site):
    made = raw(site, b"of tenant default").json
    other = uuid7()

    def move(connection):
        from cloche.clock import now_ms

        connection.execute(t.tenant.insert().values(id=other, name="other", created_at=now_ms()))
        connection.execute(t.artifact.update().where(t.artifact.c.id == made["id"]).values(tenant_id=other))

    site.services.db.write(move)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        problem(site.request(method, f"/files/{made['id']}{path}", "anna"), 404)
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{made['id']}"}]}
    assert where(problem(site.request("POST", "/jobs", "anna", json=body), 422)) == {"/inputs/0/from"}


def test_an_upload_by_cookie_takes_the_csrf_token_from_the_header_alone(site):
    client, csrf = site.browser("anna")
    options = {"data": part(b"x", "a.txt"), "content_type": "multipart/form-data; boundary=b0undary"}
    problem(client.post(f"{API}/files", **options), 403, "csrf")
    assert client.post(f"{API}/files", headers={"X-CSRFToken": csrf}, **options).status_code == 201
