"""A Backend without an engine: sandboxes that do what a script says. Passes the same contract suite as the real one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloche import clock
from cloche.domain.egress import MAX_DECLARED, Endpoint
from cloche.domain.runtimes import RUNC
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure, PluginFailure
from cloche.isolation.backend import Channel, CollectedFile, Remains, Sandbox, SandboxSpec
from cloche.isolation.egress import EgressReport
from cloche.isolation.spec import BadSpec, check_spec, resized
from cloche.isolation.stream import frame_allowance
from cloche_guest.protocol import PROTOCOL

READY: Mapping[str, Any] = {"type": "ready", "protocol": PROTOCOL, "python": "3.11"}
IMAGE = "sha256:" + "0" * 64


def result(value: Any) -> Mapping[str, Any]:
    return {"type": "result", "value": value}


def error(reason: Reason, message: str) -> Mapping[str, Any]:
    return {"type": "error", "reason": reason, "message": message, "traceback": f"Traceback: {message}\n"}


@dataclass(frozen=True)
class Script:
    """What one sandbox does.

    ``loading``: frames before any job. ``running``: frames once the job came, made anew by a function of the job frame; an endless iterable
    is a flood, which breaks the protocol as a real guest's does. ``on_cancel``: frames when canceled. ``ending``: ``"wait"`` to be killed,
    ``"exit"``, or ``"garbage"``. ``reads``: whether it takes what it is sent.
    """

    loading: Sequence[Mapping[str, Any]] = (READY,)
    reads: bool = True
    running: Iterable[Mapping[str, Any]] | Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] = ()
    on_cancel: Sequence[Mapping[str, Any]] = ()
    ending: str = "wait"
    exit_code: int | None = None
    oom_killed: bool = False
    usage: Mapping[str, int] = field(default_factory=lambda: {"cpu_ms": 1, "memory_peak": 1 << 20})
    files: Mapping[str, bytes] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    create_failure: PlatformFailure | None = None
    finish_failure: PlatformFailure | None = None
    egress_failure: PlatformFailure | None = None
    egress: EgressReport = field(default_factory=EgressReport)  # what is told of its connections, where it has egress


class ScriptedBackend:
    """``folder`` holds the sandboxes' folders. ``script`` may depend on the spec. ``problem`` is what health says."""

    def __init__(self, folder: Path, script: Script | Callable[[SandboxSpec], Script], owner: str = "scripted") -> None:
        self.problem: str | None = None
        self.owner = owner
        self.sandboxes: list[ScriptedSandbox] = []  # every one ever made, in order
        self._folder = folder
        self._script = script
        self._closed = False

    def create(self, spec: SandboxSpec) -> Sandbox:
        try:
            check_spec(spec)
        except BadSpec as problem:
            raise PlatformFailure(Reason.PLATFORM_FAILED, str(problem)) from None
        if self._closed:
            raise PlatformFailure(Reason.WORKER_STOPPED, "the sandbox backend is closed")
        if self.problem is not None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, self.problem)
        script = self._script if isinstance(self._script, Script) else self._script(spec)
        if script.create_failure is not None:
            raise script.create_failure
        sandbox = ScriptedSandbox(self._folder / clock.uuid7(), spec, script)
        self.sandboxes.append(sandbox)
        return sandbox

    def image_python(self) -> str:
        if self.problem is not None:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, self.problem)
        return str(READY["python"])

    def health(self) -> str | None:
        return self.problem

    def close(self) -> None:
        self._closed = True
        for sandbox in self.sandboxes:
            sandbox.kill()
            sandbox.destroy()


