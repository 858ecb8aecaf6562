"""Where probes run: a sandboxd of its own on a temporary home, driven over the same socket and channel as by a worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloche import clock
from cloche.config import Settings
from cloche.domain.egress import parse_endpoint
from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNC, RUNSC
from cloche.errors import EnvironmentProblem, PluginFailure
from cloche.isolation.backend import Remains, Sandbox, SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.isolation.egress import report_to_json
from cloche.isolation.spec import CONTAINER, NAMESPACE
from cloche.sandboxd import syscalls
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.probes.bundle import write_bundle, write_package
from cloche.sandboxd.probes.outside import Outside, outside
from cloche.sandboxd.running import Running

READY_SECONDS = 120  # the first use on a machine makes the image
MIB = 1 << 20
SMALL = replace(
    Limits(),
    memory=64 * MIB,
    output=2 * MIB,
    output_files=50,
    tmp=2 * MIB,
    shm=MIB,
    pids=32,
    nofile=512,
    log=100_000,
    result=100_000,
)
INPUT = b"mine"
TENANT = "01890000-0000-7000-8000-000000000000"


class ProbeBroken(Exception):
    """A probe could not be carried to its end, or a sandbox left something on the host."""


class Bench:
    """Use :func:`open_bench`. One thread. ``once`` keeps what several probes look at together."""

    def __init__(
        self,
        daemon: Sandboxd,
        home: Path,
        bundle: str,
        beyond: Outside,
        runtime: str = RUNC,
        level: str = CONTAINER,
        *,
        warm: bool = False,
    ) -> None:
        self.home = home
        self.outside = beyond
        self.runtime = runtime
        self.level = level
        self._daemon = daemon
        self._bundle = bundle
        self._warm = warm
        self._backend = SandboxdBackend(home / "run" / "sandboxd.sock", "doctor")
        self._seen: dict[Callable[[Bench], Any], Any] = {}
        self._warmed: Bench | None = None

    def close(self) -> None:
        if self._warmed is not None:
            self._warmed.close()
        self._backend.close()

    def warmed(self) -> Bench:
        """The same, with sandboxes that were made and waited before their jobs came."""
        if self._warmed is None:
            self._warmed = Bench(
                self._daemon, self.home, self._bundle, self.outside, self.runtime, self.level, warm=True
            )
        return self._warmed

    def once(self, observe: Callable[[Bench], Any]) -> Any:
        """What the function observes; it is called at most once, and what it raised is raised again."""
        if observe not in self._seen:
            try:
                self._seen[observe] = observe(self)
            except Exception as error:  # noqa: BLE001 - the same for every probe that looks at it
                self._seen[observe] = error
        found = self._seen[observe]
        if isinstance(found, Exception):
            raise found
        return found

    def run(
        self,
        act: str,
        payload: Mapping[str, Any] | None = None,
        seconds: float = 30,
        *,
        allow: Sequence[str] = (),
        preload: str | None = None,
        **limits: Any,
    ) -> dict[str, Any]:
        """One job from create to destroy; see :meth:`Live.facts`."""
        with self.live(act, payload, allow=allow, preload=preload, **limits) as live:
            live.drive(seconds)
            return live.facts()

    @contextlib.contextmanager
    def live(
        self,
        act: str,
        payload: Mapping[str, Any] | None = None,
        *,
        allow: Sequence[str] = (),
        preload: str | None = None,
        **limits: Any,
    ) -> Iterator[Live]:
        """A sandbox that has just been given its job. Afterwards it is destroyed, and nothing of it may be left. ``allow``: what its egress leads to.
        ``preload``: see :meth:`refused`.

        Raises:
            ProbeBroken: something is.
        """
        spec = self._spec(allow, preload, limits)
        sandbox = self._create_warm(spec) if self._warm else self._backend.create(spec)
        try:
            if sandbox.level != (CONTAINER if allow else self.level):  # a cell has no way out
                raise ProbeBroken(f"level {self.level} cannot be had: {self._daemon.host.health()['cells']}")
            running = self._daemon.host.find(sandbox.id)
            if running is None:
                raise ProbeBroken("the sandbox ended as it started")
            live = Live(sandbox, running)
            (sandbox.in_folder / "a.txt").write_bytes(INPUT)
            frame = {"type": "job", "id": spec.job_id, "attempt": 1, "payload": {"act": act, **(payload or {})}, "inputs": ["a.txt"],
                     "limits": spec.limits.to_dict()}  # fmt: skip
            if allow:
                live.ready()
                sandbox.open_egress([parse_endpoint(text) for text in allow])
                frame["egress"] = list(allow)
            live.send(frame)
            yield live
        finally:
            sandbox.destroy()
        groups = running.group.folders if running.group is not None else ()
        folders = (running.site.root, running.site.folders.inputs, running.site.folders.out, *groups)
        if left := [*live.processes(), *(point for folder in folders for point in syscalls.mounts_below(folder))]:
            raise ProbeBroken(f"left on the host: {left}")
        if left := [str(folder) for folder in folders if folder.exists()]:
            raise ProbeBroken(f"left on the host: {left}")

    def refused(self, preload: str) -> dict[str, Any]:
        """A job whose plugin has ``sandbox/probes/beforehand.py`` as a package that is imported beforehand and then does what is named: what it got.

        ``level``, ``why``, and what its pool is told to have as ``last_error``.
        """
        spec = self._spec((), preload, {})
        sandbox = self._backend.create(spec)
        try:
            told = [facts["last_error"] for facts in self._backend.pools() if facts["bundle"] == spec.bundle]
            return {"level": sandbox.level, "why": sandbox.why, "last_error": [text for text in told if text]}
        finally:
            sandbox.destroy()

    def _spec(self, allow: Sequence[str], preload: str | None, limits: Mapping[str, Any]) -> SandboxSpec:
        return SandboxSpec(
            job_id=clock.uuid7(),
            attempt=1,
            bundle=self._bundle,
            wheels=None if preload is None else write_package(self.home, preload),
            limits=replace(SMALL, **limits),
            lease_until=clock.now_ms() + 60_000,
            runtime=self.runtime,
            warm=self._warm or self.level == NAMESPACE,
            egress=bool(allow),
            level=self.level,
            tenant=TENANT,
            preload=() if preload is None else ("beforehand",),
        )

    def _create_warm(self, spec: SandboxSpec) -> Sandbox:
        """
        Raises:
            ProbeBroken: none waits, and none comes.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            sandbox = self._backend.create(spec)
            if sandbox.start == "warm":
                return sandbox
            sandbox.destroy()
            time.sleep(0.2)
        raise ProbeBroken("no sandbox waits for a job on this host")


