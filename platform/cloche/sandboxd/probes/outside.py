"""What the egress probes reach for: the real proxy as a process of its own, and two servers on this host's loopback that stand for the outside."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cloche.errors import EnvironmentProblem
from cloche.sandboxd.probes.own_names import OwnNames

LOOPBACK = "127.0.0.1"
CONNECTIONS, TOTAL, MAX_BYTES, MAX_TIME_MS = 4, 60, 2 << 20, 3_000  # bounds of a probe's own attempt
_START_SECONDS = 120  # a busy machine takes its time to start a Python
_CHUNK = 65_536
_REDIRECT = "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
WEB, ELSEWHERE, MOVING = "web.test", "elsewhere.test", "moving.test"


class Server:
    """Echoes on a port of loopback. ``accepted``: connections so far; ``open``: those that have not ended. ``away``: it does not echo, but answers every
    request over HTTP with a redirect to there."""

    def __init__(self, away: str | None = None) -> None:
        self._answer = None if away is None else _REDIRECT.format(away).encode("ascii")
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.accepted = self.open = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="outside", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def quiet(self, seconds: float = 5) -> bool:
        """Whether every connection ends within the time."""
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.open

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                self.accepted += 1
                self.open += 1
            threading.Thread(target=self._echo, args=(stream,), name="outside", daemon=True).start()

    def _echo(self, stream: socket.socket) -> None:
        try:
            with stream, contextlib.suppress(OSError):
                while data := stream.recv(_CHUNK):
                    stream.sendall(data if self._answer is None else self._answer)
        finally:
            with self._lock:
                self.open -= 1


class Outside:
    """``allowed``: a server that the policy names with its address, and as :data:`MOVING` and :data:`ELSEWHERE`; ``inside``: one that it allows by a
    wildcard alone; ``web``: one that the policy names as :data:`WEB`, which leads on to ``allowed`` as :data:`ELSEWHERE`."""

    def __init__(self, home: Path) -> None:
        self.allowed, self.inside = Server(), Server()
        self.web = Server(f"http://{ELSEWHERE}:{self.allowed.port}/")
        self.names = OwnNames(home / "names", dict.fromkeys((WEB, ELSEWHERE, MOVING), LOOPBACK))

    @property
    def listed(self) -> str:
        return f"{LOOPBACK}:{self.allowed.port}"

    @property
    def moving(self) -> str:
        return f"{MOVING}:{self.allowed.port}"

    @property
    def elsewhere(self) -> str:
        return f"{ELSEWHERE}:{self.allowed.port}"

    @property
    def leading_on(self) -> str:
        return f"{WEB}:{self.web.port}"


@contextlib.contextmanager
def outside(home: Path) -> Iterator[Outside]:
    """Servers and proxy, the latter on the home's own socket.

    Raises:
        EnvironmentProblem: the proxy does not start.
    """
    with contextlib.ExitStack() as stack:
        found = Outside(home)
        for server in (found.allowed, found.inside, found.web):
            stack.callback(server.close)
        stack.enter_context(_proxy(home, found))
        yield found


@contextlib.contextmanager
def _proxy(home: Path, found: Outside) -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
    settings = {
        "CLOCHE_HOME": str(home),
        "CLOCHE_LOGGING_LEVEL": "error",
        "CLOCHE_EGRESS_ALLOW": " ".join(
            (found.listed, found.moving, found.elsewhere, found.leading_on, f"*:{found.inside.port} *:80")
        ),
        "CLOCHE_EGRESS_PRIVATE": LOOPBACK,
        "CLOCHE_EGRESS_CONNECTIONS": str(CONNECTIONS),
        "CLOCHE_EGRESS_CONNECTIONS_TOTAL": str(TOTAL),
        "CLOCHE_EGRESS_MAX_BYTES": str(MAX_BYTES),
        "CLOCHE_EGRESS_MAX_TIME": f"{MAX_TIME_MS}ms",
    }
    process = subprocess.Popen(found.names.command(), env=kept | settings, cwd=home)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (home / "run" / "egress.sock").is_socket():
            if process.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentProblem("the egress proxy does not start")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(_START_SECONDS)
