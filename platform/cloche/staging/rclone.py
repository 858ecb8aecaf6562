"""Calls to a private rclone daemon, and what its errors mean.

Every call carries its remote as a JSON object; nothing that a user wrote is a command line, a connection string or
a file name of this host.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import select
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from cloche import redact
from cloche.errors import ClocheError, PlatformFailure
from cloche.staging.egress_guard import EgressGuard
from cloche.staging.rclone_process import RcloneProcess, UnixConnection

CALL_S = 60.0  # a listing or a look at one file
TRANSFER_S = 24 * 3_600.0  # a cap only: rclone ends a stalled transfer itself
_ANSWER_MAX = 64 << 20  # bytes; a listing of some 300,000 files
_CALLS = 16
_WATCH_S = 0.1
_OBSCURED_MAX = 1_000
_REFUSED = re.compile(
    r"\b(401|403)\b|unable to authenticate|host key mismatch|permission denied|unauthorized"
    r"|AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId",
    re.IGNORECASE,
)


class Fault(StrEnum):
    """Why a remote did not do what was asked."""

    MISSING = "missing"  # no such file or folder
    REFUSED = "refused"  # credentials, host key or permission: trying again changes nothing
    UNREACHABLE = "unreachable"  # everything else; trying again may help


class RemoteFault(ClocheError):
    """A remote did not do what was asked. ``message`` holds no secret."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


class Stopped(ClocheError):
    """The caller's ``stop`` said so; rclone has been told."""


def rclone_binary() -> Path:
    """The rclone that came with the requirements, beside the interpreter. Never one from PATH: its version would be
    anybody's."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / "rclone").is_file():
            return folder / "rclone"
    return Path(sys.executable).parent / "rclone"  # starting it says what is wrong


class RcloneDaemon:
    """One daemon per process: started by the first call, started again when it died, ended by ``close`` or with the
    process.

    All methods may be called from any thread; at most 16 calls run at once, the rest wait.
    """

    def __init__(self, binary: Path, run_dir: Path, *, allow_addresses: bool = False) -> None:
        self._binary = binary
        self._run_dir = run_dir
        self.allow_addresses = allow_addresses
        self._guard = None if allow_addresses else EgressGuard()
        self._process: RcloneProcess | None = None
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_CALLS)
        self._obscured: dict[str, str] = {}
        self._closed = False

    @property
    def proxy(self) -> str | None:
        """The proxy that remotes have to take; None where they may connect by themselves. Known once started."""
        return self._guard.url if self._guard else None

    @property
    def pid(self) -> int | None:
        """The daemon's process id; None before the first call."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the daemon when it is not running.

        Raises:
            PlatformFailure: it does not start, or ``close`` was called (``platform_failed``).
            EnvironmentProblem: there is no binary, or the folder's path is too long.
        """
        with self._lock:
            if self._closed:
                raise PlatformFailure("platform_failed", "rclone has been closed")
            if self._process is not None and self._process.alive:
                return
            if self._process is not None:
                self._process.stop()
            if self._guard is not None:
                self._guard.start()
            process = RcloneProcess(self._binary, self._run_dir, proxy=self.proxy)
            process.start()
            self._process = process

    def close(self) -> None:
        """End the daemon; safe to call twice. Calls under way fail."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.stop()
                self._process = None
            if self._guard is not None:
                self._guard.close()

    def call(
        self, method: str, *, timeout_s: float = CALL_S, stop: Callable[[], bool] = lambda: False, **params: Any
    ) -> dict[str, Any]:
        """One remote-control call and its answer.

        ``stop`` is asked ten times a second; when it says yes, rclone gives up and removes what it has half written.

        Raises:
            RemoteFault: the remote did not do it, or not within ``timeout_s``.
            Stopped: ``stop`` said yes.
            PlatformFailure: the daemon itself failed (``platform_failed``).
        """
        with self._places:
            connection = self._connected(timeout_s)
            with contextlib.closing(connection):
                try:
                    connection.request("POST", f"/{method}", json.dumps(params), {"Content-Type": "application/json"})
                    _wait(connection, timeout_s, stop)
                    response = connection.getresponse()
                    body = response.read(_ANSWER_MAX + 1)
                except TimeoutError:
                    raise RemoteFault(Fault.UNREACHABLE, f"no answer within {timeout_s:.0f} s") from None
                except (OSError, http.client.HTTPException) as error:
                    message = f"rclone ended during a call ({type(error).__name__})"
                    raise PlatformFailure("platform_failed", message) from error
        return _answer(response.status, body)

    def obscure(self, secret: str) -> str:
        """The secret as rclone's options want it. The same secret gives the same text, so rclone keeps its
        connections to a remote."""
        key = hashlib.sha256(secret.encode()).hexdigest()
        if key not in self._obscured:
            if len(self._obscured) >= _OBSCURED_MAX:
                self._obscured.clear()
            self._obscured[key] = str(self.call("core/obscure", clear=secret)["obscured"])
        return self._obscured[key]

    def _connected(self, timeout_s: float) -> UnixConnection:
        for _ in range(2):
            self.start()
            connection = self._connection(timeout_s)
            if connection is not None:
                return connection
        raise PlatformFailure("platform_failed", "rclone does not listen")

    def _connection(self, timeout_s: float) -> UnixConnection | None:
        process = self._process
        if process is None:
            return None
        connection = UnixConnection(process.socket_path, timeout=timeout_s)
        try:
            connection.connect()
        except OSError:  # it died after we looked; nothing was sent, so trying once more is safe
            return None
        return connection


def _wait(connection: UnixConnection, timeout_s: float, stop: Callable[[], bool]) -> None:
    """Until the answer begins. Closing the connection, as every exception here does, makes rclone cancel the call."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    while not poll.poll(_WATCH_S * 1000):
        if stop():
            raise Stopped("stopped while a file was on its way")
        if time.monotonic() > deadline:
            raise TimeoutError


def _answer(status: int, body: bytes) -> dict[str, Any]:
    if len(body) > _ANSWER_MAX:
        raise RemoteFault(Fault.REFUSED, "the folder holds too many files to list")
    try:
        answer = json.loads(body)
    except ValueError:
        raise PlatformFailure("platform_failed", "rclone's answer is not JSON") from None
    if status == 200 and isinstance(answer, dict):
        return answer
    # The answer repeats the request, with its credentials: only the error's own text is taken.
    message = redact.text(str(answer.get("error", "")))[:500] if isinstance(answer, dict) else f"status {status}"
    if status == 404:
        raise RemoteFault(Fault.MISSING, message)
    raise RemoteFault(Fault.REFUSED if _REFUSED.search(message) else Fault.UNREACHABLE, message)
