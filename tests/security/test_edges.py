"""What is refused, told and believed at the door: headers, hosts, proxies, other origins, and who sees details."""

from __future__ import annotations

import json

import pytest

from cloche import __version__
from cloche.errors import SettingsError
from cloche.netnames import Networks
from cloche.web.edge import MAX_HEADERS, MAX_PATH, client
from tests.support.web import problem, running_site

AWAY = {"REMOTE_ADDR": "203.0.113.9"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    home = tmp_path_factory.mktemp("proxied")
    with running_site(home, trusted_proxies="127.0.0.1 10.0.0.0/8", allowed_hosts="cloche.example *.in.example") as one:
        yield one


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("cors"), cors_origins="https://app.example") as running:
        yield running


def get(site, path="/api/v1/me", user=None, away=False, **headers):
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given |= site.headers(user) if user else {}
    return site.client().get(path, headers=given, environ_overrides=AWAY if away else {})


# What every answer carries


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/me", 401),
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/nowhere", 404),
        ("PUT", "/api/v1/jobs", 405),
        ("TRACE", "/api/v1/jobs", 405),
        ("OPTIONS", "/api/v1/jobs", 405),
        ("GET", "/healthz", 200),
        ("GET", "/health", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/static/dashboard/none.js", 404),
        ("POST", "/api/v1/session", 415),
    ],
)
def test_every_answer_carries_the_headers(site, method, path, status):
    answer = site.client().open(path, method=method)
    assert answer.status_code == status
    headers = answer.headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Request-ID"]
    assert headers["Cache-Control"]
    assert headers["Server"] == "cloche"
    assert "Set-Cookie" not in headers or "HttpOnly" in headers["Set-Cookie"]
    assert "Access-Control-Allow-Origin" not in headers
    assert "Traceback" not in answer.text


def test_static_files_carry_them_too_and_are_handed_over_whole(site):
    page = site.client().get("/docs").text
    path = next(part for part in page.split('"') if part.startswith("/static/"))
    answer = site.client().get(path)
    assert answer.status_code == 200
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert int(answer.headers["Content-Length"]) == len(answer.data)


def test_what_is_somebodys_is_not_kept_by_anything_in_between(site):
    stored = site.upload()
    for path in ("/me", "/jobs", f"/files/{stored['id']}", "/audit"):
        assert site.request("GET", path).headers["Cache-Control"] == "no-store"
    assert "private" in site.request("GET", f"/files/{stored['id']}/content").headers["Cache-Control"]


def test_a_failure_of_ours_shows_no_trace(site):
    site.app.view_functions["breaks"] = lambda: 1 / 0
    site.app.url_map.add(site.app.url_rule_class("/breaks", endpoint="breaks", methods=["GET"]))
    found = problem(site.client().get("/breaks"), 500, "internal")
    assert "ZeroDivision" not in json.dumps(found)


# The release, metrics, and why something is not ready


def test_strangers_learn_neither_the_release_nor_what_is_wrong(site):
    site.add("vera", "viewer")
    site.add("otto", "auditor")
    health = get(site, "/health", away=True)
    assert health.json["version"] is None
    assert get(site, "/health").json["version"] == __version__  # from this machine
    assert get(site, "/health", "vera", away=True).json["version"] == __version__
    assert get(site, "/health", "otto", away=True).json["version"] is None
    ready = get(site, "/readyz", away=True)
    assert (ready.status_code, ready.json) == (503, {"ready": False, "reasons": [], "parts": [], "warnings": []})
    assert get(site, "/readyz").json["reasons"]
    for path in ("/openapi.json", "/docs", "/sign-in", "/nowhere", "/health", "/readyz"):
        text = get(site, path, away=True).text
        assert __version__ not in text or path == "/docs", path


def test_metrics_are_for_allowed_addresses_and_for_queue_read(site):
    assert get(site, "/metrics").status_code == 200
    problem(get(site, "/metrics", away=True), 401)
    assert get(site, "/metrics", "vera", away=True).status_code == 200
    problem(get(site, "/metrics", "otto", away=True), 403)
    for name in ("X_Forwarded_For", "Forwarded", "Via", "X_Real_IP"):
        problem(get(site, "/metrics", **{name: "127.0.0.1"}), 401)  # came through a proxy nobody knows


# Proxies and hosts

