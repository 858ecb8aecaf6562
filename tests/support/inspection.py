"""A running job as the engine and the kernel show it, and DESIGN §5 line by line beside it: the table of docs/threat-model.md."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.sandboxd import cgroups
from tests.support import sandbox as support

MIB = 1 << 20
LIMITS: dict[str, Any] = {
    "memory": 64 * MIB, "output": 2 * MIB, "tmp": 3 * MIB, "shm": MIB, "pids": 20, "cpu": 0.5, "nofile": 99, "output_files": 1_000,
}  # fmt: skip
OWNER = "inspector"
_WORK = support.plugin("""
    (job.out / "made").write_text("x")
    print("running", flush=True)
    time.sleep(600)
""")


@dataclass
class Seen:
    """One running sandbox: the engine's view of its container, and its process 1."""

    inspect: dict[str, Any]
    id: str
    image: str
    spec: SandboxSpec
    home: Path

    @property
    def pid(self) -> int:
        return int(self.inspect["State"]["Pid"])

    @property
    def host(self) -> dict[str, Any]:
        return dict(self.inspect["HostConfig"])

    @property
    def uid(self) -> int:
        return int(self.inspect["Config"]["User"].split(":")[0])

    def field(self, path: str) -> Any:
        """A field of ``docker inspect`` by its dotted name; None when it is absent."""
        value: Any = self.inspect
        for name in path.split("."):
            value = (value or {}).get(name)
        return value

    def status(self, name: str) -> str:
        """A line of ``/proc/PID/status``."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))

    def limit(self, name: str) -> list[str]:
        """Soft and hard limit from ``/proc/PID/limits``."""
        lines = Path(f"/proc/{self.pid}/limits").read_text().splitlines()
        return next(line[len(name) :].split()[:2] for line in lines if line.startswith(name))

    def mounts(self) -> dict[str, tuple[set[str], str, set[str]]]:
        """Mount point → (its flags, file system, the file system's options), as the kernel shows them to the container."""
        found = {}
        for line in Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines():
            left, right = line.split(" - ")
            fields, system = left.split(" "), right.split(" ")
            found[fields[4]] = (set(fields[5].split(",")), system[0], set(system[2].split(",")))
        return found

    def peers(self) -> set[str]:
        """Optional fields of all mounts: what says that a mount is shared with, or follows, another."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return {word.split(":")[0] for line in lines for word in line.split(" - ")[0].split(" ")[6:]}

    def interfaces(self) -> list[str]:
        lines = Path(f"/proc/{self.pid}/net/dev").read_text().splitlines()[2:]
        return [line.split(":")[0].strip() for line in lines]

    def group(self, version1: str, version2: str) -> str:
        """A file of its cgroup: ``controller/file`` under version 1, ``file`` under version 2."""
        group = cgroups.of_process(self.pid)
        if group.unified is not None:
            return (group.unified / version2).read_text().strip()
        controller, name = version1.split("/")
        return (group.controllers[controller] / name).read_text().strip()


@contextmanager
def running(home: Path, **limits: Any) -> Iterator[Seen]:
    """A job at work in a sandbox of sandboxd's; the daemon of that home runs already."""
    backend = support.client(home, OWNER)
    spec = support.spec(support.write_bundle(home, _WORK), **{**LIMITS, **limits})
    sandbox = backend.create(spec)
    try:
        sandbox.channel.send(support.job_frame(spec))
        _await_log(sandbox)
        text = subprocess.run(["docker", "inspect", f"cloche-{sandbox.id}"], capture_output=True, check=True).stdout
        yield Seen(json.loads(text)[0], sandbox.id, sandbox.image, spec, home)
    finally:
        sandbox.destroy()
        backend.close()


def _await_log(sandbox: Sandbox) -> None:
    for _ in range(2):  # ready, then the plugin's word that it runs
        frame = sandbox.channel.receive(60)
        assert frame is not None
        assert frame["type"] in ("ready", "log"), frame


@dataclass(frozen=True)
class Row:
    """``promise``: what DESIGN §5 says. ``where``: field or file. ``shown``: what ``read`` gives, word for word, on every host.

    ``points``: those of CIS section 5 that it answers.
    """

    promise: str
    where: str
    shown: str
    read: Callable[[Seen], str]
    points: tuple[str, ...] = ()


def plain(value: Any) -> str:
    """A value of ``inspect`` as the table shows it; what is empty in one version of the engine or another is ``–``."""
    return "–" if value in (None, "", [], {}) else json.dumps(value, sort_keys=True)


def fields(promise: str, shown: dict[str, Any], *points: str) -> Row:
    """Fields of ``docker inspect`` with exactly these values."""
    return Row(
        promise,
        ", ".join(f"`{name}`" for name in shown),
        ", ".join(plain(value) for value in shown.values()),
        lambda seen: ", ".join(plain(seen.field(name)) for name in shown),
        points,
    )


def mount(promise: str, place: str, shown: str, *points: str) -> Row:
    """A mount with all of these flags and options, and of this file system."""

    def read(seen: Seen) -> str:
        flags, system, options = seen.mounts()[place]
        return ", ".join(word for word in shown.split(", ") if word in flags | options | {system})

    return Row(promise, f"`mountinfo`: `{place}`", shown, read, points)


def markdown(rows: Iterable[Row]) -> str:
    """The table as docs/threat-model.md shows it."""
    lines = ["| what §5 promises | where it is seen | what is seen | CIS |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.promise} | {row.where} | {row.shown} | {', '.join(row.points)} |" for row in rows]
    return "\n".join(lines) + "\n"


def namespaces(seen: Seen, names: Iterable[str]) -> str:
    """Those of the kinds of namespaces that are not the host's."""
    return ", ".join(
        name for name in names if os.readlink(f"/proc/{seen.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    )


def holds(promise: str, where: str, shown: str, check: Callable[[Seen], Any], *points: str) -> Row:
    """A fact whose value differs from host to host: ``check`` gives whether it holds, or what was found instead."""

    def read(seen: Seen) -> str:
        found = check(seen)
        return shown if found is True else f"not so: {found}"

    return Row(promise, where, shown, read, points)
