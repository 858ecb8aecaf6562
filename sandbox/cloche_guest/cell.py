"""A cell: one job's own namespaces, user id and file systems. Made before the job is known, used once, never cleaned.

The first process of its pid namespace is a :class:`cloche_guest.kernel.Sleeper` of the runner's. The plugin's process is the runner's child
beside it: it mounts what the cell needs, gives up every right, and only then is the plugin's. When it has died the runner kills the first
process, and the kernel whatever else is in the namespace.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from dataclasses import dataclass
from typing import NoReturn

from cloche_guest import control, job_secrets, kernel, loader, main
from cloche_guest.first import prefer_as_victim

SLOT = "/cloche/slot"
MADE = b"1"
_EXIT = struct.Struct("i")
_NOT_OURS = (signal.SIGKILL, signal.SIGSTOP, 32, 33)  # to handle: the kernel's, and the C library's


@dataclass(frozen=True)
class Order:
    """``uid``: inside the container's user namespace. ``tmp``, ``shm`` and ``secrets``: options of the tmpfs; no ``secrets``, no such place."""

    id: int
    uid: int
    tmp: str
    shm: str
    secrets: str = ""


def live(order: Order, channel: int, writer: int, prepared: loader.Prepared | None) -> NoReturn:
    """In the child that the runner forked. ``writer``: where :data:`MADE` is said once whatever ends the process is the plugin's doing."""
    try:
        keep(channel, writer)
        kernel.unshare(kernel.CELL_NAMESPACES)
        _mounts(order)
        kernel.forget_parent()
        become(order.uid)
        os.write(writer, MADE)
        os.close(writer)
        run(channel, prepared)
    except OSError as error:
        os.write(2, f"cloche-guest: cell {order.id}: {error}\n".encode())
    finally:
        os._exit(1)


def live_for(order: Order, near: int) -> NoReturn:
    """As :func:`live`, where the slot's preloader makes the plugin's process: this one makes the places for it, and stands for it afterwards.

    ``near`` leads to the preloader: first the namespaces go there, each a descriptor, then it tells how the plugin's process ended. This one ends
    in the same way, which its parent sees. The preloader could not do it: it may mount nothing.
    """
    try:
        keep(near)
        kernel.unshare(kernel.CELL_NAMESPACES)
        _mounts(order)
        own = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("pid", "mnt", "ipc", "uts")]
        with socket.socket(fileno=near) as stream:
            control.send(stream, {"type": "made"}, own)
            for fd in own:
                os.close(fd)
            kernel.drop_capabilities()
            kernel.set_dumpable(False)
            said = stream.recv(_EXIT.size)
        if len(said) == _EXIT.size:
            (code,) = _EXIT.unpack(said)
            if -65 < code < 0:
                if -code not in _NOT_OURS:
                    signal.signal(-code, signal.SIG_DFL)  # the interpreter ignores some
                os.kill(os.getpid(), -code)
            os._exit(code & 0xFF)
    except OSError as error:
        os.write(2, f"cloche-guest: cell {order.id}: {error}\n".encode())
    finally:
        os._exit(1)


def keep(*kept: int) -> None:
    """Close the runner's descriptors: its control socket, its namespaces, other cells."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


def _mounts(order: Order) -> None:
    kernel.make_private()
    kernel.bind(f"{SLOT}/{order.id}/in", "/job/in")
    kernel.bind(f"{SLOT}/{order.id}/out", "/job/out")
    kernel.unmount(SLOT)
    kernel.mount_tmpfs("/tmp", order.tmp)  # noqa: S108 - its own
    kernel.mount_tmpfs("/dev/shm", order.shm)  # noqa: S108
    if order.secrets:
        kernel.mount_tmpfs(job_secrets.PLACE, order.secrets)
    kernel.mount_proc("/proc")


def become(uid: int) -> None:
    """The cell's own user, without any right. The kernel takes the capabilities of who leaves uid 0; it is checked all the same.

    Raises:
        OSError: something is left.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.drop_capabilities()
    if kernel.has_capability():
        raise OSError("a capability is left")
    kernel.set_dumpable(True)
    prefer_as_victim()


def run(channel: int, prepared: loader.Prepared | None) -> NoReturn:
    os.setsid()
    os.dup2(channel, 0)
    os.dup2(channel, 1)
    os.close(channel)
    main.serve(prepared)
