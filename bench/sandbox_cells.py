"""Level ``namespace`` by itself: sandboxd in a process of its own, jobs driven over its socket and the cells' channels, nothing else.

`python -m bench.sandbox_cells [--jobs N]` prints its rows as JSON; :func:`rows` is for `./run bench sandbox`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloche import clock, config, logs
from cloche.domain.limits import Limits
from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.sandboxd import syscalls
from cloche.sandboxd.main import Sandboxd

_READY_SECONDS = 120
_TENANT = "01890000-0000-7000-8000-000000000001"
_BUNDLE = "b" * 64
_PLUGIN = "from cloche_guest import hookimpl\n\n\n@hookimpl\ndef run(job):\n    return job.payload\n"
_LIMITS = replace(Limits(), memory=64 << 20, output=1 << 20, tmp=1 << 20)
# Names of rows that have a mark, or that peers are compared with.
_ONE = "namespace, one at a time"
_RESULT = "handed over → result"
_ALL = "all"
RESULT, WHOLE = f"{_ONE}: {_RESULT}", f"{_ONE}: {_ALL}"
SUSTAINED = "jobs, backend alone"
Row = dict[str, Any]


def plain() -> SandboxSpec:
    """A job of a plugin that returns its parameters."""
    return SandboxSpec(
        job_id=clock.uuid7(),
        attempt=1,
        bundle=_BUNDLE,
        wheels=None,
        limits=_LIMITS,
        lease_until=clock.now_ms() + 60_000,
        warm=True,
        level="namespace",
        tenant=_TENANT,
    )


class Load:
    """Times of jobs in seconds, by phase. Any thread adds. ``spec``: what each is like."""

    def __init__(self, backend: SandboxdBackend, spec: SandboxSpec) -> None:
        self._backend = backend
        self._spec = spec
        self._lock = threading.Lock()
        self.phases: dict[str, list[float]] = {
            name: [] for name in ("create", "ready", _RESULT, "finish", "destroy", _ALL)
        }

    def one(self) -> None:
        spec = replace(self._spec, job_id=clock.uuid7(), lease_until=clock.now_ms() + 60_000)
        marks = [time.perf_counter()]
        sandbox = self._backend.create(spec)
        try:
            marks.append(time.perf_counter())
            if sandbox.level != "namespace":
                raise RuntimeError(f"level namespace cannot be had: {self._backend.facts()}")
            _until(sandbox, "ready")
            marks.append(time.perf_counter())
            sandbox.channel.send(_job(spec))
            _until(sandbox, "result")
            marks.append(time.perf_counter())
            sandbox.finish()
            marks.append(time.perf_counter())
        finally:
            sandbox.destroy()
        marks.append(time.perf_counter())
        with self._lock:
            for name, start, end in zip(self.phases, marks, marks[1:], strict=False):
                self.phases[name].append(end - start)
            self.phases[_ALL].append(marks[-1] - marks[0])

    def many(self, jobs: int, clients: int) -> float:
        """Seconds for so many jobs by so many clients at once."""
        failures: list[Exception] = []

        def work(count: int) -> None:
            try:
                for _ in range(count):
                    self.one()
            except Exception as error:  # noqa: BLE001 - a failure in a thread is told by the caller
                failures.append(error)

        threads = [threading.Thread(target=work, args=(jobs // clients,)) for _ in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return time.perf_counter() - began


def rows(jobs: int = 400, clients: int = 4, settings: config.Settings | None = None) -> list[Row]:
    """Figures in milliseconds and jobs a second; what each CPU did in between."""
    with running(settings) as (backend, pid):
        alone = Load(backend, plain())
        for _ in range(5):
            alone.one()
        alone = Load(backend, plain())
        for _ in range(max(20, jobs // 4)):
            alone.one()
            time.sleep(0.02)  # the next cell is made meanwhile, as it is between jobs that arrive one by one
        together = Load(backend, plain())
        together.many(clients * 4, clients)
        before, began = _cpu_ms(pid), time.process_time()
        seconds = together.many(jobs, clients)
        daemon, client = (_cpu_ms(pid) - before) / jobs, (time.process_time() - began) * 1_000 / jobs
        found = [timed(f"{_ONE}: {name}", times) for name, times in alone.phases.items()]
        rate = round(jobs / seconds, 1)
        found.append({"what": f"namespace, {clients} clients, {jobs} {SUSTAINED}", "jobs_per_s": rate})
        found.append({"what": "of that, CPU of sandboxd for each job", "ms": round(daemon, 2)})
        found.append({"what": "of that, CPU of the clients for each job", "ms": round(client, 2)})
        return found


def timed(what: str, times: list[float]) -> Row:
    ordered = sorted(times)
    return {
        "what": what,
        "median_ms": round(statistics.median(ordered) * 1_000, 2),
        "p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1_000, 2),
    }


def _until(sandbox: Sandbox, kind: str) -> None:
    frame = sandbox.channel.receive(_READY_SECONDS)
    if frame is None or frame["type"] != kind:
        raise RuntimeError(f"{kind} was due, and came {frame}")


def _job(spec: SandboxSpec) -> dict[str, Any]:
    return {
        "type": "job",
        "id": spec.job_id,
        "attempt": 1,
        "payload": {"n": 1},
        "inputs": [],
        "limits": spec.limits.to_dict(),
    }


def _cpu_ms(pid: int) -> float:
    """User and system time of a process, in milliseconds (its ticks are 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return 10.0 * (int(fields[11]) + int(fields[12]))


def _serve(settings: config.Settings, ready: Any, stop: Any) -> None:
    logs.setup("warning", "console", "sandboxd")
    daemon = Sandboxd(settings)
    daemon.start()
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while daemon.host.health()["problem"] is not None:
            if time.monotonic() > deadline:
                raise RuntimeError(str(daemon.host.health()["problem"]))
            time.sleep(0.05)
        ready.set()
        stop.wait()
    finally:
        daemon.close()


@contextmanager
def running(
    settings: config.Settings | None = None, prepare: Callable[[Path], None] = lambda _: None
) -> Iterator[tuple[SandboxdBackend, int]]:
    """A client, and the number of the sandboxd it talks to, on a home that is gone afterwards. ``prepare``: puts more into that home first."""
    home = Path(tempfile.mkdtemp(prefix="cl-"))
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    chosen = (settings or config.load(home=home)).model_copy(update={"home": home})
    folder = home / "bundles" / _BUNDLE
    folder.mkdir(parents=True)
    (folder / "plugin.py").write_text(_PLUGIN)
    prepare(home)
    process = context.Process(target=_serve, args=(chosen, ready, stop))
    process.start()
    try:
        if not ready.wait(_READY_SECONDS):
            raise RuntimeError("sandboxd does not come up")
        backend = SandboxdBackend(chosen.sandboxd_socket, "bench")
        try:
            yield backend, process.pid or 0
        finally:
            backend.close()
    finally:
        stop.set()
        process.join(60)
        for point in syscalls.mounts_below(home):
            syscalls.unmount(point)
        shutil.rmtree(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    for row in rows(given.jobs, given.clients):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
