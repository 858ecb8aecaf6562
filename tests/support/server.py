"""`cloche web` as a process, for what only shows over real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.stores import until
from tests.support.web import ADMIN_PASSWORD


class Server:
    """`cloche web` on a free port in a home of its own."""

    def __init__(self, home: Path, port: int = 0, **environment: str) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloche", "web", "--home", str(home), "--port", str(port)],
            env={**kept, "CLOCHE_ADMIN_PASSWORD": ADMIN_PASSWORD, "CLOCHE_LOGGING_FORMAT": "console", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def place(self) -> Path:
        return self.home / "run" / "web.json"

    def ready(self) -> Server:
        try:
            until(lambda: self.place.exists() or self.process.poll() is not None, 90, "the server answers")
        except AssertionError:
            self.stop()
            raise
        assert self.process.poll() is None, self.process.stdout.read()
        return self

    @property
    def address(self) -> tuple[str, int]:
        told = json.loads(self.place.read_text())
        return told["host"], told["port"]

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.address)

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in listed.split()]

    def stop(self) -> None:
        for number in [*self.children(), self.process.pid] if self.process.poll() is None else []:
            os.kill(number, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def raw(server, head: str, body: bytes, *, finish: bool = True) -> bytes:
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        if finish:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := sock.recv(65_536):
            received += chunk
        return received
