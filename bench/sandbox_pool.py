"""Level `container` from sandboxd alone: cold and warm starts beside `docker run` of the same, sustained jobs beside the engine's own limit."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.engine import engine_rate, run_seconds
from bench.figures import Row, figures
from cloche import clock, config
from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNC, RUNSC
from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.sandboxd import syscalls

SOURCE = "from cloche_guest import hookimpl\n\n@hookimpl\ndef run(job):\n    return job.payload\n"
_START = "import sys; from cloche import config; from cloche.sandboxd.main import run; sys.exit(run(config.load(home=sys.argv[1])))"
_READY_SECONDS = 120
# Names of rows that have a mark, or that peers are compared with.
COLD_RATIO = "ratio cold / docker run"
WARM = "warm: handed over, result"
COLD_WHOLE = "cold: a whole job, until it is destroyed"
WARM_WHOLE = "warm: a whole job, until it is destroyed"
SUSTAINED = "jobs without a pause, 4 clients"
ENGINE_RATIO = "ratio ours / the engine's limit"
WAITING = "memory of a waiting sandbox"


class Done(NamedTuple):
    """``seconds`` from the request for the sandbox to the result, ``whole`` to its end; ``start``: cold or warm."""

    start: str
    seconds: float
    whole: float
    value: Any


class Alone:
    """A sandboxd in a process of its own, on a temporary home, with one plugin."""

    def __init__(self, home: Path, source: str, runtime: str) -> None:
        self.backend = SandboxdBackend(home / "run" / "sandboxd.sock", "bench")
        self.bundle = _freeze(home, source)
        self.runtime = runtime
        self.registered = config.load(home=home).sandbox.runsc_name if runtime == RUNSC else RUNC

    def spec(self, *, warm: bool, runtime: str | None = None) -> SandboxSpec:
        until = clock.now_ms() + 60_000
        return SandboxSpec(
            clock.uuid7(), 1, self.bundle, None, Limits(), until, warm=warm, runtime=runtime or self.runtime
        )

    def job(self, *, warm: bool, payload: Any = None, runtime: str | None = None) -> Done:
        """One job from the request for its sandbox to its result; then it is destroyed."""
        spec = self.spec(warm=warm, runtime=runtime)
        began = time.perf_counter()
        sandbox = self.backend.create(spec)
        try:
            value = _to_result(sandbox, spec, payload or {})
            took = time.perf_counter() - began
            sandbox.finish()
        finally:
            sandbox.destroy()
        return Done(sandbox.start, took, time.perf_counter() - began, value)

    def pool(self) -> Mapping[str, Any]:
        return next((pool for pool in self.backend.pools() if pool["bundle"] == self.bundle), {})

    def wait_warm(self) -> None:
        """Return when at least one waits and none is being made."""
        until(lambda: (pool := self.pool()) and pool["warm"] and not pool["filling"], "a sandbox waits")


def rows(count: int, runtime: str = RUNC) -> Iterator[Row]:
    """Every figure, as it is measured."""
    for row in _rows(count, runtime):
        yield row if runtime == RUNC else {**row, "what": f"{runtime}: {row['what']}"}


def image_of(bench: Alone) -> str:
    """Config digest of the image that its jobs run."""
    sandbox = bench.backend.create(bench.spec(warm=False))
    sandbox.destroy()
    return sandbox.image


def _rows(count: int, runtime: str) -> Iterator[Row]:
    with alone(runtime=runtime) as bench:
        image = image_of(bench)
        yield from _starts(bench, image, count)
        yield from _sustained(bench, image, max(300, 8 * count))
        bench.wait_warm()
        pool = bench.pool()
        yield {"what": WAITING, "MB": round(pool["memory"] / pool["warm"] / (1 << 20), 1)}


def _starts(bench: Alone, image: str, count: int) -> Iterator[Row]:
    cold, warm, engine = [], [], []
    bench.job(warm=True)
    for _ in range(count):
        cold.append(bench.job(warm=False))
        engine.append(run_seconds(image, "python3", "-I", "-c", "pass", runtime=bench.registered))
    for _ in range(count):
        bench.wait_warm()
        warm.append(bench.job(warm=True))
        if warm[-1].start != "warm":
            raise RuntimeError("a job started cold although one waited")
    found = [
        figures("docker run of Python doing nothing", engine),
        figures("cold: create, ready, result", [done.seconds for done in cold]),
        figures(WARM, [done.seconds for done in warm]),
        figures(COLD_WHOLE, [done.whole for done in cold]),
        figures(WARM_WHOLE, [done.whole for done in warm]),
    ]
    yield from found
    run_ms = found[0]["median_ms"]
    yield {"what": COLD_RATIO, "ratio": round(found[1]["median_ms"] / run_ms, 2)}
    yield {"what": "ratio docker run / warm", "ratio": round(run_ms / found[2]["median_ms"], 1)}


def _sustained(bench: Alone, image: str, count: int) -> Iterator[Row]:
    """Jobs without a pause, from create to destroy; and the engine alone, before and after, at its better parallelism.

    A job whose sandbox waited before the first one is not counted: its container was made in no time of these.
    """
    before = max(engine_rate(image, count // 4, threads, bench.registered) for threads in (2, 4))
    waited = bench.pool().get("warm", 0)
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as clients:
        starts = [done.start for done in clients.map(lambda _: bench.job(warm=True), range(count))]
    ours = (count - waited) / (time.perf_counter() - began)
    until(lambda: not bench.pool()["filling"], "nothing is being made")
    after = max(engine_rate(image, count // 4, threads, bench.registered) for threads in (2, 4))
    engine = (before + after) / 2
    yield {
        "what": f"{count} {SUSTAINED}",
        "jobs_per_s": round(ours, 1),
        "warm": f"{starts.count('warm')} of {count}",
        "waited": waited,
    }
    yield {"what": "create + start + kill + remove on the engine alone", "per_s": round(engine, 1)}
    yield {"what": ENGINE_RATIO, "ratio": round(ours / engine, 2)}


@contextmanager
def alone(source: str = SOURCE, runtime: str = RUNC) -> Iterator[Alone]:
    home = Path(tempfile.mkdtemp(prefix="cl-"))
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(home)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        bench = Alone(home, source, runtime)
        until(lambda: bench.backend.health() is None, "sandboxd is ready")
        yield bench
        bench.backend.close()
    finally:
        process.terminate()
        process.wait(60)
        for point in syscalls.mounts_below(home):
            syscalls.unmount(point)
        shutil.rmtree(home, ignore_errors=True)


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {_READY_SECONDS} s: {what}")
        time.sleep(0.02)


def _to_result(sandbox: Sandbox, spec: SandboxSpec, payload: Mapping[str, Any]) -> Any:
    frame = {
        "type": "job",
        "id": spec.job_id,
        "attempt": 1,
        "payload": payload,
        "inputs": [],
        "limits": spec.limits.to_dict(),
    }
    sandbox.channel.send(frame)
    while True:
        found = sandbox.channel.receive(30)
        if found is None or found["type"] == "error":
            raise RuntimeError(f"the job gave no result: {found}")
        if found["type"] == "result":
            return found["value"]


def _freeze(home: Path, source: str) -> str:
    digest = hashlib.sha256(source.encode()).hexdigest()
    folder = home / "bundles" / digest
    folder.mkdir(parents=True)
    (folder / "plugin.py").write_text(source)
    return digest
