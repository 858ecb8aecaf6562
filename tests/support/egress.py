"""The egress proxy for tests: the real server, servers on loopback that stand for the outside, and a job's end of a connection."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloche.domain.egress import PlatformEgress, parse_endpoint, platform_egress
from cloche.egress.bounds import Bounds
from cloche.egress.peers import Peers
from cloche.egress.server import EgressServer
from cloche.isolation.egress import EgressReport

LOOPBACK = "127.0.0.1"
_NUMBERS = itertools.count()


class Names:
    """A resolver whose answers a test chooses; each look-up takes the next answer of the name, the last one for ever."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]] | None = None) -> None:
        self.answers = {name: list(values) for name, values in (answers or {}).items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        left = self.answers.get(host)
        if not left:
            raise OSError("no such name")
        return list(left.pop(0) if len(left) > 1 else left[0])


def platform(allow: str = f"{LOOPBACK}:* *:*", private: str = LOOPBACK) -> PlatformEgress:
    return platform_egress(True, allow, private)


@contextlib.contextmanager
def running_egress(
    home: Path, rules: PlatformEgress, names: Names | None = None, bounds: Bounds | None = None, places: int = 1_024
) -> Iterator[EgressServer]:
    """The proxy on the home's own socket, in this process."""
    server = EgressServer(home / "run" / "egress.sock", rules, bounds, places, names)
    server.bind()
    server.start()
    try:
        yield server
    finally:
        server.close()


@dataclass
class Door:
    """A socket that stands for one sandbox's; whoever connects is this process's user."""

    server: EgressServer
    path: Path
    name: str

    def connect(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(20)
        stream.connect(str(self.path))
        return stream

    def ask(self, request: str | bytes) -> tuple[int, str]:
        """The status and the first line of what one request is answered with."""
        with self.connect() as stream:
            stream.sendall(request if isinstance(request, bytes) else request.encode())
            return status(read_all(stream))

    def tunnel(self, target: str) -> socket.socket:
        """A connection that has been let through."""
        stream = self.connect()
        stream.sendall(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            part = stream.recv(1)
            assert part, head
            head += part
        assert b" 200 " in head, head
        return stream

    def close(self) -> EgressReport:
        report = self.server.close_grant(self.name)
        assert report is not None
        return report


def open_door(server: EgressServer, folder: Path, *allow: str, peers: Peers | None = None) -> Door:
    number = next(_NUMBERS)
    path = folder / f"door-{number}.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    users = frozenset({os.geteuid()}) if peers is None else peers
    server.open_grant(f"s{number}", listener, users, tuple(parse_endpoint(text) for text in allow))
    return Door(server, path, f"s{number}")


def read_all(stream: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := stream.recv(65_536):
            data += part
    return data


def status(answer: bytes) -> tuple[int, str]:
    first = answer.split(b"\r\n")[0].decode()
    assert first.startswith("HTTP/1.1 "), answer
    return int(first.split(" ")[1]), first.split(" ", 2)[2]


@dataclass
class Target:
    """A TCP server on loopback. ``seen``: what each connection brought, once it has ended."""

    port: int
    seen: list[bytes] = field(default_factory=list)
    came: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"


def echo(stream: socket.socket, target: Target) -> None:
    """Sends back what comes, until the other side ends."""
    kept = b""
    while part := stream.recv(65_536):
        kept += part
        stream.sendall(part)
    target.seen.append(kept)


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket, Target], None] = echo) -> Iterator[Target]:
    """A server that handles each connection in a thread of its own."""
    listener = socket.create_server((LOOPBACK, 0), backlog=64)
    target = Target(listener.getsockname()[1])

    def one(stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            target.came.release()
            handle(stream, target)

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield target
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
