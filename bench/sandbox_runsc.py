"""gVisor beside runc: the table of level ``container`` under it, and what a plugin's work costs inside, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench import sandbox_pool
from bench.engine import has_runtime
from bench.figures import Row
from cloche import config
from cloche.domain.runtimes import RUNC, RUNSC, RUNTIMES

PLUGIN = """
import os, time
from cloche_guest import hookimpl

def compute(job):
    return sum(n * n for n in range(2_000_000))

def calls(job):
    for _ in range(50_000):
        os.getppid()

def files(job):
    for n in range(500):
        (job.out / str(n)).write_bytes(b"x" * 1000)

def forks(job):
    for _ in range(50):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

@hookimpl
def run(job):
    began = time.perf_counter()
    globals()[job.payload["act"]](job)
    return (time.perf_counter() - began) * 1000
"""
WORK = {
    "compute": "Python computes (2 million squares)",
    "calls": "50,000 system calls",
    "files": "500 files of 1 kB into out/",
    "forks": "50 children, one after the other",
}


def rows(count: int) -> Iterator[Row]:
    """Where the engine has no gVisor, one row that says so."""
    name = config.load().sandbox.runsc_name
    if not has_runtime(name):
        yield {
            "what": "gVisor",
            "not measured": f"the engine has no runtime {name}; docs/operations.md says how to register it",
        }
        return
    yield from sandbox_pool.rows(count, RUNSC)
    yield from _inside(max(3, count // 5))


def _inside(count: int) -> Iterator[Row]:
    """Milliseconds that each act takes, measured by the plugin itself."""
    with sandbox_pool.alone(PLUGIN) as bench:
        for act, what in WORK.items():
            found: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
            for _ in range(count):
                for runtime, values in found.items():
                    values.append(bench.job(warm=False, payload={"act": act}, runtime=runtime).value)
            medians = {runtime: statistics.median(values) for runtime, values in found.items()}
            ratio = {"ratio": round(medians[RUNSC] / medians[RUNC], 1)}
            yield {"what": f"inside: {what}", **{f"{name}_ms": round(ms, 1) for name, ms in medians.items()}, **ratio}
