"""The CONNECT proxy that stands between rclone and the network."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from cloche.staging import egress_guard
from cloche.staging.addresses import AddressRefused
from cloche.staging.egress_guard import EgressGuard


@pytest.fixture
def guard() -> Iterator[EgressGuard]:
    made = EgressGuard()
    made.start()
    yield made
    made.close()


def ask(guard: EgressGuard, line: str, *, secret: str | None = None) -> bytes:
    parts = urlsplit(guard.url)
    token = base64.b64encode(f"cloche:{parts.password if secret is None else secret}".encode()).decode()
    with socket.create_connection(("127.0.0.1", parts.port or 0), timeout=10) as client:
        client.sendall(f"{line}\r\nHost: x\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode("latin-1"))
        return client.recv(4_096)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:22",
        "localhost:22",
        "[::1]:22",
        "169.254.169.254:80",
        "10.1.2.3:443",
        "2130706433:80",
        "[::ffff:127.0.0.1]:22",
    ],
)
def test_private_targets_are_refused(guard: EgressGuard, target: str) -> None:
    assert ask(guard, f"CONNECT {target} HTTP/1.1").startswith(b"HTTP/1.1 403 Address refused")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://example.org/ HTTP/1.1", b"403"),
        ("PROPFIND http://127.0.0.1/ HTTP/1.1", b"403"),
        ("CONNECT x HTTP/1.1", b"400"),
        ("CONNECT example.org:0 HTTP/1.1", b"400"),
        ("CONNECT example.org:99999 HTTP/1.1", b"400"),
        ("CONNECT no-such-host.invalid:443 HTTP/1.1", b"502"),
        ("nonsense", b"403"),
    ],
)
def test_all_but_connect_is_refused(guard: EgressGuard, line: str, status: bytes) -> None:
    assert ask(guard, line).split(b" ")[1] == status


def test_it_asks_for_its_password(guard: EgressGuard) -> None:
    assert ask(guard, "CONNECT 93.184.216.34:443 HTTP/1.1", secret="guess").startswith(b"HTTP/1.1 407")


def test_it_connects_to_the_address_it_checked(guard: EgressGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved once: the tunnel goes to what that gave, whatever it resolves to afterwards."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        real = server.getsockname()

        def resolve(host: str, port: int) -> list[tuple[str, int]]:
            asked.append(host)
            if len(asked) > 1:
                raise AddressRefused("rebound")
            return [real]

        monkeypatch.setattr(egress_guard, "resolve_public", resolve)
        parts = urlsplit(guard.url)
        token = base64.b64encode(f"cloche:{parts.password}".encode()).decode()
        with socket.create_connection(("127.0.0.1", parts.port or 0), timeout=10) as client:
            head = f"CONNECT files.example.org:443 HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n\r\n"
            client.sendall(head.encode() + b"early")
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(10)
                assert accepted.recv(100) == b"early"
                assert client.recv(4_096).startswith(b"HTTP/1.1 200")
                accepted.sendall(b"late")
                assert client.recv(100) == b"late"
                client.shutdown(socket.SHUT_WR)
                assert accepted.recv(100) == b""
    assert asked == ["files.example.org"]


def test_close_twice() -> None:
    guard = EgressGuard()
    guard.start()
    guard.close()
    guard.close()
