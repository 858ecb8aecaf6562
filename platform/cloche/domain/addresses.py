"""Which IP addresses belong to the public internet. Pure, and the one answer for remotes and for jobs' egress.

A name that somebody else may choose must never lead to this host, its neighbours or a cloud's metadata service. So an address passes only
when nothing speaks against it: neither our own list (IANA's special-purpose registries) nor what this Python knows of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT, and a cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent, though the address is a public one
        "169.254.0.0/16",  # link-local; the usual metadata address
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # anycast of 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",
        "3fff::/20",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the well-known prefix; the local one, 64:ff9b:1::/48, is never public
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


def peer(text: str | None) -> Address | None:
    """The address that a request came from; an IPv4 one that a socket of IPv6 tells of is the IPv4 one. None: it is none, or has a zone.

    Unlike :func:`within` it looks into no other kind of IPv6 address: whoever sends from one of 6to4 need not own what is wrapped in it.
    """
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return None if address.scope_id is not None else address.ipv4_mapped or address
    return address


def covers(outer: Iterable[Network], inner: Network) -> bool:
    """Whether all of ``inner`` lies in one of ``outer``."""
    return any(
        (isinstance(inner, ipaddress.IPv4Network) and isinstance(each, ipaddress.IPv4Network) and inner.subnet_of(each))
        or (
            isinstance(inner, ipaddress.IPv6Network)
            and isinstance(each, ipaddress.IPv6Network)
            and inner.subnet_of(each)
        )
        for each in outer
    )


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet; an IPv4 address wrapped in an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv4Address):
        listed = any(address in network for network in _REFUSED_V4)
        return not listed and address.is_global and not address.is_multicast and not address.is_reserved
    inner = embedded(address)
    if inner is not None:
        return is_public(inner)
    if address.scope_id is not None or address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _REFUSED_V6) and address.is_global


def embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a translator would make of it: v4-mapped, NAT64, 6to4. None for an ordinary one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour if address in _SIX_TO_FOUR else None


def parse_address(text: str) -> Address:
    """An address as a resolver gives it.

    Raises:
        ValueError: it is none. One with a zone (``fe80::1%eth0``) keeps it, and is never public.
    """
    return ipaddress.ip_address(text)


def parse_network(text: str) -> Network:
    """``10.0.0.5`` or ``10.0.0.0/24``; bits beyond the mask are an error.

    Raises:
        ValueError: it is neither.
    """
    return ipaddress.ip_network(text)


def within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether it lies in one of the networks; an IPv4 address wrapped in an IPv6 one counts as itself."""
    plain: Address = address
    if isinstance(address, ipaddress.IPv6Address):
        plain = embedded(address) or address
        if address.scope_id is not None:
            return False
    return any(plain.version == network.version and plain in network for network in networks)
