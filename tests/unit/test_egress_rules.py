"""Endpoints, patterns and parameters: one notation for one host, and nothing that could be read in two ways."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.egress import (
    BadRule,
    Endpoint,
    Policy,
    is_literal,
    parse_endpoint,
    parse_host,
    parse_pattern,
    parse_policy,
    parse_target,
    platform_egress,
    resolve,
)
from cloche.errors import SettingsError

LABELS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.ORG", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("my_bucket.s3.example", "my_bucket.s3.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:DB8:0:0::1]", "2001:db8::1"),
        ("ｅｘａｍｐｌｅ。org", "example.org"),
        ("1e100.net", "1e100.net"),
    ],
)
def test_a_host_has_one_notation(text, host):
    assert parse_host(text) == host
    assert parse_host(f"[{host}]" if ":" in host else host) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "example.org.",
        "a..b",
        ".a",
        "-a.example",
        "a-.example",
        "a b",
        "a/b",
        "user@host",
        "a%2eb",
        "a\tb",
        "a\0b",
        "x" * 64 + ".example",
        "a." * 127 + "toolong",
        "xn--\u00fc",
        "xn--a.example",
        "*",
        "*.example.org",
        # odd notations of addresses, each of which some parser takes for 127.0.0.1 or another
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.0x1",
        "127.0.0.256",
        "1.2.3.4.5",
        "foo.0x",
        "foo.1",
        "①②⑦.0.0.1.2",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[fe80::1%eth0]",
        "[::1",
        "::1",
        "[127.0.0.1]",
        "[]",
    ],
)
def test_what_is_no_host_or_an_odd_one_is_refused(text):
    with pytest.raises(BadRule):
        parse_host(text)


def test_wide_digits_are_digits_and_still_only_the_usual_notation():
    assert parse_host("１９２.0.2.1") == "192.0.2.1"
    with pytest.raises(BadRule):
        parse_host("２１３０７０６４３３")


@pytest.mark.parametrize(
    "text",
    [
        "example.org",
        "example.org:",
        "example.org:0",
        "example.org:65536",
        "example.org:+1",
        "example.org: 1",
        "example.org:01",
        "example.org:1_0",
        "example.org:٣",
        "a:b:1",
        "::1:443",
        ":1",
        "h:443 ",
    ],
)
def test_a_port_is_explicit_and_plain(text):
    with pytest.raises(BadRule):
        parse_endpoint(text)


def test_endpoints_are_shown_as_they_are_read():
    for text in ("example.org:443", "192.0.2.1:1", "[2001:db8::1]:65535"):
        assert str(parse_endpoint(text)) == text
        assert parse_endpoint(str(parse_endpoint(text))) == parse_endpoint(text)


@pytest.mark.parametrize(
    ("pattern", "matches", "not_matches"),
    [
        ("example.org:443", ["example.org:443"], ["example.org:80", "a.example.org:443", "example.org.evil:443"]),
        ("*.example.org:443", ["a.example.org:443", "a.b.example.org:443"], ["example.org:443", "badexample.org:443"]),
        ("*:443", ["a:443", "192.0.2.1:443", "[2001:db8::1]:443"], ["a:80"]),
        ("example.org:*", ["example.org:1"], ["other.org:1"]),
        ("*:*", ["a:1"], []),
        ("192.0.2.1:443", ["192.0.2.1:443"], ["192.0.2.10:443"]),
        ("*.1.example:1", ["a.1.example:1"], []),
    ],
)
def test_patterns(pattern, matches, not_matches):
    found = parse_pattern(pattern)
    assert str(found) == pattern
    assert all(found.matches(parse_endpoint(text)) for text in matches)
    assert not any(found.matches(parse_endpoint(text)) for text in not_matches)


@pytest.mark.parametrize(
    "text", ["*", "*:", "**:1", "a*.example:1", "*.*:1", "*.:1", "*.192.0.2.1:1", "a.*:1", "example.org", "*.[::1]:1"]
)
def test_patterns_have_a_star_in_front_or_none(text):
    with pytest.raises(BadRule):
        parse_pattern(text)


def test_an_empty_policy_allows_nothing_and_names_count_only_without_a_star():
    endpoint = parse_endpoint("db.example:5432")
    assert not Policy().allows(endpoint)
    wide, exact = parse_policy(["*:5432"]), parse_policy(["db.example:*"])
    assert wide.allows(endpoint)
    assert not wide.names(endpoint)
    assert exact.names(endpoint)
    with pytest.raises(BadRule, match="more than"):
        parse_policy([f"h{n}:1" for n in range(257)])


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("https://Example.org/a?b=c#d", "example.org:443"),
        ("HTTP://example.org", "example.org:80"),
        ("http://example.org:8080/x:y", "example.org:8080"),
        ("https://[2001:db8::1]/", "[2001:db8::1]:443"),
        ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ("https://example.org?x", "example.org:443"),
        ("https://a.example#@evil.example/", "a.example:443"),
        ("mail.example:587", "mail.example:587"),
    ],
)
def test_what_a_parameter_may_name(text, endpoint):
    assert str(parse_target(text)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "https://user@example.org/",
        "https://u:p@h/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https:///x",
        "https://",
        "//example.org/",
        "example.org",
        "https://exa mple.org",
        "https://example.org\\@evil.example",
        "https://a.example\n.evil",
        "https://2130706433/",
        "https://127.1/",
        "https://h:0/",
        "https://h:99999/",
        "javascript:alert(1)",
        "https://example.org./",
        "https://[::ffff:127.0.0.1]/",
        "x" * 3000,
        "https://h:/",
    ],
)
def test_what_a_parameter_may_not_name(text):
    with pytest.raises(BadRule):
        parse_target(text)


def test_entries_of_a_manifest():
    assert resolve("a.example:1", {}) == Endpoint("a.example", 1)
    assert resolve("param:url", {"url": "https://b.example/"}) == Endpoint("b.example", 443)
    assert resolve("param:url", {}) is None
    for payload in ({"url": 5}, {"url": ["https://b.example/"]}, {"url": ""}):
        with pytest.raises(BadRule):
            resolve("param:url", payload)
    for entry in ("param:", "param:a b", "param:../x"):
        with pytest.raises(BadRule):
            resolve(entry, {})


@pytest.mark.parametrize(("allow", "private"), [("nonsense", ""), ("*:443", "10.0.0.1/8"), ("", "host.example")])
def test_a_malformed_setting_is_refused_at_the_start(allow, private):
    with pytest.raises(SettingsError, match=r"egress\."):
        platform_egress(True, allow, private)


def test_switched_off_nothing_is_allowed():
    assert not platform_egress(False, "*:*", "0.0.0.0/0").policy.allows(Endpoint("a", 1))
    assert platform_egress(True, "a:1, b:2\nc:3", "10.0.0.1 fd00::/8").policy.allows(Endpoint("c", 3))


@given(st.text(max_size=80))
def test_any_text_is_a_plain_host_or_refused(text):
    try:
        host = parse_host(text)
    except BadRule:
        return
    assert host == host.lower()
    assert host.isascii()
    assert not host.endswith(".")
    assert parse_host(f"[{host}]" if ":" in host else host) == host
    if is_literal(host):
        assert str(ipaddress.ip_address(host)) == host
    else:
        assert not host.rpartition(".")[2].isdigit()


@given(st.lists(LABELS, min_size=1, max_size=4), st.integers(1, 65_535))
def test_any_endpoint_is_read_back(labels, port):
    text = f"{'.'.join(labels)}:{port}"
    try:
        endpoint = parse_endpoint(text)
    except BadRule:
        return
    assert parse_endpoint(str(endpoint)) == endpoint
    assert parse_pattern(str(endpoint)).matches(endpoint)


@given(st.text(alphabet=st.sampled_from(list("htps:/@[]#?%\\. \t\nab.1:")), max_size=40))
def test_any_url_names_a_host_that_stands_in_it(text):
    try:
        endpoint = parse_target(text)
    except BadRule:
        return
    assert endpoint.host in text.lower() or ":" in endpoint.host
    assert "@" not in text.split("#")[0].split("?")[0].partition("://")[2].split("/")[0]
