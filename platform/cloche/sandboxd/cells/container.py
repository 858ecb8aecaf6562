"""One warm container of level ``namespace``: its agent, its user namespace, its slots."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche import clock, failpoints
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.failpoints import Point
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.cell_spec import UIDS, CellKey, CellPlacement, cell_container_config, id_map
from cloche.isolation.spec import out_on_disk
from cloche.sandboxd import cgroups, disk
from cloche.sandboxd.cells import preloaded
from cloche.sandboxd.cells.site import ContainerSite
from cloche.sandboxd.cells.slot import Slot, is_dead
from cloche.sandboxd.cells.slot_cgroup import SlotCgroup, open_for_slots
from cloche.sandboxd.cells.talk import Talk
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.places import Places

_CREDENTIALS = struct.Struct("3i")
_START_SECONDS = 20.0
_QUICK_SECONDS = 0.5  # for dying, within its share of the CPU
_DEATH_SECONDS = 10.0  # with all the CPU there is; who waits longer comes again
_SOCKET = "agent.sock"


@dataclass(frozen=True)
class Facts:
    """What all containers of a host share."""

    engine: Engine
    places: Places
    home: str
    seccomp: str
    image: str
    host_cpus: int
    counts_swap: bool  # whether the engine can limit swap
    slots: int
    preloads: bool = True  # whether what plugins name in `[sandbox] preload` is imported beforehand, or by each cell


class CellContainer:
    """``start`` once; then it has no slot yet. ``add_slot`` by one thread at a time; ``kill`` from any thread at any time; ``destroy`` last, also
    when ``start`` failed, and again when it failed itself."""

    def __init__(self, facts: Facts, key: CellKey, spec: SandboxSpec, uid: int, cells_base: int) -> None:
        self.id = clock.uuid7()
        self.key = key
        self.limits: Limits = spec.limits
        self.uid = uid
        self.cells_base = cells_base
        self.slots: list[Slot] = []
        self._groups: list[SlotCgroup] = []  # also of slots that could not be made
        self.born = time.monotonic()
        self.jobs = 0
        self._facts = facts
        self._preload = list(spec.preload) if facts.preloads else []
        self._pidfd = -1  # of its process 1, the agent: when that is dead, all in it is
        self._pidfd_lock = threading.Lock()  # the descriptor's number is not reused under a kill
        self._talk: Talk | None = None
        self.container: str | None = None
        self._site = ContainerSite(facts.places, self.id, spec.wheels)

    def start(self, spec: SandboxSpec) -> None:
        """
        Raises:
            PlatformFailure, EngineRefused, CgroupProblem, OSError: it could not be made; ``destroy`` what there is of it.
        """
        self._site.make(spec.bundle, spec.wheels, self._facts.slots)
        self._start(spec)

    def add_slot(self) -> Slot:
        """
        Raises:
            PreloadFailed: what the plugin wants imported beforehand cannot be.
            PlatformFailure, OSError: it could not be made.
        """
        number = len(self.slots)
        share = (UIDS - 1) // self._facts.slots
        uids = range(1 + number * share, 1 + (number + 1) * share)
        group = SlotCgroup.make(self._cgroup, f"slot-{number}", self.limits, preloads=bool(self._preload))
        self._groups.append(group)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        talk = Talk(ours)
        pidfd = -1
        try:
            with theirs:
                self._agent.say({"slot": number, "preload": self._preload}, [theirs.fileno()])
            _, (pidfd,) = talk.hear("slot_ready", fds=1, seconds=_START_SECONDS)
            runner = preloaded.pid_of(pidfd)
            group.add(runner)
            talk.say({"type": "go", "uid": uids[0]})
            preloader = preloaded.hear(talk, group, runner) if self._preload else None
        except BaseException:
            talk.close()
            if pidfd >= 0:
                os.close(pidfd)
            raise
        shared = (self._site, uids, self.cells_base, preloader, self.key.secrets)
        slot = Slot(number, talk, group, pidfd, *shared)
        self.slots.append(slot)
        return slot

    def is_dead(self, seconds: float = 0) -> bool:
        """Whether all in it is, within so many seconds, by the kernel's word."""
        return self._pidfd < 0 or is_dead(self._pidfd, seconds)

    def no_room(self) -> str:
        """Why no cell may wait for a job: it would take from the disk what running jobs may need. Empty: one may."""
        output = self.limits.output
        if out_on_disk(self.limits) and disk.free(self._site.root) < disk.WAITING_MARGIN * output:
            return f"less than {disk.WAITING_MARGIN} outputs of {output >> 20} MB are free on this host's disk"
        return ""

    def kill(self) -> None:
        """SIGKILL to process 1, and so to all that is in it. Returns once sent; any number of times, also after its death."""
        with self._pidfd_lock, contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def destroy(self) -> None:
        """Kill it, wait for its death, and remove it with all that was in it. Nothing of it is let go of while anything in it may live.

        Raises:
            EngineRefused, PlatformFailure, OSError: it is still there; call again later.
        """
        if self._talk is not None:
            self._talk.close()
        if self.container is not None:
            self._end(self.container)
        for slot in self.slots:
            slot.close()
        for group in self._groups:
            with contextlib.suppress(OSError):  # the engine has removed it with its own
                group.remove()
        self.slots.clear()
        self._groups.clear()
        with self._pidfd_lock:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
        self._site.remove()

    def _end(self, container: str) -> None:
        """
        Raises:
            EngineRefused, PlatformFailure: something in it may still live, or the engine still has it.
        """
        engine = self._facts.engine
        if self._pidfd < 0 and (pid := self._first(container)):
            with contextlib.suppress(ProcessLookupError):  # dead already
                self._hold(container, pid)
        self.kill()
        if not self.is_dead(_QUICK_SECONDS):
            for group in self._groups:
                group.hasten()  # what takes long to die is not to take longer for its share of the CPU
            if not self.is_dead(_DEATH_SECONDS):
                raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "what is in the container does not die")
        engine.remove(container)
        # Of one whose process 1 we never had hold of, the engine's word is all there is; that it is about to remove it is not enough.
        if self._pidfd < 0 and engine.inspect(container) is not None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the engine has not removed the container yet")

    def _first(self, container: str) -> int:
        """The number of its process 1 by the engine's word; 0 when it has none."""
        state = (self._facts.engine.inspect(container) or {}).get("State", {})
        return int(state.get("Pid") or 0) if state.get("Running") else 0

    def _hold(self, container: str, pid: int) -> None:
        """Hold on to a process by a descriptor, unless it is not its process 1: asked once more, lest the number came to mean another.

        Raises:
            ProcessLookupError: it is dead.
        """
        pidfd = os.pidfd_open(pid)
        try:
            if self._first(container) == pid:
                with self._pidfd_lock:
                    self._pidfd, pidfd = pidfd, -1
        finally:
            if pidfd >= 0:
                os.close(pidfd)

    @property
    def _agent(self) -> Talk:
        if self._talk is None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container's agent is gone")
        return self._talk

    def _start(self, spec: SandboxSpec) -> None:
        facts = self._facts
        place = CellPlacement(
            container_id=self.id,
            home=facts.home,
            image=facts.image,
            uid=self.uid,
            cells_base=self.cells_base,
            host_cpus=facts.host_cpus,
            slots=facts.slots,
            seccomp=facts.seccomp,
            counts_swap=facts.counts_swap,
            folders=self._site.folders,
        )
        with _listening(self._site.folders.run, self.uid) as listener:
            self.container = name = f"cloche-{self.id}"  # the engine may make it, and its answer never come
            self.container = container = facts.engine.create(name, cell_container_config(spec, place))
            failpoints.hit(Point.SANDBOXD_CREATED)
            facts.engine.start(container)
            stream, pid = _accept(listener, self.uid)
        self._talk = Talk(stream)
        self._hold(container, pid)
        if self._pidfd < 0:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "who spoke is not the container's first process")
        self._cgroup = cgroups.of_process(pid)
        open_for_slots(self._cgroup)
        self._talk.hear("unshared", seconds=_START_SECONDS)
        text = id_map(self.cells_base)
        # The map of project ids is of no use here; left open, a cell could write it, and all later ones read what it wrote.
        for name in ("uid_map", "gid_map", "projid_map"):
            Path(f"/proc/{pid}/{name}").write_text(text, "ascii")
        self._talk.say({"type": "mapped", "slots": facts.slots})
        self._talk.hear("agent_ready", seconds=_START_SECONDS)


@contextlib.contextmanager
def _listening(folder: Path, uid: int) -> Any:
    """A socket that the agent alone may use, gone before there is any cell."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{_SOCKET}")  # a home's path may be too long for a socket's name
        os.chmod(_SOCKET, 0o600, dir_fd=fd)
        os.chown(_SOCKET, uid, uid, dir_fd=fd, follow_symlinks=False)
        listener.listen(1)
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_SOCKET, dir_fd=fd)
        os.close(fd)


def _accept(listener: socket.socket, uid: int) -> tuple[socket.socket, int]:
    """The agent's connection and its number, by the kernel's word.

    Raises:
        PlatformFailure: nobody comes, or somebody else.
    """
    listener.settimeout(_START_SECONDS)
    try:
        stream, _ = listener.accept()
    except TimeoutError:
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the container's agent does not come up") from None
    pid, who, _ = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if who != uid or pid <= 0:
        stream.close()
        raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"user {who} spoke in place of the container's agent")
    stream.settimeout(None)
    return stream, pid
