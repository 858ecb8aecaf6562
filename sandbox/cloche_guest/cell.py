"""A cell: one job's own namespaces, user id and file systems. Made before the job is known, used once, never cleaned.

Its first process is ours: it mounts, gives up every right, reaps, and outlives the plugin's process so that its end can be told. The
plugin's process is a child under a user id of the cell's own; when it has died the whole pid namespace does.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import NoReturn

from cloche_guest import kernel, main
from cloche_guest.first import prefer_as_victim, take_no_signal

SLOT = "/cloche/slot"


@dataclass(frozen=True)
class Order:
    """``uid``: inside the container's user namespace. ``tmp`` and ``shm``: options of the tmpfs."""

    id: int
    uid: int
    tmp: str
    shm: str


def live(order: Order, channel: int, writer: int) -> NoReturn:
    """In the child that the runner forked, first of its pid namespace."""
    try:
        _keep(channel, writer)
        kernel.unshare(kernel.CELL_NAMESPACES)
        _mounts(order)
        plugin = kernel.fork()
        if plugin == 0:
            os.close(writer)
            kernel.forget_parent()
            _become(order.uid)
            _run(channel)
        os.close(channel)
        kernel.drop_capabilities()
        kernel.set_dumpable(False)
        take_no_signal()
        _outlive(plugin, writer)
    except OSError as error:
        os.write(2, f"cloche-guest: cell {order.id}: {error}\n".encode())
    finally:
        os._exit(1)


def _keep(*kept: int) -> None:
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
    kernel.mount_proc("/proc")


def _become(uid: int) -> None:
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


def _run(channel: int) -> NoReturn:
    os.setsid()
    os.dup2(channel, 0)
    os.dup2(channel, 1)
    os.close(channel)
    main.serve()


def _outlive(plugin: int, writer: int) -> NoReturn:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == plugin:
            os.write(writer, struct.pack("i", os.waitstatus_to_exitcode(status)))
            os._exit(0)  # and the kernel kills whatever else is in here
