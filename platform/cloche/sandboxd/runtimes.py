"""Which runtime a sandbox gets, whether that runtime has been proven here, and what gVisor needs beyond the engine's help."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cloche import logs
from cloche.domain.runtimes import RUNC, RUNSC, RuntimeRefused, decided
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.gvisor import GATE, OWN_IMAGE_REFUSED, GroupLimits, group_limits
from cloche.isolation.spec import memory_limit
from cloche.sandboxd import trees
from cloche.sandboxd.cgroups import SOCKET_MEMORY
from cloche.sandboxd.engine import Engine, EngineAway, EngineRefused
from cloche.sandboxd.groups import Group, GroupProblem, Groups
from cloche.sandboxd.proven import Proven, registered
from cloche.sandboxd.running import Running

log = logs.get(__name__)
AGAIN_SECONDS = 60  # how long a failed proof is believed
CLOSE_SECONDS = 5.0
_CHANGED = "the engine was away, or what is registered with it changed; not proven anew yet"


class NotProven(Exception):
    """This host's gVisor cannot be used; says why and what to do."""


Prove = Callable[["Runtimes", str], None]
"""Proves the runtime with the image of that config digest, or raises NotProven."""


def enclose(groups: Groups, sandbox_id: str, container: str, pid: int, limits: GroupLimits) -> Group:
    """Move a started sandbox, whose guest still waits at its gate, into a cgroup of ours.

    Raises:
        PlatformFailure: it could not be done completely. The group stays, for :meth:`Groups.remove`.
    """
    try:
        group = groups.make(sandbox_id, limits)
        group.cgroup.bound_sockets(SOCKET_MEMORY)
        trees.move(pid, container, group)
    except (GroupProblem, trees.TreeProblem, OSError) as error:
        message = f"the sandbox's processes could not be limited: {error}"
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, message) from None
    return group


