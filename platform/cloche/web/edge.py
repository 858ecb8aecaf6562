"""Where a request came from, when a proxy stands in between; and what is refused before anything looks at it.

Only a proxy that ``server.trusted_proxies`` names is believed, and only in the style of header that ``server.proxy_headers`` names: the other
one may have come from its client. Of the addresses it tells, the right-most that is not itself such a proxy is the client; whatever stands
further left was written by somebody unknown. What nobody is believed for is taken away before the app sees it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flask import Flask, request

from cloche.errors import BadRequest, RequestError
from cloche.netnames import Hosts, Networks, address, split_host
from cloche.server_settings import ServerSettings
from cloche.web.stalls import Stalls

PEER = "cloche.peer"  # in the environ: the address at the other end of the connection
FORWARDED = "cloche.forwarded"  # there: something passed this request on; True: it is believed who the client is
MAX_HOPS = 16
MAX_PATH = 4_096  # bytes of a path as it travels, about; the query has a bound of its own
MAX_HEADERS = 80
MAX_HEADER_BYTES = 32_768  # all of them together
_CLAIMS = (
    "HTTP_FORWARDED",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PREFIX",
    "HTTP_X_REAL_IP",
    "HTTP_VIA",
)
_PAIR = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^\s;,"]*)\s*([;,]|\Z)')
_ANYHOW = frozenset({"/healthz"})  # asked by address, from whatever watches the process
Told = dict[str, str]
WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


class TooLong(RequestError):
    status, code, title = 414, "uri-too-long", "Address too long"


class HeadersTooLarge(RequestError):
    status, code, title = 431, "headers-too-large", "Header fields too large"


class Misdirected(RequestError):
    status, code, title = 421, "host-not-allowed", "Misdirected request"


def register(app: Flask, settings: ServerSettings) -> Stalls:
    """Wrap the app, and refuse what is too large or is asked of a host that this server is not. What is returned has to be closed."""
    proxies, hosts = Networks(settings.trusted_proxies), Hosts(settings.allowed_hosts)
    stalls = Stalls(settings.patience / 1000, proxies)
    inner: WSGI = app.wsgi_app

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        resolve(environ, proxies, settings.proxy_headers)
        environ["wsgi.input"] = stalls.body(environ["wsgi.input"], environ[PEER])
        return stalls.answer(inner(environ, start_response), environ[PEER])

    app.wsgi_app = wrapped  # type: ignore[method-assign]

    @app.before_request
    def check() -> None:
        _check_size()
        if hosts and request.path not in _ANYHOW and not hosts.hold(request.environ.get("HTTP_HOST", "")):
            raise Misdirected("This server does not answer to the host that the request names.")

    return stalls


def resolve(environ: dict[str, Any], proxies: Networks, style: str) -> None:
    """Put the client's address, the scheme and the host into the environ, as a trusted proxy told them."""
    peer = str(environ.get("REMOTE_ADDR") or "")
    environ[PEER] = peer
    if not any(name in environ for name in _CLAIMS):
        if proxies and proxies.hold(peer):
            environ[FORWARDED] = False  # passed on without a word about whom for
        return
    believed = bool(proxies) and proxies.hold(peer)
    chain = (_forwarded if style == "forwarded" else _x_forwarded)(environ) if believed else []
    for name in _CLAIMS:
        environ.pop(name, None)
    environ["REMOTE_ADDR"] = found = client(peer, [told.get("for", "") for told in chain], proxies)
    environ[FORWARDED] = believed and found != peer
    nearest = chain[-1] if chain else {}
    if nearest.get("proto", "").lower() in ("http", "https"):
        environ["wsgi.url_scheme"] = nearest["proto"].lower()
    if split_host(nearest.get("host", "")) is not None:
        environ["HTTP_HOST"] = nearest["host"]


def client(peer: str, chain: Sequence[str], proxies: Networks) -> str:
    """The right-most address that is not a trusted proxy's. ``chain``: what was told, the nearest last."""
    found = peer
    for hop in reversed(chain[-MAX_HOPS:]):
        if not proxies.hold(found):
            break
        told = _hop(hop)
        if told is None:
            break
        found = told
    return found


def client_key() -> str:
    """The current request's client for what is counted by address; of IPv6 the network that one customer has: its addresses cost nothing."""
    told = request.remote_addr or "local"
    if ":" not in told:
        return told
    try:
        return str(ipaddress.ip_network((told.partition("%")[0], 64), strict=False))
    except ValueError:
        return told


def _hop(text: str) -> str | None:
    """``192.0.2.1``, ``192.0.2.1:4711``, ``[2001:db8::1]``, ``[2001:db8::1]:4711`` or ``2001:db8::1`` as an address."""
    bare = text.strip()
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    found = address(bare)
    return str(found) if found is not None else None


def _x_forwarded(environ: dict[str, Any]) -> list[Told]:
    hops = [{"for": hop} for hop in environ.get("HTTP_X_FORWARDED_FOR", "").split(",")[-MAX_HOPS:]]
    for name in ("proto", "host"):
        hops[-1][name] = environ.get(f"HTTP_X_FORWARDED_{name.upper()}", "").rpartition(",")[2].strip()
    return hops


def _forwarded(environ: dict[str, Any]) -> list[Told]:
    """The elements of RFC 7239's header; nothing at all when it is malformed."""
    text = environ.get("HTTP_FORWARDED", "")
    elements: list[Told] = [{}]
    at = 0
    while at < len(text):
        match = _PAIR.match(text, at)
        if match is None or match[1].lower() in elements[-1]:
            return []
        value = match[2]
        elements[-1][match[1].lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
        if match[3] == ",":
            elements.append({})
        at = match.end()
    return elements


def _check_size() -> None:
    environ = request.environ
    if len(environ.get("PATH_INFO", "")) > MAX_PATH:
        raise TooLong(f"The path is longer than {MAX_PATH} bytes.")
    if "\x00" in environ.get("PATH_INFO", ""):
        raise BadRequest("The path holds a zero byte.")
    fields = [(name, value) for name, value in environ.items() if name.startswith("HTTP_")]
    size = sum(len(name) + len(value) for name, value in fields)
    if len(fields) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"Send at most {MAX_HEADERS} header fields, and {MAX_HEADER_BYTES} bytes of them.")
