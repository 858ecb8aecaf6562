"""Stores that a row brings along: a Valkey of its own on TCP, with or without a log on disk, and small disks."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.support.stores import until, valkey_binary


class Server:
    """A Valkey on 127.0.0.1, and on one more address. ``kill`` and ``start`` as often as wanted; it keeps its port."""

    def __init__(self, folder: Path, *, aof: bool, also: str | None = None) -> None:
        self._addresses = ["127.0.0.1", *([also] if also else [])]
        self._folder = folder
        self._aof = aof
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = {
            "port": self.port,
            "bind": " ".join(self._addresses),
            "protected-mode": "no",
            "dir": self._folder,
            "save": "",
            "appendonly": "yes" if self._aof else "no",
            "appendfsync": "always",
        }
        self._process = subprocess.Popen(
            [valkey_binary(), *(part for name, value in words.items() for part in (f"--{name}", str(value)))],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        until(self.answers, 20, "the server answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def server(*, aof: bool = False, folder: Path | None = None, also: str | None = None) -> Iterator[Server]:
    own = folder is None
    place = Path(tempfile.mkdtemp(prefix="chaos-valkey-")) if folder is None else folder
    made = Server(place, aof=aof, also=also)
    made.start()
    try:
        yield made
    finally:
        made.kill()
        if own:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A tmpfs of that size, unmounted in the end."""
    place = Path(tempfile.mkdtemp(prefix="chaos-disk-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "chaos", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def fill(place: Path) -> Path:
    """Use up all the room there is; the file that does so."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(os.urandom(64) * (size // 64) if size >= 64 else b"x")
            except OSError:
                continue
    return ballast
