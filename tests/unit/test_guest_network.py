"""The guest's way out, between a client and an egress proxy of the test's own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloche_guest.network import Network
from tests.support.stores import short_folder

GRANTED = b"HTTP/1.1 200 connected\r\n\r\n"
Origin = Callable[[socket.socket], None]


def head_of(stream: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        part = stream.recv(4_096)
        assert part, head
        head += part
    return head


@pytest.fixture
def reach() -> Iterator[Callable[[Origin], socket.socket]]:
    """A connection to the guest's proxy, behind which a host behaves as it is told to."""
    opened: list[socket.socket] = []
    with short_folder() as folder:
        path = Path(folder) / "egress.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        network = Network(["web.example:80"], str(path))

        def begin(origin: Origin) -> socket.socket:
            def serve() -> None:
                stream, _ = listener.accept()
                with stream:
                    assert head_of(stream).startswith(b"CONNECT web.example:80 ")
                    stream.sendall(GRANTED)
                    origin(stream)

            threading.Thread(target=serve, daemon=True).start()
            host, port = network.proxy.removeprefix("http://").split(":")
            client = socket.create_connection((host, int(port)), 20)
            opened.append(client)
            return client

        yield begin
        for stream in (*opened, listener):
            stream.close()


def everything(stream: socket.socket) -> bytes:
    data = b""
    while part := stream.recv(4_096):
        data += part
    return data


def test_an_answer_says_that_its_connection_ends(reach: Callable[[Origin], socket.socket]) -> None:
    """An origin that was told to close need not say so itself; a client with a pool would send its next request into the end."""
    asked: list[bytes] = []

    def origin(stream: socket.socket) -> None:
        asked.append(head_of(stream))
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=9\r\n\r\nok")

    client = reach(origin)
    client.sendall(b"GET http://web.example/a?b HTTP/1.1\r\nHost: web.example\r\nProxy-Connection: keep-alive\r\n\r\n")
    assert everything(client) == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    assert asked == [b"GET /a?b HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n"]


def test_an_answer_that_is_still_to_come_is_waited_for(reach: Callable[[Origin], socket.socket]) -> None:
    def origin(stream: socket.socket) -> None:
        head_of(stream)
        stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert stream.recv(4_096) == b"body"
        stream.sendall(b"HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n")

    client = reach(origin)
    client.sendall(b"PUT http://web.example/ HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert head_of(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"body")
    assert everything(client) == b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


def test_what_is_no_answer_ends_the_connection(reach: Callable[[Origin], socket.socket]) -> None:
    def origin(stream: socket.socket) -> None:
        head_of(stream)
        stream.sendall(b"garbage")

    client = reach(origin)
    client.sendall(b"GET http://web.example/ HTTP/1.1\r\n\r\n")
    assert everything(client) == b""