TRUSTED = Networks("10.0.0.0/8 192.0.2.7 2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "chain", "expected"),
    [
        ("198.51.100.1", ["203.0.113.5"], "198.51.100.1"),  # not a proxy of ours
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["127.0.0.1", "203.0.113.5"], "203.0.113.5"),  # what the client wrote stands further left
        ("10.0.0.1", ["203.0.113.5", "10.0.0.2"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5", "192.0.2.7", "10.9.9.9"], "203.0.113.5"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5", "unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5:4711"], "203.0.113.5"),
        ("10.0.0.1", ["[2001:db9::1]:80"], "2001:db9::1"),
        ("10.0.0.1", ["2001:db9::1"], "2001:db9::1"),
        ("::ffff:10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["::ffff:203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5\r\nX: y"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5"] + ["10.0.0.2"] * 200, "10.0.0.2"),  # nobody reads a longer chain
        ("", ["203.0.113.5"], ""),
    ],
)
def test_the_client_is_the_right_most_that_is_no_proxy_of_ours(peer, chain, expected):
    assert client(peer, chain, TRUSTED) == expected


def seen(site, **headers):
    """The address that a failed sign-in was recorded with, and the status."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"username": "nobody", "password": "not a password"}
    answer = site.client().post("/api/v1/session", json=body, headers={"Host": "cloche.example", **given})
    if answer.status_code != 401:
        return answer.status_code
    events = site.client().get(
        "/api/v1/audit?action=session:create&limit=1", headers=site.headers() | {"Host": "cloche.example"}
    )
    return events.json["items"][0]["ip"]


def test_only_a_trusted_proxy_is_believed(site, proxied, monkeypatch):
    monkeypatch.setattr(proxied, "headers", lambda user="admin": {"Authorization": f"Bearer {tokened(proxied)}"})
    assert seen(proxied, X_Forwarded_For="198.51.100.3") == "198.51.100.3"
    assert seen(proxied, X_Forwarded_For="127.0.0.1, 198.51.100.3") == "198.51.100.3"
    assert seen(proxied, X_Forwarded_For="198.51.100.3", Forwarded="for=192.0.2.99") == "198.51.100.3"
    assert seen(proxied, Forwarded="for=192.0.2.99") == "127.0.0.1"  # the style that was not chosen
    assert seen(site, X_Forwarded_For="198.51.100.3") == "127.0.0.1"


def tokened(site):
    if "admin" not in site.tokens:
        answer = site.client().post(
            "/api/v1/tokens",
            json={"name": "t"},
            auth=("admin", "correct horse battery"),
            headers={"Host": "cloche.example"},
        )
        assert answer.status_code == 201, answer.text
        site.tokens["admin"] = answer.json["token"]
    return site.tokens["admin"]


def test_forwarded_is_read_strictly_where_it_was_chosen(tmp_path):
    with running_site(tmp_path, trusted_proxies="127.0.0.1", proxy_headers="forwarded") as site:
        assert seen(site, Forwarded='for=192.0.2.60;proto=http;by=203.0.113.43, for="[2001:db8::17]:4711"') == (
            "2001:db8::17"
        )
        assert seen(site, Forwarded="For=198.51.100.17") == "198.51.100.17"
        for bad in ("for=1.2.3.4;for=5.6.7.8", 'for="1.2.3.4', "for 1.2.3.4", "=1.2.3.4", 'for="a\\'):
            assert seen(site, Forwarded=bad) == "127.0.0.1", bad
        assert seen(site, X_Forwarded_For="198.51.100.3") == "127.0.0.1"


def test_a_proxy_does_not_make_its_clients_local(proxied):
    host = {"Host": "cloche.example"}
    assert proxied.client().get("/metrics", headers=host).status_code == 401  # it said nothing of its client
    for told in ("198.51.100.3", "127.0.0.1, 198.51.100.3", "unknown", ""):
        assert proxied.client().get("/metrics", headers=host | {"X-Forwarded-For": told}).status_code == 401, told


def test_only_named_hosts_are_answered(proxied):
    for host in ("cloche.example", "CLOCHE.example", "cloche.example:8443", "a.in.example"):
        assert proxied.client().get("/readyz", headers={"Host": host}).status_code in (200, 503), host
    for host in (
        "evil.example",
        "in.example",
        "cloche.example.evil",
        "cloche.example@evil",
        "cloche.example:99999",
        "",
    ):
        answer = proxied.client().get("/readyz", headers={"Host": host})
        assert answer.status_code in (400, 421), host
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert proxied.client().get("/healthz", headers={"Host": "10.1.2.3"}).status_code == 200
    told = {"Host": "127.0.0.1", "X-Forwarded-Host": "cloche.example", "X-Forwarded-For": "198.51.100.3"}
    assert proxied.client().get("/openapi.json", headers=told).status_code == 200
    problem(proxied.client().get("/openapi.json", headers=told | {"X-Forwarded-Host": "evil.example"}), 421)


@pytest.mark.parametrize(
    "server",
    [
        {"trusted_proxies": "proxy.example"},
        {"trusted_proxies": "10.0.0.1/8"},
        {"allowed_hosts": "https://cloche.example"},
        {"allowed_hosts": "*"},
        {"cors_origins": "*"},
        {"cors_origins": "https://app.example/"},
        {"cors_origins": "app.example"},
        {"cors_origins": "null"},
        {"patience": "10ms"},
    ],
)
def test_settings_that_mean_something_else_are_refused(tmp_path, server):
    with pytest.raises(SettingsError, match="server"), running_site(tmp_path, **server):
        pass


# Sizes


def test_long_addresses_and_many_headers_are_refused(site):
    problem(get(site, "/" + "a" * (MAX_PATH + 1)), 414)
    problem(get(site, **{f"X_{number}": "a" for number in range(MAX_HEADERS + 1)}), 431)
    problem(get(site, X_Long="a" * 40_000), 431)
    problem(site.request("GET", "/jobs?type=" + "a" * 9_000), 400)


# Other origins


def test_without_the_setting_no_other_origin_is_answered(site):
    answer = get(site, Origin="https://app.example")
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert site.client().options("/api/v1/jobs", headers=asked).status_code == 405


def test_named_origins_may_call_the_api_with_tokens(shared):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = shared.client().options("/api/v1/jobs", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    answer = shared.request("GET", "/me", headers={"Origin": "https://app.example"})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Origin" in answer.headers["Vary"]
    for one in (preflight, answer):
        assert "Access-Control-Allow-Credentials" not in one.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://app.example.evil", "http://app.example"])
def test_others_are_not(shared, origin):
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        shared.client().options("/api/v1/jobs", headers=asked),
        shared.request("GET", "/me", headers={"Origin": origin}),
    ):
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Origin" in answer.headers["Vary"]
    assert "Access-Control-Allow-Origin" not in shared.client().get("/docs", headers={"Origin": origin}).headers


def test_a_named_origin_cannot_use_the_session(shared):
    client, csrf = shared.browser()
    headers = {"Origin": "https://app.example", "X-CSRFToken": csrf, "Sec-Fetch-Site": "cross-site"}
    answer = client.post("/api/v1/jobs", json={}, headers=headers)
    problem(answer, 403, "cross-site")


# What is written into headers and logs


def test_a_request_id_is_taken_only_when_it_is_one(site):
    for given in ("good-id_1.2", "a" * 64):
        assert get(site, X_Request_ID=given).headers["X-Request-ID"] == given
    for given in ("short", "a" * 65, "a b c d e f g", "<script>alert(1)", "abcdefgh\t", "äbcdefgh", "-abcdefgh", ""):
        assert get(site, X_Request_ID=given).headers["X-Request-ID"] != given


@pytest.mark.parametrize(
    "name",
    [
        'a"; filename="b.exe',
        "a\r\nSet-Cookie: x=y",
        "a\x00b",
        "a\u202eexe.txt",
        "../../etc/passwd",
        "é" * 60,
        "a\u2028b",
    ],
)
def test_a_file_name_stays_within_its_header(site, name):
    answer = site.request("POST", "/files", query_string={"name": name}, data=b"x")
    if answer.status_code != 201:
        assert answer.status_code in (400, 422), answer.text
        return
    told = site.request("GET", f"/files/{answer.json['id']}/content").headers
    disposition = told["Content-Disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.count("; filename") == 2
    assert disposition.isascii()
    assert disposition.isprintable()
    assert "Set-Cookie" not in told


def test_what_a_client_sends_cannot_write_a_line_of_its_own_into_the_log(site, capfd):
    import structlog

    from cloche import logs

    logs.setup("debug", "json", "test")
    try:
        forged = '/x%0d%0a{"event":"forged"}'
        site.app.view_functions["breaks2"] = lambda path: 1 / 0
        site.app.url_map.add(site.app.url_rule_class("/y/<path>", endpoint="breaks2", methods=["GET"]))
        capfd.readouterr()
        headers = {"User-Agent": 'a\t{"event": "forged"}', "X-Request-ID": 'a{"event":"forged"}'}
        assert site.client().get("/y" + forged, headers=headers).status_code == 500
        out, err = capfd.readouterr()
        lines = [line for line in (out + err).splitlines() if line.strip()]
        assert lines
        assert all(json.loads(line)["event"] != "forged" for line in lines)
    finally:
        structlog.reset_defaults()


def test_no_header_changes_the_method(site):
    for name in ("X_HTTP_Method_Override", "X_HTTP_Method", "X_Method_Override"):
        answer = site.request("GET", "/jobs?limit=1", headers={name.replace("_", "-"): "DELETE"})
        assert answer.status_code == 200
    problem(site.request("GET", "/jobs?_method=DELETE"), 422)
