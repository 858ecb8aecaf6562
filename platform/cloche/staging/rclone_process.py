"""The rclone daemon as a process: started with nothing of ours, ended with us.

``rclone rcd`` listens on a Unix socket in a folder of mode 0700, with an empty configuration and an environment of
two names that lead nowhere. A shim sets the parent-death signal and then becomes rclone: the daemon dies with its
parent even when that is killed. The signal is tied to the *thread* that forked, so one thread starts the daemon and
stays until it has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from cloche import logs, redact
from cloche.errors import EnvironmentProblem, PlatformFailure

START_S = 15.0
_STOP_S = 5.0
_POLL_S = 0.01
_PREFIX = "rclone-"
_MAX_SOCKET = 100  # bytes; the kernel's own limit is 107
_SHIM = """
import ctypes, os, signal, sys
parent, binary, *arguments = sys.argv[1:]
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL) != 0:
    sys.exit("the parent-death signal could not be set")
if os.getppid() != int(parent):
    sys.exit(0)
os.umask(0o077)
os.environ.pop("LC_CTYPE", None)  # Python's own addition
os.execve(binary, [binary, *arguments], os.environ)
"""
_FLAGS = (
    "--rc-no-auth",
    "--rc-server-read-timeout=24h",
    "--rc-server-write-timeout=24h",
    "--contimeout=10s",
    "--timeout=60s",
    "--low-level-retries=3",
    "--retries=1",
    "--log-level=ERROR",
)

_log = logs.get(__name__)


class RcloneProcess:
    """One running daemon. ``start`` once, then ``socket_path`` while ``alive``; ``stop`` may be called twice."""

    def __init__(self, binary: Path, run_dir: Path, *, proxy: str | None) -> None:
        self._binary = binary
        self._run_dir = run_dir
        self._proxy = proxy
        self._folder: Path | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._spawned = threading.Event()
        self._said: deque[str] = deque(maxlen=20)
        self._problem: OSError | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def socket_path(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the daemon has not been started")
        return self._folder / "rc.sock"

    def start(self) -> None:
        """Start the daemon and wait until it answers.

        Raises:
            EnvironmentProblem: the binary or the folder is not there, or the socket's path is too long.
            PlatformFailure: it did not answer in time (``platform_failed``).
        """
        if not os.access(self._binary, os.X_OK):
            raise EnvironmentProblem(f"there is no rclone at {self._binary}; install the requirements again")
        self._prepare_folder()
        threading.Thread(target=self._own, name="rclone-owner", daemon=True).start()
        self._spawned.wait()
        deadline = time.monotonic() + START_S
        while self._problem is None and self.alive and time.monotonic() < deadline:
            if _answers(self.socket_path):
                return
            time.sleep(_POLL_S)
        said = "; ".join(self._said) or str(self._problem or "it said nothing")
        self.stop()
        raise PlatformFailure("platform_failed", f"rclone did not start: {redact.text(said)[:400]}")

    def stop(self) -> None:
        """End the daemon and remove its folder."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare_folder(self) -> None:
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_abandoned(self._run_dir)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._run_dir))
        if len(os.fsencode(self.socket_path)) > _MAX_SOCKET:
            self._folder.rmdir()
            raise EnvironmentProblem(f"{self.socket_path} is too long for a socket; set CLOCHE_HOME to a shorter path")
        self._lock = _locked(self._folder)
        for name in ("home", "bin", "tmp"):
            (self._folder / name).mkdir(mode=0o700)

    def _own(self) -> None:
        """Be the thread that the daemon's life is tied to: start it, relay what it says, see it end."""
        folder = self.socket_path.parent
        environment = {"PATH": str(folder / "bin"), "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        if self._proxy is not None:
            # Not an argument: those are for all users of the host to read.
            environment["RCLONE_HTTP_PROXY"] = self._proxy
        command = [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), str(self._binary), "rcd", "--config", ""]
        command += [f"--rc-addr=unix://{self.socket_path}", *_FLAGS]
        command += [f"--cache-dir={folder / 'tmp'}", f"--temp-dir={folder / 'tmp'}"]
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._process = process
        except OSError as error:
            self._problem = error
            return
        finally:
            self._spawned.set()
        for line in process.stderr or ():
            self._said.append(line.strip()[:500])
            _log.debug("rclone", line=redact.text(line.strip()[:500]))
        process.wait()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(self.timeout)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        self.sock = connection


def _answers(path: Path) -> bool:
    with contextlib.closing(UnixConnection(path, timeout=2)) as connection:
        try:
            connection.request("POST", "/rc/noop", "{}", {"Content-Type": "application/json"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _locked(folder: Path) -> int:
    """A lock on the folder, taken before its file bears the name that others look for."""
    draft = folder / "lock.new"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    draft.rename(folder / "lock")
    return descriptor


def _remove_abandoned(run_dir: Path) -> None:
    """Remove the folders of daemons whose owner is dead: nobody locks them."""
    for folder in _folders(run_dir):
        try:
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another process is making or removing it right now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _folders(run_dir: Path) -> Iterator[Path]:
    return (path for path in run_dir.iterdir() if path.name.startswith(_PREFIX) and path.is_dir())
