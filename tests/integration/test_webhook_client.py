"""The POST to a receiver: pinned, bounded, verified; and each way a receiver can be bad has its outcome."""

from __future__ import annotations

import socket
import time

import pytest

from cloche.domain.addresses import parse_address
from cloche.domain.callbacks import Outcome, Reach, parse_reach, parse_url
from cloche.errors import SettingsError
from cloche.webhooks.client import NotDelivered, Sender
from tests.support.receiver import answers, certificate, receiving, writes

LOCAL = parse_reach(True, ["127.0.0.1"])
BODY = b'{"a":1}'


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


def post(url, reach=LOCAL, timeout_s=5.0, **options):
    return Sender(reach, timeout_s, **options).post(
        parse_url(url), {"Content-Type": "application/json", "webhook-id": "m1"}, BODY
    )


def fails(url, outcome, **options):
    with pytest.raises(NotDelivered) as caught:
        post(url, **options)
    assert caught.value.outcome is outcome, caught.value.detail
    assert "127.0.0.1" not in caught.value.detail.replace(parse_url(url).host, "")
    return caught.value


def test_what_is_sent(receiver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert post(f"{receiver.url}?k=v") == 204
    (got,) = receiver.got
    assert got.line == "POST /hook?k=v HTTP/1.1"
    assert got.body == BODY
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["webhook-id"] == "m1"
    assert got.headers.keys() == {"host", "user-agent", "content-length", "connection", "content-type", "webhook-id"}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_a_delivery(receiver, status):
    receiver.always = answers(status)
    assert post(receiver.url) == status


def test_interim_answers_are_skipped(receiver):
    receiver.always = writes(
        b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    )
    assert post(receiver.url) == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_says_so(receiver, status):
    with receiving() as other:
        receiver.always = answers(status, Location=other.url)
        failure = fails(receiver.url, Outcome.REDIRECTED)
        assert "not followed" in failure.detail
        assert other.connections == 0


@pytest.mark.parametrize(
    ("status", "headers", "outcome", "asked"),
    [
        (500, {}, Outcome.HTTP_ERROR, None),
        (404, {"Retry_After": "9"}, Outcome.HTTP_ERROR, None),
        (429, {"Retry_After": "7"}, Outcome.HTTP_ERROR, 7),
        (503, {"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}, Outcome.HTTP_ERROR, None),
        (503, {"Retry_After": "-1"}, Outcome.HTTP_ERROR, None),
        (410, {}, Outcome.GONE, None),
    ],
)
def test_other_answers(receiver, status, headers, outcome, asked):
    receiver.always = answers(status, **headers)
    failure = fails(receiver.url, outcome)
    assert (failure.status, failure.retry_after_s) == (status, asked)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
        b"\x00" * 100_000,
    ],
)
def test_what_is_no_answer(receiver, answer):
    receiver.always = writes(answer)
    fails(receiver.url, Outcome.MALFORMED)


def test_a_receiver_that_never_answers_or_drips_is_cut_off(receiver):
    for behave in (receiver.hangs, receiver.drips):
        receiver.always = behave
        began = time.monotonic()
        fails(receiver.url, Outcome.TIMED_OUT, timeout_s=0.5)
        assert time.monotonic() - began < 30  # far from the 60 s that the receiver would take


def test_a_long_answer_is_not_read_to_its_end(receiver):
    sent = []

    def flood(stream, got):
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while len(sent) < 10_000:
                stream.sendall(b"x" * 65_536)
                sent.append(1)
        except OSError:
            sent.append(0)

    receiver.always = flood
    assert post(receiver.url) == 200
    assert len(sent) < 10_000


def test_nobody_there(receiver):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    fails(f"http://127.0.0.1:{port}/", Outcome.UNREACHABLE)
    fails("http://no-such-host.invalid/", Outcome.UNREACHABLE, resolve=lambda host, port: [])


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["192.168.0.1"],
        ["100.100.100.200"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["fe80::1%lo"],
        ["93.184.215.14", "127.0.0.1"],
        ["0.0.0.0"],
    ],
)
def test_a_name_that_leads_inside_is_refused(receiver, addresses):
    url = f"http://rebound.example:{receiver.port}/"
    failure = fails(url, Outcome.ADDRESS_REFUSED, reach=Reach(), resolve=lambda host, port: addresses)
    assert all(address not in failure.detail for address in addresses)
    assert receiver.connections == 0


def test_the_address_that_was_checked_is_the_one_connected_to(receiver):
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    assert (
        post(f"http://hooks.internal:{receiver.port}/", parse_reach(True, ["hooks.internal"]), resolve=resolve) == 204
    )
    assert asked == ["hooks.internal"]
    assert receiver.got[0].headers["host"] == f"hooks.internal:{receiver.port}"


def test_this_hosts_own_addresses_count_as_inside_even_where_they_are_public(receiver, monkeypatch):
    monkeypatch.setattr("cloche.domain.callbacks.is_public", lambda address: True)
    fails(
        f"http://x.example:{receiver.port}/", Outcome.ADDRESS_REFUSED, reach=Reach(), resolve=lambda *_: ["127.0.0.1"]
    )
    assert Reach().permits(parse_url("http://x.example/"), parse_address("127.0.0.1"))


def test_tls_is_verified_by_name_and_authority(tmp_path):
    context, authority = certificate(tmp_path)
    with receiving(context) as receiver:
        fails(receiver.url, Outcome.TLS_FAILED)
        assert post(receiver.url, ca_file=authority) == 204
        named = parse_reach(True, ["hooks.internal"])
        url = f"https://hooks.internal:{receiver.port}/"
        failure = fails(url, Outcome.TLS_FAILED, reach=named, ca_file=authority, resolve=lambda *_: ["127.0.0.1"])
        assert "ostname" in failure.detail
        assert len(receiver.got) == 1
        plain = receiver.url.replace("https", "http")
        with pytest.raises(NotDelivered):
            post(plain)
    with receiving() as receiver:
        receiver.always = receiver.hangs
        fails(receiver.url.replace("http", "https"), Outcome.TIMED_OUT, timeout_s=1.0)
    with pytest.raises(SettingsError, match="ca_file"):
        Sender(LOCAL, 1, ca_file=tmp_path / "none.pem")


def test_a_header_cannot_be_broken_out_of(receiver):
    with pytest.raises(ValueError, match="end of a line"):
        Sender(LOCAL, 1).post(parse_url(receiver.url), {"webhook-id": "x\r\nEvil: 1"}, BODY)
