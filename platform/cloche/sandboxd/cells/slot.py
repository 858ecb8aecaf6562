"""A slot: a runner in a cgroup of its own, and at most one cell at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import ClocheError, PlatformFailure
from cloche.isolation.cell_spec import shm_options, tmp_options
from cloche.sandboxd.cells.preloaded import Preloader, pid_of
from cloche.sandboxd.cells.site import CellSite, ContainerSite
from cloche.sandboxd.cells.slot_cgroup import SlotCgroup
from cloche.sandboxd.cells.talk import Talk
from cloche_guest import job_secrets

_SETUP_CPU_MS = 5_000  # a cell may use so much before its job comes
_IDLE_SHARE = 0.1  # of one CPU, and this much all the time


class Anomaly(Exception):
    """Something that our own processes never do. The container is not used again."""


class Unplaced(ClocheError):
    """This host has no room for another cell's folders or output. Nobody's trick; what runs goes on."""


@dataclass
class Cell:
    """Made and waiting, or at work. Once it was handed out ``channel`` is None, and ``pidfd`` is -1: another's to close.

    Its container may be destroyed at any time by another thread, which closes what is left: each descriptor has one who closes it.
    """

    number: int
    uid: int  # outside
    site: CellSite
    pidfd: int
    channel: socket.socket | None
    born: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_dead(self) -> bool:
        """Also when it was handed out or let go of."""
        with self._lock:
            return self.pidfd < 0 or is_dead(self.pidfd)

    def kill(self) -> None:
        """SIGKILL to its first process, and so to all."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def take(self) -> tuple[socket.socket, int]:
        """Hand out the channel and the descriptor of its first process, once.

        Raises:
            PlatformFailure: that was done before, or its container has been destroyed.
        """
        with self._lock:
            channel, pidfd = self.channel, self.pidfd
            if channel is None or pidfd < 0:
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the cell was handed out before, or is gone")
            self.channel, self.pidfd = None, -1
        return channel, pidfd

    def close(self) -> None:
        """Let go of what was not handed out."""
        with self._lock:
            if self.channel is not None:
                self.channel.close()
                self.channel = None
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1


class State(StrEnum):
    """``ready``: a cell waits in it; where the disk is scarce, it is made when its job comes.
    ``busy``: handed out, or in somebody's hands. ``lost``: never used again."""

    PREPARING = "preparing"
    READY = "ready"
    BUSY = "busy"
    LOST = "lost"


