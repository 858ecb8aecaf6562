"""A Docker engine of a test's own, beside the machine's, so that it can be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.stores import short_folder, until


class Engine:
    """`start` and `kill` as often as wanted; its containers die with `kill`, as they do when a host does.

    `runtimes`: further ones by name, each as (program, arguments).
    """

    def __init__(self, folder: Path, runtimes: Mapping[str, tuple[str, tuple[str, ...]]] | None = None) -> None:
        self.folder = folder
        self.register(runtimes or {})
        self.socket = folder / "d.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def register(self, runtimes: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
        """These runtimes from the next `start` or `reload` on."""
        named = {name: {"path": path, "runtimeArgs": list(words)} for name, (path, words) in runtimes.items()}
        (self.folder / "daemon.json").write_text(json.dumps({"runtimes": named}))

    def reload(self) -> None:
        """As `systemctl reload docker`: the runtimes are registered anew under running containers, soon."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        command = [
            "dockerd", "--host", f"unix://{self.socket}", "--data-root", str(self.folder / "data"),
            "--config-file", str(self.folder / "daemon.json"), "--exec-root", str(self.folder / "exec"), "--pidfile", str(self.folder / "pid"),
            "--bridge", "none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        until(self.answers, 60, f"the engine answers; see {self.folder}/log")

    def kill(self) -> None:
        """SIGKILL to the engine, its containerd and every shim with its container."""
        if self._process is None:
            return
        mine = [pid for pid in _pids() if str(self.folder) in _command(pid)]
        for pid in mine:
            for child in _descendants(pid):
                _signal(child)
            _signal(pid)
        self._process.wait(30)
        self._process = None
        # As after a host's death. Until somebody has reaped the dead, a new engine would wait for the containerd of the old.
        for left in (self.folder / "pid", self.folder / "exec" / "containerd" / "containerd.pid"):
            left.unlink(missing_ok=True)

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(2)
                probe.connect(str(self.socket))
                probe.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                return b" 200 " in probe.recv(64)
        except OSError:
            return False


@contextmanager
def running_engine(runtimes: Mapping[str, tuple[str, tuple[str, ...]]] | None = None) -> Iterator[Engine]:
    with short_folder() as folder:
        engine = Engine(folder, runtimes)
        engine.start()
        try:
            yield engine
        finally:
            engine.kill()
            _unmount_below(folder)


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in sorted((m for m in mounts if m.startswith(f"{folder}/")), key=len, reverse=True):
        subprocess.run(["umount", "-l", place], check=False)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _descendants(pid: int) -> list[int]:
    try:
        direct = [int(part) for part in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [below for child in direct for below in (*_descendants(child), child)]


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
