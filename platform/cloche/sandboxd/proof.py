"""Proves that gVisor, as it is registered with this engine, can be limited: hostile guests of our own, enclosed exactly as jobs are."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloche import clock, logs
from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNSC
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.gvisor import ARGUMENTS, GATE, GroupLimits, group_limits
from cloche.isolation.spec import Folders, Placement, container_config, memory_limit
from cloche.sandboxd.engine import Engine, EngineAway, EngineRefused
from cloche.sandboxd.groups import Group
from cloche.sandboxd.leftovers import Leftovers, Remains
from cloche.sandboxd.runtimes import NotProven, Runtimes, enclose
from cloche.sandboxd.uids import NoUidLeft, UidPool

log = logs.get(__name__)
LIMITS = replace(Limits(), memory=256 << 20, tmp=1 << 20, shm=1 << 20, output=1 << 20, pids=16, cpu=1.0)
SLACK = 8 << 20
"""Bytes by which the kernel may let a process that is being killed go beyond the limit."""
_SECONDS = 20  # for each of the three guests; they take half a second
REGISTER = f'register it with {" ".join(ARGUMENTS)} as docs/operations.md says ("gVisor"), and restart the engine'

# What the guests do. One line of JSON to standard output after each step; a byte on standard input lets the next one begin.
_GUEST = """
import json, os, sys, time
def say(**facts):
    os.write(1, json.dumps(facts).encode() + b"\\n")
def fork(most):
    made = 0
    try:
        while made < most:
            if os.fork() == 0:
                while True:
                    time.sleep(600)
            made += 1
    except OSError:
        pass
    return made
os.read(0, 1)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
say(kernel=" ".join(os.uname()[2:4]), seccomp=status.get("Seccomp"))
os.read(0, 1)
if sys.argv[1] == "memory":
    kept = [b"x" * (1 << 20) for _ in range(int(sys.argv[2]))]
    say(kept=len(kept))
else:
    say(made=fork(int(sys.argv[2])))
