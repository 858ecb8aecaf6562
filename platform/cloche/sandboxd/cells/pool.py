"""All containers of level ``namespace`` on this host, and which slot a job gets."""

from __future__ import annotations

import functools
import socket
import threading
import time

from cloche import logs
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.cell_spec import CellKey, key_of
from cloche.sandboxd.cells import survey
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.cells.container import Facts
from cloche.sandboxd.cells.failures import is_expected, is_lack, said
from cloche.sandboxd.cells.home import Bounds, Home, Maker, NoCells, NotRemoved, longest_idle, ready_slot
from cloche.sandboxd.cells.line import Claim, Line
from cloche.sandboxd.cells.orders import Orders
from cloche.sandboxd.cells.preloaded import PreloadFailed
from cloche.sandboxd.cells.slot import Slot, State, Unplaced, Waiting
from cloche.sandboxd.cells.upkeep import retire_due
from cloche.sandboxd.uids import UidPool

log = logs.get(__name__)
_FILLERS = 2
_BURIERS = 2
_TICK_SECONDS = 2.0
_WAIT_SECONDS = 30.0
_LAST_BREATH_SECONDS = 2.0  # from a dying runner's silence to its death


class Cells:
    """Thread-safe. ``start`` once, ``create`` and ``release`` from any thread, ``close`` last.

    One condition guards all; no engine call is made while it is held.
    """

    def __init__(self, uids: UidPool, blocks: UidPool, bounds: Bounds) -> None:
        """See :class:`cloche.sandboxd.cells.home.Maker`."""
        self._maker = Maker(uids, blocks)
        self._bounds = bounds
        self._changed = threading.Condition()
        self._homes: list[Home] = []
        self._line = Line()
        self._taken: dict[str, tuple[Home, Slot]] = {}
        self._problems = survey.Problems()
        self._fills = Orders("cells-fill", _FILLERS)
        self._burials = Orders("cells-bury", _BURIERS)  # others: what takes long to die is not to keep slots waiting
        self._tally = survey.Tally()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="cells-keeper", daemon=True)

    def start(self) -> None:
        for each in (self._fills, self._burials, self._keeper):
            each.start()

    def problem(self) -> str | None:
        """Why a container could not be made, as long as none is tried again for it; the newest of several."""
        with self._changed:
            return self._problems.newest()

    def counts(self) -> dict[str, int]:
        """``containers``, and slots by state."""
        with self._changed:
            return survey.states(self._homes)

    def facts(self) -> list[dict[str, object]]:
        """Of each bundle; see :meth:`survey.Tally.facts`."""
        with self._changed:
            return self._tally.facts(self._homes, self._problems.bundles())

    def create(self, facts: Facts, spec: SandboxSpec, owner: str) -> tuple[RunningCell, socket.socket]:
        """A cell that has imported the plugin, or is about to. The caller closes the connection.

        Raises:
            NoCells: this host has none to give.
            PlatformFailure: ``bundle_unavailable``.
        """
        key = key_of(spec, facts.image)
        home, slot, fresh = self._take(facts, key, spec, owner)
        try:
            cell = slot.cell
            waited = not fresh and cell is not None and not cell.is_dead()
            if waited:
                slot.group.begin()  # what its setup used is no part of what the job is charged
            if cell is None or cell.is_dead():
                # It died before it had a job, in setup() most likely. A fresh one either works or says why.
                slot.clear()
                cell = slot.prepare(spec.limits)
            if (container := home.container) is None or container.container is None:
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container is gone")
            name, swap = container.container, facts.counts_swap
            running, channel = RunningCell.of(slot, cell, name, owner, spec.limits, waited=waited, counts_swap=swap)
        except Exception as error:  # noqa: BLE001 - whatever it was, the slot may not stay busy for ever
            self._failed(home, slot, error)
            raise NoCells(said(error)) from None
        with self._changed:
            self._taken[running.id] = (home, slot)
            counts = self._tally.of(key.bundle)
            counts.hits, counts.cold = counts.hits + waited, counts.cold + (not waited)
        return running, channel

    def release(self, running: RunningCell) -> None:
        """After its death and ``close``: clean up and, unless the container is to go, make the slot's next cell."""
        with self._changed:
            home, slot = self._taken.pop(running.id)
        out_of_memory = running.slot_cgroup.oom_kills() > 0
        try:
            slot.clear()
        except Exception as error:  # noqa: BLE001 - whatever it was, the slot may not stay busy for ever
            if out_of_memory and not isinstance(error, Unplaced) and slot.is_dead(_LAST_BREATH_SECONDS):
                # The kernel took the runner for what the job used: nobody's trick, and no reason to end what runs in other slots.
                self._drain(home, slot, "a runner was taken for its job's memory")
            else:
                self._failed(home, slot, error)
            return
        with self._changed:
            home.used = time.monotonic()
            if home.container is not None:
                home.container.jobs += 1
                if home.container.jobs >= self._bounds.jobs:
                    home.retired = home.retired or "it has done its share of jobs"
            slot.state = State.LOST if home.retired else State.PREPARING
            self._changed.notify_all()
        if home.retired:
            self._burials.put(functools.partial(self._bury_idle, home))
        else:
            self._fills.put(functools.partial(self._refill, home, slot))

    def condemn(self, running: RunningCell) -> None:
        """It does not die: the whole container has to."""
        with self._changed:
            home, slot = self._taken[running.id]
        self._lose(home, slot, "a cell does not die")

    def retire(self, bundle: str) -> int:
        """Give up the cells that wait with this bundle; how many there were. Killed when this returns."""
        with self._changed:
            homes = [home for home in self._homes if home.key.bundle == bundle and not home.retired]
            count = sum(home.give_up("its version takes no new jobs") for home in homes)
            self._changed.notify_all()
        for home in homes:
            self._burials.put(functools.partial(self._bury_idle, home))
        return count

    def waiting(self) -> list[Waiting]:
        """The cells without a job, for who watches over what no cgroup counts."""
        with self._changed:
            found = [(home, slot) for home in self._homes for slot in home.slots if slot.state == State.READY]
            names = [f"{home.container and home.container.id}/{slot.number}" for home, slot in found]
        return [
            Waiting(name, place[1], functools.partial(self._give_up, *place))
            for name, place in zip(names, found, strict=True)
        ]

    def _give_up(self, home: Home, slot: Slot, why: str) -> None:
        with self._changed:
            if slot.state != State.READY:
                return  # it has a job by now, and is watched as such
            home.give_up(why)  # with the lock held: no job is to get what is about to die
        self._drain(home, slot, why)

    def close(self) -> None:
        """Every container gone, whatever it is doing."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._fills.close()
        with self._changed:
            for home in self._homes:
                home.retired = home.retired or "sandboxd ends"
                if home.container is not None:
                    home.container.kill()  # so that they die side by side
        self._burials.close()
        if self._keeper.ident is not None:
            self._keeper.join(timeout=30)
        for home in list(self._homes):
            self._bury(home)

    # --- who gets which slot ------------------------------------------------------------------------------------------------

    def _take(self, facts: Facts, key: CellKey, spec: SandboxSpec, owner: str) -> tuple[Home, Slot, bool]:
        """A slot, now busy, and whether its cell was made just now."""
        claim = self._line.join(key, owner, spec.priority)
        try:
            return self._served(facts, claim, spec)
        except BaseException:
            with self._changed:
                self._leave(claim, served=False)
            raise

    def _served(self, facts: Facts, claim: Claim, spec: SandboxSpec) -> tuple[Home, Slot, bool]:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            with self._changed:
                if self._stop.is_set():
                    raise NoCells("sandboxd is ending")
                if not self._line.is_first(claim):
                    self._await(deadline)
                    continue
                if found := ready_slot(self._homes, claim.key):
                    self._leave(claim, served=True)
                    return (*found, False)
                mine = [home for home in self._homes if home.key == claim.key and not home.retired]
                coming = any(slot.state == State.PREPARING for home in mine for slot in home.slots)
                grow = next((home for home in mine if home.may_grow(facts.slots)), None)
                if grow is not None and not coming:
                    grow.adding += 1
                    self._leave(claim, served=True)
                elif coming or any(home.container is None for home in mine):
                    self._await(deadline)
                    continue
                else:
                    claim.makes, idle = self._reserve(claim.key)
            if grow is not None:
                return grow, self._grow(grow, spec), True
            if claim.makes is not None:
                self._found(facts, claim.makes, spec)
                claim.makes = None
            elif idle is not None:
                self._bury(idle)
                with self._changed:
                    if idle in self._homes:  # nor would the next one be gone
                        raise NoCells("the container that has to go cannot be removed now")

    def _await(self, deadline: float) -> None:
        if not self._changed.wait(max(0.0, deadline - time.monotonic())):
            raise NoCells("no cell became free in time")

    def _leave(self, claim: Claim, *, served: bool) -> None:
        if self._line.leave(claim, served=served):
            self._changed.notify_all()

    def _reserve(self, key: CellKey) -> tuple[Home | None, Home | None]:
        """Room for one more container; or, when there is none, the one that is idle longest and has to go first.

        Raises:
            NoCells: none can go, or none could be made a moment ago.
        """
        if (why := self._problems.of(key)) is not None:
            raise NoCells(why)
        if len(self._homes) < self._bounds.containers:
            home = Home(key)
            self._homes.append(home)
            return home, None
        oldest = longest_idle(self._homes)
        oldest.retired = "another plugin needs its place"
        self._tally.of(oldest.key.bundle).evicted += 1
        return None, oldest

    def _found(self, facts: Facts, home: Home, spec: SandboxSpec) -> None:
        """Make the container."""
        try:
            container = self._maker.make(facts, home.key, spec)
        except BaseException as error:
            with self._changed:
                if isinstance(error, NotRemoved):
                    home.stays(error.container, error.left)
                    home.retired = "it could not be made"
                else:
                    self._homes.remove(home)
                if is_lack(error):
                    self._back_off(home.key, error)
                self._changed.notify_all()
            if not is_lack(error):
                raise
            log.warning("cell_container_not_made", error=said(error), exc_info=None if is_expected(error) else error)
            raise NoCells(said(error)) from None
        with self._changed:
            home.comes(container, self._homes)
            self._changed.notify_all()
        log.info(
            "cell_container_started", container=container.container, tenant=home.key.tenant, bundle=home.key.bundle
        )

    def _grow(self, home: Home, spec: SandboxSpec) -> Slot:
        slot: Slot | None = None
        try:
            with home.lock:
                if home.container is None:
                    raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container is gone")
                slot = home.container.add_slot()
                slot.state = State.BUSY
            slot.prepare(spec.limits)
        except Exception as error:  # noqa: BLE001 - whatever it was, the container may not stay half made
            with self._changed:
                self._back_off(home.key, error)
            self._failed(home, slot, error)
            raise NoCells(said(error)) from None
        finally:
            with self._changed:
                home.adding -= 1
                self._changed.notify_all()
        return slot

    def _back_off(self, key: CellKey, error: Exception) -> None:
        self._tally.of(key.bundle).failed += 1
        self._problems.note(key, error)

    # --- behind the jobs' backs ---------------------------------------------------------------------------------------------

    def _refill(self, home: Home, slot: Slot) -> None:
        with self._changed:
            container = home.container
            if container is None or home.retired or self._stop.is_set():
                slot.state = State.LOST  # or its container, when it cannot be destroyed at once, would never be idle
                return
        try:
            if why := container.no_room():  # the slot stays for the next job, which has its cell made then
                log.info("cell_does_not_wait", container=container.container, reason=why)
            else:
                slot.prepare(container.limits)
        except Exception as error:  # noqa: BLE001 - whatever it was, the slot may not prepare for ever
            self._failed(home, slot, error)
            return
        with self._changed:
            slot.state = State.READY
            self._changed.notify_all()

    def _failed(self, home: Home, slot: Slot | None, error: Exception) -> None:
        """A cell could not be made: for want of room on this host, by the plugin's doing, or because our own processes do not do as they should."""
        if isinstance(error, (PreloadFailed, Unplaced)):
            self._drain(home, slot, str(error))
            return
        if not is_expected(error):
            log.error("cell_error_unexpected", exc_info=error)
        self._lose(home, slot, said(error))

    def _lose(self, home: Home, slot: Slot | None, why: str) -> None:
        """An anomaly: the container gets no new cell, and what still runs in it is killed with it, now: who adds a slot to it holds its lock, and
        may wait for long."""
        with self._changed:
            container = home.container
            home.lost, home.retired = True, home.retired or why
            self._tally.of(home.key.bundle).lost += 1
            if slot is not None:
                slot.state = State.LOST
            self._changed.notify_all()
        if container is not None:
            container.kill()
        log.error("cell_anomaly", container=container and container.container, error=why)
        self._burials.put(functools.partial(self._bury_idle, home))

    def _drain(self, home: Home, slot: Slot | None, why: str) -> None:
        """The container gets no new cell, and goes when the last of those that run has ended."""
        log.warning("cell_container_retired", container=home.container and home.container.container, reason=why)
        with self._changed:
            home.retired = home.retired or why
            if slot is not None:
                slot.state = State.LOST
            self._changed.notify_all()
        self._burials.put(functools.partial(self._bury_idle, home))

    def _keep(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            with logs.survived(log, "cells_not_kept"):
                self._look_after(time.monotonic())

    def _look_after(self, now: float) -> None:
        with self._changed:
            homes = [home for home in self._homes if home.container is not None]
            retire_due(homes, self._bounds, self._tally, now)
            self._tally.forget(self._homes)
        for home in homes:
            if home.retired and not home.awaited:
                home.awaited = True  # not once more at each tick, however long the others take
                self._burials.put(functools.partial(self._bury_idle, home))

    def _bury_idle(self, home: Home) -> None:
        """Destroy the container, unless something runs in it that is not lost anyway."""
        with self._changed:
            home.awaited = False
            if home.container is None or not (home.lost or home.is_idle()):
                return
        self._bury(home)

    def _bury(self, home: Home) -> None:
        """Destroy the container; its running cells die with it, and their owners learn it as ever."""
        with home.lock:
            with self._changed:  # from now on nobody looks at its descriptors
                container, home.container = home.container, None
            if container is None:
                return
            try:
                self._maker.destroy(container)
            except BaseException as error:
                home.stays(container, error)
                if not isinstance(error, Exception):
                    raise
                facts = {"container": container.container, "exc_info": None if is_expected(error) else error}
                log.warning("cell_container_not_removed_yet", error=said(error), **facts)
                return
            with self._changed:  # with its lock held: who finds no container, finds its place free
                home.goes(self._homes)
                self._changed.notify_all()
        log.info("cell_container_gone", container=container.container, jobs=container.jobs, reason=home.retired)
