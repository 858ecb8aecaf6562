"""sandboxd's narrow API: a Unix socket, a thread per connection, strict messages. Whatever is malformed ends the session.

Frames as the guest protocol's: 4 bytes of length, one JSON object. The first request is ``hello``; each has one answer, ``{"ok": true, …}``
or ``{"ok": false, "reason", "message"}``. A sandbox is known by its id, and only to the session that made it. docs/sandboxd.md tells all of it.

=========== ======================== ======================================================================
op          fields                   answer
=========== ======================== ======================================================================
hello       owner, session (or null) session: the key with which further connections join
create      spec                     id, in_folder, image, runtime, level, start, why; beside it the guest's channel
usage       id                       usage: see :class:`cloche.isolation.backend.Remains`
resize      id, memory, output       (bytes)
kill        id
open_egress id, allow                (endpoints as text)
finish      id                       remains
destroy     id
list                                 items: id, owner (null: waits for a job), container, dead; of every session
retire      bundle                   count: how many that waited with this bundle were killed
pools                                items: see :meth:`cloche.sandboxd.pool.Pool.facts`
owner_gone  owner                    sessions: how many were ended
health                               problem, image, cells, running, max_running, runsc
=========== ======================== ======================================================================
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloche import failpoints, logs
from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.failpoints import Point
from cloche.isolation import wire
from cloche.isolation.spec import BadSpec, check_bundle, check_owner
from cloche.isolation.spec_json import parse_spec
from cloche.sandboxd.host import Host
from cloche.sandboxd.running import Running
from cloche.sandboxd.sessions import Session, Sessions
from cloche.sandboxd.supply import Supply, reply
from cloche_guest.protocol import ProtocolError

log = logs.get(__name__)
HELLO_SECONDS = 10
MAX_CONNECTIONS = 512
_CREDENTIALS = struct.Struct("3i")

Reply = tuple[dict[str, Any], socket.socket | None]


class Server:
    """``start`` once; ``close`` ends every session. Peers are uid 0 or ``allowed_uid``, by SO_PEERCRED."""

    def __init__(self, host: Host, supply: Supply, path: Path, allowed_uid: int, allowed_gid: int) -> None:
        self._host = host
        self._supply = supply
        self._path = path
        self._allowed = (allowed_uid, allowed_gid)
        self._sessions = Sessions(host)
        self._listener: socket.socket | None = None
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._operations: Mapping[str, Callable[[Session, dict[str, Any]], Reply]] = {
            "create": self._create,
            "kill": self._kill,
            "usage": self._usage,
            "resize": self._resize,
            "open_egress": self._open_egress,
            "finish": self._finish,
            "destroy": self._destroy,
            "list": self._list,
            "owner_gone": self._owner_gone,
            "health": self._health,
            "retire": self._retire,
            "pools": self._pools,
        }

    def start(self) -> None:
        """
        Raises:
            EnvironmentProblem: the socket cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)  # of a former process: the home's lock is ours by now
            mask = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(mask)
            os.chown(self._path, *self._allowed, follow_symlinks=False)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise EnvironmentProblem(f"cannot listen on {self._path}: {error.strerror or error}") from None
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def close(self) -> None:
        """Stop listening, then kill and destroy every sandbox of every session."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._path.unlink(missing_ok=True)
        self._sessions.end_all()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                log.warning("connection_refused", reason="too many connections")
                stream.close()
                continue
            threading.Thread(target=self._connection, args=(stream,), name="connection", daemon=True).start()

    def _connection(self, stream: socket.socket) -> None:
        session: Session | None = None
        try:
            session = self._hello(stream)
            while session is not None and (request := _read(stream)) is not None:
                self._answer(stream, session, request)
        except (ProtocolError, BadSpec, OSError) as error:
            log.warning("connection_broken_off", error=str(error))
        finally:
            try:
                if session is not None:
                    self._sessions.end(session)
            finally:
                stream.close()
                self._slots.release()

    def _hello(self, stream: socket.socket) -> Session | None:
        """
        Raises:
            BadSpec, ProtocolError: the greeting is malformed or the peer is not allowed.
        """
        _, uid, gid = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, self._allowed[0]):
            raise BadSpec(f"user {uid} may not use this socket")
        stream.settimeout(HELLO_SECONDS)
        request = _read(stream)
        if request is None:
            return None
        if request.keys() != {"op", "owner", "session"} or request["op"] != "hello":
            raise BadSpec("the first request is hello")
        key = request["session"]
        if key is not None and not isinstance(key, str):
            raise BadSpec("session is text or null")
        session = self._sessions.join(check_owner(request["owner"]), key, uid, gid, lambda: _break_off(stream))
        try:
            wire.send(stream, {"ok": True, "session": session.key}, wire.MAX_REPLY)
        except OSError:
            self._sessions.end(session)
            raise
        stream.settimeout(None)
        return session

    def _answer(self, stream: socket.socket, session: Session, request: dict[str, Any]) -> None:
        name = str(request.pop("op", ""))
        operation = self._operations.get(name)
        if operation is None:
            raise BadSpec("there is no such operation")
        channel: socket.socket | None = None
        try:
            try:
                answer, channel = operation(session, request)
            except PlatformFailure as error:
                answer = {"ok": False, "reason": error.reason, "message": error.message}
            except BadSpec as error:
                answer = {
                    "ok": False,
                    "reason": Reason.PLATFORM_FAILED,
                    "message": f"sandboxd refused the request: {error}",
                }
            except Exception:
                # Whatever one sandbox brought about: the worker's others are none of its business, and go on with the session.
                log.exception("request_failed", operation=name)
                answer = {
                    "ok": False,
                    "reason": Reason.PLATFORM_FAILED,
                    "message": "an unexpected error; see sandboxd's log",
                }
            wire.send(stream, answer, wire.MAX_REPLY, None if channel is None else channel.fileno())
        finally:
            if channel is not None:
                channel.close()

    def _create(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "spec")
        spec = parse_spec(request["spec"])
        self._sessions.begin(session)
        try:
            supplied = self._supply.create(spec, session.owner)
        except BaseException:
            self._sessions.made(session, None)
            raise
        if not self._sessions.made(session, supplied.running):
            supplied.channel.close()
            try:
                self._host.destroy(supplied.running.id)
            finally:
                self._sessions.settled(session)
            raise PlatformFailure(Reason.WORKER_STOPPED, "the session has ended")
        failpoints.hit(Point.SANDBOXD_MADE)
        return reply(supplied), supplied.channel

    def _kill(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "id")
        if self._sessions.owns(session, request["id"]) and (running := self._host.find(request["id"])):
            running.kill()
        return {"ok": True}, None

    def _usage(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "id")
        return {"ok": True, "usage": self._owned(session, request["id"]).usage()}, None

    def _resize(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "id", "memory", "output")
        self._host.resize(self._owned(session, request["id"]), request["memory"], request["output"])
        return {"ok": True}, None

    def _open_egress(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "id", "allow")
        self._host.open_egress(self._owned(session, request["id"]), request["allow"])
        return {"ok": True}, None

    def _finish(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "id")
        running = self._owned(session, request["id"])
        remains = self._host.finish(running, (session.uid, session.gid))
        failpoints.hit(Point.SANDBOXD_COLLECTED)
        return {"ok": True, "remains": remains}, None

    def _owned(self, session: Session, sandbox_id: str) -> Running:
        """
        Raises:
            PlatformFailure: the session has no such sandbox.
        """
        running = self._host.find(sandbox_id) if self._sessions.owns(session, sandbox_id) else None
        if running is None:
            raise PlatformFailure(Reason.PLATFORM_FAILED, "there is no such sandbox")
        return running

    def _destroy(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "id")
        if self._sessions.owns(session, request["id"]):
            self._host.destroy(request["id"])
            self._sessions.forget(session, request["id"])
        return {"ok": True}, None

    def _list(self, _session: Session, request: dict[str, Any]) -> Reply:
        _only(request)
        items = [
            {"id": running.id, "owner": running.owner, "container": running.container, "dead": running.is_dead()}
            for running in self._host.listing()
        ]
        return {"ok": True, "items": items}, None

    def _owner_gone(self, session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "owner")
        owner = check_owner(request["owner"])
        if owner == session.owner:
            raise BadSpec("a worker cannot declare itself gone")
        return {"ok": True, "sessions": self._sessions.owner_gone(owner)}, None

    def _health(self, _session: Session, request: dict[str, Any]) -> Reply:
        _only(request)
        return {"ok": True, **self._host.health()}, None

    def _retire(self, _session: Session, request: dict[str, Any]) -> Reply:
        _only(request, "bundle")
        return {"ok": True, "count": self._supply.retire(check_bundle(request["bundle"]))}, None

    def _pools(self, _session: Session, request: dict[str, Any]) -> Reply:
        _only(request)
        return {"ok": True, "items": self._supply.facts()}, None


def _only(request: dict[str, Any], *names: str) -> None:
    if request.keys() != set(names):
        raise BadSpec(f"the request has exactly the fields {', '.join(names) or '(none)'}")
    if "id" in names and not isinstance(request["id"], str):
        raise BadSpec("id is text")


def _read(stream: socket.socket) -> dict[str, Any] | None:
    request, fds = wire.receive(stream, wire.MAX_REQUEST)
    if fds:
        wire.close_all(fds)
        raise ProtocolError("a request brings no descriptors")
    return request


def _break_off(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
