"""What the demo starts and stops: Cloche itself in a temporary home, and a WebDAV server with a user and a password."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from screen import DemoFailed

from cloche.cli.up.tether import tether

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
_START_S = 240.0  # the first start builds the sandbox image
_STOP_S = 90.0


@dataclass
class Cloche:
    """A running ``cloche up``."""

    home: Path
    url: str
    password: str
    log: Path
    process: subprocess.Popen[str]
    environment: dict[str, str]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``cloche …`` on this home."""
        command = [str(BIN / "cloche"), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def stop(self) -> int:
        """Stop it as Ctrl-C would; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def log_tail(self, lines: int = 40) -> str:
        try:
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of our own with a path short enough for sockets; gone afterwards."""
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="cloche-demo-", dir=base if len(base) < 40 else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start_cloche(folder: Path) -> Cloche:
    """Start ``cloche up`` with SQLite and the embedded Valkey on a free port.

    Raises:
        DemoFailed: it ended, or never said where it listens.
    """
    home, log, password = folder / "home", folder / "cloche.log", secrets.token_urlsafe(18)
    environment = {
        # The user's own Cloche settings stay out of it, but for where the engine and its image are.
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CLOCHE_") or name.startswith("CLOCHE_SANDBOX_")
        },
        "CLOCHE_HOME": str(home),
        "CLOCHE_ADMIN_PASSWORD": password,
        "CLOCHE_PLUGIN_PATH": str(CHECKOUT / "examples" / "hostile"),
        # The demo's WebDAV server listens on loopback, which remotes may not name unless the operator says so.
        "CLOCHE_REMOTE_ALLOW_PRIVATE": "true",
        "CLOCHE_LOGGING_FORMAT": "console",
    }
    with log.open("w") as stream:
        process = subprocess.Popen(
            [str(BIN / "cloche"), "up", "--port", "0"],
            cwd=folder,  # no .env of somebody else's
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            preexec_fn=tether(),  # a demo that is killed takes its stack along
        )
    cloche = Cloche(home, "", password, log, process, environment)
    try:
        cloche.url = _listening(cloche)
    except BaseException:
        cloche.stop()
        raise
    return cloche


def _listening(cloche: Cloche) -> str:
    """The address `cloche up` prints once it answers."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    stream = cloche.process.stdout
    assert stream is not None

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + _START_S
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=left)
            if not line:
                raise DemoFailed(f"cloche up ended with {cloche.process.wait()} before it listened")
            if match := re.match(r"Cloche: (http://\S+)", line):
                return match[1]
    raise DemoFailed("cloche up did not say where it listens")


def wait_until_ready(cloche: Cloche) -> None:
    """Wait for ``/readyz``.

    Raises:
        DemoFailed: not in time; the message holds the last answer.
    """
    deadline, last = time.monotonic() + _START_S, "no answer"
    with httpx.Client(trust_env=False, timeout=10) as http:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                answer = http.get(f"{cloche.url}/readyz")
                if answer.status_code == 200:
                    return
                last = answer.text[:500]
            if cloche.process.poll() is not None:
                raise DemoFailed(f"cloche up ended with {cloche.process.returncode}")
            time.sleep(0.1)
    raise DemoFailed(f"Cloche is not ready after {_START_S:.0f} s: {last}")


@dataclass
class WebDav:
    """A running ``rclone serve webdav``."""

    url: str
    user: str
    password: str
    folder: Path
    process: subprocess.Popen[str]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_webdav(folder: Path) -> WebDav:
    """Serve ``folder`` on loopback, to one user with a password.

    Raises:
        DemoFailed: it did not say where it listens.
    """
    user, password = "archivist", secrets.token_urlsafe(12)
    process = subprocess.Popen(
        [str(BIN / "rclone"), "serve", "webdav", str(folder), "--addr", "127.0.0.1:0", "--config", ""],
        env={"RCLONE_USER": user, "RCLONE_PASS": password, "PATH": os.environ.get("PATH", "")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(r"started on \[(http://[^\]]+)\]", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would fill and block
            return WebDav(match[1], user, password, folder, process)
    raise DemoFailed(f"the WebDAV server ended with {process.wait()}")


def leftovers(home: Path) -> list[str]:
    """What a stopped Cloche should not have left: mounts under its home, processes with it in their environment, containers."""
    found = [f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if str(home) in line]
    needle = f"CLOCHE_HOME={home}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(f"process {entry.name}")
    return found + _containers(home)


def _containers(home: Path) -> list[str]:
    """Containers that mount something of the home, asked for over the engine's socket."""
    socket_path = os.environ.get("CLOCHE_SANDBOX_DOCKER_SOCKET", "/var/run/docker.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=socket_path), base_url="http://docker", timeout=30) as engine:
        answer = engine.get("/containers/json", params={"all": "true"})
        answer.raise_for_status()
        return [f"container {item['Id'][:12]}" for item in answer.json() if str(home) in json.dumps(item)]