class Runtimes:
    """Thread-safe. No gVisor sandbox is handed out that has not been enclosed, nor any before the runtime was proven.

    A proof holds for what was proven: when the engine was away, loads its configuration anew or names another program or other arguments, or
    that program is replaced, it is forgotten, and made anew before the next job that would get gVisor.
    """

    def __init__(self, engine: Engine, groups: Groups, policy: str, registered: str, prove: Prove) -> None:
        self.engine = engine
        self.groups = groups
        self.registered = registered
        self._policy = policy
        self._prove = prove
        self._lock = threading.Lock()
        self._proven: Proven | None = None
        self._problem: str | None = None
        self._asked_at = -math.inf
        self._away_at = -math.inf  # when a proof last found the engine away
        self.forgotten: Callable[[], None] = lambda: None  # called when a proof does not hold any more; set before use

    @property
    def problem(self) -> str | None:
        """None when gVisor is proven; else why it cannot be used, as far as is known."""
        return None if self._proven is not None else self._problem or "not asked for yet"

    @property
    def obstacle(self) -> str | None:
        """Why no job at all can run: every one is to get gVisor, and gVisor is not proven. Else None."""
        problem = self.problem
        return None if self._policy != RUNSC or problem is None else f"runtime runsc (gVisor) cannot be used: {problem}"

    def close(self) -> None:
        """Forget the proof. Any number of times.

        Jobs that ask for a proof hold the lock one after the other, each for as long as a silent engine lets it wait. The end is not kept waiting
        for them: the line of the proof then ends with the process.
        """
        if not self._lock.acquire(timeout=CLOSE_SECONDS):
            log.warning("runsc_proof_not_closed", seconds=CLOSE_SECONDS)
            return
        try:
            self._forget(None)
        finally:
            self._lock.release()

    def resolve(self, spec: SandboxSpec, image: str) -> tuple[SandboxSpec, str | None]:
        """The spec with the runtime it gets, and for a sensitive job why. The first that gets gVisor waits some seconds for the proof.

        What comes out is no longer marked as sensitive: a sandbox is used once, so one of that runtime that waits serves any job.

        Raises:
            PlatformFailure: ``engine_unavailable``: the policy refuses it, gVisor is not proven here, or the plugin's image
                cannot run under it; says what the operator has to do.
        """
        why = None
        if spec.sensitive:
            runtime, why = self._strongest(spec, image)
            spec = replace(spec, runtime=runtime, sensitive=False)
        try:
            runtime = decided(spec.runtime, self._policy)
        except RuntimeRefused as error:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, str(error)) from None
        if runtime == RUNSC and spec.image is not None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, OWN_IMAGE_REFUSED)
        if runtime == RUNSC and (problem := self.check(image)) is not None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"runtime runsc (gVisor) cannot be used here: {problem}")
        return replace(spec, runtime=runtime), why

    def _strongest(self, spec: SandboxSpec, image: str) -> tuple[str, str]:
        """The runtime of a sensitive job whose plugin may not have asked for gVisor, and why it is this one."""
        if spec.runtime == RUNSC or self._policy == RUNSC:
            return RUNSC, "its plugin asks for gVisor" if spec.runtime == RUNSC else "every job here gets gVisor"
        if self._policy == RUNC:
            return RUNC, "CLOCHE_SANDBOX_RUNTIME is runc: no job here gets gVisor"
        if spec.image is not None:
            return RUNC, "its plugin brings an image of its own, which does not run under gVisor"
        if (problem := self.check(image)) is not None:
            return RUNC, f"gVisor is not proven here: {problem}"
        return RUNSC, "it is sensitive, and gVisor is proven here"

    def prepare(self, image: str) -> None:
        """Prove before the first job comes, where every job gets gVisor; again and again, and no more often than useful. Tells the log."""
        try:
            if self._policy == RUNSC:
                self.check(image)
        except (PlatformFailure, EngineRefused) as error:
            log.warning("runsc_not_proven_yet", problem=str(error))

    def enclose(self, running: Running, channel: socket.socket, host_cpus: int, began: float) -> None:
        """Limit a gVisor sandbox that was started after ``began`` (monotonic), and let its guest begin.

        Raises:
            PlatformFailure: see :func:`enclose`; or what it was started under may not be what was proven.
        """
        self._confirm(began)
        limits = group_limits(memory_limit(running.limits), running.limits, host_cpus)
        group = self.groups.find(running.id)
        running.group, running.cgroup = group, group.cgroup
        enclose(self.groups, running.id, running.container, _pid_of(running.pidfd), limits)
        try:
            channel.sendall(GATE)
        except OSError as error:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the sandbox's channel broke: {error.strerror}") from None

    def reap(self) -> None:
        """Remove what an earlier process of this home left."""
        for sandbox_id in self.groups.leftovers():
            try:
                self.groups.remove(sandbox_id)
            except OSError as error:
                log.error("cgroup_left", sandbox=sandbox_id, error=str(error))

    def check(self, image: str) -> str | None:
        """None when gVisor is proven, by now; else why it cannot be used.

        Raises:
            PlatformFailure: the engine does not answer. Who waited meanwhile hears the same, and does not wait for it in turn.
        """
        asked = time.monotonic()
        with self._lock:
            if self._proven is not None and not self._proven.stands():
                self._forget(_CHANGED)
            if self._proven is None and (self._problem is None or time.monotonic() - self._asked_at > AGAIN_SECONDS):
                if self._away_at >= asked:
                    raise EngineAway(
                        Reason.ENGINE_UNAVAILABLE, "the container engine did not answer the proof of gVisor"
                    )
                self._ask(image)
            return None if self._proven is not None else self._problem

    def _confirm(self, began: float) -> None:
        """That a sandbox which was started after that moment was started under what is proven."""
        now = registered(self.engine, self.registered)
        with self._lock:
            if self._proven is not None and not self._proven.holds(now):
                self._forget(_CHANGED)
            if self._proven is not None and self._proven.since < began:
                return
        message = "what is registered as gVisor changed while the sandbox was being made"
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, message)

    def _forget(self, why: str | None) -> None:
        """No longer proven; None: nor asked for. With the lock held."""
        if self._proven is not None:
            self._proven.close()
            log.info("runsc_proof_forgotten", why=why)
        self._proven, self._problem, self._asked_at = None, why, -math.inf
        self.forgotten()

    def _ask(self, image: str) -> None:
        began = time.monotonic()
        try:
            proven = self._proof(image)
        except NotProven as error:
            self._problem, self._asked_at = str(error), time.monotonic()
            log.warning("runsc_not_proven", problem=self._problem)
        except EngineAway:
            self._away_at = time.monotonic()
            raise
        else:
            self._problem, self._proven = None, proven
            log.info("runsc_proven", seconds=round(time.monotonic() - began, 2))

    def _proof(self, image: str) -> Proven:
        try:
            proven = Proven(self.engine, self.registered)
        except EngineRefused as error:
            raise NotProven(f"the engine does not tell of its configuration: {error}") from None
        try:
            self._prove(self, image)
        except BaseException:
            proven.close()
            raise
        return proven


def _pid_of(pidfd: int) -> int:
    """The number of the process, or -1 when it is dead."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
