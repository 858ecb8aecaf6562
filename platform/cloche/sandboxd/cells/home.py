"""What the pool knows of one container, and the user ids that containers take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cloche.errors import ClocheError
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.cell_spec import UIDS, CellKey
from cloche.sandboxd.budget import Share
from cloche.sandboxd.cells.container import CellContainer, Facts
from cloche.sandboxd.cells.slot import Slot, State
from cloche.sandboxd.engine import EngineAway
from cloche.sandboxd.uids import UidPool

AWAY_SECONDS = 60.0
"""For so long none is given up for a place, after one could not be removed since the engine was away."""


class NotRemoved(ClocheError):
    """A container could not be made, and what there is of it is still there, with its user ids. The message says why of both."""

    def __init__(self, container: CellContainer, why: BaseException, left: Exception) -> None:
        """``left``: why it is still there, which may be the same."""
        also = "" if left is why else f": {left}"
        super().__init__(f"{why}; what there is of the container cannot be removed now{also}")
        self.container = container
        self.left = left


class NoCells(ClocheError):
    """Level ``namespace`` cannot be had now; the job runs at level ``container``. The message says why."""


@dataclass(frozen=True)
class Bounds:
    """``jobs`` and ``life_s``: after so many, or so long, a container is replaced. ``idle_s``: it goes when nobody needed it so long.
    ``memory``: what all cells without a job may take together."""

    containers: int
    jobs: int
    life_s: float
    idle_s: float
    memory: Share


@dataclass(eq=False)
class Home:
    """A container and what the pool knows of it."""

    key: CellKey
    container: CellContainer | None = None  # None while it is made
    retired: str = ""  # why it gets no new cell
    lost: bool = False  # it goes whatever runs in it
    awaited: bool = False  # whether the keeper has ordered its end
    unanswered: float | None = None  # since when the engine has been away to it; -inf: it has answered somebody since
    adding: int = 0  # slots being added
    used: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)  # one slot is added at a time

    @property
    def slots(self) -> list[Slot]:
        return self.container.slots if self.container is not None else []

    def is_idle(self) -> bool:
        return not self.adding and not any(slot.state in (State.BUSY, State.PREPARING) for slot in self.slots)

    def may_grow(self, slots: int) -> bool:
        """Whether it has fewer slots than it may have."""
        return self.container is not None and len(self.slots) + self.adding < slots

    def stays(self, container: CellContainer, error: BaseException) -> None:
        """It could not be removed, whatever the error: the keeper tries again."""
        self.container = container
        if not isinstance(error, EngineAway):
            self.answered()
        elif self.unanswered is None:  # the first time counts: an engine may hang on this one alone, at each try
            self.unanswered = time.monotonic()

    def comes(self, container: CellContainer, homes: Iterable[Home]) -> None:
        """It is made; ``homes``: all of them. Under the pool's lock."""
        self.container = container
        for home in homes:
            home.answered()

    def goes(self, homes: list[Home]) -> None:
        """It is removed, and no longer one of them all. Under the pool's lock."""
        homes.remove(self)
        for home in homes:
            home.answered()

    def answered(self) -> None:
        """The engine is there, whatever becomes of this one."""
        self.unanswered = None if self.unanswered is None else -math.inf

    def give_up(self, why: str) -> int:
        """Retire it and kill its cells that wait for a job; how many there were. Under the pool's lock."""
        self.retired, count = why, 0
        for slot in self.slots:
            if slot.state == State.READY and slot.cell is not None:
                slot.cell.kill()
                slot.state = State.LOST
                count += 1
        return count

    def judge(self, bounds: Bounds, now: float) -> bool:
        """Retire it when its time has come; whether it was now. Under the pool's lock."""
        container = self.container
        if container is None or self.retired:
            return False
        if container.is_dead():
            self.retired = "its agent is dead"
        elif now - container.born > bounds.life_s:
            self.retired = "it is old"
        elif self.is_idle() and now - self.used > bounds.idle_s:
            self.retired = "nobody needs it"
        elif any(slot.state == State.READY and slot.works_unasked() for slot in self.slots):
            self.retired = "a cell of it works without a job"
        return bool(self.retired)


def ready_slot(homes: Iterable[Home], key: CellKey) -> tuple[Home, Slot] | None:
    """One with a waiting cell, or else one in which a cell can be made, from now on busy. Under the pool's lock."""
    fit = [home for home in homes if home.key == key and not home.retired]
    ready = [(home, slot) for home in fit for slot in home.slots if slot.state == State.READY]
    found = next((place for place in ready if place[1].cell is not None), next(iter(ready), None))
    if found is not None:
        home, slot = found
        slot.state, home.used = State.BUSY, time.monotonic()
    return found


def longest_idle(homes: Sequence[Home]) -> Home:
    """Which is to go for another. Under the pool's lock.

    Raises:
        NoCells: none can go.
    """
    since = time.monotonic() - AWAY_SECONDS
    # None is given up for a place that does not become free. Not for ever: it may be one container alone that the engine hangs on.
    if any(home.unanswered is not None and home.unanswered > since for home in homes):
        raise NoCells("a container that has to go cannot be removed now")
    idle = [home for home in homes if home.container is not None and home.is_idle() and not home.retired]
    if not idle:
        raise NoCells(f"all {len(homes)} containers of cells are in use")
    return min(idle, key=lambda home: home.used)


def greediest(homes: Sequence[Home], memory: Share) -> Home | None:
    """Whose waiting cells take most, when all of them together take more than their share. Under the pool's lock."""
    taken = {home: sum(slot.memory_waiting() for slot in home.slots) for home in homes if not home.retired}
    if memory.fits(sum(taken.values())):
        return None
    return max(taken, key=lambda home: taken[home])


class Maker:
    """Makes containers, each with a user id of its agent's and a range of its cells' own. Any thread."""

    def __init__(self, uids: UidPool, blocks: UidPool) -> None:
        """``blocks``: numbers whose product with :data:`UIDS` is the first of a range of so many user ids."""
        self._uids = uids
        self._blocks = blocks

    def make(self, facts: Facts, key: CellKey, spec: SandboxSpec) -> CellContainer:
        """
        Raises:
            NoUidLeft, and whatever :meth:`CellContainer.start` raises; nothing is left of it.
            NotRemoved: something is. It is the caller's to ``destroy``, as often as it takes.
        """
        uid = self._uids.take()
        try:
            block = self._blocks.take()
        except BaseException:
            self._uids.give_back(uid)
            raise
        container = CellContainer(facts, key, spec, uid, block * UIDS)
        try:
            container.start(spec)
        except BaseException as error:
            if isinstance(error, EngineAway) and container.container is not None:
                # Not asked again here, which would take as long: the job can still have a container without cells in time.
                raise NotRemoved(container, error, error) from error
            try:
                self.destroy(container)
            except Exception as left:  # noqa: BLE001 - whatever it was, it is told with the container that it left
                raise NotRemoved(container, error, left) from error
            raise
        return container

    def destroy(self, container: CellContainer) -> None:
        """
        Raises:
            ClocheError, OSError: it is still there, and keeps its user ids; call again later.
        """
        container.destroy()
        self._uids.give_back(container.uid)
        self._blocks.give_back(container.cells_base // UIDS)