class ScriptedSandbox:
    """One sandbox; see :class:`cloche.isolation.backend.Sandbox`. ``killed`` and ``destroyed`` are for tests to look at."""

    def __init__(self, folder: Path, spec: SandboxSpec, script: Script) -> None:
        self.id = folder.name
        self.spec = spec
        self.limits = spec.limits  # as they are now, after any resize
        self.killed = False
        self.destroyed = False
        self.allowed: tuple[Endpoint, ...] = ()  # what it may reach, once that was said
        self.in_folder = folder / "in"
        self.in_folder.mkdir(parents=True)
        self.image = spec.image or IMAGE
        self.runtime = RUNC
        self.level = "container"
        self.start = "cold"
        self.why: str | None = "the backend is scripted"
        self.runtime_why: str | None = self.why if spec.sensitive else None
        self._guest = ScriptedChannel(script)
        self.channel: Channel = self._guest
        self._folder = folder
        self._script = script
        self._finished = False

    def kill(self) -> None:
        self.killed = True
        self._guest.end()

    def usage(self) -> Mapping[str, int]:
        self._check_there()
        return {} if self._guest.ended else dict(self._script.usage)

    def resize(self, memory: int, output: int) -> None:
        self._check_there()
        if self._finished or self._guest.ended:
            raise PlatformFailure(Reason.PLATFORM_FAILED, "the sandbox has ended")
        try:
            self.limits = resized(self.limits, self.spec.limits, memory, output)
        except BadSpec as problem:
            raise PlatformFailure(Reason.PLATFORM_FAILED, str(problem)) from None

    def open_egress(self, allow: Sequence[Endpoint]) -> None:
        self._check_there()
        if not self.spec.egress or self.allowed or self._finished or not 1 <= len(allow) <= MAX_DECLARED:
            raise PlatformFailure(Reason.PLATFORM_FAILED, "this sandbox can have no egress now")
        if self._script.egress_failure is not None:
            raise self._script.egress_failure
        self.allowed = tuple(allow)

    def _check_there(self) -> None:
        if self.destroyed:
            raise PlatformFailure(Reason.PLATFORM_FAILED, "there is no such sandbox")

    def finish(self) -> Remains:
        if self._finished:
            raise PlatformFailure(Reason.PLATFORM_FAILED, "the sandbox was finished already")
        self._finished = True
        by_itself = self._script.ending == "exit" and self._guest.ended and not self.killed
        self._guest.end()
        if self._script.finish_failure is not None:
            raise self._script.finish_failure
        collected = self._folder / "collected"
        collected.mkdir()
        for name, data in self._script.files.items():
            (collected / name).parent.mkdir(parents=True, exist_ok=True)
            (collected / name).write_bytes(data)
        files = tuple(CollectedFile(name, len(data)) for name, data in sorted(self._script.files.items()))
        sizes = {"output_bytes": sum(item.size for item in files), "output_files": len(files)}
        return Remains(
            exit_code=self._script.exit_code if by_itself else None,
            oom_killed=self._script.oom_killed,
            usage={**self._script.usage, **sizes},
            files=files,
            refused=self._script.refused,
            egress=self._script.egress if self.allowed else None,
            folder=collected,
        )

    def destroy(self) -> None:
        self.channel.close()
        self.destroyed = True
        shutil.rmtree(self._folder, ignore_errors=True)


class ScriptedChannel:
    """One guest's channel. ``sent`` holds what the host sent."""

    def __init__(self, script: Script) -> None:
        self.sent: list[Mapping[str, Any]] = []
        self.ended = False
        self._script = script
        self._frames: Iterator[Mapping[str, Any]] = iter(script.loading)
        self._job_came = False
        self._allowance = frame_allowance()
        self._changed = threading.Condition()

    def send(self, frame: Mapping[str, Any], keep_on: Callable[[], bool] = lambda: True) -> bool:
        with self._changed:
            while not self._script.reads and not self.ended:
                if not keep_on():
                    return False
                self._changed.wait(0.01)
            if self.ended:
                raise PluginFailure(Reason.PLUGIN_CRASHED, "the guest is gone")
            self.sent.append(frame)
            if frame["type"] == "job":
                running = self._script.running
                more = running(frame) if callable(running) else running
                self._frames = _chain(self._frames, more)
                self._job_came = True
            elif frame["type"] == "cancel":
                self._frames = _chain(self._script.on_cancel, self._frames)
            self._changed.notify_all()
        return True

    def receive(self, timeout_s: float) -> Mapping[str, Any] | None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self.ended:
                    raise EOFError("the guest is gone")
                if (frame := next(self._frames, None)) is not None:
                    if not self._allowance.take(1):
                        raise PluginFailure(Reason.BAD_RESULT, "the guest sent too many frames")
                    return frame
                if self._job_came or not self._script.loading:
                    self._end_of_script()
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)

    def end(self) -> None:
        """The guest dies."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def close(self) -> None:
        self.end()

    def _end_of_script(self) -> None:
        if self._script.ending == "exit":
            self.ended = True
            raise EOFError("the guest is gone")
        if self._script.ending == "garbage":
            raise PluginFailure(Reason.BAD_RESULT, "the guest broke the protocol")


def _chain(*parts: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for part in parts:
        yield from part
