"""Real sandboxes for tests: a home with bundles, a sandboxd on it, and jobs driven over a channel."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloche import clock, config
from cloche.domain.egress import parse_endpoint
from cloche.domain.limits import Limits
from cloche.isolation.backend import Backend, Remains, Sandbox, SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.isolation.spec import LABEL
from cloche.sandboxd import syscalls
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.places import home_digest

READY_SECONDS = 90  # the first use on a machine makes the image


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Poll until the condition holds; its value. Fails the test at the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A home with a path short enough for sockets, gone afterwards with whatever is mounted below it."""
    home = Path(tempfile.mkdtemp(prefix="cl-"))
    try:
        yield home
    finally:
        for point in syscalls.mounts_below(home):
            syscalls.unmount(point)
        shutil.rmtree(home)


@contextlib.contextmanager
def running_sandboxd(home: Path, pool: Mapping[str, Any] | None = None, **sandbox: Any) -> Iterator[Sandboxd]:
    """A sandboxd in this process, ready to run jobs. ``sandbox`` and ``pool`` override fields of those groups of the settings."""
    # One slot: settings refuse more slots than sandboxes, and some tests allow one sandbox.
    daemon = Sandboxd(config.load(home=home, sandbox=sandbox, pool=dict(pool or {}), worker={"count": 1, "slots": 1}))
    daemon.start()
    try:
        wait_until(lambda: daemon.host.health()["problem"] is None, "sandboxd is ready", READY_SECONDS)
        yield daemon
    finally:
        daemon.close()


class Prewarmed:
    """A client whose sandboxes were made before it asks, wherever the plugin lets that happen. ``starts``: how each came."""

    def __init__(self, backend: SandboxdBackend) -> None:
        self.backend = backend
        self.starts: list[str] = []

    def create(self, of: SandboxSpec) -> Sandbox:
        of = replace(of, warm=True)
        warm_up(self.backend, of)
        sandbox = self.backend.create(of)
        self.starts.append(sandbox.start)
        return sandbox

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


def pool_of(backend: SandboxdBackend, bundle: str) -> Mapping[str, Any]:
    """The bundle's pool in numbers; empty when there is none."""
    return next((pool for pool in backend.pools() if pool["bundle"] == bundle), {})


def warm_up(backend: SandboxdBackend, of: SandboxSpec, count: int = 1) -> None:
    """Return when so many wait, or when it is plain that none will."""
    if not pool_of(backend, of.bundle):
        backend.create(replace(of, warm=True)).destroy()

    def settled() -> bool:
        pool = pool_of(backend, of.bundle)
        return pool["warm"] >= count or (pool["failures"] > 0 and not pool["filling"])

    wait_until(settled, f"{count} wait", 60)


def containers_of(home: Path) -> list[str]:
    """Ids of the engine's containers of this home."""
    engine = Engine(config.load(home=home).sandbox.docker_socket)
    try:
        return [str(found["Id"]) for found in engine.containers(f"{LABEL}.home={home_digest(home)}")]
    finally:
        engine.close()


def client(home: Path, owner: str = "test-worker") -> SandboxdBackend:
    return SandboxdBackend(home / "run" / "sandboxd.sock", owner)


def write_bundle(home: Path, source: str, files: Mapping[str, str] | None = None) -> str:
    """Freeze a plugin under the home: ``plugin.py`` with this source and other files by name. Returns its digest."""
    contents = {"plugin.py": textwrap.dedent(source), **(files or {})}
    digest = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()
    folder = home / "bundles" / digest
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return digest


def plugin(body: str) -> str:
    """The source of a plugin whose ``run(job)`` has this body."""
    head = "import os, socket, sys, time\nfrom pathlib import Path\nfrom cloche_guest import Job, hookimpl\n\n@hookimpl\ndef run(job):\n"
    return head + textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"


TENANT = "01890000-0000-7000-8000-00000000abcd"


def spec(
    bundle: str,
    level: str = "container",
    tenant: str | None = TENANT,
    *,
    egress: bool = False,
    wheels: str | None = None,
    **limits: Any,
) -> SandboxSpec:
    """At level ``namespace`` the limits count as the version's own: only those have cells."""
    return SandboxSpec(
        job_id=clock.uuid7(),
        attempt=1,
        bundle=bundle,
        wheels=wheels,
        limits=replace(Limits(), **limits),
        lease_until=clock.now_ms() + 15_000,
        egress=egress,
        warm=level == "namespace",
        level=level,
        tenant=tenant,
    )


def job_frame(of: SandboxSpec, payload: Mapping[str, Any] | None = None, inputs: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "type": "job",
        "id": of.job_id,
        "attempt": of.attempt,
        "payload": dict(payload or {}),
        "inputs": list(inputs),
        "limits": of.limits.to_dict(),
    }


@dataclass
class Outcome:
    """Everything one job gave. ``last`` is its result or error frame, None when the channel ended before."""

    frames: list[Mapping[str, Any]] = field(default_factory=list)
    last: Mapping[str, Any] | None = None
    remains: Remains | None = None
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def value(self) -> Any:
        assert self.last is not None, "the channel ended without a result"
        assert self.last["type"] == "result", self.last
        return self.last["value"]

    @property
    def log(self) -> str:
        return "".join(frame["text"] for frame in self.frames if frame["type"] == "log")


def run_job(
    backend: Backend,
    of: SandboxSpec,
    payload: Mapping[str, Any] | None = None,
    inputs: Mapping[str, bytes] | None = None,
    seconds: float = 30,
    look: Callable[[Sandbox], None] | None = None,
    allow: Sequence[str] = (),
) -> Outcome:
    """One job from create to destroy. ``look`` is called while the sandbox is up, before the job is sent. ``allow``: what its egress leads to."""
    outcome = Outcome()
    sandbox = backend.create(of)
    try:
        for name, data in (inputs or {}).items():
            (sandbox.in_folder / name).write_bytes(data)
        if look is not None:
            look(sandbox)
        frame = job_frame(of, payload, list(inputs or {}))
        if allow:
            sandbox.open_egress([parse_endpoint(text) for text in allow])
            frame["egress"] = list(allow)
        sandbox.channel.send(frame)
        _drive(sandbox, outcome, time.monotonic() + seconds)
        outcome.remains = sandbox.finish()
        if outcome.remains.folder is not None:
            outcome.contents = {
                item.path: (outcome.remains.folder / item.path).read_bytes() for item in outcome.remains.files
            }
    finally:
        sandbox.destroy()
    return outcome


def _drive(sandbox: Sandbox, outcome: Outcome, deadline: float) -> None:
    while (left := deadline - time.monotonic()) > 0:
        try:
            frame = sandbox.channel.receive(left)
        except EOFError:
            return
        if frame is not None:
            outcome.frames.append(frame)
            if frame["type"] in ("result", "error"):
                outcome.last = frame
                return
    raise AssertionError("the job did not end in time")
