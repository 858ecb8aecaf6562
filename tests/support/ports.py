"""Ports on loopback for servers that tests start.

Between looking for a free port and the server's own bind somebody else may take it: a server that another test starts, or any connection that
goes out. The server then ends at once, and whoever connects meanwhile finds a stranger.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_TRIES = 5
_LISTENING = "0A"  # a socket's state in /proc/net/tcp


def free_port() -> int:
    """One that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listening(
    start: Callable[[int], subprocess.Popen[bytes]], port: int = 0, seconds: float = 30, log: Path | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """The process that ``start`` made with a port, once it listens there itself, and that port.

    Where no port is given and the server ends, it is started with another one, up to five times. With a given one it is started again until
    ``seconds`` are over. ``log``: what it wrote, for the one who reads why it never listened.
    """
    deadline = time.monotonic() + seconds
    tries = 0
    while True:
        chosen = port or free_port()
        process = start(chosen)
        try:
            while process.poll() is None:
                if listens(process.pid, chosen):
                    return process, chosen
                assert time.monotonic() < deadline, f"nothing listens on port {chosen}{_end_of(log)}"
                time.sleep(0.02)
        except BaseException:
            process.kill()
            process.wait()
            raise
        tries += 1
        again = time.monotonic() < deadline if port else tries < _TRIES
        assert again, f"the server for port {chosen} ended with {process.returncode}{_end_of(log)}"
        time.sleep(0.1)


def listens(pid: int, port: int) -> bool:
    """Whether that process itself listens on the port of 127.0.0.1."""
    address = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{port:04X}"
    try:
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it has ended
        return False
    sockets = {f"socket:[{row[9]}]" for row in rows if (row[1], row[3]) == (address, _LISTENING)}
    for entry in entries:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(entry) in sockets:
                return True
    return False


def _end_of(log: Path | None) -> str:
    return "" if log is None else f":\n{log.read_text(errors='replace')[-2000:]}"
