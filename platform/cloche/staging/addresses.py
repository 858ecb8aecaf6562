"""The egress rule of remotes: which addresses an endpoint may have.

A remote's endpoint is a string an administrator of a tenant writes, and the platform connects to it from its own
network. Unless the operator allows it, no such string may lead to this host, its neighbours or a cloud's metadata
service.
"""

from __future__ import annotations

import socket

from cloche.domain.addresses import is_public, parse_address


class AddressRefused(Exception):
    """The host leads to an address that the egress rule refuses. The message names it."""


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
        if not is_public(parse_address(text)):
            raise AddressRefused(f"{host} leads to {text}, which is not a public address")
        found.append((text, port))
    return found
