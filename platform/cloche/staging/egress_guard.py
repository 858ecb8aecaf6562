"""The one way out for rclone where private addresses are refused: an HTTP CONNECT proxy on loopback, inside the
worker.

Checking an endpoint when a remote is saved is not enough: a name can resolve to something else later, and a server
can redirect. So rclone gets no other way than this proxy, which resolves the name itself, refuses what is not
public, and connects to the very address it checked. It speaks CONNECT alone: a plain ``http://`` request, which
would carry a password in the clear, is refused too. A random password keeps other users of the host from using it.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import secrets
import selectors
import socket
import threading

from cloche.staging.addresses import AddressRefused, resolve_public

_MAX_HEAD = 8_192
_CHUNK = 1 << 16
_CONNECT_S = 10.0
_IDLE_S = 120.0  # longer than rclone's own idle timeout, which ends a stalled transfer
_MAX_TUNNELS = 128


class EgressGuard:
    """A proxy on a free loopback port. ``start`` → ``url`` → ``close``; both may be called twice."""

    def __init__(self) -> None:
        self._secret = secrets.token_urlsafe(24)
        self._expected = "Basic " + base64.b64encode(f"cloche:{self._secret}".encode()).decode()
        self._listener: socket.socket | None = None
        self._places = threading.BoundedSemaphore(_MAX_TUNNELS)

    @property
    def url(self) -> str:
        """What rclone is given; holds the password."""
        if self._listener is None:
            raise RuntimeError("the guard has not been started")
        return f"http://cloche:{self._secret}@127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            threading.Thread(target=self._serve, args=(self._listener,), name="egress-guard", daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):  # wakes the accepting thread; closing alone would not
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed
            if not self._places.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._tunnel, args=(client,), name="egress-tunnel", daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        try:
            # Either side may go away at any time; the other is closed with it.
            with client, contextlib.suppress(OSError):
                client.settimeout(_CONNECT_S)
                head, rest = _read_head(client)
                status = self._refusal(head)
                if status is None:
                    status, server = _connect(head.split(" ", 2)[1])
                    if server is not None:
                        with server:
                            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                            server.sendall(rest)
                            _relay(client, server)
                        return
                client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        finally:
            self._places.release()

    def _refusal(self, head: str) -> str | None:
        request, *headers = head.split("\r\n")
        given = next((h.partition(":")[2].strip() for h in headers if h.lower().startswith("proxy-authorization:")), "")
        if not hmac.compare_digest(given.encode(), self._expected.encode()):
            return "407 Proxy Authentication Required"
        parts = request.split(" ")
        if len(parts) != 3 or parts[0] != "CONNECT":
            return "403 Only encrypted connections"
        return None


def _read_head(client: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(_MAX_HEAD)
        if not chunk or len(data) > _MAX_HEAD:
            raise OSError("no request")
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _connect(target: str) -> tuple[str, socket.socket | None]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        return "400 Bad Request", None
    try:
        endpoints = resolve_public(host.strip("[]"), int(port))
    except AddressRefused:
        return "403 Address refused", None
    except (OSError, UnicodeError):
        return "502 No such host", None
    for endpoint in endpoints:
        with contextlib.suppress(OSError):  # the next address may answer
            return "", socket.create_connection(endpoint, timeout=_CONNECT_S)
    return "502 No answer", None


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Carry bytes both ways until one side ends or nothing moves for ``_IDLE_S`` seconds."""
    client.settimeout(_IDLE_S)
    server.settimeout(_IDLE_S)
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, (client, server))
        selector.register(server, selectors.EVENT_READ, (server, client))
        while ready := selector.select(_IDLE_S):
            for key, _ in ready:
                source, target = key.data
                data = source.recv(_CHUNK)
                if not data:
                    return
                target.sendall(data)
