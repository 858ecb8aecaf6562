"""Who may be reached from a job: endpoints (``host:port``), what a plugin declares, and the patterns of policies. Pure.

What a job may reach = what its plugin's manifest declares ∩ its tenant's policy ∩ the platform's policy. Each begins empty.
One notation for one host: lower case, ASCII (IDNA), no trailing dot; IP addresses only as everybody writes them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import idna

from cloche.domain.addresses import Network, parse_network
from cloche.errors import SettingsError

MAX_DECLARED = 32  # entries of one manifest
MAX_PATTERNS = 256  # of one policy
MAX_TEXT = 2_048  # characters of an entry or of a parameter that names an endpoint
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_PARAM = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)  # a last label that old parsers take for part of an IPv4 address
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?:[/?#].*)?", re.DOTALL)
_DEFAULT_PORTS = {"https": 443, "http": 80}
_PREFIX = "param:"


class BadRule(ValueError):
    """Text that names no endpoint. The message says what to write."""


@dataclass(frozen=True, order=True)
class Endpoint:
    """One host and one port. ``host``: a normalised name, or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Pattern:
    """One entry of a policy. ``host``: a name, an address, ``*.domain`` (anything below it, not itself) or ``*``; ``port`` None: any."""

    host: str
    port: int | None

    def matches(self, endpoint: Endpoint) -> bool:
        if self.port is not None and self.port != endpoint.port:
            return False
        if self.host.startswith("*."):
            return not is_literal(endpoint.host) and endpoint.host.endswith(self.host[1:])
        return self.host in ("*", endpoint.host)

    @property
    def exact(self) -> bool:
        """Whether it names one host."""
        return not self.host.startswith("*")

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{shown}:{'*' if self.port is None else self.port}"


@dataclass(frozen=True)
class Policy:
    """What may be reached at most. Empty: nothing."""

    patterns: tuple[Pattern, ...] = ()

    def allows(self, endpoint: Endpoint) -> bool:
        return any(pattern.matches(endpoint) for pattern in self.patterns)

    def names(self, endpoint: Endpoint) -> bool:
        """Whether it is allowed by an entry that names its very host, without a wildcard."""
        return any(pattern.exact and pattern.matches(endpoint) for pattern in self.patterns)


@dataclass(frozen=True)
class PlatformEgress:
    """What the operator allows. ``private``: networks that are not public and may be reached, by hosts that the policy names exactly: through
    a wildcard anybody's own name could lead there."""

    policy: Policy = Policy()
    private: tuple[Network, ...] = ()


def platform_egress(enabled: bool, allow: str, private: str) -> PlatformEgress:
    """The operator's settings as a policy; entries lie between commas or spaces.

    Raises:
        SettingsError: an entry is malformed.
    """
    if not enabled:
        return PlatformEgress()
    try:
        policy = parse_policy(entries(allow))
    except BadRule as error:
        raise SettingsError(f"egress.allow: an entry {error}") from None
    try:
        return PlatformEgress(policy, tuple(parse_network(text) for text in entries(private)))
    except ValueError as error:
        raise SettingsError(f"egress.private: {error}") from None


def parse_host(text: str) -> str:
    """A host in its one notation: ``EXAMPLE.org`` → ``example.org``, ``bücher.example`` → ``xn--bcher-kva.example``, ``[2001:DB8::1]`` →
    ``2001:db8::1``.

    Raises:
        BadRule: no host name, or an address in another notation than the usual one (short, octal, hexadecimal, one number, with a zone).
    """
    if not text or len(text) > MAX_TEXT:
        raise BadRule("has no host name")
    if text.startswith("["):
        return _ipv6(text)
    name = text.lower() if text.isascii() else _to_ascii(text)
    if len(name) > 253:
        raise BadRule("is longer than a host name can be")
    if name.endswith("."):
        raise BadRule("ends with a dot; leave it out")
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise BadRule(f"{_shown(text)} is no host name")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(name)
    for label in labels:
        if label.startswith("xn--"):
            _check_punycode(label)
    return name


def parse_port(text: str) -> int:
    """
    Raises:
        BadRule: not a number between 1 and 65535, or with a sign, spaces or leading zeros.
    """
    if not _PORT.fullmatch(text) or int(text) > 65_535:
        raise BadRule("needs a port between 1 and 65535, such as 'example.org:443'")
    return int(text)


def parse_endpoint(text: str) -> Endpoint:
    """``host:port``; the port has to be there.

    Raises:
        BadRule: see :func:`parse_host` and :func:`parse_port`.
    """
    host, separator, port = text.rpartition(":")
    if not separator:
        raise BadRule("needs a port, such as 'example.org:443'")
    if ":" in host and not host.startswith("["):
        raise BadRule("has more than one ':'; write an IPv6 address in brackets, as in '[2001:db8::1]:443'")
    return Endpoint(parse_host(host), parse_port(port))


