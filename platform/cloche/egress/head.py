"""The one request a job may send: ``CONNECT host:port``. Pure, strict, bounded.

Whatever two parsers could read differently is refused: bare line feeds, folded lines, spaces before a colon, a body, a second Host.
"""

from __future__ import annotations

import re

from cloche.domain.egress import BadRule, Endpoint, parse_endpoint

MAX_HEAD = 8_192  # bytes, with its last empty line
END = b"\r\n\r\n"
_MAX_FIELDS = 64
_REQUEST = re.compile(rb"CONNECT ([!-~]{1,300}) HTTP/1\.[01]")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([\t -~\x80-\xff]*)")


class BadHead(Exception):
    """A request that is refused unread. ``status`` is what HTTP calls it; the message is for the plugin's author."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def parse_head(head: bytes) -> Endpoint:
    """The endpoint that a request (without its last empty line) asks for.

    Raises:
        BadHead: it is anything else than one plain CONNECT.
    """
    request, *fields = head.split(b"\r\n")
    if b"\n" in head.replace(b"\r\n", b"") or b"\r" in head.replace(b"\r\n", b"") or b"\0" in head:
        raise BadHead(400, "lines end with CR LF, and hold no control characters")
    match = _REQUEST.fullmatch(request)
    if match is None:
        if not request.startswith(b"CONNECT "):
            raise BadHead(405, "only CONNECT host:port is understood here")
        raise BadHead(400, "the first line is 'CONNECT host:port HTTP/1.1'")
    if len(fields) > _MAX_FIELDS:
        raise BadHead(431, f"more than {_MAX_FIELDS} header fields")
    endpoint = _endpoint(match[1])
    _check_fields(fields, endpoint)
    return endpoint


def _check_fields(fields: list[bytes], endpoint: Endpoint) -> None:
    hosts = 0
    for field in fields:
        match = _FIELD.fullmatch(field)
        if match is None:
            raise BadHead(400, "a malformed header field")
        name, value = match[1].lower(), match[2].strip(b" \t")
        if name in (b"content-length", b"transfer-encoding", b"upgrade", b"expect"):
            raise BadHead(400, f"a CONNECT request has no {name.decode()}")
        if name == b"host":
            hosts += 1
            if hosts > 1 or not _same_host(value, endpoint):
                raise BadHead(400, "Host is not the host of the request line, or there are two")


def _same_host(value: bytes, endpoint: Endpoint) -> bool:
    """Whether a Host field means the endpoint; clients leave the port out, or add it."""
    shown = value.decode("latin-1")
    for text in (shown, f"{shown}:{endpoint.port}"):
        try:
            if parse_endpoint(text) == endpoint:
                return True
        except BadRule:
            continue
    return False


def _endpoint(target: bytes) -> Endpoint:
    try:
        return parse_endpoint(target.decode("ascii"))
    except BadRule as error:
        raise BadHead(400, f"the target {error}") from None


def response(status: int, detail: str) -> bytes:
    """A whole answer. The detail stands in the status line as well: most clients show nothing else."""
    line = "".join(char for char in detail if " " <= char <= "~")[:200]
    body = f"{line}\n".encode()
    head = f"HTTP/1.1 {status} {line}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
