"""Networks, hosts and origins, as settings name them."""

from __future__ import annotations

import ipaddress
import re

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"({_LABEL}\.)*{_LABEL}\Z|\[[0-9a-f:.]+\]\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_SCHEMES = ("http", "https")


def words(text: str) -> list[str]:
    """The entries of a setting that holds several, between commas or spaces."""
    return text.replace(",", " ").split()


def address(text: str) -> Address | None:
    """``text`` as an address; one of IPv4 written as IPv6 (``::ffff:192.0.2.1``) is that of IPv4. None: it is none."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


class Networks:
    """Some networks, and whether an address is in one."""

    def __init__(self, text: str) -> None:
        """``text``: addresses and networks, such as ``127.0.0.1, 10.0.0.0/8, ::1``.

        Raises:
            ValueError: an entry is neither.
        """
        self._networks: list[Network] = []
        for word in words(text):
            try:
                self._networks.append(ipaddress.ip_network(word))
            except ValueError:
                raise ValueError(f"'{word[:60]}' is no address and no network such as 10.0.0.0/8") from None

    def __bool__(self) -> bool:
        return bool(self._networks)

    def hold(self, text: str | None) -> bool:
        found = address(text) if text else None
        return found is not None and any(found in network for network in self._networks)


class Hosts:
    """Names that a server answers to: ``cloche.example``, ``cloche.example:8443``, ``*.example`` (and not ``example`` itself)."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            ValueError: an entry is no host.
        """
        self._exact: set[str] = set()
        self._below: list[str] = []
        for word in words(text.lower()):
            bare = word.removeprefix("*.")
            if split_host(bare) is None:
                raise ValueError(f"'{word[:60]}' is no host such as cloche.example, cloche.example:8443 or *.example")
            if bare != word:
                self._below.append(f".{bare}")
            else:
                self._exact.add(word)

    def __bool__(self) -> bool:
        return bool(self._exact or self._below)

    def hold(self, host: str) -> bool:
        """``host`` as a request names it, with its port if it has one."""
        parts = split_host(host.lower())
        if parts is None:
            return False
        name = parts[0]
        return bool({name, host.lower()} & self._exact) or any(name.endswith(end) for end in self._below)


def split_host(text: str) -> tuple[str, int | None] | None:
    """Name and port of ``name``, ``name:port``, ``192.0.2.1`` or ``[::1]:port``; None when it is none of them."""
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, ""
    elif not _PORT.match(port) or int(port) > 65_535:
        return None
    return (name, int(port) if port else None) if len(name) <= 253 and _HOST.match(name.lower()) else None


def origins(text: str) -> frozenset[str]:
    """Exact origins, such as ``https://app.example``, as browsers send them.

    Raises:
        ValueError: an entry is no origin. ``*`` is none: whoever may ask is named.
    """
    found = set()
    for word in words(text):
        scheme, mark, host = word.partition("://")
        if scheme not in _SCHEMES or not mark or host != host.lower() or split_host(host) is None:
            raise ValueError(f"'{word[:60]}' is no origin such as https://app.example (small letters, no path, no '*')")
        found.add(word)
    return frozenset(found)
