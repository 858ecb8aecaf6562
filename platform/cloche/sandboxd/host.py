"""Makes and unmakes sandboxes on this host. Fails closed: what cannot be made exactly as asked is taken down again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloche import clock, logs
from cloche.domain.states import Reason
from cloche.errors import ClocheError, PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import check_spec
from cloche.sandboxd import cgroups
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.cells.level import CellLevel, may_have_cell
from cloche.sandboxd.egress import EgressLink, report_json
from cloche.sandboxd.engine import Engine, EngineAway, EngineRefused
from cloche.sandboxd.image import ImageInfo
from cloche.sandboxd.leftovers import Leftovers, Remains
from cloche.sandboxd.locks import Watched
from cloche.sandboxd.making import Maker, Parts, Ready, as_platform_failure
from cloche.sandboxd.orphans import reap
from cloche.sandboxd.places import Places
from cloche.sandboxd.running import Running
from cloche.sandboxd.runtimes import Runtimes
from cloche.sandboxd.uids import UidPool

log = logs.get(__name__)
RETRY_SECONDS = 2.0
CLOSE_SECONDS = 30


class Host:
    """Thread-safe. ``start`` once, then ``create``/``finish``/``destroy`` from any thread, ``close`` last."""

    def __init__(
        self,
        *,
        engine: Engine,
        places: Places,
        uids: UidPool,
        home: str,
        seccomp: str,
        max_running: int,
        make_image: Callable[[Engine], ImageInfo],
        runtimes: Runtimes,
        leftovers: Leftovers,
        egress: EgressLink | None = None,
        cells: CellLevel | None = None,
    ) -> None:
        self._engine = engine
        self._places = places
        self._home = home
        self._max_running = max_running
        self._make_image = make_image
        self._runtimes = runtimes
        self._maker = Maker(engine=engine, places=places, uids=uids, home=home, seccomp=seccomp, runtimes=runtimes)
        self._egress = egress
        self.cells = cells
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._leaving = 0  # sandboxes that are dead and not quite gone
        self._running: dict[str, Running] = {}
        self._starting: dict[str, str | None] = {}  # for whom
        self._condemned: set[str] = set()  # sandboxes that did not die when they were destroyed
        self.make_room: Callable[[], bool] = lambda: (
            False
        )  # gives up a sandbox that waits for a job; set before ``start``
        self._ready: Ready | None = None
        self._reaped = False
        self._problem = "the sandbox host is starting"
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._leftovers = leftovers
        leftovers.added = self._wake.set
        runtimes.forgotten = self._wake.set  # it may have to be proven before any job can come
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Reap what a former process left, then make the image; both again and again until they succeed, in the background."""
        self._places.prepare()
        if self.cells is not None:
            self.cells.start()
        self._keeper.start()

    def close(self) -> None:
        """Kill and destroy everything."""
        self._stop.set()
        self._wake.set()
        running = self.listing()
        for sandbox in running:
            sandbox.kill()
        for sandbox in running:
            with logs.survived(log, "sandbox_not_destroyed", sandbox=sandbox.id), contextlib.suppress(PlatformFailure):
                self.destroy(sandbox.id)
        with self._left:  # other threads may be at it: what they have begun shall be done
            self._left.wait_for(lambda: self._leaving == 0, timeout=CLOSE_SECONDS)
        if self.cells is not None:
            self.cells.close()
        self._keeper.join(timeout=CLOSE_SECONDS)
        if self._egress is not None:
            self._egress.disconnect()
        self._runtimes.close()
        self._engine.close()

    def health(self) -> dict[str, Any]:
        """``problem``: None or a sentence; ``image``: its id, python and source once known; ``running``: how many;
        ``runsc``: None when gVisor is proven, else why it is not; ``cells``: see :meth:`CellLevel.health`, None when it is switched off."""
        problem: str | None = None
        if self._ready is None:
            problem = self._problem
        else:
            try:
                problem = cgroups.uncounted_swap(self._ready.engine)
                self._engine.ping()
            except (PlatformFailure, EngineRefused) as error:
                problem = error.message if isinstance(error, PlatformFailure) else str(error)
        problem = problem or self._runtimes.obstacle
        image = self._ready.image if self._ready else None
        return {
            "problem": problem,
            "image": None if image is None else {"id": image.id, "python": image.python, "source": image.source},
            "running": sum(1 for running in self.listing() if running.owner is not None),
            "cells": None if self.cells is None else self.cells.health(),
            "max_running": self._max_running,
            "runsc": self._runtimes.problem,
        }

    @property
    def image(self) -> str | None:
        """Config digest of the image that sandboxes are made of, once known."""
        ready = self._ready
        return None if ready is None else ready.image.id

    def load(self) -> tuple[int, int]:
        """How many more sandboxes there may be, and how many are being made for jobs that wait for them."""
        with self._lock:
            starting = sum(1 for owner in self._starting.values() if owner is not None)
            return self._max_running - len(self._running) - len(self._starting), starting

    def resolve(self, spec: SandboxSpec) -> tuple[SandboxSpec, str | None]:
        """See :meth:`Runtimes.resolve`.

        Raises:
            PlatformFailure: ``engine_unavailable``, also while the host is not ready.
        """
        return self._runtimes.resolve(spec, self._made_ready().image.id)

    def _made_ready(self) -> Ready:
        ready = self._ready
        if ready is None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, self._problem)
        return ready

    def create(self, spec: SandboxSpec, owner: str | None) -> tuple[Running, socket.socket, str]:
        """A started sandbox, the connection to its guest, and the image's config digest. The caller closes the connection.

        ``owner`` None: it will wait for a job, and takes nothing away from jobs to be made.

        Raises:
            BadSpec: the spec breaks a rule.
            PlatformFailure: ``engine_unavailable`` or ``bundle_unavailable``; nothing is left behind, or the keeper comes for it.
        """
        check_spec(spec)
        ready = self._made_ready()
        spec, _ = self._runtimes.resolve(spec, ready.image.id)
        sandbox_id = clock.uuid7()
        with self._place(sandbox_id, owner):
            return (*self._create(sandbox_id, spec, owner, ready), spec.image or ready.image.id)

    def create_cell(self, spec: SandboxSpec, owner: str) -> tuple[RunningCell, socket.socket, str] | None:
        """As ``create``, at level ``namespace``, for a spec that was resolved; None: it is not for this job.

        Raises:
            NoCells: it cannot be had now; says why.
            PlatformFailure: as ``create``.
        """
        if self.cells is None or not may_have_cell(spec):
            return None
        ready = self._made_ready()
        with self._place(clock.uuid7(), owner):
            made = self.cells.create(spec, owner, ready)
            with self._lock:
                self._running[made[0].id] = made[0]
            return (*made, ready.image.id)

    @contextlib.contextmanager
    def _place(self, sandbox_id: str, owner: str | None) -> Iterator[None]:
        """Room for one more, kept while it is made.

        Raises:
            PlatformFailure: there is none.
        """
        while not self._book(sandbox_id, owner):
            if owner is None or not self.make_room():
                message = f"{self._max_running} sandboxes are running, which is the limit"
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, message)
        try:
            yield
        finally:
            with self._lock:
                self._starting.pop(sandbox_id, None)

    def _book(self, sandbox_id: str, owner: str | None) -> bool:
        """Count it among those that are starting, unless the limit is reached."""
        with self._lock:
            if len(self._running) + len(self._starting) >= self._max_running:
                return False
            self._starting[sandbox_id] = owner
            return True

    def prove(self) -> str | None:
        """Whether gVisor is proven here, now that the host is ready: None, or why not."""
        return "the sandbox host is not ready" if self._ready is None else self._runtimes.check(self._ready.image.id)

    def find(self, sandbox_id: str) -> Running | None:
        with self._lock:
            return self._running.get(sandbox_id)

    def resize(self, running: Running, memory: object, output: object) -> None:
        """See :meth:`Running.resize`."""
        running.resize(self._engine, memory, output)

    def open_egress(self, running: Running, allow: object) -> None:
        """Let it reach these endpoints.

        Raises:
            BadSpec: malformed, or not for this sandbox.
            PlatformFailure: ``egress_unavailable``.
        """
        if self._egress is None:
            raise PlatformFailure(Reason.EGRESS_UNAVAILABLE, "this host runs no egress proxy")
        self._egress.open(running, allow)

    def finish(self, running: Running, owner: tuple[int, int]) -> dict[str, Any]:
        """See :meth:`Running.finish`; ``egress`` tells of its connections, which end here."""
        try:
            remains = running.finish(self._engine, owner)
        finally:
            report = self._egress.close(running) if self._egress is not None else None
        return remains | {"egress": report_json(report)}

    def destroy(self, sandbox_id: str, *, waits: bool = True) -> None:
        """Kill it and remove container, mounts, folders, user id. Idempotent; what cannot be removed now the keeper removes later.

        ``waits`` False: the container, dead, is the keeper's to remove, so that no silence of the engine keeps who calls this.

        Raises:
            PlatformFailure: its processes do not die. It stays listed, and the keeper tries again.
        """
        running = self.find(sandbox_id)
        if running is None:
            return
        running.kill()
        if self._egress is not None:
            self._egress.close(running)
        if not running.dies():
            # Its mounts and user id stay taken: releasing them under a living process would be worse than a leak.
            log.error("sandbox_does_not_die", sandbox=sandbox_id, container=running.container)
            if isinstance(running, RunningCell) and self.cells is not None:
                self.cells.condemn(running)
            with self._lock:
                self._condemned.add(sandbox_id)
            self._wake.set()
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the sandbox's processes do not die")
        with self._lock:
            self._condemned.discard(sandbox_id)
            if self._running.pop(sandbox_id, None) is None:
                return  # another thread got here first
            self._leaving += 1
        try:
            running.close()
            self._let_go(running, waits=waits)
        finally:
            with self._left:
                self._leaving -= 1
                self._left.notify_all()

    def listing(self) -> list[Running]:
        with self._lock:
            return list(self._running.values())

    def watched(self) -> list[Watched]:
        """Every sandbox in which a plugin may be at work, also cells that nobody has asked for yet."""
        return [*self.listing(), *(self.cells.waiting() if self.cells is not None else ())]

    def _let_go(self, running: Running, *, waits: bool) -> None:
        if isinstance(running, RunningCell) and self.cells is not None:
            self.cells.release(running)
            return
        let_go = self._leftovers.remove if waits else self._leftovers.release
        let_go(Remains(running.id, running.uid, running.container, dead=True))

    def _create(
        self, sandbox_id: str, spec: SandboxSpec, owner: str | None, ready: Ready
    ) -> tuple[Running, socket.socket]:
        parts = Parts(sandbox_id, owner)
        try:
            running, channel = self._maker.make(spec, parts, ready)
        except BaseException as error:
            self._undo(parts, error)
            if isinstance(error, EngineRefused):
                self._check_image(ready)
            raise as_platform_failure(error) from error
        with self._lock:
            self._running[sandbox_id] = running
        return running, channel

    def _check_image(self, ready: Ready) -> None:
        """Make the image again when somebody removed it from the engine."""
        with contextlib.suppress(PlatformFailure, EngineRefused):
            if self._engine.image(ready.image.id) is None:
                self._problem = "the sandbox image is being made again"
                self._ready = None
                self._wake.set()

    def _undo(self, parts: Parts, error: BaseException) -> None:
        if parts.channel is not None:
            parts.channel.close()
        remains = Remains(parts.sandbox_id, parts.uid, parts.container)
        if parts.container is not None and isinstance(error, EngineAway):
            # To ask it again would take as long again: the job's worker waits for an answer, and gives up all its sandboxes when none comes in time.
            self._leftovers.later(remains, str(error))
        else:
            self._leftovers.remove(remains)

    def _keep(self) -> None:
        """Until the end: get ready when we are not, and remove what could not be removed; that once more at the end."""
        while not self._stop.is_set():
            idle = False
            with logs.survived(log, "sandbox_host_not_kept"):
                if self._ready is None:
                    self._get_ready()
                if self._ready is not None:
                    self._runtimes.prepare(self._ready.image.id)
                self._remove_unremoved()
                with self._lock:
                    done = self._ready is not None and self._runtimes.obstacle is None
                    idle = done and not self._leftovers and not self._condemned
            self._wake.wait(None if idle else RETRY_SECONDS)
            self._wake.clear()
        with logs.survived(log, "sandbox_host_not_kept"):  # or what may be running goes on until the next start
            self._remove_unremoved()

    def _get_ready(self) -> None:
        try:
            # Both at once: after a crash jobs wait for them.
            with ThreadPoolExecutor(1, thread_name_prefix="image") as beside:
                making = beside.submit(self._make_image, self._engine)
                if not self._reaped:
                    reap(self._engine, self._home, self._runtimes, self._places)
                    self._reaped = True
                self._problem = "the sandbox image is being made"
                image = making.result()
            self._ready = Ready(image, self._engine.info())
            log.info("sandbox_host_ready", image=image.id, python=image.python, source=image.source)
        except (ClocheError, OSError) as error:
            problem = error.message if isinstance(error, PlatformFailure) else str(error)
            if problem != self._problem:
                log.warning("sandbox_host_not_ready", problem=problem)
            self._problem = problem

    def _remove_unremoved(self) -> None:
        with self._lock:
            condemned = list(self._condemned)
        for sandbox_id in condemned:
            with logs.survived(log, "sandbox_not_destroyed", sandbox=sandbox_id), contextlib.suppress(PlatformFailure):
                self.destroy(sandbox_id)
        self._leftovers.retry()
