"""Makes one sandbox: from a spec to a running container that is exactly what was asked for, with its limits."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche import failpoints
from cloche.domain.runtimes import RUNSC
from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.failpoints import Point
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import LABEL, BadSpec, Placement, container_config, template
from cloche.sandboxd import cgroups, entered
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.image import ImageInfo
from cloche.sandboxd.oom import OomEvents
from cloche.sandboxd.own_image import OwnImage, OwnImages
from cloche.sandboxd.places import Places, Site
from cloche.sandboxd.running import Running
from cloche.sandboxd.runtime import ensure_runtime
from cloche.sandboxd.runtimes import Runtimes
from cloche.sandboxd.uids import NoUidLeft, UidPool


@dataclass(frozen=True)
class Ready:
    """What is known once a host can make sandboxes."""

    image: ImageInfo
    engine: Mapping[str, Any]  # what it says of itself


@dataclass
class Parts:
    """What there is of a sandbox so far. When its making fails, whoever asked for it takes these away.

    ``container``: its name as soon as the engine is asked for it, which may make it although its answer never comes; then its id.
    """

    sandbox_id: str
    owner: str | None
    uid: int | None = None
    container: str | None = None
    channel: socket.socket | None = None


class Maker:
    """Thread-safe."""

    def __init__(
        self, *, engine: Engine, places: Places, uids: UidPool, home: str, seccomp: str, runtimes: Runtimes
    ) -> None:
        self._engine = engine
        self._places = places
        self._uids = uids
        self._home = home
        self._seccomp = seccomp
        self._runtimes = runtimes
        self._own_images = OwnImages(engine, {f"{LABEL}.home": home})
        self._runtime: Path | None = None  # for plugins' own images; written when the first one asks for it
        self._runtime_lock = threading.Lock()

    def make(self, spec: SandboxSpec, parts: Parts, ready: Ready) -> tuple[Running, socket.socket]:
        """The sandbox, started and limited, and the connection to its guest. ``spec`` has the runtime that the policy gave it.

        Raises:
            Exception: whatever went wrong; ``parts`` tells what is left, all of it but the running container's descriptor.
        """
        if problem := cgroups.uncounted_swap(ready.engine):
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, problem)
        own = None if spec.image is None else self._own_images.get(spec.image)
        runtime = None if own is None else self._own_runtime()
        parts.uid = self._uids.take()
        site = self._places.make(parts.sandbox_id, spec.bundle, spec.wheels, spec.limits, parts.uid, runtime)
        place = self._placement(parts, parts.uid, site, ready, own)
        config = container_config(spec, place)
        parts.container = f"cloche-{parts.sandbox_id}"
        parts.container = self._engine.create(parts.container, config)
        failpoints.hit(Point.SANDBOXD_CREATED)
        parts.channel = self._engine.attach(parts.container)
        began = time.monotonic()
        self._engine.start(parts.container)
        return self._adopt(parts.container, spec, place, site, parts.channel, began), parts.channel

    def _placement(self, parts: Parts, uid: int, site: Site, ready: Ready, own: OwnImage | None) -> Placement:
        return Placement(
            sandbox_id=parts.sandbox_id,
            owner=parts.owner,
            home=self._home,
            image=ready.image.id if own is None else own.id,
            uid=uid,
            host_cpus=int(ready.engine["NCPU"]),
            seccomp=self._seccomp,
            folders=site.folders,
            counts_swap=bool(ready.engine.get("SwapLimit")),
            image_environment={} if own is None else own.environment,
            runsc=self._runtimes.registered,
        )

    def _adopt(
        self, container: str, spec: SandboxSpec, place: Placement, site: Site, channel: socket.socket, began: float
    ) -> Running:
        """Hold on to process 1 by a descriptor, so that its number can never come to mean another process; see that it is limited."""
        pid = self._pid(container)
        pidfd = os.pidfd_open(pid)
        try:
            if self._pid(container) != pid:
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container was restarted by somebody else")
            running = Running(
                id=place.sandbox_id,
                owner=place.owner,
                container=container,
                limits=spec.limits,
                uid=place.uid,
                site=site,
                cgroup=cgroups.of_process(pid),
                pidfd=pidfd,
                counts_swap=place.counts_swap,
                own_image=spec.image is not None,
                template=template(spec),
                egress=spec.egress,
            )
        except BaseException:
            os.close(pidfd)
            raise
        try:
            if spec.runtime == RUNSC:
                # The cgroup that gVisor starts in is not its own: not one limit may be written there.
                self._runtimes.enclose(running, channel, place.host_cpus, began)
            else:
                self._limit(running, pid, spec, place)
        except BaseException:
            running.kill()
            running.close()
            raise
        return running

    def _limit(self, running: Running, pid: int, spec: SandboxSpec, place: Placement) -> None:
        running.oom = OomEvents.of(running.cgroup)  # not of gVisor's: that cgroup is ours, and outlives what was in it
        if spec.image is not None:
            entered.check(pid, running.site.folders, place.uid)
        running.cgroup.bound_sockets(cgroups.SOCKET_MEMORY)

    def _own_runtime(self) -> Path:
        with self._runtime_lock:
            if self._runtime is None or not self._runtime.exists():
                self._runtime = ensure_runtime(self._places.runtimes)
            return self._runtime

    def _pid(self, container: str) -> int:
        state = (self._engine.inspect(container) or {}).get("State", {})
        if not state.get("Running") or not state.get("Pid"):
            reason = state.get("Error") or f"exit code {state.get('ExitCode')}"
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the container ended as it started ({reason})")
        return int(state["Pid"])


def as_platform_failure(error: BaseException) -> BaseException:
    """Ours, whatever it was: nothing here is the plugin's fault."""
    if isinstance(error, (PlatformFailure, BadSpec)) or not isinstance(error, Exception):
        return error
    if isinstance(error, NoUidLeft):
        return PlatformFailure(Reason.ENGINE_UNAVAILABLE, "every sandbox user id of this host is in use")
    if isinstance(error, (EngineRefused, EnvironmentProblem, OSError)):
        return PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the sandbox could not be started: {error}")
    return error
