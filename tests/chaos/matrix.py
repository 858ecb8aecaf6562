"""One row of the matrix: jobs on a real stack, a fault while they run, and the invariants afterwards."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from cloche.db import tables as t
from cloche.failpoints import Point
from tests.chaos import invariants
from tests.chaos.invariants import Moment
from tests.chaos.load import Load
from tests.chaos.system import System, kill
from tests.chaos.watcher import Watcher
from tests.support.stores import until

LEASE_S = 15.0
_SPIN_S, _FREE_SHARE = 0.5, 0.75
HIT_S = 180.0
_FEW = 6  # jobs that have not ended: enough to keep every slot busy


@dataclass
class Scene:
    """What a fault has at hand: the system, jobs that are being submitted meanwhile, and a place to note its moments."""

    system: System
    load: Load
    rng: random.Random
    given: Any = None  # what the row's setting brought along
    moments: list[Moment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def died(self, what: str, at: float | None = None, worker: str | None = None) -> None:
        self.moments.append(Moment(time.time() if at is None else at, "process", what, worker))

    def returned(self, what: str, at: float | None = None) -> None:
        self.moments.append(Moment(time.time() if at is None else at, "host", what))

    def kill(self, role: str) -> None:
        """SIGKILL to one process of that role, once there is one; return when its successor is there."""
        self.settle()
        before = until(lambda: self.system.pids(role), HIT_S, f"a {role} runs")
        pid = self.rng.choice(before)
        self.died(f"{role} killed", kill(pid))
        until(lambda: [p for p in self.system.pids(role) if p not in before], HIT_S, f"{role} runs again")

    def settle(self, poison: str = "") -> None:
        """Return when as many workers take jobs as there should be, so that the next death is one of its own, and no job but ``poison``
        would become a dead letter by it.
        """
        count = int(self.system.settings_given["worker_count"])

        def whole() -> bool:
            try:
                return self.system.taking_jobs() >= count
            except (httpx.HTTPError, KeyError):
                return False  # the web process is what died

        until(whole, HIT_S, f"{count} workers take jobs")
        until(lambda: self.load.interrupted() == 0, HIT_S, "what the death before interrupted runs again")
        until(
            lambda: self.load.in_danger(poison) == 0, HIT_S, "what another death would make wait or give up has ended"
        )

    def hit(self, point: Point, kind: str = "quick", *, timed: bool = True) -> None:
        """Let the next process that comes to ``point`` die there; jobs of ``kind`` are added until one does. ``timed``: I6 is judged by it."""
        self.settle()
        self.system.arm(point)
        deadline = time.monotonic() + HIT_S
        while (at := self.system.fired(point)) is None:
            assert time.monotonic() < deadline, f"nothing came to {point} within {HIT_S:.0f} s"
            if self.load.waiting() < _FEW and self.system.fired(point) is None:
                self.load.more(kind)
            time.sleep(0.05)
        victim = self.system.who_fired(point)
        until(lambda: not Path(f"/proc/{victim}").exists(), HIT_S, "it is dead")  # the mark is there a moment before
        if timed:
            self.died(str(point), at)
            self.load.more("quick")  # so that there is one to run next, where nothing was interrupted

    def held_by(self, pid: int) -> int:
        """How many jobs a worker holds, by the database."""
        held = t.job.join(t.worker, t.job.c.lease_owner == t.worker.c.id)
        query = select(func.count()).select_from(held).where(t.worker.c.pid == pid)
        with closing(self.system.database()) as db:
            return int(db.read(lambda connection: connection.scalar(query)) or 0)

    def give_work(self, pid: int) -> None:
        """Add jobs until that worker holds one."""
        deadline = time.monotonic() + HIT_S
        while not self.held_by(pid):
            assert time.monotonic() < deadline, f"worker {pid} gets no job within {HIT_S:.0f} s"
            if self.load.waiting() < _FEW:
                self.load.more("long")
            time.sleep(0.05)


Fault = Callable[[Scene], None]


@dataclass(frozen=True)
class Row:
    """``fault`` is called in the main thread while jobs are submitted. Rows with the same ``settings`` may share a stack."""

    name: str
    title: str
    fault: Fault
    settings: Mapping[str, str] = field(default_factory=dict)
    # Services that the row brings along: settings, beside `home` (where it is) and `given` (what the fault acts upon).
    setting: Callable[[], AbstractContextManager[dict[str, Any]]] | None = None
    short: int = 0  # jobs in the short matrix; 0: not in it
    lease_s: float = LEASE_S
    cancel: bool = True
    callbacks: bool = True
    points: tuple[Point, ...] = ()  # failpoints at which something dies or stops
    bounded: bool = True  # few jobs wait at a time, so that what is interrupted finds a slot


@dataclass
class Verdict:
    """``wrong`` by invariant; ``took`` in seconds by kind of moment."""

    row: Row
    jobs: int
    seed: int
    wrong: dict[str, list[str]] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)
    overlap: float = 0.0
    notes: list[str] = field(default_factory=list)
    resent: int = 0  # callbacks that were sent once more than they had to be
    busy: bool = False  # the machine had other work: times say nothing

    @property
    def held(self) -> bool:
        return not any(wrong for name, wrong in self.wrong.items() if name != "I6" or not self.busy)


@contextmanager
def stack_for(row: Row, logs: Path | None = None) -> Iterator[System]:
    """The row's stack, started; stopped and removed in the end. ``logs``: a folder that its log is kept in."""
    with (row.setting or _nothing)() as brought:
        home, given = brought.pop("home", None), brought.pop("given", None)
        system = System({**row.settings, **brought}, home)
        system.given, system.busy = given, busy()
        try:
            system.start()
            _warm_up(system)
            yield system
        finally:
            if logs is not None:
                logs.mkdir(parents=True, exist_ok=True)
                shutil.copy(system.log, logs / f"{row.name}.log")
            system.remove()


