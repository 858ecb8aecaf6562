"""Callbacks without a network: URLs, receivers that are allowed, times of retries, signatures."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloche.domain.addresses import parse_address
from cloche.domain.callbacks import (
    MAX_URL,
    OUTCOME_TEXT,
    Outcome,
    Reach,
    parse_reach,
    parse_url,
    retry_delay_ms,
    shown_url,
    wanted,
)
from cloche.errors import SettingsError
from cloche.webhooks.signature import headers, new_secret, sign

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "path"),
    [
        ("https://a.example", "https", "a.example", 443, "/"),
        ("http://A.Example:8080/x/y?z=1&u=http://b", "http", "a.example", 8080, "/x/y?z=1&u=http://b"),
        ("https://a.example?x=1", "https", "a.example", 443, "/?x=1"),
        ("http://203.0.113.9:80/%2e%2e/", "http", "203.0.113.9", 80, "/%2e%2e/"),
        ("https://[2001:DB8::1]:8443/", "https", "2001:db8::1", 8443, "/"),
        ("https://a.example/x@y", "https", "a.example", 443, "/x@y"),
    ],
)
def test_urls_that_are_taken(text, scheme, host, port, path):
    target = parse_url(text)
    assert (target.scheme, target.host, target.port, target.path) == (scheme, host, port, path)
    assert target.authority == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.example",
        "//a.example/",
        "ftp://a.example/",
        "HTTPS://a.example/",
        "file:///etc/passwd",
        "https:///x",
        "https://",
        "https://user@a.example/",
        "https://user:password@a.example/",
        "https://a.example@127.0.0.1/",
        "https://a.example/#part",
        "https://a.example:0/",
        "https://a.example:22/",
        "https://a.example:25/",
        "https://a.example:65536/",
        "https://a.example:/",
        "https://a.example:8o/",
        "https://a.example\\@127.0.0.1/",
        "https://a.example/\r\nHost: x",
        "https://a.example/ x",
        "https://a.example/\t",
        "https://a.example/ü",
        "https://bücher.example/",
        "https://127.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://[::1",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://a..example/",
        "https://-a.example/",
        "https://a.example/" + "x" * MAX_URL,
    ],
)
def test_urls_that_are_refused(text):
    with pytest.raises(ValueError, match=r"\w+"):
        parse_url(text)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "[::1]",
        "[fd00::1]",
        "localhost",
        "a.localhost",
    ],
)
def test_what_the_url_alone_gives_away_is_refused_at_once(host):
    assert Reach().refusal(parse_url(f"http://{host}/")) is not None


def test_what_the_operator_may_allow():
    reach = parse_reach(True, ["10.0.0.0/24", "127.0.0.1", "hooks.internal", "ci.internal:8443"])

    def permits(url, address):
        return reach.permits(parse_url(url), parse_address(address))

    assert permits("https://x.example/", "10.0.0.7")
    assert permits("https://x.example/", "::ffff:10.0.0.7")
    assert not permits("https://x.example/", "10.0.1.7")
    assert permits("https://hooks.internal:9000/", "192.168.1.1")
    assert permits("https://ci.internal:8443/", "192.168.1.1")
    assert not permits("https://ci.internal/", "192.168.1.1")
    assert not permits("https://x.hooks.internal/", "192.168.1.1")
    assert permits("https://x.example/", "93.184.215.14")
    assert reach.refusal(parse_url("http://127.0.0.1/")) is None
    assert reach.refusal(parse_url("http://127.0.0.2/")) is not None


@pytest.mark.parametrize("entry", ["10.0.0.1/24", "*.internal", "a..b", "host:0", "http://x", "300.1.1.1"])
def test_a_malformed_entry_stops_the_start(entry):
    with pytest.raises(SettingsError, match=r"callbacks\.private"):
        parse_reach(True, [entry])


def test_delays_double_up_to_an_hour_and_heed_the_receiver():
    draw = random.Random(1).randint
    for attempts, ceiling in ((1, 5_000), (2, 10_000), (5, 80_000), (12, 3_600_000), (500, 3_600_000)):
        drawn = [retry_delay_ms(attempts, draw) for _ in range(200)]
        assert ceiling // 2 <= min(drawn) <= max(drawn) <= ceiling
    assert retry_delay_ms(1, draw, asked_s=60) == 60_000
    assert retry_delay_ms(1, draw, asked_s=10**7) == 3_600_000


def test_a_days_tries_are_neither_too_few_nor_too_many():
    low, high = lambda a, b: a, lambda a, b: b
    for draw in (low, high):
        at, attempts = 0, 1
        while at < 86_400_000:
            at += retry_delay_ms(attempts, draw)
            attempts += 1
        assert 30 <= attempts <= 70


def test_the_query_is_not_shown_again():
    assert shown_url("https://a.example/hook?key=abc") == "https://a.example/hook?…"
    assert shown_url("https://a.example/hook") == "https://a.example/hook"


def test_only_the_ends_that_were_asked_for_are_told():
    callback = {"url": "https://a.example/", "events": ["failed"]}
    assert wanted(callback, "failed")
    assert not wanted(callback, "completed")
    assert not wanted(callback, "pending")
    assert not wanted(None, "failed")


def test_the_signature_is_that_of_standard_webhooks():
    # The example that the libraries of that project are tested with
    secret, message, body = (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
    )
    assert sign(secret, message, 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    made = headers([secret, new_secret()], message, 1614265330, body)
    first, second = made["webhook-signature"].split()
    assert first.startswith("v1,g0hM9")
    assert second.startswith("v1,")
    assert second != first
    with pytest.raises(ValueError, match="whsec"):
        sign("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", message, 1, body)


def test_every_outcome_is_documented_with_its_own_words():
    table = (ROOT / "docs" / "callbacks.md").read_text().partition("| outcome | |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ", 1) for line in table.splitlines() if line.startswith("| `")]
    assert rows == [[f"`{outcome}`", OUTCOME_TEXT[outcome]] for outcome in Outcome]
