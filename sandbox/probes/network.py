"""Ways out over sockets. Addresses are those kept for documentation, the link-local metadata one, and the loopback."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import here, syscall, tried, wall

AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK = 16, 17, 38, 40


def _socket(family: int, kind: int, protocol: int) -> None:
    os.close(syscall(here(41, 198), family, kind, protocol))


def _family(name: str, family: int) -> None:
    def probe(_: Job) -> Any:
        kinds = {"stream": 1, "datagram": 2, "raw": 3, "seqpacket": 5}
        return {word: tried(_socket, family, kind, 0) for word, kind in kinds.items()}

    probe.__name__ = name
    wall(probe)


for _name, _number in (
    ("af_netlink", AF_NETLINK),
    ("af_packet", AF_PACKET),
    ("af_alg", AF_ALG),
    ("af_vsock", AF_VSOCK),
):
    _family(_name, _number)


@wall
def other_families(_: Job) -> Any:
    numbers = [n for n in range(64) if n not in (1, 2, 10)] + [255, 1 << 16, (1 << 32) + 16]
    return sorted({tried(_socket, number, kind, 0) for number in numbers for kind in (1, 2, 3)})


@wall
def raw_icmp(_: Job) -> Any:
    def ping() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sender:
            sender.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", ("192.0.2.1", 0))

    return {
        "raw4": tried(_socket, 2, 3, 1),
        "raw6": tried(_socket, 10, 3, 58),
        "raw": tried(_socket, 2, 3, 255),
        "ping": tried(ping),
    }


def _connect(host: str, port: int) -> str:
    def call() -> None:
        with socket.create_connection((host, port), timeout=3):
            pass

    return tried(call)


def _send(family: int, address: tuple[str, int]) -> str:
    def call() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", address)

    return tried(call)


@wall
def interfaces(_: Job) -> Any:
    names = [line.split(":")[0].strip() for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]]
    routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    return {"names": names, "routes": routes}


@wall
def outside(_: Job) -> Any:
    return {
        "tcp4": _connect("192.0.2.1", 443),
        "tcp6": _connect("2001:db8::1", 443),
        "udp4": _send(socket.AF_INET, ("192.0.2.1", 53)),
        "udp6": _send(socket.AF_INET6, ("2001:db8::1", 53)),
        "multicast": _send(socket.AF_INET, ("233.252.0.1", 5353)),
    }


@wall
def metadata(_: Job) -> Any:
    return {"tcp": _connect("169.254.169.254", 80), "udp": _send(socket.AF_INET, ("169.254.169.254", 53))}


@wall
def dns(_: Job) -> Any:
    def look(name: str) -> str:
        try:
            socket.getaddrinfo(name, 80)
        except OSError as error:
            return type(error).__name__
        return "DONE"

    return {name: look(name) for name in ("example.org", "host.docker.internal", "gateway.docker.internal")}


@wall
def host_loopback(job: Job) -> Any:
    """The host listens on this port of its own loopback while we try."""
    port = job.payload["host"]["port"]
    return {"v4": _connect("127.0.0.1", port), "v6": _connect("::1", port)}


@wall
def host_abstract(job: Job) -> Any:
    """The host listens on this name, which lies in no file system."""

    def call() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0" + job.payload["host"]["abstract"])

    return tried(call)


@wall
def make_interface(_: Job) -> Any:
    def control(number: int, data: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, number, data)

    address = struct.pack("16sH2s4s8x", b"lo", socket.AF_INET, b"", socket.inet_aton("192.0.2.9"))
    return {
        "address": tried(control, 0x8916, address),  # SIOCSIFADDR
        "down": tried(control, 0x8914, struct.pack("16sH14x", b"lo", 0)),  # SIOCSIFFLAGS
        "bridge": tried(control, 0x89A0, b"br0".ljust(16, b"\0")),  # SIOCBRADDBR
        "tun": tried(lambda: os.close(os.open("/dev/net/tun", os.O_RDWR))),
    }


@wall
def unix_sockets(_: Job) -> Any:
    """Every socket and FIFO file that can be seen: a door to a process outside would be one."""
    import stat

    found = []
    for folder, names, files in os.walk("/"):
        names[:] = [n for n in names if os.path.join(folder, n) not in ("/proc", "/sys")]
        for name in files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                found.append(path)
    return found
