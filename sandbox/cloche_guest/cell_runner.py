"""The runner of a slot: makes its single-use cells one after the other. It runs our code alone, and reads nothing that a cell says.

First process of the slot's pid namespace: what it made dies with it. sandboxd puts it into the slot's cgroup once; cells are born there.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cloche_guest import cell, control, kernel, loader, slot_root

SLOTS = "/cloche/slots"  # of every slot; the engine's bind, into which sandboxd's mounts arrive
CLOSED = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")
SLOT = "/cloche/slot"  # this one's
_EXIT = struct.Struct("i")
# What the kernel counts by user, and for all cells of a container together: signals that wait, locked memory, bytes of message queues (12 is
# RLIMIT_MSGQUEUE). Each slot has its part.
SHARED = (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MEMLOCK, 12)
_UNLIMITED_PART = 8 << 20


def run_slot(slot: int, slots: int, stream: socket.socket) -> NoReturn:
    """Never returns; any failure ends the slot, which sandboxd sees."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _settle(slot, slots)
        me = os.pidfd_open(os.getpid())
        control.send(stream, {"type": "slot_ready"}, [me])
        os.close(me)
        control.receive(stream)  # it is in its cgroup now
        loader.make_ready()
        gc.collect()
        gc.freeze()  # what a cell does not write to stays shared with this process
        Runner(stream).serve()
    except (EOFError, OSError, ValueError) as error:
        os.write(2, f"cloche-guest: slot {slot}: {error}\n".encode())
    os._exit(1)


def _settle(slot: int, slots: int) -> None:
    """Namespaces of the slot, with all that is the same for every cell; then the filter."""
    kernel.unshare(kernel.SLOT_NAMESPACES)
    # A closed connection is forgotten at once: on a network that is one machine's lo nothing of it can still be on its way.
    CLOSED.write_text("0", "ascii")
    slot_root.enter(f"{SLOTS}/{slot}", SLOT)
    kernel.loopback_up()
    for kind in SHARED:
        together = resource.getrlimit(kind)[0]
        part = _UNLIMITED_PART if together == resource.RLIM_INFINITY else together // slots
        resource.setrlimit(kind, (part, part))
    kernel.empty_bounding_set()
    kernel.install_filter()


@dataclass
class _Cell:
    id: int
    pid: int
    pidfd: int
    reader: int  # where its first process says how the plugin's ended


class Runner:
    """One cell at a time in use, and at most one more being prepared."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._cells: dict[int, _Cell] = {}

    def serve(self) -> None:
        """
        Raises:
            EOFError: sandboxd let go of the slot.
        """
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._stream.fileno():
                    order, fds = control.receive(self._stream)
                    made = self._make(order, fds[0])
                    os.close(fds[0])
                    poll.register(made.pidfd, select.POLLIN)
                    control.send(self._stream, {"type": "cell", "id": made.id}, [made.pidfd])
                elif fd in self._cells:
                    poll.unregister(fd)
                    self._bury(self._cells.pop(fd))

    def _make(self, order: dict[str, Any], channel: int) -> _Cell:
        reader, writer = os.pipe()
        kernel.unshare(kernel.NEWPID)
        pid = kernel.fork()
        if pid == 0:
            cell.live(
                cell.Order(int(order["id"]), int(order["uid"]), str(order["tmp"]), str(order["shm"])), channel, writer
            )
        os.close(writer)
        kernel.enter_pid_namespace(self._own_pids)
        made = _Cell(int(order["id"]), pid, os.pidfd_open(pid), reader)
        self._cells[made.pidfd] = made
        return made

    def _bury(self, dead: _Cell) -> None:
        os.waitpid(dead.pid, 0)
        said = os.read(dead.reader, _EXIT.size)
        os.close(dead.reader)
        os.close(dead.pidfd)
        code = _EXIT.unpack(said)[0] if len(said) == _EXIT.size else None
        control.send(self._stream, {"type": "ended", "id": dead.id, "code": code})
