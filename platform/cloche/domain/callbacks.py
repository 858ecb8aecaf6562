"""Callbacks: where a job's end is told, which ends, and when a failed delivery is tried again. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cloche.domain.addresses import Address, Network, is_public, parse_address, parse_network, within
from cloche.domain.egress import BadRule, is_literal, parse_host, parse_port
from cloche.errors import SettingsError

MAX_URL = 2_000
EVENTS = ("completed", "failed", "canceled")
_URL = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]+))?((?:/[^?#]*)?(?:\?[^#]*)?)\Z")
_PLAIN = re.compile(r"[!-~]+\Z")  # printable ASCII without spaces; what else there is has to be percent-encoded
_FIRST_RETRY_MS = 5_000
_LONGEST_RETRY_MS = 3_600_000
_LOWEST_PORT = 1_024  # besides 80 and 443: below it live services that take orders in other languages than HTTP


class Delivery(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"  # waits for its first or its next try
    DELIVERED = "delivered"
    GONE = "gone"  # the receiver answered 410: it wants no more of this job
    GIVEN_UP = "given_up"


class Outcome(StrEnum):
    """How one try ended."""

    DELIVERED = "delivered"
    GONE = "gone"
    HTTP_ERROR = "http_error"
    REDIRECTED = "redirected"
    ADDRESS_REFUSED = "address_refused"
    UNREACHABLE = "unreachable"
    TLS_FAILED = "tls_failed"
    TIMED_OUT = "timed_out"
    MALFORMED = "malformed"
    GIVEN_UP = "given_up"  # no try: it was the last one that failed


OUTCOME_TEXT: dict[Outcome, str] = {
    Outcome.DELIVERED: "The receiver answered with 2xx.",
    Outcome.GONE: "The receiver answered with 410: no more deliveries of this job.",
    Outcome.HTTP_ERROR: "The receiver answered with another status.",
    Outcome.REDIRECTED: "The receiver answered with a redirect, which is not followed.",
    Outcome.ADDRESS_REFUSED: "The host leads to an address that is not public and not allowed.",
    Outcome.UNREACHABLE: "The host has no address, or nobody answers there.",
    Outcome.TLS_FAILED: "There was no TLS, or the certificate is not valid for the host.",
    Outcome.TIMED_OUT: "The receiver did not answer in time.",
    Outcome.MALFORMED: "The answer was not HTTP.",
    Outcome.GIVEN_UP: "Deliveries given up after the last failed try.",
}


@dataclass(frozen=True)
class Target:
    """A callback's URL in parts. ``host`` without brackets; ``path`` is what the request asks for."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """``host:port``, by which receivers are told apart."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True)
class Reach:
    """Which receivers may be called besides public ones: by exact host (with any port or one), or by network."""

    enabled: bool = True
    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()

    def names(self, target: Target) -> bool:
        """Whether the operator named this very receiver."""
        return (target.host, None) in self.hosts or (target.host, target.port) in self.hosts

    def permits(self, target: Target, address: Address) -> bool:
        return is_public(address) or within(address, self.networks) or self.names(target)

    def refusal(self, target: Target) -> str | None:
        """Why the receiver is refused, as far as the URL alone tells; a name's addresses are asked for when it is called."""
        if target.host == "localhost" or target.host.endswith(".localhost"):
            known = self.names(target)
        else:
            known = not is_literal(target.host) or self.permits(target, parse_address(target.host))
        return (
            None
            if known
            else "leads to an address that is not public; the operator may allow it (CLOCHE_CALLBACKS_PRIVATE)"
        )


def parse_url(text: str) -> Target:
    """
    Raises:
        ValueError: it is not an absolute http or https URL of at most 2,000 printable ASCII characters, or has credentials or a fragment.
    """
    if len(text) > MAX_URL:
        raise ValueError(f"a callback's URL has at most {MAX_URL} characters")
    if not _PLAIN.match(text) or "\\" in text:
        raise ValueError("a URL has printable ASCII characters alone; percent-encode all others")
    if "#" in text:
        raise ValueError("a callback's URL has no fragment")
    if "@" in text.partition("://")[2].partition("/")[0].partition("?")[0]:
        raise ValueError("a callback's URL has no credentials; the receiver checks the signature instead")
    match = _URL.match(text)
    if match is None:
        raise ValueError("a callback's URL is https://HOST[:PORT]/PATH or http://…")
    scheme, host, port, path = match.groups()
    try:
        parsed = parse_host(host).strip("[]")
        number = parse_port(port) if port is not None else 443 if scheme == "https" else 80
    except BadRule as error:
        raise ValueError(f"the URL's host or port {error}") from None
    if number not in (80, 443) and number < _LOWEST_PORT:
        raise ValueError(f"a callback's port is 80, 443, or at least {_LOWEST_PORT}")
    return Target(scheme, parsed, number, path if path.startswith("/") else f"/{path}")


def shown_url(text: str) -> str:
    """The URL as readers of the job see it: what its query holds is for the receiver."""
    before, mark, _ = text.partition("?")
    return f"{before}?…" if mark else before


def parse_reach(enabled: bool, entries: Iterable[str]) -> Reach:
    """The operator's setting: ``10.0.0.5``, ``10.0.0.0/24``, ``hooks.internal`` or ``hooks.internal:8443``.

    Raises:
        SettingsError: an entry is none of these.
    """
    hosts: set[tuple[str, int | None]] = set()
    networks: list[Network] = []
    for entry in entries:
        try:
            networks.append(parse_network(entry))
            continue
        except ValueError as error:
            if "/" in entry:
                raise SettingsError(f"callbacks.private: {error}") from None
        name, colon, port = entry.partition(":")
        try:
            hosts.add((parse_host(name), parse_port(port) if colon else None))
        except BadRule as error:
            raise SettingsError(f"callbacks.private: the entry '{entry[:80]}' {error}") from None
    return Reach(enabled, frozenset(hosts), tuple(networks))


def retry_delay_ms(attempts: int, draw: Callable[[int, int], int], asked_s: int | None = None) -> int:
    """How long to wait after the ``attempts``-th failed try: 5 s, 10 s, 20 s … an hour, drawn from the upper half, and at least what the
    receiver asked for (up to an hour)."""
    ceiling = min(_LONGEST_RETRY_MS, _FIRST_RETRY_MS << min(attempts - 1, 20))
    return max(draw(ceiling // 2, ceiling), min((asked_s or 0) * 1_000, _LONGEST_RETRY_MS))


def wanted(callback: Mapping[str, Any] | None, state: str) -> bool:
    """Whether a job with this callback has this end told."""
    return callback is not None and state in callback["events"]
