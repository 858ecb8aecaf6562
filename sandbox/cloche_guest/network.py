"""A job's way out: an HTTP proxy, forwarded ports and ``connect``, all on the sandbox's own loopback.

Each connection goes as ``CONNECT host:port`` to the egress proxy outside, through the socket in ``/run/cloche``; that one decides, this module only
carries. Imported only for a job that has egress. One thread for everything, so that connections cost no processes of the job's limit.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

SOCKET = "/run/cloche/egress.sock"
_LOOPBACK = "127.0.0.1"
_CHUNK = 64 << 10
_MAX_HEAD = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ?([^\r\n]*)")
_NOT_YET = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d[ \r]")
_END = b"\r\n\r\n"
_OF_CONNECTIONS = ("connection", "proxy-connection", "keep-alive")

_create_connection = socket.create_connection
_DEFAULT: Any = object()

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Carrier = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Refused(OSError):
    """The egress proxy said no. ``answer`` is its whole answer."""

    def __init__(self, status: int, reason: str, answer: bytes) -> None:
        super().__init__(reason)
        self.status = status
        self.answer = answer


class Network:
    """What ``Job.connect`` and ``Job.forward`` do. ``allow``: the endpoints this job may reach, as text."""

    def __init__(self, allow: Sequence[str], path: str = SOCKET) -> None:
        self.allow = tuple(allow)
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._forwarded: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._servers: list[asyncio.Server] = []  # a server that nobody holds would be collected
        threading.Thread(target=self._loop.run_forever, name="network", daemon=True).start()
        self._proxy = self._listen(self._serve_proxy)

    @property
    def proxy(self) -> str:
        """URL of the HTTP proxy, for programs that know one."""
        return f"http://{_LOOPBACK}:{self._proxy}"

    def install(self) -> None:
        """Tell this process and its children where the proxy is, and lead ``socket.create_connection`` through it.

        The standard library's own clients (smtplib, imaplib, http.client …) make their connections by that function, so they reach what the job
        may reach, under its own name, as they are.
        """
        socket.create_connection = self._create_connection  # type: ignore[assignment]
        os.environ.update(self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """What tells programs of the proxy, in both spellings that are in use."""
        lower = {"http_proxy": self.proxy, "https_proxy": self.proxy, "no_proxy": "localhost,127.0.0.1,::1"}
        return lower | {name.upper(): value for name, value in lower.items()}

    def _create_connection(
        self, address: tuple[str, int], timeout: Any = _DEFAULT, *args: Any, **more: Any
    ) -> socket.socket:
        host, port = address[:2]
        if self._knows(host, port):
            return self.connect(host, port, socket.getdefaulttimeout() if timeout is _DEFAULT else timeout)
        given = () if timeout is _DEFAULT else (timeout,)
        return _create_connection(address, *given, *args, **more)

    def _knows(self, host: Any, port: Any) -> bool:
        try:
            return _target(host, port) in self.allow
        except (ValueError, TypeError):
            return False  # no host name, or the name of a service: the ordinary function says what is wrong

    def connect(self, host: str, port: int, timeout: float | None = None) -> socket.socket:
        """A TCP socket that leads to the host.

        Raises:
            OSError: refused; the message says why.
        """
        stream = _create_connection((_LOOPBACK, self._proxy), timeout)
        try:
            stream.sendall(_request(host, port))
            answer = b""
            while _END not in answer:
                # One byte at a time: what comes behind the answer is for the caller.
                part = stream.recv(1)
                if not part or len(answer) > _MAX_HEAD:
                    raise ConnectionError("the egress proxy has gone")
                answer += part
            status, reason = _status(answer)
            if status != 200:
                kind = PermissionError if status == 403 else ConnectionError
                raise kind(reason)
        except BaseException:
            stream.close()
            raise
        return stream

    def forward(self, host: str, port: int) -> tuple[str, int]:
        """A port on loopback whose every connection leads to the host. The same one each time."""
        with self._lock:
            if (host, port) not in self._forwarded:

                async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await self._tunnel((reader, writer), host, port)

                self._forwarded[host, port] = self._listen(serve)
            return _LOOPBACK, self._forwarded[host, port]

    def _listen(self, handler: Handler) -> int:
        async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                return  # either side went away, or its request made no sense: the connection ends
            finally:
                writer.close()

        async def start() -> int:
            server = await asyncio.start_server(quiet, _LOOPBACK, 0, limit=_MAX_HEAD)
            self._servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    async def _serve_proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_END)
        if not head.startswith(b"CONNECT "):
            await self._plain((reader, writer), head)
            return
        out = await asyncio.open_unix_connection(self._path)
        out[1].write(head)  # as it came: the proxy outside reads it with more care than we would
        await _carry_both((reader, writer), out)

    async def _plain(self, client: Streams, head: bytes) -> None:
        """``GET http://host/path``: the same through CONNECT, one request a connection."""
        writer = client[1]
        first, *fields = head[: -len(_END)].decode("latin-1").split("\r\n")
        method, url, version = first.split(" ")
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            writer.write(
                b"HTTP/1.1 400 only http:// URLs and CONNECT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        try:
            out = await self._open(parts.hostname, parts.port or 80)
        except Refused as refusal:
            writer.write(refusal.answer)
            return
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        out[1].write(_closing(f"{method} {path} {version}", fields))
        await _carry_both(client, out, _answer)

    async def _tunnel(self, client: Streams, host: str, port: int) -> None:
        await _carry_both(client, await self._open(host, port))

    async def _open(self, host: str, port: int) -> Streams:
        """
        Raises:
            Refused: by the proxy outside.
            OSError: it is not there.
        """
        reader, writer = await asyncio.open_unix_connection(self._path, limit=_MAX_HEAD)
        try:
            writer.write(_request(host, port))
            head = await reader.readuntil(_END)
            status, reason = _status(head)
            if status != 200:
                raise Refused(status, reason, head + await reader.read(_MAX_HEAD))
        except BaseException:
            writer.close()
            raise
        return reader, writer


def _closing(first: str, fields: Sequence[str]) -> bytes:
    """A head that says that its connection ends with it."""
    kept = [field for field in fields if field.split(":")[0].lower() not in _OF_CONNECTIONS]
    return "\r\n".join([first, *kept, "Connection: close"]).encode("latin-1") + _END


async def _carry_both(one: Streams, other: Streams, back: Carrier | None = None) -> None:
    try:
        await asyncio.gather(_carry(one[0], other[1]), (back or _carry)(other[0], one[1]))
    finally:
        one[1].close()
        other[1].close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One answer. It need not say itself that it is the last, and a client that did not know would ask again as we close."""
    while True:
        head = await reader.readuntil(_END)
        first, *fields = head[: -len(_END)].decode("latin-1").split("\r\n")
        if not _NOT_YET.match(head):
            break
        writer.write(head)  # 100 Continue: the answer is still to come
    writer.write(_closing(first, fields))
    await _carry(reader, writer)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _target(host: str, port: int) -> str:
    """``host:port`` as the proxy outside reads it.

    Raises:
        ValueError: no host name.
    """
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    target = f"{name if name.isascii() else name.encode('idna').decode('ascii')}:{int(port)}".lower()
    if not all("!" <= char <= "~" for char in target):
        raise ValueError("no host name")
    return target


def _request(host: str, port: int) -> bytes:
    target = _target(host, port)
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii")


def _status(head: bytes) -> tuple[int, str]:
    match = _STATUS.match(head)
    if match is None:
        raise ConnectionError("the egress proxy's answer makes no sense")
    return int(match[1]), match[2].decode("latin-1")
