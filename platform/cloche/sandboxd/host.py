"""Makes and unmakes sandboxes on this host. Fails closed: what cannot be made exactly as asked is taken down again."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cloche import clock, logs
from cloche.domain.states import Reason
from cloche.errors import ClocheError, EnvironmentProblem, PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import LABEL, NAMESPACE, BadSpec, Placement, check_spec, container_config
from cloche.sandboxd import cgroups
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.cells.container import Facts
from cloche.sandboxd.cells.pool import Cells, NoCells, describe
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.image import ImageInfo
from cloche.sandboxd.places import Places
from cloche.sandboxd.running import DEATH_SECONDS, Running
from cloche.sandboxd.uids import NoUidLeft, UidPool

log = logs.get(__name__)
RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class _Ready:
    image: ImageInfo
    cpus: int


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
        cells: Cells | None = None,
        cell_facts: Callable[[str, int], Facts] | None = None,
    ) -> None:
        self._engine = engine
        self._places = places
        self._uids = uids
        self._home = home
        self._seccomp = seccomp
        self._max_running = max_running
        self._make_image = make_image
        self._cells = cells
        self._cell_facts = cell_facts
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._starting: set[str] = set()
        self._unremoved: set[str] = set()  # containers of dead sandboxes that the engine has not removed yet
        self._condemned: set[str] = set()  # sandboxes that did not die when they were destroyed
        self._ready: _Ready | None = None
        self._reaped = False
        self._problem = "the sandbox host is starting"
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Reap what a former process left, then make the image; both again and again until they succeed, in the background."""
        self._places.prepare()
        if self._cells is not None:
            self._cells.start()
        self._keeper.start()

    def close(self) -> None:
        """Kill and destroy everything."""
        self._stop.set()
        self._wake.set()
        running = self.listing()
        for sandbox in running:
            sandbox.kill()
        for sandbox in running:
            with contextlib.suppress(PlatformFailure):
                self.destroy(sandbox.id)
        if self._cells is not None:
            self._cells.close()
        self._keeper.join(timeout=30)
        self._engine.close()

    def health(self) -> dict[str, Any]:
        """``problem``: None or a sentence; ``image``: its id, python and source once known; ``running``: how many; ``cells``: None when that
        level is switched off, else its ``problem``, ``containers``, and slots by state."""
        problem: str | None = None
        if self._ready is None:
            problem = self._problem
        else:
            try:
                self._engine.ping()
            except (PlatformFailure, EngineRefused) as error:
                problem = error.message if isinstance(error, PlatformFailure) else str(error)
        image = self._ready.image if self._ready else None
        return {
            "problem": problem,
            "image": None if image is None else {"id": image.id, "python": image.python, "source": image.source},
            "cells": None if self._cells is None else describe(self._cells),
            "running": len(self._running),
            "max_running": self._max_running,
        }

    def create(self, spec: SandboxSpec, owner: str) -> tuple[Running, socket.socket, str]:
        """A started sandbox, the connection to its guest, and the image's config digest. The caller closes the connection.

        Raises:
            BadSpec: the spec breaks a rule.
            PlatformFailure: ``engine_unavailable`` or ``bundle_unavailable``; nothing is left behind.
        """
        check_spec(spec)
        ready = self._ready
        if ready is None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, self._problem)
        sandbox_id = clock.uuid7()
        with self._lock:
            if len(self._running) + len(self._starting) >= self._max_running:
                raise PlatformFailure(
                    Reason.ENGINE_UNAVAILABLE, f"{self._max_running} sandboxes are running, which is the limit"
                )
            self._starting.add(sandbox_id)
        try:
            made = self._create_cell(spec, owner, ready) or self._create(sandbox_id, spec, owner, ready)
            return (*made, ready.image.id)
        finally:
            with self._lock:
                self._starting.discard(sandbox_id)

    def find(self, sandbox_id: str) -> Running | None:
        with self._lock:
            return self._running.get(sandbox_id)

    def resize(self, running: Running, memory: object, output: object) -> None:
        """See :meth:`Running.resize`."""
        running.resize(self._engine, memory, output)

    def finish(self, running: Running, owner: tuple[int, int]) -> dict[str, Any]:
        """See :meth:`Running.finish`."""
        return running.finish(self._engine, owner)

    def destroy(self, sandbox_id: str) -> None:
        """Kill it and remove container, mounts, folders, user id. Idempotent; what the engine cannot do now the keeper does later.

        Raises:
            PlatformFailure: its processes do not die. It stays listed, and the keeper tries again.
        """
        running = self.find(sandbox_id)
        if running is None:
            return
        running.kill()
        if not running.is_dead(DEATH_SECONDS):
            # Its mounts and user id stay taken: releasing them under a living process would be worse than a leak.
            log.error("sandbox_does_not_die", sandbox=sandbox_id, container=running.container)
            if isinstance(running, RunningCell) and self._cells is not None:
                self._cells.condemn(running)
            with self._lock:
                self._condemned.add(sandbox_id)
            self._wake.set()
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the sandbox's processes do not die")
        with self._lock:
            self._condemned.discard(sandbox_id)
            if self._running.pop(sandbox_id, None) is None:
                return  # another thread got here first
        running.close()
        if isinstance(running, RunningCell) and self._cells is not None:
            self._cells.release(running)
            return
        self._remove_container(running.container)
        self._release(sandbox_id, running.uid)

    def listing(self) -> list[Running]:
        with self._lock:
            return list(self._running.values())

    def _create_cell(self, spec: SandboxSpec, owner: str, ready: _Ready) -> tuple[Running, socket.socket] | None:
        """At level ``namespace``, when this host can; None: level ``container``, which gives up nothing but speed."""
        if spec.level != NAMESPACE or self._cells is None or self._cell_facts is None:
            return None
        try:
            running, channel = self._cells.create(self._cell_facts(ready.image.id, ready.cpus), spec, owner)
        except NoCells as error:
            log.info("cell_refused", job=spec.job_id, reason=str(error))
            return None
        with self._lock:
            self._running[running.id] = running
        return running, channel

    def _create(self, sandbox_id: str, spec: SandboxSpec, owner: str, ready: _Ready) -> tuple[Running, socket.socket]:
        uid: int | None = None
        container: str | None = None
        channel: socket.socket | None = None
        try:
            uid = self._uids.take()
            site = self._places.make(sandbox_id, spec.bundle, spec.wheels, spec.limits, uid)
            place = Placement(
                sandbox_id=sandbox_id,
                owner=owner,
                home=self._home,
                image=ready.image.id,
                uid=uid,
                host_cpus=ready.cpus,
                seccomp=self._seccomp,
                folders=site.folders,
            )
            container = self._engine.create(f"cloche-{sandbox_id}", container_config(spec, place))
            channel = self._engine.attach(container)
            self._engine.start(container)
            running = self._adopt(sandbox_id, container, spec, owner, uid, site)
        except BaseException as error:
            if channel is not None:
                channel.close()
            self._undo(sandbox_id, container, uid)
            if isinstance(error, EngineRefused):
                self._check_image(ready)
            raise _as_platform_failure(error) from error
        with self._lock:
            self._running[sandbox_id] = running
        return running, channel

    def _adopt(self, sandbox_id: str, container: str, spec: SandboxSpec, owner: str, uid: int, site: Any) -> Running:
        """Hold on to process 1 by a descriptor, so that its number can never come to mean another process."""
        pid = self._pid(container)
        pidfd = os.pidfd_open(pid)
        try:
            if self._pid(container) != pid:
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container was restarted by somebody else")
            group = cgroups.of_process(pid)
        except BaseException:
            os.close(pidfd)
            raise
        return Running(sandbox_id, owner, container, spec.limits, uid, site, group, pidfd)

    def _pid(self, container: str) -> int:
        state = (self._engine.inspect(container) or {}).get("State", {})
        if not state.get("Running") or not state.get("Pid"):
            reason = state.get("Error") or f"exit code {state.get('ExitCode')}"
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the container ended as it started ({reason})")
        return int(state["Pid"])

    def _check_image(self, ready: _Ready) -> None:
        """Make the image again when somebody removed it from the engine."""
        with contextlib.suppress(PlatformFailure, EngineRefused):
            if self._engine.image(ready.image.id) is None:
                self._problem = "the sandbox image is being made again"
                self._ready = None
                self._wake.set()

    def _undo(self, sandbox_id: str, container: str | None, uid: int | None) -> None:
        if container is not None:
            self._remove_container(container)
        else:
            # The engine may have made it although its answer never came.
            self._remove_later(f"cloche-{sandbox_id}")
        self._release(sandbox_id, uid)

    def _release(self, sandbox_id: str, uid: int | None) -> None:
        try:
            self._places.remove(sandbox_id)
        except OSError as error:
            log.error("sandbox_folder_left", sandbox=sandbox_id, error=str(error))
        if uid is not None:
            self._uids.give_back(uid)

    def _remove_container(self, container: str) -> None:
        try:
            self._engine.remove(container)
        except (PlatformFailure, EngineRefused) as error:
            log.warning("container_not_removed_yet", container=container, error=str(error))
            self._remove_later(container)

    def _remove_later(self, container: str) -> None:
        with self._lock:
            self._unremoved.add(container)
        self._wake.set()

    def _keep(self) -> None:
        """Until the end: get ready when we are not, and remove what could not be removed."""
        while not self._stop.is_set():
            if self._ready is None:
                self._get_ready()
            self._remove_unremoved()
            with self._lock:
                idle = self._ready is not None and not self._unremoved and not self._condemned
            self._wake.wait(None if idle else RETRY_SECONDS)
            self._wake.clear()

    def _get_ready(self) -> None:
        try:
            if not self._reaped:
                self._reap()
                self._reaped = True
            self._problem = "the sandbox image is being made"
            image = self._make_image(self._engine)
            self._ready = _Ready(image, int(self._engine.info()["NCPU"]))
            log.info("sandbox_host_ready", image=image.id, python=image.python, source=image.source)
        except (ClocheError, OSError) as error:
            problem = error.message if isinstance(error, PlatformFailure) else str(error)
            if problem != self._problem:
                log.warning("sandbox_host_not_ready", problem=problem)
            self._problem = problem

    def _reap(self) -> None:
        """Remove containers, mounts and folders that an earlier process of this home left."""
        for container in self._engine.containers(f"{LABEL}.home={self._home}"):
            log.info("orphan_removed", container=container["Id"], job=container["Labels"].get(f"{LABEL}.job"))
            self._engine.remove(container["Id"])
        for name in self._places.leftovers():
            self._places.remove(name)

    def _remove_unremoved(self) -> None:
        with self._lock:
            waiting, condemned = list(self._unremoved), list(self._condemned)
        for sandbox_id in condemned:
            with contextlib.suppress(PlatformFailure):
                self.destroy(sandbox_id)
        for container in waiting:
            with contextlib.suppress(PlatformFailure, EngineRefused):
                self._engine.remove(container)
                with self._lock:
                    self._unremoved.discard(container)


def _as_platform_failure(error: BaseException) -> BaseException:
    """Ours, whatever it was: nothing here is the plugin's fault."""
    if isinstance(error, (PlatformFailure, BadSpec)) or not isinstance(error, Exception):
        return error
    if isinstance(error, NoUidLeft):
        return PlatformFailure(Reason.ENGINE_UNAVAILABLE, "every sandbox user id of this host is in use")
    if isinstance(error, (EngineRefused, EnvironmentProblem, OSError)):
        return PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the sandbox could not be started: {error}")
    return error
