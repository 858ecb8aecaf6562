"""sandboxd's end of the egress proxy: makes a sandbox's socket, hands it over with the job's list, takes back what became of it.

The socket lies in the sandbox's own ``run/`` folder, which only root can change, and is for the sandbox's own user alone, or what connects for it
(:func:`_peers`). It is made when the job is handed over: before that there is nothing to connect to, so ``setup()`` has no egress. Nobody but the
proxy holds it: when the proxy dies, the next connection is refused.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from cloche import logs
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation import wire
from cloche.isolation.egress import (
    SOCKET_NAME,
    BadMessage,
    EgressReport,
    cgroup_of,
    parse_allow,
    parse_report,
    report_to_json,
)
from cloche.isolation.spec import BadSpec
from cloche.sandboxd.running import Running
from cloche_guest.protocol import ProtocolError

log = logs.get(__name__)
_CALL_SECONDS = 15.0
_BACKLOG = 16  # connections that wait for a place; a job's further ones wait in their own connect()
_CREDENTIALS = struct.Struct("3i")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class EgressLink:
    """Any number of threads; one request at a time on one connection, made when it is needed. ``owners``: user ids the proxy may have been
    started under."""

    def __init__(self, path: Path, owners: frozenset[int]) -> None:
        self._path = path
        self._owners = owners
        self._lock = threading.Lock()
        self._stream: socket.socket | None = None

    def open(self, running: Running, allow: object) -> None:
        """Give a sandbox its socket and its list.

        Raises:
            BadSpec: it was not made for egress, has it or had it already, has ended, or the list is malformed.
            PlatformFailure: ``egress_unavailable``: the proxy does not answer.
        """
        try:
            endpoints = parse_allow(allow)
        except BadMessage as error:
            raise BadSpec(str(error)) from None
        with running.lock:
            if not running.egress or running.egress_open or running.finished or running.killed:
                raise BadSpec("this sandbox can have no egress now")
            running.egress = False  # once
            texts = [str(endpoint) for endpoint in endpoints]
            listener = _listen(running.site.folders.run, running.uid)
            try:
                request = {"op": "open", "sandbox": running.id, **_peers(running), "allow": texts}
                self._call(request, listener.fileno())
            finally:
                listener.close()
            running.egress_open = True

    def close(self, running: Running) -> EgressReport | None:
        """Cut what is open, and tell what there was; None where it had no egress or the proxy has gone (and every connection with it)."""
        with running.lock:
            if not running.egress_open:
                return None
            running.egress_open = False
        try:
            return parse_report(self._call({"op": "close", "sandbox": running.id})["report"])
        except (PlatformFailure, BadMessage, KeyError) as error:
            log.warning("egress_report_lost", sandbox=running.id, error=str(error))
            return None

    def disconnect(self) -> None:
        """End the connection, and with it everything the proxy holds for us."""
        with self._lock:
            self._drop()

    def _call(self, request: dict[str, Any], fd: int | None = None) -> dict[str, Any]:
        """One request and its answer. A connection that broke is made anew once: the proxy may have been started again since.

        Raises:
            PlatformFailure: ``egress_unavailable``. Whatever the proxy held for us is gone, unless it answered with a refusal.
        """
        with self._lock:
            reply = self._ask(request, fd) if self._stream is not None else None
            if reply is None:
                reply = self._ask(request, fd)
        if reply is None:
            raise PlatformFailure(
                Reason.EGRESS_UNAVAILABLE, "the egress proxy does not answer; is `cloche egress` running?"
            )
        if reply.get("ok") is not True:
            said = str(reply.get("message"))[:200]
            raise PlatformFailure(Reason.EGRESS_UNAVAILABLE, f"the egress proxy refused: {said}")
        return reply

    def _ask(self, request: dict[str, Any], fd: int | None) -> dict[str, Any] | None:
        """The answer; None when there is none, and then there is no connection either."""
        try:
            stream = self._stream = self._stream or self._connect()
            wire.send(stream, request, wire.MAX_REQUEST, fd)
            reply, fds = wire.receive(stream, wire.MAX_REPLY)
            wire.close_all(fds)
        except (OSError, ProtocolError) as error:
            log.warning("egress_proxy_silent", error=f"{type(error).__name__}: {error}")
            reply = None
        if reply is None:
            self._drop()
        return reply

    def _connect(self) -> socket.socket:
        """
        Raises:
            OSError: nobody listens, or somebody else does.
        """
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(_CALL_SECONDS)
            stream.connect(str(self._path))
            credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(credentials)[1] not in self._owners:
                raise PermissionError("the socket is not the egress proxy's")
        except BaseException:
            stream.close()
            raise
        return stream

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def report_json(report: EgressReport | None) -> dict[str, Any] | None:
    """As the answer to ``finish`` has it."""
    return None if report is None else report_to_json(report)


def _peers(running: Running) -> dict[str, Any]:
    """Whoever connects from within: the sandbox's own user; under gVisor its file server, which connects for the job and is told by its cgroup.

    Raises:
        PlatformFailure: it has no process in a cgroup of its own any more.
    """
    if running.group is None:
        return {"peers": [running.uid]}
    names = {cgroup_of(pid) for pid in running.processes()} - {None}
    if len(names) != 1 or not (name := str(names.pop())).endswith(f"/{running.id}"):
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the sandbox's processes are in no cgroup of its own")
    return {"group": name}


def _listen(folder: Path, uid: int) -> socket.socket:
    """A listening socket in the sandbox's folder, which that user alone may connect to.

    Raises:
        PlatformFailure: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fd = os.open(folder, _FOLDER)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before it has a name
            # By the folder's descriptor: its path may be longer than an address can be.
            listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
            os.chown(SOCKET_NAME, uid, uid, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        message = f"the sandbox's egress socket cannot be made: {error.strerror}"
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, message) from None
    return listener
