"""One cell with its job, seen from the host."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from cloche import clock
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.cell_spec import RUNNER_MEMORY
from cloche.isolation.spec import NAMESPACE, memory_limit, resized
from cloche.sandboxd.cells.slot import Cell, Slot
from cloche.sandboxd.cells.slot_cgroup import SlotCgroup
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.running import Running

_LAST_BREATH_SECONDS = 1.0


@dataclass(kw_only=True)
class RunningCell(Running):
    """As a container's :class:`Running`; ``pidfd`` refers to the cell's own process 1.

    ``ended``: what the runner says of the plugin's end, once the cell is dead: its exit code, or minus its signal, or None.
    ``door``: our copy of the channel's end, to see whether the cell let go of it.
    """

    slot_cgroup: SlotCgroup
    ended: Callable[[], int | None]
    door: int
    waited: bool  # whether it was made before its job came

    @classmethod
    def of(
        cls,
        slot: Slot,
        cell: Cell,
        container: str,
        owner: str,
        limits: Limits,
        *,
        waited: bool,
        counts_swap: bool,
    ) -> tuple[Self, socket.socket]:
        """The slot's cell with the job it gets, and the connection to its guest. Both have the cell's descriptors from now on.

        Raises:
            OSError: no descriptor is left.
            PlatformFailure: see :meth:`Cell.take`.
        """
        channel, pidfd = cell.take()
        try:
            door = os.dup(channel.fileno())
        except BaseException:
            os.close(pidfd)
            channel.close()
            raise
        running = cls(
            id=clock.uuid7(),
            owner=owner,
            container=container,
            limits=limits,
            uid=cell.uid,
            site=cell.site,
            cgroup=slot.group.group,
            pidfd=pidfd,
            counts_swap=counts_swap,
            level=NAMESPACE,
            waited=waited,
            slot_cgroup=slot.group,
            ended=slot.ended,
            door=door,
        )
        return running, channel

    def usage(self) -> dict[str, int]:
        with self.lock:
            return {} if self.is_dead() else self._measure()

    def finish(self, engine: Engine, caps_owner: tuple[int, int]) -> dict[str, Any]:
        self._let_it_tell()
        remains = super().finish(engine, caps_owner)
        if remains["died_alone"] and remains["exit_code"] is None and not remains["oom_killed"]:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the cell was ended from outside")
        return remains

    def resize(self, engine: Engine, memory: object, output: object) -> None:  # noqa: ARG002 - the slot's cgroup is ours
        with self.lock:
            if self.finished or self.is_dead():
                raise PlatformFailure(Reason.PLATFORM_FAILED, "the sandbox has ended")
            before, after = self.limits, resized(self.limits, self.made, memory, output)
            if after.memory > self.made.memory:
                message = "at level namespace the memory cannot become larger than it was made with"
                raise PlatformFailure(Reason.PLATFORM_FAILED, message)
            if (now := self.slot_cgroup.group.memory_now()) is not None and now > memory_limit(after):
                raise PlatformFailure(Reason.PLATFORM_FAILED, f"it uses {now} bytes of memory already")
            try:
                self.site.set_output(after)
            except OSError as error:
                message = f"the output cannot have {after.output} bytes: {error.strerror}"
                raise PlatformFailure(Reason.PLATFORM_FAILED, message) from None
            try:
                self.slot_cgroup.set_memory(memory_limit(after) + RUNNER_MEMORY)
            except OSError as error:
                self.site.set_output(before)
                raise PlatformFailure(Reason.PLATFORM_FAILED, f"the memory cannot be set: {error.strerror}") from None
            self.limits = after

    def close(self) -> None:
        super().close()
        with self.fd_lock:
            if self.door >= 0:
                os.close(self.door)
                self.door = -1

    def _let_it_tell(self) -> None:
        """When the plugin's process is gone, the cell's first is about to say how, and to die."""
        if self.killed or self.door < 0:
            return
        poll = select.poll()
        poll.register(self.door, 0)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            self.is_dead(_LAST_BREATH_SECONDS)

    def _verdict(self, engine: Engine) -> tuple[int | None, bool]:  # noqa: ARG002 - the engine knows nothing of cells
        try:
            return self.ended(), False
        except PlatformFailure:
            if self.slot_cgroup.usage().get("oom_kills", 0) > 0:
                return None, True  # the kernel took the runner for what the job used
            raise

    def _hasten(self) -> None:
        self.slot_cgroup.hasten()

    def _measure(self) -> dict[str, int]:
        """The slot outlives the cell, so its counters do too.

        Raises:
            PlatformFailure: the container went, for what happened in another slot.
        """
        try:
            return {**self.slot_cgroup.usage(), **self._room()}
        except OSError:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container of cells is gone") from None
