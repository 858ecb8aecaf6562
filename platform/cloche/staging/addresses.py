"""The egress rule of remotes: which addresses an endpoint may have.

A remote's endpoint is a string an administrator of a tenant writes, and the platform connects to it from its own
network. Unless the operator allows it, no such string may lead to this host, its neighbours or a cloud's metadata
service.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressRefused(Exception):
    """The host leads to an address that the egress rule refuses. The message names it."""


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet; an IPv4 address wrapped in an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def resolve_public(host: str, port: int) -> list[tuple[str, int]]:
    """The host's addresses, each with the port. One that is not public refuses them all: its answer could change
    between two look-ups.

    Raises:
        AddressRefused: one of them is loopback, private, link-local or otherwise not public.
        OSError: the name has no address.
    """
    found = []
    for *_, endpoint in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        text = str(endpoint[0])
        if not is_public(ipaddress.ip_address(text.partition("%")[0])):
            raise AddressRefused(f"{host} leads to {text}, which is not a public address")
        found.append((text, port))
    return found
