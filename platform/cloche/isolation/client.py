"""sandboxd's client: a Backend over its Unix socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloche import clock, logs
from cloche.domain.egress import Endpoint
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation import wire
from cloche.isolation.backend import Channel, CollectedFile, Remains, Sandbox, SandboxSpec
from cloche.isolation.channel import GuestChannel
from cloche.isolation.egress import BadMessage, EgressReport, parse_report
from cloche.isolation.spec import CONTAINER
from cloche.isolation.spec_json import spec_to_json
from cloche_guest.protocol import ProtocolError

log = logs.get(__name__)
CALL_SECONDS = 120.0  # longer than sandboxd itself waits for anything


class SandboxdBackend:
    """Any number of threads: each call takes a connection of its own from a small pool; all belong to one session.

    When one of them breaks the whole session is over, and sandboxd kills what it made; the next ``create`` starts a new session.
    ``owner`` is the worker's id, by which the scheduler asks for its death (:meth:`owner_gone`).
    """

    def __init__(self, socket_path: Path, owner: str | None = None) -> None:
        self._path = socket_path
        self._owner = owner or f"client:{clock.uuid7()}"
        self._lock = threading.Lock()
        self._session = _Session(self._path, self._owner)
        self._closed = False

    def create(self, spec: SandboxSpec) -> Sandbox:
        session = self._current()
        reply, fd = session.call("create", spec=spec_to_json(spec))
        if fd is None:
            session.close()
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "sandboxd sent no channel")
        framed = reply["level"] == CONTAINER  # a cell has a socket of its own, and the engine frames nothing
        channel = GuestChannel(socket.socket(fileno=fd), spec.limits, framed=framed)
        return SandboxdSandbox(session, reply, channel)

    def health(self) -> str | None:
        try:
            problem = self.facts()["problem"]
        except PlatformFailure as error:
            return error.message
        return None if problem is None else str(problem)

    def image_python(self) -> str:
        image = self.facts()["image"]
        if image is None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "there is no sandbox image yet")
        return str(image["python"])

    def facts(self) -> Mapping[str, Any]:
        """``problem`` (None or a sentence), ``image`` (None or its ``id``, ``python``, ``source``), ``running``, ``max_running``.

        Raises:
            PlatformFailure: sandboxd does not answer.
        """
        return self._current().call("health")[0]

    def listing(self) -> list[Mapping[str, Any]]:
        """Every sandbox of the host: ``id``, ``owner``, ``container``, ``dead``."""
        return list(self._current().call("list")[0]["items"])

    def owner_gone(self, owner: str) -> None:
        """Kill all sandboxes of another worker on this host, and return when they are dead.

        Raises:
            PlatformFailure: sandboxd does not answer, or something is still alive.
        """
        self._current().call("owner_gone", owner=owner)

    def pools(self) -> list[Mapping[str, Any]]:
        """The host's pools of waiting sandboxes: ``bundle``, ``warm``, ``filling``, ``busy``, ``hits``, ``cold_starts``, …

        Raises:
            PlatformFailure: sandboxd does not answer.
        """
        return list(self._current().call("pools")[0]["items"])

    def retire(self, bundle: str) -> int:
        """Kill every sandbox that waits with this bundle; how many there were.

        Raises:
            PlatformFailure: sandboxd does not answer.
        """
        return int(self._current().call("retire", bundle=bundle)[0]["count"])

    def close(self) -> None:
        with self._lock:
            self._closed = True
            session = self._session
        session.close()

    def _current(self) -> _Session:
        with self._lock:
            if self._closed:
                raise PlatformFailure(Reason.WORKER_STOPPED, "the sandbox backend is closed")
            if self._session.over:
                self._session = _Session(self._path, self._owner)
            return self._session


class SandboxdSandbox:
    """One sandbox; see :class:`cloche.isolation.backend.Sandbox`."""

    def __init__(self, session: _Session, reply: Mapping[str, Any], channel: GuestChannel) -> None:
        self.id = str(reply["id"])
        self.in_folder = Path(reply["in_folder"])
        self.image = str(reply["image"])
        self.runtime = str(reply["runtime"])
        self.level = str(reply["level"])
        self.start = str(reply["start"])
        self.why: str | None = reply["why"]
        self.runtime_why: str | None = reply["runtime_why"]
        self.channel: Channel = channel
        self._guest = channel
        self._session = session
        self._killed = False

    def kill(self) -> None:
        self._killed = True
        try:
            self._session.call("kill", id=self.id)
        except PlatformFailure as error:
            # The end of its input ends a guest too; and a session that is over has been killed by sandboxd.
            log.warning("kill_through_channel", sandbox=self.id, error=str(error))
            self.channel.close()

    def usage(self) -> Mapping[str, int]:
        found = self._session.call("usage", id=self.id)[0]["usage"]
        return {str(name): int(value) for name, value in found.items()}

    def resize(self, memory: int, output: int) -> None:
        self._session.call("resize", id=self.id, memory=memory, output=output)

    def open_egress(self, allow: Sequence[Endpoint]) -> None:
        self._session.call("open_egress", id=self.id, allow=[str(endpoint) for endpoint in allow])

    def finish(self) -> Remains:
        remains = self._session.call("finish", id=self.id)[0]["remains"]
        # A cell's runner tells, where a container's process 1 does on the channel.
        exit_code = self._guest.exit_code if remains["level"] == CONTAINER else remains["exit_code"]
        ended_by_us = self._killed or remains["oom_killed"] or remains["usage"].get("locks_over")
        if exit_code is None and remains["crashed"]:
            code = remains["exit_code"]
            exit_code = 128 - code if code is not None and code > 128 else code
        elif exit_code is None and not ended_by_us:
            # Process 1 alone keeps the stream open, and nothing inside can end it but by using up the memory, which `oom_killed`
            # tells: the host or the engine did it.
            if remains["died_alone"]:
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container was ended from outside")
            if self._guest.cut_off:
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the engine dropped the sandbox's channel")
        return Remains(
            exit_code=exit_code,
            oom_killed=bool(remains["oom_killed"]),
            usage={str(name): int(value) for name, value in remains["usage"].items()},
            files=tuple(CollectedFile(path, size) for path, size in remains["files"]),
            refused=tuple((path, reason) for path, reason in remains["refused"]),
            egress=_report(remains["egress"]),
            folder=Path(remains["folder"]),
        )

    def destroy(self) -> None:
        self.channel.close()
        try:
            self._session.call("destroy", id=self.id)
        except PlatformFailure as error:
            # With the session over, sandboxd destroys it by itself; with sandboxd gone, its next start does.
            log.warning("destroy_left_to_sandboxd", sandbox=self.id, error=str(error))


class _Session:
    """Connections of one session. ``over`` once any of them failed or it was closed."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._owner = owner
        self._lock = threading.Lock()
        self._key: str | None = None
        self._idle: list[socket.socket] = []
        self._all: set[socket.socket] = set()
        self.over = False

    def call(self, op: str, **fields: Any) -> tuple[dict[str, Any], int | None]:
        """One request; its answer and the descriptor that came with it.

        Raises:
            PlatformFailure: what sandboxd said, or that it does not answer.
        """
        with self._connection() as stream:
            reply, fd = _exchange(stream, {"op": op, **fields})
        if reply.get("ok") is not True:
            raise PlatformFailure(str(reply.get("reason")), str(reply.get("message")))
        return reply, fd

    def close(self) -> None:
        with self._lock:
            self.over = True
            streams = list(self._all)
            self._all.clear()
            self._idle.clear()
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        try:
            stream = self._take()
            yield stream
        except (OSError, ProtocolError) as error:
            self.close()
            raise PlatformFailure(
                Reason.ENGINE_UNAVAILABLE, f"sandboxd does not answer on {self._path} ({type(error).__name__})"
            ) from None
        with self._lock:
            if not self.over:
                self._idle.append(stream)

    def _take(self) -> socket.socket:
        with self._lock:
            if self.over:
                raise ConnectionError
            if self._idle:
                return self._idle.pop()
            if self._key is None:
                # The first connection learns the session's key; the others wait for it.
                stream, self._key = self._greet(None)
                self._all.add(stream)
                return stream
            key = self._key
        stream, _ = self._greet(key)
        with self._lock:
            if self.over:
                stream.close()
                raise ConnectionError
            self._all.add(stream)
        return stream

    def _greet(self, key: str | None) -> tuple[socket.socket, str]:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(CALL_SECONDS)
            stream.connect(str(self._path))
            reply, _ = _exchange(stream, {"op": "hello", "owner": self._owner, "session": key})
        except BaseException:
            stream.close()
            raise
        return stream, str(reply["session"])


def _report(value: Any) -> EgressReport | None:
    try:
        return None if value is None else parse_report(value)
    except BadMessage as error:
        raise PlatformFailure(Reason.PLATFORM_FAILED, f"sandboxd's answer: {error}") from None


def _exchange(stream: socket.socket, request: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    wire.send(stream, request, wire.MAX_REQUEST)
    reply, fds = wire.receive(stream, wire.MAX_REPLY)
    if reply is None:
        raise ConnectionError
    if len(fds) > 1:
        wire.close_all(fds)
        raise ProtocolError("more than one descriptor")
    return reply, fds[0] if fds else None
