"""A client for measuring servers: requests are spelled beforehand, connections are kept, and nothing is parsed but what frames an answer.

A client of the usual kind takes as long for a request as the servers that are measured here.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

_CHUNK = 256 << 10
_PATIENCE_S = 120.0


def spelled(url: str, method: str, body: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP/1.1 request. ``body``: JSON."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if data:
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class Line:
    """One kept connection to the server of ``url``, for one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=_PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._had = bytearray()

    def ask(self, request: bytes, status: int) -> Any:
        """Send it, and return the answer's JSON once it is there.

        Raises:
            RuntimeError: the answer has another status.
        """
        self.socket.sendall(request)
        while (answer := self.answer()) is None:
            pass
        return json.loads(checked(answer, status))

    def answer(self) -> tuple[int, bytes] | None:
        """Read once; the whole answer when it is there."""
        data = self.socket.recv(_CHUNK)
        if not data:
            raise RuntimeError("the server closed the connection")
        self._had += data
        end = self._had.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self._had[:end]).lower()
        at = head.find(b"content-length:")
        if at < 0:
            raise RuntimeError(f"an answer without a length: {head[:200]!r}")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._had) < end + 4 + size:
            return None
        body = bytes(self._had[end + 4 : end + 4 + size])
        self._had.clear()
        return int(head[9:12]), body

    def close(self) -> None:
        self.socket.close()


def flood(url: str, requests: Sequence[bytes], lines: int, status: int) -> float:
    """Send all of them over so many connections, each with the next request as soon as the last was answered; the seconds it took.

    Raises:
        RuntimeError: an answer has another status.
    """
    left = iter(requests)
    with selectors.DefaultSelector() as waiting:
        for _ in range(lines):
            line = Line(url)
            waiting.register(line.socket, selectors.EVENT_READ, line)
        began = time.perf_counter()
        for key in list(waiting.get_map().values()):
            _next(waiting, key.data, left)
        while waiting.get_map():
            ready = waiting.select(_PATIENCE_S)
            if not ready:
                raise RuntimeError("the server does not answer")
            for key, _ in ready:
                answer = key.data.answer()
                if answer is not None:
                    checked(answer, status)
                    _next(waiting, key.data, left)
        return time.perf_counter() - began


def _next(waiting: selectors.BaseSelector, line: Line, left: Any) -> None:
    request = next(left, None)
    if request is None:
        waiting.unregister(line.socket)
        line.close()
    else:
        line.socket.sendall(request)


def checked(answer: tuple[int, bytes], status: int) -> bytes:
    """The body.

    Raises:
        RuntimeError: the status is another.
    """
    if answer[0] != status:
        raise RuntimeError(f"{answer[0]} instead of {status}: {answer[1][:500]!r}")
    return answer[1]