os.read(0, 1)
"""


@dataclass
class _Guest:
    """A running guest: its channel, what it said so far, and the cgroup it is in."""

    channel: socket.socket
    group: Group
    limits: GroupLimits
    text: bytes = b""

    def go(self) -> None:
        with contextlib.suppress(OSError):  # it is dead, which the next answer shows
            self.channel.sendall(GATE)

    def answer(self) -> dict[str, Any] | None:
        """Its next line; None when it died before it wrote one."""
        deadline = time.monotonic() + _SECONDS
        while b"\n" not in self.text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.channel], [], [], left)[0]:
                raise NotProven(f"a guest did not answer within {_SECONDS} s")
            head = _exactly(self.channel, 8)
            if head is None:
                return None
            data = _exactly(self.channel, int.from_bytes(head[4:], "big"))
            self.text += (data or b"") if head[0] == 1 else b""
        line, _, self.text = self.text.partition(b"\n")
        return dict(json.loads(line))

    def counted(self) -> dict[str, int]:
        return self.group.cgroup.usage()

    def tasks(self) -> int:
        folder = self.group.cgroup.unified or self.group.cgroup.controllers["pids"]
        return int((folder / "pids.current").read_text("ascii"))


@dataclass(frozen=True)
class Proof:
    """``prove`` makes three containers, one after the other, and leaves none but to ``leftovers``. Some two seconds."""

    home: str
    uids: UidPool
    seccomp: str
    leftovers: Leftovers

    def prove(self, runtimes: Runtimes, image: str) -> None:
        """
        Raises:
            NotProven: it is not there, is not gVisor, or a limit does not hold.
            PlatformFailure: the engine does not answer.
        """
        known = runtimes.engine.info().get("Runtimes") or {}
        if runtimes.registered not in known:
            names = ", ".join(sorted(name for name in known if "." not in name))
            raise NotProven(
                f"the engine has no runtime {runtimes.registered} (it has {names}); install gVisor, {REGISTER}"
            )
        try:
            self._processes_inside(runtimes, image)
            self._tasks_outside(runtimes, image)
            self._memory(runtimes, image)
        except EngineRefused as error:
            raise NotProven(f"a container does not start under it ({error}); {REGISTER}") from None
        except NoUidLeft:
            raise NotProven("every sandbox user id of this host is in use") from None
        except (OSError, ValueError) as error:
            raise NotProven(f"it could not be watched: {error}; {REGISTER}") from None

    def _processes_inside(self, runtimes: Runtimes, image: str) -> None:
        """A kernel and a filter of its own; a fork beyond the limit is refused."""
        with self._guest(runtimes, image, "processes", 10 * LIMITS.pids) as guest:
            facts = guest.answer() or {}
            if facts.get("kernel") in (None, " ".join(os.uname()[2:4])):
                raise NotProven(
                    f"what is registered as {runtimes.registered} has this host's kernel: it is not gVisor; {REGISTER}"
                )
            if facts.get("seccomp") != "2":
                raise NotProven(f"the system call filter is not kept inside; {REGISTER}")
            guest.go()
            made = (guest.answer() or {}).get("made")
            if made is None:
                raise NotProven(f"a guest that forked died ({guest.counted()}); use another version of gVisor")
            if not 0 < made < LIMITS.pids:
                raise NotProven(
                    f"{made} processes were started under a limit of {LIMITS.pids}; use another version of gVisor"
                )

    def _tasks_outside(self, runtimes: Runtimes, image: str) -> None:
        """The host's own limit holds too, should gVisor's kernel be taken over."""
        with self._guest(runtimes, image, "processes", LIMITS.pids // 2) as guest:
            guest.answer()
            top = _tighten(guest)
            guest.go()
            answer = guest.answer()
            # gVisor gives up when it cannot have a thread; whether it does, none may have been had.
            if (answer is not None and guest.tasks() > top) or not guest.counted().get("pids_denied"):
                raise NotProven(
                    f"the limit of processes does not hold: {guest.tasks()} threads under a limit of {top}; {REGISTER}"
                )

    def _memory(self, runtimes: Runtimes, image: str) -> None:
        with self._guest(runtimes, image, "memory", 4 * LIMITS.memory >> 20) as guest:
            guest.answer()
            guest.go()
            answer, counted = guest.answer(), guest.counted()
            over = counted.get("memory_peak", 0) > guest.limits.memory + SLACK
            if answer is not None or over or not counted.get("oom_kills"):
                limit = guest.limits.memory >> 20
                raise NotProven(f"the memory limit of {limit} MB does not hold: {answer}, {counted}; {REGISTER}")

    @contextlib.contextmanager
    def _guest(self, runtimes: Runtimes, image: str, act: str, amount: int) -> Iterator[_Guest]:
        """A guest at work, gone afterwards."""
        sandbox_id, engine = clock.uuid7(), runtimes.engine
        uid = self.uids.take()
        container: str | None = None
        channel: socket.socket | None = None
        silence: EngineAway | None = None
        try:
            config = self._config(runtimes, image, sandbox_id, uid, [act, str(amount)])
            container = f"cloche-proof-{sandbox_id}"  # the engine may make it although its answer never comes
            container = engine.create(container, config)
            channel = engine.attach(container)
            engine.start(container)
            limits = group_limits(memory_limit(LIMITS), LIMITS, 1)
            group = _enclosed(runtimes, sandbox_id, container, limits)
            channel.sendall(GATE)
            yield _Guest(channel, group, limits)
        except EngineAway as error:
            silence = error
            raise
        finally:
            if channel is not None:
                channel.close()
            remains = Remains(sandbox_id, uid, container)
            if silence is not None and container is not None:
                self.leftovers.later(remains, str(silence))  # jobs wait: to ask it again would take as long again
            else:
                self.leftovers.remove(remains)

    def _config(
        self, runtimes: Runtimes, image: str, sandbox_id: str, uid: int, arguments: list[str]
    ) -> dict[str, Any]:
        """A job's configuration to the letter, without a job's folders, and with our guest for the agent."""
        nowhere = Path("/nonexistent")
        place = Placement(
            sandbox_id=sandbox_id,
            owner="proof",
            home=self.home,
            image=image,
            uid=uid,
            host_cpus=1,
            seccomp=self.seccomp,
            folders=Folders(nowhere, nowhere, nowhere, nowhere, None),
            runsc=runtimes.registered,
            counts_swap=bool(runtimes.engine.info().get("SwapLimit")),
        )
        spec = SandboxSpec(clock.uuid7(), 1, "0" * 64, None, LIMITS, clock.now_ms(), runtime=RUNSC)
        config = container_config(spec, place)
        host = {name: value for name, value in config["HostConfig"].items() if name != "Mounts"}
        return {**config, "Entrypoint": ["python3", "-I", "-c", _GUEST], "Cmd": arguments, "HostConfig": host}


def _enclosed(runtimes: Runtimes, sandbox_id: str, container: str, limits: GroupLimits) -> Group:
    pid = _pid(runtimes.engine, container)
    try:
        return enclose(runtimes.groups, sandbox_id, container, pid, limits)
    except PlatformFailure as error:
        raise NotProven(f"{error.message}; {REGISTER}") from None


def _tighten(guest: _Guest) -> int:
    """Allow no thread more than there are; how many there are."""
    top = guest.tasks()
    folder = guest.group.cgroup.unified or guest.group.cgroup.controllers["pids"]
    (folder / "pids.max").write_text(str(top), "ascii")
    return top


def _pid(engine: Engine, container: str) -> int:
    state = (engine.inspect(container) or {}).get("State", {})
    if not state.get("Running") or not state.get("Pid"):
        raise NotProven(
            f"a container ends as it starts under it ({state.get('Error') or state.get('ExitCode')}); {REGISTER}"
        )
    return int(state["Pid"])


def _exactly(stream: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            return None
        data += more
    return data
