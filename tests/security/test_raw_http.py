"""The real server against what only a raw socket sends: oddities of HTTP/1, and clients that are slow on purpose."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager

import httpx
import pytest

from tests.support.server import Server
from tests.support.stores import short_folder, until
from tests.support.web import ADMIN_PASSWORD

MANY = 60  # more than there are threads
BIG = 24 << 20  # bytes; more than any socket's buffers hold


@pytest.fixture(scope="module")
def server():
    with short_folder() as home:
        running = Server(home, CLOCHE_SERVER_PATIENCE="2s").ready()
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def token(server):
    answer = httpx.post(f"{server.url}/api/v1/tokens", json={"name": "t"}, auth=("admin", ADMIN_PASSWORD), timeout=30)
    return answer.json()["token"]


@pytest.fixture(scope="module")
def big(server, token):
    """The address of a large file."""
    headers = {"Authorization": f"Bearer {token}"}
    made = httpx.post(f"{server.url}/api/v1/files?name=big", content=bytes(BIG), headers=headers, timeout=60)
    assert made.status_code == 201, made.text
    return f"/api/v1/files/{made.json()['id']}/content"


def ask(server, request: bytes) -> bytes:
    """All that comes back until the server closes, or until one whole answer is there."""
    with socket.create_connection(server.address, timeout=20) as opened:
        opened.sendall(request)
        received = b""
        while chunk := opened.recv(65_536):
            received += chunk
            head, found, body = received.partition(b"\r\n\r\n")
            if found and b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n":
                break
        return received


def status(answer: bytes) -> int:
    """0: the connection was closed without an answer."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