class Live:
    """One running job, seen from the host. ``overdue``: it did not end in the time :meth:`drive` gave it."""

    def __init__(self, sandbox: Sandbox, running: Running) -> None:
        self.sandbox = sandbox
        self.running = running
        self.overdue = False
        self._frames: list[Mapping[str, Any]] = []
        self._failure: PluginFailure | None = None
        self._remains: Remains | None = None

    def send(self, frame: Mapping[str, Any]) -> None:
        try:
            self.sandbox.channel.send(frame)
        except PluginFailure as error:
            self._failure = error

    @property
    def log(self) -> str:
        return "".join(frame["text"] for frame in self._frames if frame["type"] == "log")

    def until(self, word: str, seconds: float = 60) -> None:
        """Wait until the log has the word.

        Raises:
            ProbeBroken: it ended before, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while word not in self.log:
            if not self._step(deadline):
                raise ProbeBroken(f"the job never said {word!r}; its frames: {self._frames[-3:]}")

    def processes(self) -> list[str]:
        """Numbers of the host's living processes that are this sandbox: those of its user, or all in its own cgroup."""
        group = self.running.group
        return processes_of(self.running.uid) if group is None else [str(pid) for pid in sorted(group.members())]

    def ready(self, seconds: float = 60) -> None:
        """Wait until the plugin is set up.

        Raises:
            ProbeBroken: it ended before, or the time is over.
        """
        if not self._step(time.monotonic() + seconds) or self._frames[-1]["type"] != "ready":
            raise ProbeBroken(f"the plugin is not set up; its frames: {self._frames[-3:]}")

    def drive(self, seconds: float) -> None:
        """Read until a result, an error, a breach of the protocol, the end, or the end of the time."""
        deadline = time.monotonic() + seconds
        while self._failure is None and self._step(deadline):
            if self._frames[-1]["type"] in ("result", "error"):
                return

    def facts(self) -> dict[str, Any]:
        """Kill, collect, and tell: ``last`` (``result``, ``error`` or None), ``progress`` (the last that was reported), ``value``, ``reason``, ``message``, ``exit_code``, ``oom``, ``usage``,
        ``egress`` (its connections), ``files`` (path → text), ``modes``, ``refused``, ``frames`` (how many of each type), ``log`` (bytes), ``log_end``, ``overdue``."""
        remains = self.finish()
        ends = [frame for frame in self._frames if frame["type"] in ("result", "error")]
        last = ends[-1] if ends else {"type": None}
        counts: dict[str, int] = {}
        for frame in self._frames:
            counts[frame["type"]] = counts.get(frame["type"], 0) + 1
        reports = [frame["current"] for frame in self._frames if frame["type"] == "progress"]
        facts: dict[str, Any] = {
            "last": last["type"],
            "progress": reports[-1] if reports else None,
            "value": last.get("value"),
            "reason": self._failure.reason if self._failure else last.get("reason"),
            "message": self._failure.message if self._failure else last.get("message"),
            "exit_code": remains.exit_code,
            "oom": remains.oom_killed,
            "usage": dict(remains.usage),
            "refused": dict(remains.refused),
            "egress": None if remains.egress is None else report_to_json(remains.egress),
            "frames": counts,
            "log": len(self.log.encode()),
            "log_end": self.log[-200:],
            "overdue": self.overdue,
        }
        return facts | self._files(remains)

    def finish(self) -> Remains:
        """As the sandbox's own; more than once answers the same."""
        if self._remains is None:
            self._remains = self.sandbox.finish()
        return self._remains

    def _files(self, remains: Remains) -> dict[str, Any]:
        files, modes = {}, set()
        for item in remains.files:
            path = (remains.folder or Path()) / item.path
            files[item.path] = path.read_bytes()[:64].decode("utf-8", "replace")
            modes.add(oct(path.lstat().st_mode))
        return {"files": files, "modes": sorted(modes)}

    def _step(self, deadline: float) -> bool:
        """One more frame; False when there is none, and why is then known."""
        left = deadline - time.monotonic()
        try:
            frame = self.sandbox.channel.receive(left) if left > 0 else None
        except EOFError:
            return False
        except PluginFailure as error:
            self._failure = error
            return False
        if frame is None:
            self.overdue = True
            return False
        self._frames.append(frame)
        return True


