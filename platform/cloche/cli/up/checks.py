"""What has to hold before anything starts; each failure is one clear line."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from cloche.errors import EnvironmentProblem

_LEFTOVERS_S = 20.0  # how long the children of a supervisor that was killed may take to end: a worker's grace and some


def require_root() -> None:
    """
    Raises:
        EnvironmentProblem: not root.
    """
    if os.geteuid() != 0:
        raise EnvironmentProblem(
            "`cloche up` also starts sandboxd, which has to be root to seal jobs in: run it with sudo. "
            "The other processes need no privilege and start alone: cloche web, cloche worker, cloche egress, cloche scheduler."
        )


def take_lock(home: Path, leftovers_s: float = _LEFTOVERS_S) -> int:
    """Take ``<home>/run/up.lock`` and return its descriptor, to be kept open and handed to every child.

    Children hold it too, so that after a supervisor was killed the next one begins only when its predecessor's last child is gone.

    Raises:
        EnvironmentProblem: another `cloche up` runs on this home.
    """
    path = home / "run" / "up.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + leftovers_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            if holder.isdigit() and Path(f"/proc/{holder}").exists():
                os.close(lock)
                raise EnvironmentProblem(
                    f"another `cloche up` (pid {holder}) runs on the home {home}: stop it first, or set CLOCHE_HOME to another folder"
                ) from None
            if time.monotonic() > deadline:
                os.close(lock)
                raise EnvironmentProblem(
                    f"processes of an earlier `cloche up` (pid {holder or 'unknown'}, gone) still hold {path}: `fuser {path}` names them"
                ) from None
            time.sleep(0.1)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    return lock


def free_port(host: str, port: int) -> int:
    """``port`` if it can be listened on, or a free one for 0.

    Raises:
        EnvironmentProblem: it is in use, or the address is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise EnvironmentProblem(f"cannot listen on {host}: {error.strerror}. Set CLOCHE_SERVER_HOST.") from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = f"port {port} on {host} is in use: stop what listens there, or choose another with --port or CLOCHE_SERVER_PORT"
            else:
                why = (
                    f"cannot listen on {host}:{port}: {error.strerror}. Set CLOCHE_SERVER_HOST and CLOCHE_SERVER_PORT."
                )
            raise EnvironmentProblem(why) from None
        return int(probe.getsockname()[1])
