"""One running container: killed and awaited through the kernel, so that neither needs the engine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloche import failpoints
from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNC, RUNSC
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.failpoints import Point
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.gvisor import MEMORY_BEFORE, MEMORY_OVERHEAD
from cloche.isolation.spec import CONTAINER, memory_limit, out_on_disk, resized, swap_limit
from cloche.sandboxd import disk
from cloche.sandboxd.cgroups import Cgroup
from cloche.sandboxd.collect import Caps, Collected, collect
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.groups import Group, GroupProblem
from cloche.sandboxd.oom import OomEvents
from cloche.sandboxd.places import Site

DEATH_SECONDS = 20  # for dying, while nothing of it gets on
LONGEST_DEATH_SECONDS = 100  # in all; less than a client waits for an answer
_QUICK_SECONDS = 0.5  # of that, within its share of the CPU
_GETS_ON_MS = 20  # of CPU time in DEATH_SECONDS, at least, while the kernel takes it apart
_GROUP_SECONDS = 0.2
_NOTE_SECONDS = 0.5
_NEWS_SECONDS = 5.0
_GVISOR_NEWS_SECONDS = 10.0
_POLL_SECONDS = 0.02


@dataclass
class Running:
    """A started sandbox. ``pidfd`` refers to its process 1: when that is dead, its whole pid namespace is.

    Under gVisor it refers to gVisor's kernel, and ``group`` is the cgroup of ours that holds everything of the sandbox.
    """

    id: str
    owner: str | None  # None while it waits for a job
    container: str
    limits: Limits
    uid: int
    site: Site
    cgroup: Cgroup
    pidfd: int
    counts_swap: bool  # whether the engine can limit swap
    own_image: bool = False
    egress: bool = False  # whether it was made for egress
    egress_open: bool = False  # whether it has it now; the link's own
    group: Group | None = None
    oom: OomEvents | None = None  # the kernel's own word on its memory
    level: str = CONTAINER
    lock: threading.Lock = field(default_factory=threading.Lock)  # one finish, and no close during it
    fd_lock: threading.Lock = field(
        default_factory=threading.Lock
    )  # the descriptor's number is not reused under a kill
    killed: bool = False
    stopped_with: dict[str, int] = field(default_factory=dict)  # what it had used when a watch ended it, and why
    finished: bool = False
    made: Limits = field(init=False)  # the limits it was made with; ``limits`` are those of now
    template: SandboxSpec | None = None  # what it has in common with others; see :func:`cloche.isolation.spec.template`
    setup_ms: int = 0  # CPU time it had used before it got its job

    def __post_init__(self) -> None:
        self.made = self.limits

    @property
    def runtime(self) -> str:
        """What it runs on."""
        return RUNC if self.group is None else RUNSC

    def hand_over(self, owner: str, limits: Limits) -> None:
        """It is a job's from now on: what it used before is not the job's."""
        with self.lock:
            self.owner = owner
            self.limits = self.made = limits
            self.setup_ms = self.cgroup.usage().get("cpu_ms", 0)
            self.cgroup.forget_peak()

    def kill(self) -> None:
        """SIGKILL everything in it. Returns once sent; any number of times, also after its death."""
        self.killed = True
        with self.fd_lock, contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def stop_for(self, counter: str, used: int) -> None:
        """End it for a limit that no cgroup has: note what it used, and of this counter so much, then kill it.

        Waits for no finish and no engine: whoever watches has other sandboxes to watch.
        """
        held = self.lock.acquire(timeout=_NOTE_SECONDS)
        try:
            if not self.finished and not self.stopped_with:
                self.stopped_with = (self._measure() if held else {}) | {counter: used}
        finally:
            if held:
                self.lock.release()
            self.kill()

    def processes(self) -> list[int]:
        """The numbers of its processes as the host sees them; empty once it is dead."""
        return self.cgroup.processes()

    def memory_used(self) -> int:
        """Bytes of the host's memory that it takes now, also where those are not the job's; 0 when that cannot be read."""
        used = self.cgroup.memory_used()
        return used + MEMORY_BEFORE if used and self.group is not None else used

    def is_dead(self, timeout_s: float = 0) -> bool:
        """Whether it died within the time, all of it."""
        if self.pidfd < 0:
            return True
        start = time.monotonic()
        if not self._has_ended(timeout_s):
            return False
        # Nothing of gVisor is of use without its kernel; what is slow to go is helped along.
        return self.group is None or self.group.emptied(max(_GROUP_SECONDS, start + timeout_s - time.monotonic()))

    def dies(self) -> bool:
        """Whether it is dead, all of it, after a kill: False when for :data:`DEATH_SECONDS` nothing gets on.

        A job can prepare a death of many CPU seconds: the kernel takes its page tables apart, at the expense of its share of the CPU. What
        is not dead at once gets all the CPU there is; where others need that too, it is waited for as long as it uses some.
        """
        if self.is_dead(_QUICK_SECONDS):
            return True
        self._hasten()
        deadline = time.monotonic() + LONGEST_DEATH_SECONDS
        used = self._cpu_ms()
        while not self.is_dead(min(DEATH_SECONDS, max(0.0, deadline - time.monotonic()))):
            before, used = used, self._cpu_ms()
            if used - before < _GETS_ON_MS or time.monotonic() > deadline:
                return False
        return True

    def _cpu_ms(self) -> int:
        return self.cgroup.usage().get("cpu_ms", 0)

    def _hasten(self) -> None:
        self.cgroup.lift_cpu()

    def _has_ended(self, timeout_s: float = 0) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def usage(self) -> dict[str, int]:
        """What it used so far; empty once it is dead."""
        with self.lock:
            return {} if self.is_dead() else self._measure()

    def resize(self, engine: Engine, memory: object, output: object) -> None:
        """Other limits of memory and of ``out/``, both or neither.

        Raises:
            BadSpec: not allowed.
            PlatformFailure: it has ended, uses more than that already, or the engine does not answer.
        """
        with self.lock:
            if self.finished or self.is_dead():
                raise PlatformFailure(Reason.PLATFORM_FAILED, "the sandbox has ended")
            before, after = self.limits, resized(self.limits, self.made, memory, output)
            if (now := self.cgroup.memory_now()) is not None and now > memory_limit(after, self.own_image):
                raise PlatformFailure(Reason.PLATFORM_FAILED, f"it uses {now} bytes of memory already")
            try:
                self.site.set_output(after)
            except OSError as error:
                message = f"the output cannot have {after.output} bytes: {error.strerror}"
                raise PlatformFailure(Reason.PLATFORM_FAILED, message) from None
            try:
                self._set_memory(engine, memory_limit(after, self.own_image))
            except BaseException as error:
                self.site.set_output(before)
                if isinstance(error, EngineRefused):
                    raise PlatformFailure(Reason.PLATFORM_FAILED, f"the memory cannot be set: {error}") from None
                raise
            self.limits = after

    def finish(self, engine: Engine, caps_owner: tuple[int, int]) -> dict[str, Any]:
        """Usage, death, what it left. Once.

        Raises:
            PlatformFailure: it does not die, or ended in a way only the host or the engine can cause.
        """
        with self.lock:
            if self.finished:
                raise PlatformFailure(Reason.PLATFORM_FAILED, "the sandbox was finished already")
            self.finished = True
            died_alone = self._has_ended() and not self.killed
            usage = self.stopped_with or self._measure()
            self.kill()
            if not self.dies():
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the sandbox's processes do not die")
            failpoints.hit(Point.SANDBOXD_DEAD)
            exit_code, oom = self._verdict(engine) if died_alone else (None, False)
            if self.group is not None and not self.stopped_with:
                usage = self._measure()  # to the very end: the cgroup is ours, and outlives what was in it
            found = self._collect(caps_owner)
        usage |= {"output_bytes": found.size, "output_files": len(found.files), **found.over}
        return {
            "exit_code": exit_code,
            "oom_killed": oom or usage.get("oom_kills", 0) > 0,
            "usage": usage,
            "files": [list(item) for item in found.files],
            "refused": [list(item) for item in found.refused],
            "folder": str(self.site.collected),
            # Under gVisor a job can end process 1, and the engine tells of that as of a SIGKILL from outside: it counts as the job's doing.
            "crashed": self.group is not None and died_alone,
            "died_alone": died_alone,
            "level": self.level,
        }

    def close(self) -> None:
        """Forget the descriptors. Only after death."""
        with self.lock, self.fd_lock:
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1
            if self.oom is not None:
                self.oom.close()
                self.oom = None

    def _verdict(self, engine: Engine) -> tuple[int | None, bool]:
        """What the engine says of a container that ended before we asked it to.

        The engine hears of its end after us, and of memory used up before it hears of the end: until then it has not said all it knows.
        """
        deadline = time.monotonic() + (_NEWS_SECONDS if self.group is None else _GVISOR_NEWS_SECONDS)
        state = self._state(engine)
        while state.get("Running") and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            state = self._state(engine)
        out_of_memory = bool(state.get("OOMKilled")) or (self.oom is not None and self.oom.happened())
        return (None if state.get("Running") else int(state.get("ExitCode", -1))), out_of_memory

    def _state(self, engine: Engine) -> Mapping[str, Any]:
        try:
            container = engine.inspect(self.container)
        except EngineRefused as error:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the engine lost the container: {error}") from None
        if container is None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the engine lost the container")
        return dict(container["State"])

    def _measure(self) -> dict[str, int]:
        if self.group is None and self.is_dead():
            return {}  # the engine has taken its cgroup away
        used = self.cgroup.usage()
        if used.get("pids_denied"):
            used.setdefault("pids_peak", self.limits.pids)  # a kernel that keeps no peak refuses only at the limit
        if "cpu_ms" in used:
            used["cpu_ms"] = max(1, used["cpu_ms"] - self.setup_ms)  # a started one counts
        return {**used, **self._room()}

    def _set_memory(self, engine: Engine, size: int) -> None:
        if self.group is None:
            engine.set_memory(self.container, size, swap_limit(size, self.counts_swap))
            return
        try:
            self.group.set_memory(size + MEMORY_OVERHEAD)
        except (OSError, GroupProblem) as error:
            raise EngineRefused(str(error)) from None

    def _room(self) -> dict[str, int]:
        """What out/ holds, and whether it is full, by bytes and by files: what turns a plugin's "no space left" into a reason."""
        facts = os.statvfs(self.site.folders.out)
        return {
            "output_used": (facts.f_blocks - facts.f_bfree) * facts.f_frsize,
            "output_inodes": facts.f_files - facts.f_ffree,
            "output_full": int(facts.f_bavail <= (disk.OWN_BLOCKS if out_on_disk(self.limits) else 0)),
            "output_inodes_full": int(facts.f_favail == 0),
        }

    def _collect(self, owner: tuple[int, int]) -> Collected:
        caps = Caps(size=self.limits.output, files=self.limits.output_files, uid=owner[0], gid=owner[1])
        try:
            return collect(self.site.folders.out, self.site.device, self.site.collected, caps)
        except OSError as error:
            raise PlatformFailure(
                Reason.STORAGE_FAILED, f"the outputs could not be collected: {error.strerror or error}"
            ) from None
