"""`python -m bench.sandbox_runsc [--rounds N]`: the same sandboxes under runc and under gVisor, in turns, with ratios.

Needs root and an engine on which gVisor is registered (`CLOCHE_SANDBOX_DOCKER_SOCKET` names it). Figures of different runs do not compare.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker

from cloche import clock, config, logs
from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNC, RUNSC, RUNTIMES
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.sandboxd import syscalls
from cloche.sandboxd.main import Sandboxd

READY_SECONDS = 120
PLUGIN = """
import os, time
from cloche_guest import hookimpl

def noop(job):
    return None

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


class Bench:
    """A sandboxd on a home of its own, on the engine that the settings name."""

    def __init__(self, home: Path) -> None:
        self.settings = config.load(home=home)
        self.daemon = Sandboxd(self.settings)
        self.daemon.start()
        deadline = time.monotonic() + READY_SECONDS
        while (problem := self.daemon.host.health()["problem"]) is not None:
            if time.monotonic() > deadline:
                raise SystemExit(f"no sandbox can be made: {problem}")
            time.sleep(0.1)
        if (problem := self.daemon.host.prove()) is not None:
            raise SystemExit(f"gVisor cannot be used: {problem}")
        self.backend = SandboxdBackend(self.settings.sandboxd_socket, "bench")
        self.digest = hashlib.sha256(PLUGIN.encode()).hexdigest()
        folder = home / "bundles" / self.digest
        folder.mkdir(parents=True)
        (folder / "plugin.py").write_text(PLUGIN, "utf-8")

    def close(self) -> None:
        self.backend.close()
        self.daemon.close()

    def job(self, runtime: str, act: str) -> dict[str, float]:
        """Milliseconds: ``ready`` (the guest says so), ``result``, ``gone`` (destroyed), ``inside`` (the act alone); ``peak`` in MB."""
        spec = SandboxSpec(
            clock.uuid7(), 1, self.digest, None, replace(Limits(), memory=256 << 20), clock.now_ms() + 60_000, runtime
        )
        began = time.perf_counter()
        box = self.backend.create(spec)
        try:
            self._until(box, "ready")
            ready = _ms(began)
            frame = {"type": "job", "id": spec.job_id, "attempt": 1, "payload": {"act": act}, "inputs": []}
            box.channel.send({**frame, "limits": spec.limits.to_dict()})
            inside = float(self._until(box, "result")["value"])
            result = _ms(began)
            peak = box.finish().usage.get("memory_peak", 0) / (1 << 20)
        finally:
            box.destroy()
        return {"ready": ready, "result": result, "gone": _ms(began), "inside": inside, "peak": peak}

    def _until(self, box: Any, kind: str) -> Any:
        while True:
            frame = box.channel.receive(60)
            if frame is None or frame["type"] == "error":
                raise SystemExit(f"the sandbox said {frame}")
            if frame["type"] == kind:
                return frame


def bare(client: docker.APIClient, image: str, runtime: str) -> float:
    """Create, start, wait, remove of a program that does nothing."""
    began = time.perf_counter()
    host = client.create_host_config(runtime=runtime, network_mode="none")
    box = client.create_container(image, entrypoint=["/bin/sh", "-c", ":"], host_config=host)["Id"]
    client.start(box)
    client.wait(box)
    client.remove_container(box)
    return _ms(began)


def measure(bench: Bench, rounds: int) -> list[dict[str, Any]]:
    client = docker.APIClient(base_url=f"unix://{bench.settings.sandbox.docker_socket}", version="auto")
    image = bench.daemon.host.health()["image"]["id"]
    names = {RUNC: RUNC, RUNSC: bench.settings.sandbox.runsc_name}
    found: dict[str, dict[str, list[float]]] = {}

    def note(what: str, runtime: str, value: float) -> None:
        found.setdefault(what, {name: [] for name in RUNTIMES})[runtime].append(value)

    for number in range(rounds + 1):
        for runtime in RUNTIMES:
            plain = bare(client, image, names[runtime])
            job = bench.job(runtime, "noop")
            if number == 0:
                continue  # the first of each warms the page cache
            note("engine alone: create, start, wait, remove (ms)", runtime, plain)
            note("cold start: create → ready (ms)", runtime, job["ready"])
            note("cold: create → result of a no-op (ms)", runtime, job["result"])
            note("cold: create → destroyed (ms)", runtime, job["gone"])
            note("peak memory of a no-op, as charged to it (MB)", runtime, job["peak"])
            if number <= max(3, rounds // 5):
                for act, what in WORK.items():
                    note(f"inside: {what} (ms)", runtime, bench.job(runtime, act)["inside"])
    client.close()
    return [_row(what, values) for what, values in found.items()]


def _row(what: str, values: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what}
    for runtime, numbers in values.items():
        ordered = sorted(numbers)
        row[runtime] = round(statistics.median(ordered), 1)
        row[f"{runtime} p95"] = round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1)
    row["ratio"] = round(row[RUNSC] / row[RUNC], 2) if row[RUNC] else None
    return row


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000


@contextlib.contextmanager
def opened() -> Iterator[Bench]:
    home = Path(tempfile.mkdtemp(prefix="cl-"))
    try:
        bench = Bench(home)
        try:
            yield bench
        finally:
            bench.close()
    finally:
        for point in syscalls.mounts_below(home):
            syscalls.unmount(point)
        shutil.rmtree(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    logs.setup("error", "console", "bench")
    with opened() as bench:
        for row in measure(bench, rounds):
            print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