def parse_pattern(text: str) -> Pattern:
    """An entry of a policy: ``host:port`` where the host may be ``*`` or ``*.domain`` and the port ``*``.

    Raises:
        BadRule: it is none.
    """
    host, separator, port = text.rpartition(":")
    if not separator:
        raise BadRule("needs a port, such as 'example.org:443' or 'example.org:*'")
    number = None if port == "*" else parse_port(port)
    if host == "*":
        return Pattern("*", number)
    if host.startswith("*."):
        below = parse_host(host[2:])
        if is_literal(below):
            raise BadRule("a '*.' stands before a domain, not before an address")
        return Pattern(f"*.{below}", number)
    if ":" in host and not host.startswith("["):
        raise BadRule("has more than one ':'; write an IPv6 address in brackets, as in '[2001:db8::1]:443'")
    return Pattern(parse_host(host), number)


def parse_policy(entries: Sequence[str]) -> Policy:
    """
    Raises:
        BadRule: an entry is none, or there are more than ``MAX_PATTERNS``.
    """
    if len(entries) > MAX_PATTERNS:
        raise BadRule(f"has more than {MAX_PATTERNS} entries")
    return Policy(tuple(dict.fromkeys(parse_pattern(entry) for entry in entries)))


def parse_target(text: str) -> Endpoint:
    """What a parameter names: ``host:port``, or an ``https://`` or ``http://`` URL (443 and 80 where it names no port).

    Raises:
        BadRule: another scheme, a user name or password in the URL, white space or control characters, no host.
    """
    if len(text) > MAX_TEXT:
        raise BadRule(f"is longer than {MAX_TEXT} characters")
    if "\\" in text or not text.isprintable() or any(char.isspace() for char in text):
        raise BadRule("has white space, a backslash or a control character in it")
    if "://" not in text:
        return parse_endpoint(text)
    match = _URL.fullmatch(text)
    if match is None:
        raise BadRule("is no URL")
    scheme, authority = match["scheme"].lower(), match["authority"]
    if scheme not in _DEFAULT_PORTS:
        raise BadRule("must be an https:// or http:// URL, or host:port")
    if "@" in authority:
        raise BadRule("has a user name in its URL; leave it out")
    closed = authority.rpartition("]")[2] if authority.startswith("[") else authority
    if ":" in closed:
        return parse_endpoint(authority)
    return Endpoint(parse_host(authority), _DEFAULT_PORTS[scheme])


def parameter(entry: str) -> str | None:
    """The parameter's name of a ``param:NAME`` entry; None for ``host:port``.

    Raises:
        BadRule: ``param:`` without a name.
    """
    if not entry.startswith(_PREFIX):
        return None
    name = entry[len(_PREFIX) :]
    if not _PARAM.fullmatch(name):
        raise BadRule("'param:' is followed by the name of a parameter, such as 'param:url'")
    return name


def resolve(entry: str, payload: Mapping[str, Any]) -> Endpoint | None:
    """The endpoint that a manifest's entry means for a job with this payload; None when the parameter was not given.

    Raises:
        BadRule: the parameter's value is not text that names one.
    """
    name = parameter(entry)
    if name is None:
        return parse_endpoint(entry)
    value = payload.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRule("must be text: host:port, or an https:// or http:// URL")
    return parse_target(value)


def is_literal(host: str) -> bool:
    """Whether a normalised host is an IP address."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def entries(text: str) -> list[str]:
    """The parts of a setting that is a list: between commas or spaces."""
    return [part for part in text.replace(",", " ").split() if part]


def _ipv6(text: str) -> str:
    if not text.endswith("]") or "%" in text:
        raise BadRule("is no IPv6 address in brackets, as in '[2001:db8::1]:443'")
    try:
        address = ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        raise BadRule("is no IPv6 address in brackets, as in '[2001:db8::1]:443'") from None
    if address.ipv4_mapped is not None:
        raise BadRule("wraps an IPv4 address; write that instead")
    return str(address)


def _ipv4(text: str) -> str:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        address = None
    if address is None or str(address) != text:
        raise BadRule("looks like an IP address in an odd notation; write four decimal numbers, as in '192.0.2.1'")
    return text


def _to_ascii(text: str) -> str:
    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        raise BadRule(f"{_shown(text)} is no host name") from None


def _check_punycode(label: str) -> None:
    try:
        idna.ulabel(label)
    except (idna.IDNAError, UnicodeError):
        raise BadRule(f"{_shown(label)} is no well-formed IDNA label") from None


def _shown(text: str) -> str:
    return ascii(text[:80])
