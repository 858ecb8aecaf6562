"""One running container: killed and awaited through the kernel, so that neither needs the engine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.spec import CONTAINER, memory_limit, out_on_disk, resized
from cloche.sandboxd import disk
from cloche.sandboxd.cgroups import Cgroup
from cloche.sandboxd.collect import Caps, Collected, collect
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.places import Site

DEATH_SECONDS = 20


@dataclass
class Running:
    """A started sandbox. ``pidfd`` refers to its process 1: when that is dead, its whole pid namespace is."""

    id: str
    owner: str
    container: str
    limits: Limits
    uid: int
    site: Site
    cgroup: Cgroup
    pidfd: int
    level: str = CONTAINER
    lock: threading.Lock = field(default_factory=threading.Lock)  # one finish, and no close during it
    fd_lock: threading.Lock = field(
        default_factory=threading.Lock
    )  # the descriptor's number is not reused under a kill
    killed: bool = False
    finished: bool = False
    made: Limits = field(init=False)  # the limits it was made with; ``limits`` are those of now

    def __post_init__(self) -> None:
        self.made = self.limits

    def kill(self) -> None:
        """SIGKILL everything in it. Returns once sent; any number of times, also after its death."""
        self.killed = True
        with self.fd_lock, contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def is_dead(self, timeout_s: float = 0) -> bool:
        """Whether it died within the time."""
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def usage(self) -> dict[str, int]:
        """What it used so far; empty once it is dead."""
        with self.lock:
            return self._measure()

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
            if (now := self.cgroup.memory_now()) is not None and now > memory_limit(after):
                raise PlatformFailure(Reason.PLATFORM_FAILED, f"it uses {now} bytes of memory already")
            try:
                self.site.set_output(after)
            except OSError as error:
                message = f"the output cannot have {after.output} bytes: {error.strerror}"
                raise PlatformFailure(Reason.PLATFORM_FAILED, message) from None
            try:
                engine.set_memory(self.container, memory_limit(after))
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
            died_alone = self.is_dead() and not self.killed
            usage = self._measure()
            self.kill()
            if not self.is_dead(DEATH_SECONDS):
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the sandbox's processes do not die")
            exit_code, oom = self._verdict(engine) if died_alone else (None, False)
            found = self._collect(caps_owner)
        usage |= {"output_bytes": found.size, "output_files": len(found.files), **found.over}
        return {
            "exit_code": exit_code,
            "oom_killed": oom or usage.get("oom_kills", 0) > 0,
            "usage": usage,
            "files": [list(item) for item in found.files],
            "refused": [list(item) for item in found.refused],
            "folder": str(self.site.collected),
            "died_alone": died_alone,
            "level": self.level,
        }

    def close(self) -> None:
        """Forget the descriptor. Only after death."""
        with self.lock, self.fd_lock:
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1

    def _verdict(self, engine: Engine) -> tuple[int | None, bool]:
        """What the engine says of a container that ended before we asked it to."""
        try:
            container = engine.inspect(self.container)
        except EngineRefused as error:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"the engine lost the container: {error}") from None
        if container is None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the engine lost the container")
        state = container["State"]
        return (None if state.get("Running") else int(state.get("ExitCode", -1))), bool(state.get("OOMKilled"))

    def _measure(self) -> dict[str, int]:
        return {} if self.is_dead() else {**self.cgroup.usage(), **self._room()}

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