@contextmanager
def _nothing() -> Iterator[dict[str, Any]]:
    yield {}


class Shared:
    """Stacks for rows that come one after the other: one is kept for the next row when that asks for the same. A context manager."""

    def __init__(self) -> None:
        self._row: Row | None = None
        self._kept = ExitStack()
        self._system: System | None = None

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def stack(self, row: Row) -> System:
        last = self._row
        same = last is not None and last.setting is None and row.setting is None and last.settings == row.settings
        if self._system is None or not same:
            self.close()
            self._system = self._kept.enter_context(stack_for(row))
        self._row = row
        return self._system

    def close(self) -> list[str]:
        """Stop the stack there is; what it left (I5)."""
        left: list[str] = []
        if self._system is not None:
            self._system.stop()
            left = invariants.check_stopped(self._system)
        self._system = None
        self._kept.close()
        self._kept = ExitStack()
        return left


def run(system: System, row: Row, jobs: int, seed: int) -> Verdict:
    """The fault once, on a system that is well."""
    rng = random.Random(seed)
    verdict = Verdict(row, jobs, seed, busy=system.busy)
    load = Load(system, random.Random(seed + 1), jobs, cancel=row.cancel, bounded=row.bounded, callbacks=row.callbacks)
    scene = Scene(system, load, rng, system.given)
    with Watcher() as watcher:
        load.start()
        row.fault(scene)
        load.join()
        wrong = verdict.wrong
        wrong["I1"] = invariants.all_ended(system, load.asked)
    wrong["I1"] += invariants.check_ends(system, load.asked)
    untold, again = invariants.check_callbacks(system, load.asked)
    wrong["I1"] += untold
    wrong["I2"] = invariants.check_results(system, load.asked)
    wrong["I3"] = invariants.check_attempts(system, load.asked, watcher, row.lease_s)
    wrong["I4"] = invariants.check_audit(system, load.asked)
    wrong["I5"] = invariants.check_rest(system)
    wrong["I6"], verdict.took = invariants.check_recovery(system, scene.moments)
    verdict.jobs = len(load.asked)
    verdict.overlap = watcher.overlap
    verdict.notes = scene.notes
    verdict.resent = again
    return verdict


def busy() -> bool:
    """Whether others keep the machine so busy that what is started here waits for a processor: as many processes as there are processors
    count up for half a second, and get less than three quarters of them. What others do at a low priority is no hindrance."""
    spin = f"import time\nend = time.monotonic() + {_SPIN_S}\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
    count = os.cpu_count() or 1
    spinning = [subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE, text=True) for _ in range(count)]
    got = sum(float(process.communicate()[0]) for process in spinning)
    return got < _FREE_SHARE * count * _SPIN_S


def _warm_up(system: System) -> None:
    """One job of each level, so that no row pays for the first image or the first container of cells."""
    for name in ("chaos_box", "chaos_cell"):
        made = system.stack.submit({"type": name, "payload": {"n": -1}})
        done = system.stack.finished(made["id"], HIT_S)
        assert done["status"] == "completed", done
