"""Process 1 of a container of level ``namespace``. It makes the user namespace and the slots' runners, and never runs plugin code.

It has no capability and an ordinary user id. In the user namespace that it unshares it becomes root over 64 user ids, none of which is
root outside; sandboxd writes that map, because nobody in here may. Its end, or sandboxd's, is the end of the container.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any, NoReturn

from cloche_guest import control, kernel, preload_names
from cloche_guest.cell_runner import run_slot

CONTROL = "/run/cloche/agent.sock"
_SYSCTLS = Path("/proc/sys/user")


def main() -> NoReturn:
    """Entry of the container."""
    kernel.set_dumpable(False)
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # dead runners need no parent's look: sandboxd holds a descriptor of each
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream.connect(CONTROL)
    slots = _enter_user_namespace(stream)
    _allow_no_further_namespaces()
    control.send(stream, {"type": "agent_ready"})
    try:
        while True:
            order, fds = control.receive(stream)
            _start_slot(stream, int(order["slot"]), slots, fds[0], _preload(order))
            os.close(fds[0])
    except (EOFError, OSError, ValueError):
        os._exit(0)


def _enter_user_namespace(stream: socket.socket) -> int:
    """Returns how many slots there will be."""
    kernel.unshare(kernel.NEWUSER)
    control.send(stream, {"type": "unshared"})
    message, _ = control.receive(stream)  # the maps are written
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    kernel.set_dumpable(False)
    return int(message["slots"])


def _allow_no_further_namespaces() -> None:
    """The kernel's own counts, for this user namespace and all that is in it: a cell could not have another even without a filter."""
    for kind in ("user", "cgroup", "time"):
        (_SYSCTLS / f"max_{kind}_namespaces").write_text("0", "ascii")


def _preload(order: dict[str, Any]) -> list[str]:
    """
    Raises:
        ValueError: what sandboxd never asks for.
    """
    names = order.get("preload", [])
    if problem := preload_names.problem(names):
        raise ValueError(f"preload {problem}")
    return list(names)


def _start_slot(stream: socket.socket, slot: int, slots: int, fd: int, preload: list[str]) -> None:
    """A runner as first process of a pid namespace of its slot. The process between us and it ends at once."""
    if os.fork() != 0:
        return
    stream.close()
    kernel.unshare(kernel.NEWPID)
    if os.fork() == 0:
        run_slot(slot, slots, socket.socket(fileno=fd), preload)
    os._exit(0)
