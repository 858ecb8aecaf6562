"""An engine with gVisor, rightly and wrongly registered, and sandboxes on it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloche.domain.runtimes import RUNSC
from cloche.isolation.backend import Sandbox
from cloche.isolation.client import SandboxdBackend
from cloche.isolation.gvisor import ARGUMENTS
from cloche.sandboxd import cgroups, syscalls
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.places import home_digest
from cloche.sandboxd.running import Running
from tests.support import engine, sandbox

MIB = 1 << 20


class StillEngine:
    """What an engine says of its runtimes, and the lines on which it tells of changes, without an engine."""

    def __init__(self) -> None:
        self.runtimes: dict[str, Any] = {"runsc": {"path": "/nonexistent/runsc", "runtimeArgs": list(ARGUMENTS)}}
        self.lines: list[tuple[socket.socket, socket.socket]] = []  # ours, and whoever listens's

    def info(self) -> dict[str, Any]:
        return {"Runtimes": self.runtimes}

    def changes(self) -> socket.socket:
        self.lines.append(socket.socketpair())
        return self.lines[-1][1]


@contextmanager
def running_engine() -> Iterator[engine.Engine]:
    """``runsc`` as the documentation says; ``nofilter`` without the filter inside; ``notgvisor`` is runc under another name."""
    with engine.running_engine(registrations()) as running:
        yield running


def registrations() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Program and arguments by name, see :func:`running_engine`."""
    program, runc = shutil.which("runsc"), shutil.which("runc")
    assert program, "gVisor is not installed: apt-get install runsc (./run test does)"
    assert runc
    return {
        "runsc": (program, ARGUMENTS),
        "nofilter": (program, tuple(word for word in ARGUMENTS if word != "--oci-seccomp")),
        "notgvisor": (runc, ()),
    }


@dataclass(frozen=True)
class Bench:
    """A sandboxd on a home of its own, and its client."""

    home: Path
    daemon: Sandboxd
    backend: SandboxdBackend

    def spec(self, body: str, runtime: str = RUNSC, **limits: Any) -> Any:
        """A spec of a plugin with this body, small unless told otherwise."""
        text = body if "@hookimpl" in body else sandbox.plugin(body)
        small = {"memory": 64 * MIB, "output": 2 * MIB, "tmp": 2 * MIB, "shm": MIB, "pids": 16, **limits}
        return replace(sandbox.spec(sandbox.write_bundle(self.home, text), **small), runtime=runtime)

    def run(
        self, body: str, payload: Any = None, inputs: Any = None, look: Any = None, **options: Any
    ) -> sandbox.Outcome:
        return sandbox.run_job(self.backend, self.spec(body, **options), payload, inputs, look=look)

    def running(self, of: Sandbox) -> Running:
        found = self.daemon.host.find(of.id)
        assert found is not None
        return found


@contextmanager
def bench(socket: Path, **settings: Any) -> Iterator[Bench]:
    with (
        sandbox.temporary_home() as home,
        sandbox.running_sandboxd(home, docker_socket=str(socket), **settings) as daemon,
    ):
        backend = sandbox.client(home)
        try:
            yield Bench(home, daemon, backend)
        finally:
            backend.close()


def groups_of(home: Path) -> list[Path]:
    """The cgroup that holds those of this home's sandboxes, in every hierarchy that has it."""
    return [folder for folder in _all_groups() if folder.parts[-2:] == ("cloche", home_digest(home))]


def _all_groups() -> list[Path]:
    """Every folder of every hierarchy. Unlike a pattern, a walk passes over those that go meanwhile, as of other tests' containers."""
    return [Path(folder) for folder, _, _ in os.walk(cgroups.ROOT)]


def traces(home: Path) -> list[str]:
    """Everything of this home's gVisor sandboxes that the host still has: cgroups, processes in them, mounts, folders."""
    groups = [folder for folder in _all_groups() if folder.parts[-3:-1] == ("cloche", home_digest(home))]
    members = [line for group in groups for line in (group / "cgroup.procs").read_text().split()]
    folders = list((home / "sandboxes").iterdir()) if (home / "sandboxes").exists() else []
    return [*map(str, groups), *members, *map(str, syscalls.mounts_below(home)), *map(str, folders)]
