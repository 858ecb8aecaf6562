"""Starts services in order, restarts what dies, stops them in the opposite order.

One thread, one selector: the children's output, their deaths (pidfd) and a pipe that ``stop`` writes to. Nothing here knows Cloche.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby

from cloche.cli.up.backoff import Backoff
from cloche.cli.up.child import Run, Service, how_it_ended
from cloche.cli.up.loglines import Sink
from cloche.clock import uuid7

_READ = 1 << 16
_LONGEST_LINE = 1 << 16
_TICK_S = 0.05  # how often `ready` is asked
_LAST_WORDS_S = 1.0  # how long the output of processes that are all dead may take to arrive


class Supervisor:
    """``run`` in the main thread; ``stop`` from a signal handler or any thread, as often as one likes.

    ``gone(service, run_id)`` is called for each death that nobody asked for, before the service starts again; it must not block. An end that the
    service calls final is none of these.
    ``keep``: descriptors that every child inherits.
    """

    def __init__(
        self, services: Sequence[Service], sink: Sink, gone: Callable[[Service, str], None], keep: Sequence[int] = ()
    ) -> None:
        self._services = sorted(services, key=lambda service: service.stage)
        self._sink = sink
        self._gone = gone
        self._keep = tuple(keep)
        self._runs: dict[str, Run] = {}
        self._backoff = {service.name: Backoff() for service in services}
        self._due: dict[str, float] = {}  # name → monotonic time of its next start
        self._lines: dict[int, tuple[str, bytearray]] = {}  # pipe → whose, and its unfinished line
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._stops = 0
        self._closed = False
        self._to_kill: deque[tuple[int, str]] = deque()
        self._to_vacate: deque[tuple[str, str]] = deque()
        self._vacated: set[str] = set()

    def vacate(self, name: str, why: str) -> None:
        """Start that service no more, and stop it where it was started again meanwhile. From any thread."""
        self._to_vacate.append((name, why))
        self._wake()

    def kill(self, pid: int, why: str) -> None:
        """SIGKILL to the service that process belongs to, which then starts again; one that is nobody's here is only told of. From any thread."""
        self._to_kill.append((pid, why))
        self._wake()

    def stop(self) -> None:
        """Ask for the end. A second call waits for nobody but those that must clean up (stages below 10)."""
        self._stops += 1
        self._wake()

    def _wake(self) -> None:
        if self._closed:
            return
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def run(self) -> None:
        """Start everything and return after ``stop``, when the last process is gone."""
        try:
            for service in self._services:
                if self._stops:
                    break
                self._start(service)
                self._await_ready(service)
            while not self._stops:
                self._pump(self._patience())
        finally:
            self._stop_all()
            self._close()

    def _start(self, service: Service) -> None:
        self._due.pop(service.name, None)
        try:
            run = Run(service, uuid7(), self._keep)
        except (OSError, subprocess.SubprocessError) as error:
            delay = self._backoff[service.name].after(0)
            self._sink.say(f"{service.name} cannot be started ({error}); trying again in {delay:.1f} s", level="error")
            self._due[service.name] = time.monotonic() + delay
            return
        self._runs[service.name] = run
        self._lines[run.pipe] = (service.name, bytearray())
        self._selector.register(run.pipe, selectors.EVENT_READ, lambda: self._read(run.pipe))
        self._selector.register(run.pidfd, selectors.EVENT_READ, lambda: self._died(run))

    def _await_ready(self, service: Service) -> None:
        if service.ready is None:
            return
        deadline = time.monotonic() + service.ready_s
        while not self._stops and not service.ready():
            if time.monotonic() > deadline:
                self._sink.say(f"{service.name} is not ready after {service.ready_s:.0f} s; going on", level="warning")
                return
            self._pump(_TICK_S)

    def _patience(self) -> float | None:
        if not self._due:
            return None
        return max(0.0, min(self._due.values()) - time.monotonic())

    def _pump(self, timeout_s: float | None) -> None:
        """Handle what has happened, waiting for it up to ``timeout_s`` seconds; start what is due."""
        for key, _ in self._selector.select(timeout_s):
            key.data()
        if self._stops:
            return
        now = time.monotonic()
        for service in self._services:
            if self._due.get(service.name, now + 1) <= now:
                self._start(service)

    def _woken(self) -> None:
        os.read(self._wake_read, 1024)
        while self._to_kill:
            pid, why = self._to_kill.popleft()
            run = self._run_of(pid)
            if run is None:
                self._sink.say(f"process {pid}, which is none of ours, {why}", level="error")
            else:
                self._sink.say(f"{run.service.name} {why}; killing it", level="error")
                run.kill()

        while self._to_vacate:
            name, why = self._to_vacate.popleft()
            self._vacated.add(name)
            self._due.pop(name, None)
            self._sink.say(f"{name} {why}")
            if not self._stops and (again := self._runs.get(name)) is not None:
                again.terminate()

    def _run_of(self, pid: int) -> Run | None:
        """Here, where deaths are reaped, a process's id cannot pass to another meanwhile."""
        try:
            group = os.getpgid(pid)
        except ProcessLookupError:
            return None
        return next((run for run in self._runs.values() if run.process.pid == group), None)

    def _read(self, pipe: int) -> None:
        name, line = self._lines[pipe]
        try:
            data = os.read(pipe, _READ)
        except BlockingIOError:
            return
        *whole, rest = (bytes(line) + data).split(b"\n")
        if not data or len(rest) > _LONGEST_LINE:
            whole, rest = [*whole, rest], b""
        for text in whole:
            if text:
                self._sink.line(name, text.decode("utf-8", "replace"))
        line[:] = rest
        if not data:
            self._selector.unregister(pipe)
            del self._lines[pipe]
            os.close(pipe)

    def _died(self, run: Run) -> None:
        self._selector.unregister(run.pidfd)
        code = run.reap()
        del self._runs[run.service.name]
        if self._stops:
            return
        if code in run.service.final:
            self._sink.say(f"{run.service.name} {run.service.final[code]}")
            return
        if run.service.name in self._vacated:
            self._sink.say(f"{run.service.name} {how_it_ended(code)}")
        else:
            delay = self._backoff[run.service.name].after(run.lived_s)
            again = f"{how_it_ended(code)}; starting it again in {delay:.1f} s"
            self._sink.say(f"{run.service.name} {again}", level="warning")
            self._due[run.service.name] = time.monotonic() + delay
        self._gone(run.service, run.id)

    def _stop_all(self) -> None:
        self._stops = max(self._stops, 1)
        self._due.clear()
        for stage, group in groupby(reversed(self._services), key=lambda service: service.stage):
            runs = [self._runs[service.name] for service in group if service.name in self._runs]
            if runs:
                self._stop_stage(stage, runs)
        # What the dead left in their pipes; bounded, since a stranger may hold the other end.
        end = time.monotonic() + _LAST_WORDS_S
        while self._lines and time.monotonic() < end:
            self._pump(max(0.0, end - time.monotonic()))

    def _stop_stage(self, stage: int, runs: Sequence[Run]) -> None:
        self._sink.say(f"stopping {', '.join(run.service.name for run in runs)}")
        for run in runs:
            run.terminate()
        end = time.monotonic() + max(run.service.grace_s for run in runs)
        while self._alive(runs):
            left = end - time.monotonic()
            if left <= 0 or (self._stops > 1 and stage >= 10):
                break
            self._pump(left)
        for run in self._alive(runs):
            self._sink.say(f"{run.service.name} has not stopped; killing it", level="warning")
            run.kill()
        while self._alive(runs):
            self._pump(None)

    def _alive(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if self._runs.get(run.service.name) is run]

    def _close(self) -> None:
        self._closed = True
        for pipe in self._lines:
            os.close(pipe)
        self._lines.clear()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