def processes_of(uid: int) -> list[str]:
    """Numbers of the host's living processes that run under this user. A dead one that its parent has not looked at yet is none."""
    return [name for name in os.listdir("/proc") if name.isdigit() and uid in users_of(name)]


def users_of(process: str) -> set[int]:
    """The user ids (real, effective, saved, file system) of a living process; empty when there is none."""
    try:
        status = Path("/proc", process, "status").read_text("utf-8", "replace")
    except OSError:
        return set()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return set() if fields["State"][0] in "ZX" else {int(number) for number in fields["Uid"].split()}


@contextlib.contextmanager
def open_bench(settings: Settings, runtime: str = RUNC, level: str = CONTAINER) -> Iterator[Bench]:
    """A bench on these settings' engine and image, in a home of its own that is gone afterwards.

    Raises:
        EnvironmentProblem: not root, or no sandbox can be made; says why.
    """
    home = Path(tempfile.mkdtemp(prefix="cl-"))
    try:
        daemon = Sandboxd(settings.model_copy(update={"home": home}))
        try:
            daemon.start()
            _wait_ready(daemon)
            _check_runtime(daemon, runtime)
            with outside(home) as beyond:
                bench = Bench(daemon, home, write_bundle(home), beyond, runtime, level)
                try:
                    yield bench
                finally:
                    bench.close()
        finally:
            daemon.close()
    finally:
        for point in syscalls.mounts_below(home):
            syscalls.unmount(point)
        shutil.rmtree(home)


@contextlib.contextmanager
def listening() -> Iterator[dict[str, Any]]:
    """Doors of the host that a sandbox must not reach: a port on both loopbacks and a name without a file. Nobody ever accepts."""
    name = f"cloche-doctor-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = first.getsockname()[1]
        with contextlib.suppress(OSError):  # a host without IPv6
            stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + name)
        abstract.listen()
        yield {"port": port, "abstract": name, "pid": os.getpid()}


def _wait_ready(daemon: Sandboxd) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while (problem := daemon.host.health()["problem"]) is not None:
        if time.monotonic() > deadline:
            raise EnvironmentProblem(f"no sandbox can be made on this host: {problem}")
        time.sleep(0.1)


def _check_runtime(daemon: Sandboxd, runtime: str) -> None:
    """Have gVisor proven first: without that every probe would fail for the same reason."""
    if runtime == RUNSC and (problem := daemon.host.prove()) is not None:
        raise EnvironmentProblem(f"runtime runsc (gVisor) cannot be used on this host: {problem}")
