"""The request a job may send: one plain CONNECT, and nothing that two parsers could read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.egress import Endpoint
from cloche.egress.head import BadHead, parse_head, response

GOOD = Endpoint("example.org", 443)


@pytest.mark.parametrize(
    "head",
    [
        "CONNECT example.org:443 HTTP/1.1",
        "CONNECT example.org:443 HTTP/1.0",
        "CONNECT EXAMPLE.org:443 HTTP/1.1\r\nHost: example.org:443\r\nUser-Agent: curl/8\r\nProxy-Connection: Keep-Alive",
        "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org",
        "CONNECT example.org:443 HTTP/1.1\r\nhost:\texample.ORG:443 \r\nX-Empty:",
    ],
)
def test_plain_requests(head):
    assert parse_head(head.encode()) == GOOD


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("", 405),
        ("GET http://example.org/ HTTP/1.1\r\nHost: example.org", 405),
        ("GET / HTTP/1.1", 405),
        ("connect example.org:443 HTTP/1.1", 405),
        (" CONNECT example.org:443 HTTP/1.1", 405),
        ("CONNECT  example.org:443 HTTP/1.1", 400),
        ("CONNECT example.org:443  HTTP/1.1", 400),
        ("CONNECT example.org:443\tHTTP/1.1", 400),
        ("CONNECT example.org:443 HTTP/1.1 ", 400),
        ("CONNECT example.org:443 HTTP/2.0", 400),
        ("CONNECT example.org:443 HTTP/1.11", 400),
        ("CONNECT example.org:443", 400),
        ("CONNECT example.org HTTP/1.1", 400),
        ("CONNECT http://example.org:443 HTTP/1.1", 400),
        ("CONNECT user@example.org:443 HTTP/1.1", 400),
        ("CONNECT example.org:443/ HTTP/1.1", 400),
        ("CONNECT example.org.:443 HTTP/1.1", 400),
        ("CONNECT 2130706433:443 HTTP/1.1", 400),
        ("CONNECT 0x7f.1:443 HTTP/1.1", 400),
        ("CONNECT [::ffff:127.0.0.1]:443 HTTP/1.1", 400),
        ("CONNECT example.org:443 HTTP/1.1\nHost: example.org", 400),
        ("CONNECT example.org:443 HTTP/1.1\rHost: example.org", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\nX: y", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nX: a\0b", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: evil.example:443", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:80", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\nHost: example.org", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n folded: yes", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nHost : example.org", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nno colon", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\n: no name", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nContent-Length: 0", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nTransfer-Encoding: chunked", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\ntransfer-encoding: identity", 400),
        ("CONNECT example.org:443 HTTP/1.1\r\nUpgrade: h2c", 400),
        ("CONNECT " + "a" * 400 + ":443 HTTP/1.1", 400),
        ("CONNECT example.org:443 HTTP/1.1" + "\r\nX: y" * 65, 431),
    ],
)
def test_everything_else_is_refused_with_a_reason(head, status):
    with pytest.raises(BadHead) as refused:
        parse_head(head.encode("latin-1"))
    assert refused.value.status == status
    assert str(refused.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_name_an_endpoint(data):
    for head in (data, b"CONNECT " + data, b"CONNECT example.org:443 HTTP/1.1\r\n" + data):
        try:
            endpoint = parse_head(head)
        except BadHead:
            continue
        assert str(endpoint).encode() in head.lower() or b"[" in head


@given(st.text(max_size=300))
def test_an_answer_is_one_answer_whatever_it_says(detail):
    answer = response(403, detail)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1
    assert len(head.split(b"\r\n")) == 4
    assert f"Content-Length: {len(body)}".encode() in head
