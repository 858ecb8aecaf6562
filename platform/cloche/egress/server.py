"""The egress proxy's control socket: sandboxd hands over listening sockets and takes back what became of their connections.

Nobody but root is heard. A sandbox's egress lasts as long as the connection by which it was opened: when sandboxd goes, all of it goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from cloche import logs
from cloche.domain.egress import Endpoint, PlatformEgress
from cloche.egress.bounds import Bounds
from cloche.egress.connect import Resolver, SystemResolver
from cloche.egress.grant import Grant, Shared
from cloche.egress.peers import Peers, parse_peers
from cloche.errors import EnvironmentProblem
from cloche.isolation import wire
from cloche.isolation.egress import BadMessage, EgressReport, parse_allow, report_to_json
from cloche_guest.protocol import ProtocolError

log = logs.get(__name__)
MAX_SANDBOXES = 4_096
_CALL_S = 10.0  # what the loop may take for one request
_OPEN = ({"op", "sandbox", "peers", "allow"}, {"op", "sandbox", "group", "allow"})  # the fields of an `open`
_CREDENTIALS = struct.Struct("3i")


class EgressServer:
    """``bind`` → ``start`` → ``close``. One thread runs all connections of jobs; one more serves each connection of sandboxd."""

    def __init__(
        self,
        path: Path,
        platform: PlatformEgress,
        bounds: Bounds | None = None,
        places: int = 1_024,
        resolve: Resolver | None = None,
    ) -> None:
        self._path = path
        self._system = SystemResolver()
        self._shared = Shared(platform, bounds or Bounds(), resolve or self._system, places)
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="egress", daemon=True)
        self._grants: dict[str, Grant] = {}
        self._lock = threading.Lock()
        self._streams: dict[socket.socket, threading.Thread] = {}
        self._closed = False

    def bind(self) -> None:
        """
        Raises:
            EnvironmentProblem: the socket cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            os.fchmod(listener.fileno(), 0o600)  # before it has a name, so that it never had another mode
            listener.bind(str(self._path))
            listener.listen(16)
        except OSError as error:
            listener.close()
            raise EnvironmentProblem(f"cannot listen on {self._path}: {error.strerror or error}") from None
        self._listener = listener

    def start(self) -> None:
        if self._listener is None:
            raise RuntimeError("bind comes first")
        self._thread.start()
        threading.Thread(target=self._accept, args=(self._listener,), name="control", daemon=True).start()

    def close(self) -> None:
        """Every connection of every job cut. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            streams = dict(self._streams)
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for stream in streams:
            _break_off(stream)
        for thread in streams.values():
            thread.join(_CALL_S)  # each takes back what it opened
        if self._thread.is_alive():
            for sandbox in list(self._grants):
                with contextlib.suppress(TimeoutError):
                    self.close_grant(sandbox)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CALL_S)
        if not self._thread.is_alive():
            self._loop.close()
        self._system.close()

    def open_grant(self, sandbox: str, listener: socket.socket, peers: Peers, allow: tuple[Endpoint, ...]) -> None:
        """Serve a sandbox's socket from now on. Takes the socket over."""
        self._grants[sandbox] = self._call(self._open(listener, peers, allow))

    def close_grant(self, sandbox: str) -> EgressReport | None:
        """Cut what is open; what there was. None where there is no such sandbox."""
        grant = self._grants.pop(sandbox, None)
        report: EgressReport | None = None if grant is None else self._call(grant.close())
        return report

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return  # closed
            thread = threading.Thread(target=self._serve, args=(stream,), name="sandboxd", daemon=True)
            with self._lock:
                if self._closed:
                    stream.close()
                    return
                self._streams[stream] = thread
                thread.start()

    def _serve(self, stream: socket.socket) -> None:
        mine: set[str] = set()
        try:
            credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            user = _CREDENTIALS.unpack(credentials)[1]
            if user != 0:
                raise BadMessage(f"user {user} is not sandboxd's")
            while self._answer(stream, mine):
                continue
        except (ProtocolError, BadMessage, OSError) as error:
            log.warning("egress_control_broken_off", error=str(error))
        finally:
            for sandbox in mine:
                with contextlib.suppress(TimeoutError):  # the loop hangs, or has ended with all it carried
                    self.close_grant(sandbox)
            with self._lock:
                del self._streams[stream]
                stream.close()

    def _answer(self, stream: socket.socket, mine: set[str]) -> bool:
        """One request; False at the end of the connection."""
        request, fds = wire.receive(stream, wire.MAX_REQUEST)
        try:
            if request is None:
                return False
            reply = self._handle(request, fds, mine)
        finally:
            wire.close_all(fds)
        wire.send(stream, reply, wire.MAX_REPLY)
        return True

    def _handle(self, request: dict[str, Any], fds: list[int], mine: set[str]) -> dict[str, Any]:
        op = request.get("op")
        if op == "open" and request.keys() in _OPEN and len(fds) == 1:
            sandbox = _text(request["sandbox"])
            peers, allow = parse_peers(request, sandbox), parse_allow(request["allow"])
            if sandbox in self._grants or len(self._grants) >= MAX_SANDBOXES:
                return {"ok": False, "message": "it has egress already, or too many sandboxes have"}
            self.open_grant(sandbox, _listening(fds), peers, allow)
            mine.add(sandbox)
            return {"ok": True}
        if op == "close" and request.keys() == {"op", "sandbox"} and not fds:
            sandbox = _text(request["sandbox"])
            if sandbox not in mine:
                return {"ok": False, "message": "it has no egress"}
            mine.discard(sandbox)
            report = self.close_grant(sandbox)
            return {"ok": True, "report": report_to_json(report or EgressReport())}
        if op == "health" and request.keys() == {"op"} and not fds:
            return {"ok": True, "sandboxes": len(self._grants), "connections": self._shared.open}
        raise BadMessage("there is no such request")

    async def _open(self, listener: socket.socket, peers: Peers, allow: tuple[Endpoint, ...]) -> Grant:
        grant = Grant(listener, peers, allow, self._shared)
        grant.start()
        return grant

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)


def _listening(fds: list[int]) -> socket.socket:
    """The one descriptor as the listening Unix socket that it has to be; taken out of the list."""
    listener = socket.socket(fileno=fds[0])
    fds.clear()
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        listener.close()
        raise BadMessage("the descriptor is no listening Unix socket")
    return listener


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise BadMessage("sandbox is an id")
    return value


def _break_off(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
