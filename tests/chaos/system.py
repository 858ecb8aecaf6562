"""The real stack under attack: `cloche up` in a home of its own, its processes by role, its failpoints, its stores."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from bench.stack import Stack
from cloche import config
from cloche.db import sqlite_locks
from cloche.db.engine import Database
from cloche.failpoints import Point
from tests.support.receiver import Behave, Got, answers, receiving
from tests.support.stores import until

PLUGINS = Path(__file__).parent / "plugins"
START_S = 240.0  # on a busy machine
BOX, CELL = "chaos_box", "chaos_cell"
_REFUSED_EVERY = 12
_WORDS = {
    "worker": "-m cloche worker",
    "sandboxd": "-m cloche sandboxd",
    "scheduler": "-m cloche scheduler",
    "web": "-m cloche web",
    "valkey": "valkey-server",
}


class System:
    """``start`` and ``stop`` as often as wanted; ``remove`` last. ``more``: settings, ``CLOCHE_…`` names without the prefix, in lower case."""

    def __init__(self, more: Mapping[str, str] | None = None, home: Path | None = None) -> None:
        self.home = home or Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        self.log = Path(f"{self.home}.log")
        self.plugins = Path(tempfile.mkdtemp(prefix="chaos-plugins-", dir="/tmp"))
        self._write_plugins()
        self.marks = self.home / "run" / "failpoints"
        self._password = secrets.token_urlsafe(16)
        self.secret = secrets.token_urlsafe(24)  # what each job is given, and shows a digest of
        self._brought = contextlib.ExitStack()
        self.receiver = self._brought.enter_context(receiving())
        self.receiver.always = _now_and_then()
        self.settings_given = {
            "home": str(self.home),
            "server_port": str(_free_port()),
            "admin_password": self._password,
            "plugin_path": str(self.plugins),
            "worker_count": "2",
            "worker_slots": "2",
            "egress_enabled": "false",
            "callbacks_private": f"127.0.0.1:{self.receiver.port}",
            "callbacks_timeout": "2s",
            "quota_tenant_jobs": "1000000",  # far away: so that everything is counted
            "quota_tenant_storage": "1000GB",
            "failpoints": ",".join(f"{point}=kill" for point in Point),
            **(more or {}),
        }
        self.given: Any = None  # what the row's setting brought along
        self.busy = False  # whether the machine had other work before this was started
        self._loads = 0
        self._stack: Stack | None = None
        self._spawned: list[subprocess.Popen[bytes]] = []

    def next_numbers(self) -> int:
        """Where the next load counts its jobs from, so that no two loads of this system use a number or a key twice."""
        self._loads += 1
        return self._loads * 100_000

    @property
    def stack(self) -> Stack:
        assert self._stack is not None, "not started"
        return self._stack

    @property
    def client(self) -> httpx.Client:
        return self.stack.client

    def environment(self, **more: str) -> dict[str, str]:
        """What a process of this stack is started with."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
        return clean | {f"CLOCHE_{name}".upper(): value for name, value in (self.settings_given | more).items()}

    def start(self) -> None:
        """`cloche up`, ready; every failpoint in place and none of them armed."""
        self.disarm()
        self.launch()
        self.stack.wait_ready(START_S)
        if self.client.get("/secrets/CHAOS_KEY").status_code != 200:
            self._give_secret()

    def _give_secret(self) -> None:
        self.client.post("/secrets", json={"name": "CHAOS_KEY", "value": self.secret}).raise_for_status()
        grants = {"grants": [{"plugin": plugin, "versions": "==1.0.0"} for plugin in (BOX, CELL)]}
        self.client.put("/secrets/CHAOS_KEY/grants", json=grants, headers={"If-Match": "*"}).raise_for_status()

    def launch(self) -> None:
        """`cloche up`, without waiting for it."""
        (self.home / "run" / "web.json").unlink(missing_ok=True)
        with self.log.open("ab") as out:
            command = [str(Path(sys.executable).parent / "cloche"), "up"]
            process = subprocess.Popen(
                command, cwd=self.home, env=self.environment(), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._stack = Stack(self.home, process, self.log, self._password)

    def stop(self) -> None:
        for process in self._spawned:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._spawned:
            process.wait(60)
        self._spawned.clear()
        if self._stack is not None:
            self._stack.client.close()
            self._stack.stop()
            self._stack = None

    def kill_everything(self) -> None:
        """What a power cut leaves: SIGKILL to the supervisor and each of its processes at once."""
        pids = [self.stack.pid, *_descendants(self.stack.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that none sees another one die
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.stack.process.wait(30)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "everything is dead")

    def remove(self) -> None:
        self.stop()
        self._brought.close()
        for folder in (self.home, self.plugins):
            shutil.rmtree(folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def pids(self, role: str) -> list[int]:
        """The processes of that role, oldest first; a web process's own children are not among them."""
        spawned = [p.pid for p in self._spawned if p.poll() is None and _WORDS[role] in _command(p.pid)]
        return self.supervised(role) + spawned

    def supervised(self, role: str) -> list[int]:
        """Those of them that `cloche up` watches."""
        return [pid for pid in _children(self.stack.pid) if _WORDS[role] in _command(pid)]

    def processes(self) -> list[int]:
        """Whatever was started for this home and lives."""
        mine = f"CLOCHE_HOME={self.home}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # gone, or a kernel's thread
                if mine in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    @staticmethod
    def signal(pid: int, number: signal.Signals) -> None:
        """Send it, to a process that may have ended meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def stop_process(self, pid: int, *, writing: bool) -> None:
        """SIGSTOP, in a moment in which it holds SQLite's write lock, or in one in which it does not: others cannot write while it stands."""
        deadline = time.monotonic() + START_S
        path = self.home / "cloche.db"
        while True:
            os.kill(pid, signal.SIGSTOP)
            until(lambda: _standing(pid), 10, "the process stands still")
            if (sqlite_locks.writer(path) == pid) == writing:
                return
            os.kill(pid, signal.SIGCONT)
            assert time.monotonic() < deadline, f"process {pid} came to no such moment"
            time.sleep(secrets.randbelow(10) / 1000)

    def taking_jobs(self) -> int:
        """How many workers are alive and take jobs."""
        return sum(
            1
            for item in self.client.get("/workers").json()["items"]
            if item["status"] == "alive" and item["status_reason"] is None and Path(f"/proc/{item['pid']}").exists()
        )

    def spawn(self, *words: str, before: tuple[str, ...] = (), **more: str) -> subprocess.Popen[bytes]:
        """One more process, such as ``worker``, that no supervisor watches. ``before``: words before its command; ``more``: its settings."""
        command = [*before, sys.executable, "-m", "cloche", *words]
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                command, cwd=self.home, env=self.environment(**more), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._spawned.append(process)
        return process

    # --- failpoints ---------------------------------------------------------------------------------------------------------

    def disarm(self) -> None:
        """No point acts from now on."""
        self.marks.mkdir(mode=0o700, parents=True, exist_ok=True)
        for point in Point:
            (self.marks / point).touch()

    def arm(self, point: Point) -> None:
        """The next process that comes to ``point`` dies there."""
        (self.marks / point).unlink()

    def fired(self, point: Point) -> float | None:
        """When it did (seconds since the epoch), or None."""
        mark = self._mark(point)
        return mark[0] if mark else None

    def who_fired(self, point: Point) -> int:
        """The process that did."""
        mark = self._mark(point)
        assert mark, f"nothing came to {point}"
        return mark[1]

    def _mark(self, point: Point) -> tuple[float, int] | None:
        try:
            text = (self.marks / point).read_text()
        except FileNotFoundError:
            return None
        at, _, pid = text.partition(" ")
        return (float(at), int(pid)) if text.endswith("\n") else None  # an empty one was put there by ``disarm``

    # --- stores -------------------------------------------------------------------------------------------------------------

    def database(self) -> Database:
        """The stack's own database, for looking at; the caller closes it."""
        return Database(self.settings().database_url)

    def settings(self) -> config.Settings:
        url = (
            {"database": {"url": self.settings_given["database_url"]}} if "database_url" in self.settings_given else {}
        )
        return config.load(home=self.home, **url)

    @property
    def redis_url(self) -> str:
        return self.settings_given.get("redis_url") or f"unix://{self.home}/run/valkey.sock"

    def _write_plugins(self) -> None:
        shutil.copytree(PLUGINS, self.plugins, dirs_exist_ok=True)
        cell = self.plugins / CELL / "1.0.0"
        shutil.copytree(PLUGINS / BOX / "1.0.0", cell)
        manifest = (cell / "plugin.toml").read_text().replace(BOX, CELL)
        (cell / "plugin.toml").write_text(manifest + '\n[sandbox]\nisolation = "namespace"\n')


def kill(pid: int) -> float:
    """SIGKILL; when that was, in seconds since the epoch."""
    now = time.time()
    os.kill(pid, signal.SIGKILL)
    return now


def _now_and_then() -> Behave:
    """A receiver that refuses some of what it is sent, for the platform to try again."""
    count = itertools.count(1)

    def behave(stream: socket.socket, got: Got) -> None:
        answers(503 if next(count) % _REFUSED_EVERY == 0 else 204)(stream, got)

    return behave


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    try:
        return [int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _descendants(pid: int) -> list[int]:
    return [below for child in _children(pid) for below in (child, *_descendants(child))]


def _standing(pid: int) -> bool:
    """Whether each of its threads has taken note of SIGSTOP."""
    try:
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False  # a thread ended meanwhile
    return set(states) == {"T"}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
