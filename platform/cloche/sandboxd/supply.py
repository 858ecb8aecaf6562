"""Where a job's sandbox comes from: one that waits, or one made now."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloche import logs
from cloche.errors import PlatformFailure
from cloche.host_settings import PoolSettings
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import check_owner, check_spec
from cloche.sandboxd import disk
from cloche.sandboxd.budget import Budget, Share
from cloche.sandboxd.cells.home import NoCells
from cloche.sandboxd.filler import Filler
from cloche.sandboxd.host import Host
from cloche.sandboxd.pools import Load, Pools
from cloche.sandboxd.running import Running
from cloche.sandboxd.sizing import Bounds
from cloche.sandboxd.warm import Warm
from cloche.sandboxd.watch import Watch

log = logs.get(__name__)
_SHARE = 8  # of the host's memory: one part in so many, where no budget is set


@dataclass(frozen=True)
class Supplied:
    """A sandbox for a job. ``channel`` is the caller's to close. ``start``: ``"warm"`` or ``"cold"``; ``why`` it is cold, or no cell.

    ``runtime_why``: of a sensitive job, why it got its runtime.
    """

    running: Running
    channel: socket.socket
    image: str
    start: str
    why: str | None
    runtime_why: str | None = None


class Supply:
    """Thread-safe. ``start`` before the first ``create``; ``close`` before the host's."""

    def __init__(self, host: Host, settings: PoolSettings, root: Path, share: Share) -> None:
        """``root``: the folder of the sandboxes' sites. ``share``: the memory of those that wait."""
        self._host = host
        self._root = root
        self._on = settings.enabled and settings.max > 0
        cpus = os.cpu_count() or 1
        bounds = Bounds(settings.min, settings.max, settings.idle / 1000)
        watch = Watch()
        self.pools = Pools(bounds, watch, self._load, share, fill_rate=settings.fill_rate, cpus=cpus)
        self._filler = Filler(self.pools, watch, cpus=cpus, make=self._make, destroy=self._destroy)
        host.make_room = self._make_room

    def start(self) -> None:
        if self._on:
            self._filler.start()

    def close(self) -> None:
        self._filler.close()

    def create(self, spec: SandboxSpec, owner: str) -> Supplied:
        """
        Raises:
            BadSpec: the spec breaks a rule.
            PlatformFailure: see :meth:`Host.resolve` and :meth:`Host.create`.
        """
        check_spec(spec)
        check_owner(owner)
        # A pool's sandboxes are of one runtime, which the policy decides and not the plugin alone.
        spec, runtime_why = self._host.resolve(spec)
        return replace(self._supplied(spec, owner), runtime_why=runtime_why)

    def _supplied(self, spec: SandboxSpec, owner: str) -> Supplied:
        """For a spec that was resolved."""
        refused: str | None = None
        try:
            if (cell := self._host.create_cell(spec, owner)) is not None:
                waited = cell[0].waited
                return Supplied(*cell, "warm" if waited else "cold", None if waited else "no cell waited")
        except NoCells as error:
            refused = f"no cell: {error}"
        made = self._container(spec, owner)
        return made if refused is None else replace(made, why="; ".join(filter(None, (refused, made.why))))

    def _container(self, spec: SandboxSpec, owner: str) -> Supplied:
        """One that waits, or one made now."""
        why = None if self._on else "the pool is off"
        image = self._host.image
        if self._on and spec.warm and image is not None:
            ticket = self.pools.take(spec, owner, image)
            if ticket.warm is not None:
                return self._hand_over(ticket.warm, spec, owner)
            why = ticket.why
        running, channel, made_of = self._host.create(spec, owner)
        return Supplied(running, channel, made_of, "cold", why)

    def retire(self, bundle: str) -> int:
        """See :meth:`Pools.retire` and :meth:`Cells.retire`."""
        return self.pools.retire(bundle) + (self._host.cells.retire(bundle) if self._host.cells else 0)

    def facts(self) -> list[dict[str, object]]:
        """Each pool in numbers, and the cells of each bundle."""
        busy: Counter[SandboxSpec] = Counter()
        for running in self._host.listing():
            if running.owner is not None and running.template is not None:
                busy[running.template] += 1
        return [*self.pools.facts(busy), *(self._host.cells.facts() if self._host.cells else ())]

    def _hand_over(self, warm: Warm, spec: SandboxSpec, owner: str) -> Supplied:
        try:
            channel = warm.release(owner, spec.limits)
        except BaseException:
            warm.close()
            self._destroy(warm)
            raise
        log.info("warm_sandbox_handed_over", sandbox=warm.running.id, job=spec.job_id, attempt=spec.attempt)
        return Supplied(warm.running, channel, warm.image, "warm", None)

    def _load(self) -> Load:
        room, cold = self._host.load()
        return Load(room, cold, disk.free(self._root))

    def _make(self, template: SandboxSpec) -> Warm:
        began = time.monotonic()
        running, channel, image = self._host.create(template, None)
        return Warm(running, channel, image, template.limits, began)

    def _destroy(self, warm: Warm) -> None:
        self._host.destroy(warm.running.id)

    def _make_room(self) -> bool:
        """Give up one that waits, for a job that has none."""
        warm = self.pools.give_up_one()
        if warm is None:
            return False
        try:
            # The job still has its own sandbox to be made: what the engine takes to remove this one is not to be waited for, nor is another
            # job to have the place meanwhile.
            self._host.destroy(warm.running.id, waits=False)
        except PlatformFailure:
            return False
        return True


def budget(settings: PoolSettings) -> Budget:
    """For all sandboxes without a job, those of the pools and the cells."""
    return Budget(settings.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE)


def reply(supplied: Supplied) -> dict[str, Any]:
    """The answer to ``create``."""
    return {
        "ok": True,
        "id": supplied.running.id,
        "in_folder": str(supplied.running.site.folders.inputs),
        "image": supplied.image,
        "runtime": supplied.running.runtime,
        "level": supplied.running.level,
        "start": supplied.start,
        "why": supplied.why,
        "runtime_why": supplied.runtime_why,
    }
