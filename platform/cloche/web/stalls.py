"""Clients that send their body, or take in their answer, so slowly that a thread waits for them: their connection is cut.

The server in front of the app bounds the time for headers alone, and the thread it gave to the request waits inside of it, where nothing of
ours can wake it. So whoever waits too long is noted here, and a thread of our own ends the connection below the server: of those from the
same address the ones that are stuck in the same way. For a trusted proxy nothing is cut: its connections are many clients', and it has to
take in whole bodies before it passes them on (docs/operations.md).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from termios import TIOCOUTQ
from time import monotonic
from typing import Any

from cloche import logs
from cloche.netnames import Networks, address

RATE = 4_096  # bytes a second: what takes longer than this, and the patience, is too slow
_LAST_SENT = 44  # offset of tcpi_last_data_sent in Linux' struct tcp_info: ms since something was sent
_log = logs.get(__name__)


@dataclass
class Wait:
    """A thread inside the server, since ``since``, for ``size`` bytes to come or to be taken in."""

    peer: str
    reading: bool
    since: float = 0.0
    size: int = 0


class Stalls:
    """``patience_s``: how long may pass beyond what ``size`` takes at :data:`RATE`. Its thread starts with the first request."""

    def __init__(self, patience_s: float, proxies: Networks) -> None:
        self._patience = patience_s
        self._proxies = proxies
        self._waits: dict[int, Wait] = {}
        self._stop = threading.Event()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def body(self, stream: Any, peer: str) -> Body:
        return Body(stream, self, Wait(peer, True))

    def answer(self, parts: Iterable[bytes], peer: str) -> Answer:
        return Answer(parts, self, Wait(peer, False))

    def enter(self, wait: Wait, size: int) -> None:
        wait.since, wait.size = monotonic(), size
        self._waits[id(wait)] = wait
        if self._thread is None:
            self._begin()

    def leave(self, wait: Wait) -> None:
        self._waits.pop(id(wait), None)

    def close(self) -> None:
        """Safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        with self._start:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="stalls", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(min(5.0, self._patience / 4)):
            now = monotonic()
            late: dict[tuple[str, bool], float] = {}  # whom, and the shortest of their waits
            for wait in list(self._waits.values()):
                waited = now - wait.since
                if waited > self._patience + wait.size / RATE and not self._proxies.hold(wait.peer):
                    key = (wait.peer, wait.reading)
                    late[key] = min(waited, late.get(key, waited))
            for (peer, reading), waited in late.items():
                count = cut(peer, reading, waited)
                _log.warning("slow client", peer=peer, reading=reading, connections_cut=count)


class Body:
    """A request's body as WSGI has it; whoever waits for it is known."""

    def __init__(self, stream: Any, stalls: Stalls, wait: Wait) -> None:
        self._stream, self._stalls, self._wait = stream, stalls, wait

    def read(self, size: int = -1) -> bytes:
        self._stalls.enter(self._wait, max(0, size))
        try:
            return bytes(self._stream.read(size))
        finally:
            self._stalls.leave(self._wait)

    def readline(self, size: int = -1) -> bytes:
        return self.read(size)  # nobody asks for lines; a part of one is a valid answer

    def readlines(self, hint: int = -1) -> list[bytes]:
        return [self.read(hint)]

    def __iter__(self) -> Iterator[bytes]:
        while part := self.read(65_536):
            yield part


class Answer:
    """An answer's parts; while one of them is on its way, that is known."""

    def __init__(self, parts: Iterable[bytes], stalls: Stalls, wait: Wait) -> None:
        self._parts, self._close = iter(parts), getattr(parts, "close", None)
        self._stalls, self._wait = stalls, wait

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> bytes:
        self._stalls.leave(self._wait)
        part = next(self._parts)
        self._stalls.enter(self._wait, len(part))
        return part

    def close(self) -> None:
        self._stalls.leave(self._wait)
        if self._close is not None:
            self._close()


def cut(peer: str, reading: bool, waited_s: float) -> int:
    """End this process's connections from ``peer`` that are stuck: nothing was sent on them for as long (``reading``), or what was sent is
    not taken in. Returns how many."""
    wanted, count = address(peer), 0
    ports: set[int] = set()
    opened = [found for name in os.listdir("/proc/self/fd") if (found := _duplicate(int(name))) is not None]
    try:
        for one in opened:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                ports.add(one.getsockname()[1])
        for one in opened:
            try:
                if address(one.getpeername()[0]) != wanted or one.getsockname()[1] not in ports:
                    continue
                pending = struct.unpack("i", ioctl(one, TIOCOUTQ, b"\0" * 4))[0]
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_SENT + 4)
                silent_s = struct.unpack_from("I", info, _LAST_SENT)[0] / 1000
                if (reading and not pending and silent_s >= waited_s - 1) or (not reading and pending):
                    one.shutdown(socket.SHUT_RDWR)
                    count += 1
            except OSError:
                continue  # not connected, or gone meanwhile
    finally:
        for one in opened:
            one.close()
    return count


def _duplicate(number: int) -> socket.socket | None:
    """An own handle on the TCP socket behind a descriptor: the number may be somebody else's by the next moment."""
    try:
        copy = os.dup(number)
    except OSError:
        return None
    try:
        found = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
        return found
    found.close()
    return None
