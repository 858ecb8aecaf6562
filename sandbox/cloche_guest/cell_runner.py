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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cloche_guest import cell, control, kernel, loader, main, slot_root
from cloche_guest.cell_preload import Preloader
from cloche_guest.compiling import compiled

SLOTS = "/cloche/slots"  # of every slot; the engine's bind, into which sandboxd's mounts arrive
CLOSED = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")
SLOT = "/cloche/slot"  # this one's
_DOUBT_MS = (
    50  # how long a cell that is being killed as a whole may take from its process' death to the end of the first
)
# What the kernel counts by user, and for all cells of a container together: signals that wait, locked memory, bytes of message queues (12 is
# RLIMIT_MSGQUEUE). Each slot has its part.
SHARED = (resource.RLIMIT_SIGPENDING, resource.RLIMIT_MEMLOCK, 12)
_UNLIMITED_PART = 8 << 20


def run_slot(slot: int, slots: int, stream: socket.socket, preload: Sequence[str] = ()) -> NoReturn:
    """Never returns; any failure ends the slot, which sandboxd sees. ``preload``: modules that a process of its own imports for all cells."""
    try:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(
                number, signal.SIG_DFL
            )  # the first process of a cell has what this one has, and shall have no handler
        _settle(slot, slots, further_filter=bool(preload))
        me = os.pidfd_open(os.getpid())
        control.send(stream, {"type": "slot_ready"}, [me])
        os.close(me)
        message, _ = control.receive(stream)  # it is in its cgroup now
        uid = int(message["uid"])
        prepared = loader.prepare(main.PLUGIN, main.WHEELS)
        if prepared is not None and prepared.source is not None:
            prepared.code = compiled(prepared.source, lambda: cell.become(uid))
        gc.collect()
        gc.freeze()  # what a cell does not write to stays shared with this process
        Runner(stream, prepared, _preloaded(preload, prepared, stream) if preload else None).serve()
    except (EOFError, OSError, ValueError) as error:
        os.write(2, f"cloche-guest: slot {slot}: {error}\n".encode())
    os._exit(1)


def _preloaded(names: Sequence[str], prepared: loader.Prepared | None, stream: socket.socket) -> Preloader:
    """
    Raises:
        ValueError: there is none; sandboxd was told why.
    """
    preloader = Preloader(names, prepared)
    problem = preloader.outcome(stream)
    control.send(stream, {"type": "preloaded", "problem": problem}, [preloader.pidfd])
    if problem is not None:
        raise ValueError(f"preload: {problem}")
    return preloader


def _settle(slot: int, slots: int, *, further_filter: bool) -> None:
    """Namespaces of the slot, with all that is the same for every cell; then the filter. ``further_filter``: the preloader adds its own."""
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
    kernel.install_filter(further=further_filter)


@dataclass
class _Cell:
    """``told``: the reading end of where its process says that it is made. ``code``: how it ended, when the plugin's doing and known."""

    id: int
    first: kernel.Sleeper
    first_fd: int
    plugin: int
    plugin_fd: int
    told: int
    code: int | None = None
    killed: bool = False  # the first process, by us


class Runner:
    """One cell at a time in use, and at most one more being prepared."""

    def __init__(
        self, stream: socket.socket, prepared: loader.Prepared | None, preloader: Preloader | None = None
    ) -> None:
        self._stream = stream
        self._prepared = prepared
        self._preloader = preloader
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._cells: dict[int, _Cell] = {}  # by either of its pidfds
        self._poll = select.poll()
        self._poll.register(stream, select.POLLIN)
        if preloader is not None:
            self._poll.register(preloader.pidfd, select.POLLIN)
        self._doubtful: list[_Cell] = []

    def serve(self) -> None:
        """
        Raises:
            EOFError: sandboxd let go of the slot.
            OSError: the preloader died, or what is needed for a cell is not to be had.
        """
        while True:
            ready = [fd for fd, _ in self._poll.poll(_DOUBT_MS if self._doubtful else None)]
            if not ready:
                self._resolve()
            for fd in ready:
                if fd == self._stream.fileno():
                    self._order()
                elif (cell_ := self._cells.get(fd)) is not None:
                    self._poll.unregister(fd)
                    if fd == cell_.plugin_fd:
                        self._ended(cell_)
                    else:
                        self._bury(cell_)
                elif self._preloader is not None and fd == self._preloader.pidfd:
                    raise ChildProcessError("the preloader died")

    def _order(self) -> None:
        kernel.unshare(kernel.NEWPID)
        first = (
            kernel.Sleeper()
        )  # before the cell's channel is open here, whose other end shall see the plugin's process let go of it
        order, fds = control.receive(self._stream)
        made = self._make(order, first, fds[0])
        os.close(fds[0])
        for fd in (made.first_fd, made.plugin_fd):
            self._cells[fd] = made
            self._poll.register(fd, select.POLLIN)
        control.send(self._stream, {"type": "cell", "id": made.id}, [made.first_fd])

    def _make(self, order: dict[str, Any], first: kernel.Sleeper, channel: int) -> _Cell:
        options = (str(order[name]) for name in ("tmp", "shm", "secrets"))
        said = cell.Order(int(order["id"]), int(order["uid"]), *options)
        reader, writer = os.pipe()
        if self._preloader is None:
            plugin = kernel.fork()
            if plugin == 0:
                cell.live(said, channel, writer, self._prepared)
        else:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            plugin = kernel.fork()
            if plugin == 0:
                cell.live_for(said, near.detach())
            near.close()
            self._preloader.order(said.uid, channel, far, writer)
            far.close()
        os.close(writer)
        kernel.enter(self._own_pids, kernel.NEWPID)
        return _Cell(int(order["id"]), first, os.pidfd_open(first.pid), plugin, os.pidfd_open(plugin), reader)

    def _ended(self, cell_: _Cell) -> None:
        """The plugin's process is dead, alone or because the whole cell is being killed."""
        _, status = os.waitpid(cell_.plugin, 0)
        made = os.read(cell_.told, len(cell.MADE)) == cell.MADE
        cell_.code = os.waitstatus_to_exitcode(status) if made else None
        if cell_.code == -signal.SIGKILL:
            self._doubtful.append(cell_)  # if the first process is being killed it is about to be dead
        else:
            self._kill(cell_)

    def _resolve(self) -> None:
        """Their first processes live on: it was the plugin's process that was killed."""
        for cell_ in self._doubtful:
            self._kill(cell_)
        self._doubtful.clear()

    def _kill(self, cell_: _Cell) -> None:
        cell_.killed = True
        signal.pidfd_send_signal(cell_.first_fd, signal.SIGKILL)

    def _bury(self, dead: _Cell) -> None:
        """The first process is dead, and so everything that was in there."""
        if dead in self._doubtful:
            self._doubtful.remove(dead)
        os.waitpid(dead.first.pid, 0)
        for fd in (dead.first_fd, dead.plugin_fd):
            del self._cells[fd]
            os.close(fd)
        os.close(dead.told)
        code = dead.code if dead.killed else None
        control.send(self._stream, {"type": "ended", "id": dead.id, "code": code})