class Slot:
    """Used by one thread at a time, but for ``close``. ``prepare`` → ``cell.take`` → (cell dead) → ``clear`` → ``prepare`` …"""

    def __init__(
        self,
        number: int,
        talk: Talk,
        group: SlotCgroup,
        pidfd: int,
        site: ContainerSite,
        uids: range,
        base: int,
        preloader: Preloader | None = None,
        secrets: bool = False,
    ) -> None:
        """``pidfd``: the runner's. ``secrets``: whether its cells have a place for them."""
        self.number = number
        self.group = group
        self.cell: Cell | None = None
        self.state = State.PREPARING
        self.made = 0  # cells so far
        self._talk = talk
        self._pidfds = [pidfd] if preloader is None else [pidfd, preloader.pidfd]  # none once it is closed
        self._pidfds_lock = threading.Lock()  # their numbers are not reused while they are looked at
        self._preloader = preloader
        self._secrets = secrets
        self._site = site
        self._uids = uids  # inside
        self._base = base
        self._told: tuple[int | None] | None = None

    def prepare(self, limits: Limits) -> Cell:
        """A new cell: alive, importing the plugin.

        Raises:
            Unplaced: there is no room.
            PlatformFailure, OSError: the runner does not do as it should.
        """
        if self.cell is not None:
            raise AssertionError("one cell at a time")
        number, inside = self.made, self._uids[self.made % len(self._uids)]
        self.made += 1
        self._told = None
        uid = self._base + inside
        try:
            site = self._site.cell(self.number, number, limits, uid)
        except (PlatformFailure, OSError) as error:
            raise Unplaced(str(error)) from None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.group.begin()
            order = {
                "id": number,
                "uid": inside,
                "tmp": tmp_options(limits, inside),
                "shm": shm_options(limits, inside),
                "secrets": job_secrets.options(inside) if self._secrets else "",
            }
            self._talk.say(order, [theirs.fileno()])
            answer, fds = self._talk.hear("cell", fds=1)
            if answer.get("id") != number:
                os.close(fds[0])
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the runner answers for another cell")
        except BaseException:
            ours.close()
            site.remove()
            raise
        finally:
            theirs.close()
        cell = Cell(number, uid, site, fds[0], ours)
        with self._pidfds_lock:
            self.cell, closed = cell, not self._pidfds
        if closed:  # by who destroyed the container meanwhile, and saw no cell
            cell.close()
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container is gone")
        return cell

    def ended(self) -> int | None:
        """How the plugin's process ended, by its own runner's word; None when the cell was killed first. Only after the cell's death.

        Raises:
            PlatformFailure: the runner does not say.
        """
        if self._told is None:
            if self.cell is None:
                return None
            message, _ = self._talk.hear("ended")
            code = message.get("code")
            if message.get("id") != self.cell.number or not (
                code is None or (isinstance(code, int) and -64 <= code <= 255)
            ):
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the runner tells of another cell")
            self._told = (code,)
        return self._told[0]

    def clear(self) -> None:
        """After the cell's death: its mounts and folders go, and nothing but the runner and its preloader may be left in the slot.

        Raises:
            Anomaly: something is, or the runner is gone.
            Unplaced: the kernel still holds memory of the cell.
            PlatformFailure, OSError: see there.
        """
        cell = self.cell
        if cell is None:
            return
        try:
            self.ended()
        finally:
            cell.close()
            self.cell = None
            cell.site.remove()
        left = self.group.processes()
        due = 1 if self._preloader is None else 2
        if len(left) != due or self.is_dead():
            raise Anomaly(f"slot {self.number}: {len(left)} processes where our own {due} should be")
        if self._preloader is not None and (problem := self._preloader.problem(left, self._runner())):
            raise Anomaly(f"slot {self.number}: its preloader: {problem}")
        if not self.group.freed():
            raise Unplaced(f"slot {self.number}: memory of its last cell is not freed")

    def works_unasked(self) -> bool:
        """Whether the waiting cell has used more CPU time than a setup may take, and a little while it waits. In all: what rests in
        between may not begin anew."""
        if self.cell is None:
            return False
        waited_ms = 1_000 * (time.monotonic() - self.cell.born)
        return self.group.usage().get("cpu_ms", 0) > _SETUP_CPU_MS + _IDLE_SHARE * waited_ms

    def memory_waiting(self) -> int:
        """Bytes that its cell takes while it waits for a job."""
        return self.group.group.memory_used() if self.state == State.READY else 0

    def is_dead(self, seconds: float = 0) -> bool:
        """Whether the runner is, within so many seconds; or its preloader, without which it ends."""
        with self._pidfds_lock:
            return not self._pidfds or is_dead(self._pidfds[0], seconds) or any(map(is_dead, self._pidfds[1:]))

    def close(self) -> None:
        """After the container's death; from any thread, any number of times."""
        self._talk.close()
        with self._pidfds_lock:
            while self._pidfds:
                os.close(self._pidfds.pop())
        if (cell := self.cell) is not None:
            cell.close()

    def _runner(self) -> int:
        """Its number as this process sees it.

        Raises:
            OSError: it is dead.
        """
        with self._pidfds_lock:
            if not self._pidfds:
                raise ProcessLookupError(errno.ESRCH, "the container is destroyed")
            return pid_of(self._pidfds[0])


@dataclass(frozen=True)
class Waiting:
    """A cell without a job, as :class:`cloche.sandboxd.locks.Watched`. ``give_up``: takes the reason."""

    id: str
    slot: Slot
    give_up: Callable[[str], None]

    def processes(self) -> list[int]:
        """The runner is among them."""
        return self.slot.group.group.processes()

    def stop_for(self, counter: str, used: int) -> None:
        self.give_up(f"a cell without a job went too far: {counter} {used}")


def is_dead(pidfd: int, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1_000))