HOST = b"Host: cloche.example\r\n"
JSON = b"POST /api/v1/session HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /healthz HTTP/1.0\r\n\r\n", {200}),
        (b"GET /healthz HTTP/1.1\r\n\r\n", {200, 400}),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {200, 400}),
        (b"GET /openapi.json HTTP/1.1\r\nHost: a b\r\n\r\n", {200, 400}),
        (b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", {200, 400}),
        (b"GET http://evil.example/healthz HTTP/1.1\r\n" + HOST + b"\r\n", {200, 400, 404}),
        (b"GET //evil.example/%2e%2e/healthz HTTP/1.1\r\n" + HOST + b"\r\n", {308, 400, 404}),
        (b"GET /%00 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404}),
        (b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404}),
        (b"GET /%ff%fe HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404}),
        (b"GET /api/v1/jobs?a=%ff HTTP/1.1\r\n" + HOST + b"\r\n", {400, 401, 422}),
        (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", {0, 400, 505}),
        (b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X-Request-ID: \xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9\r\n\r\n", {200, 400}),
        (b"GET /api/v1/me HTTP/1.1\r\n" + HOST + b"Authorization: Bearer \xff\xfe\r\n\r\n", {400, 401}),
        (b"GET /api/v1/me HTTP/1.1\r\n" + HOST + b"Cookie: cloche_session=\xff; a\r\n\r\n", {401}),
        (b"TRACE /healthz HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
        (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
        (b"M-SEARCH /healthz HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"".join(b"X%d: a\r\n" % n for n in range(90)) + b"\r\n", {431}),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"".join(b"X%d: a\r\n" % n for n in range(300)) + b"\r\n", {431}),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000 + b"\r\n\r\n", {431}),
        (b"GET /" + b"a" * 8_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414}),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {0, 400, 404, 505}),
        (JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", {400}),
        (JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (JSON + b"Content-Length: -1\r\n\r\n{}", {400}),
        (JSON + b"Content-Length: 1e3\r\n\r\n{}", {400}),
        (JSON + b"Content-Length: 99999999999999999999999\r\n\r\n{}", {400, 413}),
        (JSON + b"Content-Length: +2\r\n\r\n{}", {400, 422}),
        (JSON + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", {400}),
        (JSON + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", {400}),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", {400}),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", {422}),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", {400}),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}", {400}),
        (JSON + b"Transfer-Encoding: chunked\r\n\r\n2;a=" + b"b" * 20_000 + b"\r\n{}\r\n0\r\n\r\n", {0, 400, 422}),
        (JSON + b"Expect: nothing\r\nContent-Length: 2\r\n\r\n{}", {417, 422}),
        (JSON + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", {415}),
    ],
    ids=lambda value: repr(value)[:48] if isinstance(value, bytes) else "",
)
def test_oddities_are_the_callers_fault(server, request_bytes, expected):
    answer = ask(server, request_bytes)
    assert status(answer) in expected, answer[:300]
    assert b"granian" not in answer.lower()
    assert b"Traceback" not in answer


def test_a_second_request_cannot_hide_in_the_first(server):
    """A front server that goes by Content-Length would pass on as a body what a server that goes by chunks takes for a request."""
    hidden = b"GET /api/v1/me HTTP/1.1\r\n" + HOST + b"\r\n"
    for name in (b"Transfer-Encoding", b"transfer-encoding", b"Transfer-Encoding\t"):
        head = JSON + b"Content-Length: %d\r\n" % (5 + len(hidden)) + name + b": chunked\r\n\r\n0\r\n\r\n"
        answer = ask(server, head + hidden)
        assert answer.count(b"HTTP/1.1 ") <= 1, answer


def test_two_lines_of_the_same_proxy_header_are_one_chain(tmp_path_factory):
    """A client's own line comes first; whoever read only that would believe it."""
    with short_folder() as home:
        running = Server(home, CLOCHE_SERVER_TRUSTED_PROXIES="127.0.0.1", CLOCHE_METRICS_ALLOW="192.0.2.1").ready()
        try:
            for lines in (("192.0.2.1", "198.51.100.3"), ("198.51.100.3, 192.0.2.1", "198.51.100.3")):
                told = b"".join(b"X-Forwarded-For: %s\r\n" % line.encode() for line in lines)
                assert status(ask(running, b"GET /metrics HTTP/1.1\r\n" + HOST + told + b"\r\n")) == 401
            told = b"X-Forwarded-For: 198.51.100.3\r\nX-Forwarded-For: 192.0.2.1\r\n"
            assert status(ask(running, b"GET /metrics HTTP/1.1\r\n" + HOST + told + b"\r\n")) == 200
        finally:
            running.stop()


# Slow on purpose. Each test holds more connections than there are threads, and asks others for something meanwhile.


@contextmanager
def holding(server, request: bytes, count: int = MANY):
    opened = []
    try:
        for _ in range(count):
            one = socket.create_connection(server.address, timeout=20)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            one.sendall(request)
            opened.append(one)
        yield opened
    finally:
        for one in opened:
            one.close()


def closed(one: socket.socket) -> bool:
    """Whether the server has ended this connection; what it sent is thrown away."""
    one.settimeout(0.01)
    try:
        while one.recv(65_536):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def served(server, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"}
    answers = [httpx.get(f"{server.url}{path}", headers=headers, timeout=15) for path in ("/healthz", "/api/v1/me")]
    return all(answer.status_code == 200 for answer in answers)


def test_slow_headers_hold_nobody_up(server, token):
    with holding(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", 200):
        assert served(server, token)


def test_bodies_that_do_not_come_hold_nobody_up_and_end(server, token):
    with holding(server, JSON + b"Content-Length: 1000\r\n\r\n{") as opened:
        assert served(server, token)
        until(lambda: all(map(closed, opened)), 40, "those that waited inside were cut, the others refused")
    answer = httpx.post(f"{server.url}/api/v1/session", json={"username": "x", "password": "y"}, timeout=15)
    assert answer.status_code == 401, "there is room again"


def test_a_body_that_drips_is_no_better(server, token):
    with holding(server, JSON + b"Content-Length: 100000\r\n\r\n{", 2) as opened:
        dripping = set(opened)

        def all_ended() -> bool:
            for one in list(dripping):
                try:
                    one.send(b" ")
                except OSError:
                    dripping.discard(one)
            time.sleep(0.1)  # the drip itself
            return not dripping

        until(all_ended, 60, "both were cut")
    assert served(server, token)


def test_answers_that_are_not_taken_in_hold_nobody_up_and_end(server, token, big):
    request = b"GET %s HTTP/1.1\r\n%sAuthorization: Bearer %s\r\n\r\n" % (big.encode(), HOST, token.encode())
    with holding(server, request):
        assert served(server, token)
        headers = {"Authorization": f"Bearer {token}"}

        def downloads_again() -> bool:
            with httpx.stream("GET", f"{server.url}{big}", headers=headers, timeout=15) as answer:
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"] == "1"
                    return False
                return sum(len(part) for part in answer.iter_bytes()) == BIG

        until(downloads_again, 90, "those that took nothing in were cut, and there is room for others")
