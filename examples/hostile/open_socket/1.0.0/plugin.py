"""Tries to get out to a network. When every attempt is refused it raises, saying how; what got out is returned as ``leaked``.

So a job of this type that *completes* is an alarm.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from cloche_guest import Job, hookimpl

TIMEOUT = 2.0  # seconds for each attempt
OUTSIDE = "192.0.2.1"  # set aside for documentation (RFC 5737): nobody is there, so only a route to it can be found
METADATA = "169.254.169.254"  # where cloud machines serve their credentials
BRIDGE = "172.17.0.1"  # the container engine's usual gateway: the host


@hookimpl
def run(job: Job) -> dict[str, Any]:
    host, port = job.payload["host"], job.payload["port"]
    attempts: dict[str, Callable[[], object]] = {
        f"resolve {host}": lambda: socket.getaddrinfo(host, port),
        f"connect to {host}:{port}": lambda: connect(socket.AF_INET, (host, port)),
        f"connect to {OUTSIDE}:53": lambda: connect(socket.AF_INET, (OUTSIDE, 53)),
        f"send a datagram to {OUTSIDE}:53": lambda: datagram((OUTSIDE, 53)),
        f"connect to {METADATA}:80": lambda: connect(socket.AF_INET, (METADATA, 80)),
        f"connect to {BRIDGE}:22": lambda: connect(socket.AF_INET, (BRIDGE, 22)),
        "connect over IPv6": lambda: connect(socket.AF_INET6, ("2001:db8::1", 53, 0, 0)),
        "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(),
        "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "reach the host through AF_VSOCK": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
        "talk to the container engine": lambda: connect(socket.AF_UNIX, "/var/run/docker.sock"),
        "find another interface than lo": interfaces,
    }
    refused, leaked = [], []
    for number, (name, attempt) in enumerate(attempts.items(), start=1):
        try:
            leaked.append(f"{name}: {attempt() or 'worked'}")
        except TimeoutError:
            leaked.append(f"{name}: no answer, so there is a way out")
        except OSError as error:
            refused.append(f"{name}: {error.strerror or error}")
            print(f"refused: {refused[-1]}")
        job.progress(number, len(attempts), name)
    if leaked:
        return {"leaked": leaked, "refused": refused}
    raise PermissionError(f"no way out: all {len(refused)} attempts were refused ({'; '.join(refused[:3])}; …)")


def connect(family: int, address: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(address)


def datagram(address: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.sendto(b"\0", address)


def interfaces() -> str:
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not others:
        raise OSError("there is only lo")
    return ", ".join(others)
