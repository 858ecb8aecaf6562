"""`./run bench leaks`: thousands of jobs of every kind at both levels, and what the stack and the host hold before, half way and after.

A row of numbers leaks when it ends higher than it began, by more than the room that is written beside its rule. Memory, descriptors and
threads of a process leak when they still grow in the second half: what was needed once is kept for the next time, so the first half may grow.
Needs a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import shutil
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import held, page
from bench.engine import socket_path
from bench.figures import Row
from bench.stack import Stack, stack

CLIENTS = 12  # as many long polls as a stack answers at once
SLOTS = 8
LEVELS = {"namespace": "2.0.0", "container": "1.0.0"}  # level → version of the plugin
_PLUGIN = Path(__file__).parent / "plugins" / "mixed" / "1.0.0"
_JOB_SECONDS = 300
_QUIET_SECONDS = 90
_GROWTH_KB = 4 << 10
# Memory that one job needed is kept for the next, and connections between processes, each with its thread, for as many calls as were ever
# made at once: the first half finds how many that are.
_KEPT = ("kB", "descriptors", ": threads")
Counts = dict[str, int]


@dataclass(frozen=True)
class Kind:
    """One way to use a sandbox, how its jobs end, and how many of a hundred are of it."""

    name: str
    reason: str
    share: int


KINDS = (
    Kind("plain", "succeeded", 52),
    Kind("output", "succeeded", 8),
    Kind("inputs", "succeeded", 6),
    Kind("log", "succeeded", 6),
    Kind("progress", "succeeded", 4),
    Kind("result", "succeeded", 2),
    Kind("error", "plugin_failed", 4),
    Kind("leave", "plugin_crashed", 3),
    Kind("killed", "plugin_crashed", 2),
    Kind("children", "succeeded", 2),
    Kind("threads", "succeeded", 2),
    Kind("descriptors", "succeeded", 2),
    Kind("scratch", "succeeded", 1),
    Kind("egress", "succeeded", 3),
    Kind("memory", "out_of_memory", 1),
    Kind("sleep", "timed_out", 1),
    Kind("sleep", "canceled", 1),
)


class Load:
    """Jobs through REST, by several clients at once, each waiting for its own."""

    def __init__(self, running: Stack, where: str) -> None:
        self._running = running
        self._where = where
        self._file = running.client.post("/files", params={"name": "a.txt"}, content=b"x" * 1_000).json()["id"]
        self._kinds = {level: itertools.cycle(_mixed(level)) for level in LEVELS}

    def run(self, jobs: Counts) -> None:
        """So many at each level, those of the rarer level evenly among the others.

        Raises:
            RuntimeError: a job ended otherwise than its kind does.
        """
        order = sorted((n / count, level) for level, count in jobs.items() for n in range(count))
        todo = [(level, next(self._kinds[level])) for _, level in order]
        with ThreadPoolExecutor(CLIENTS) as clients:
            for _ in clients.map(lambda one: self._one(*one), todo):
                pass

    def _one(self, level: str, kind: Kind) -> None:
        body: dict[str, Any] = {"type": "mixed", "version": f"=={LEVELS[level]}", "payload": {"kind": kind.name}}
        if kind.name == "egress":
            body["payload"]["where"] = self._where
        if kind.name == "inputs":
            body["inputs"] = [{"from": f"artifact:{self._file}"}]
        if kind.reason == "timed_out":
            body["timeout"] = "1s"
        job = self._running.submit(body)
        if kind.reason == "canceled":
            self._running.client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
        done = self._running.finished(job["id"], _JOB_SECONDS)
        if done["reason"] != kind.reason and done["status"] != kind.reason:
            raise RuntimeError(f"{kind}: {done}")


def rows(namespace: int, container: int) -> Iterator[Row]:
    """The table; the last row says how many leaks there are."""
    with prepared() as (running, load):
        load.run(
            {"namespace": min(namespace, 200), "container": min(container, 20)}
        )  # what is kept for good is there now
        before = quiet(running)
        began = time.perf_counter()
        first = {"namespace": namespace // 2, "container": container // 2}
        load.run(first)
        took = time.perf_counter() - began
        done = sum(first.values())
        yield {"what": f"half way: {done} jobs", "jobs_per_s": round(done / took, 1)}
        half = quiet(running, before)
        began = time.perf_counter()
        load.run({"namespace": namespace - first["namespace"], "container": container - first["container"]})
        took += time.perf_counter() - began
        after = quiet(running, before)
    jobs = namespace + container
    found = [judged(name, before[name], half[name], after[name], jobs) for name in before]
    yield {
        "what": f"{namespace} jobs at level namespace, {container} at level container",
        "jobs_per_s": round(jobs / took, 1),
    }
    yield from found
    yield {"what": "rows that leak", "leaks": sum(row["verdict"] == "LEAK" for row in found)}


def table(found: Iterable[Row], load: tuple[float, float]) -> str:
    """Markdown of what :func:`rows` gave. ``load``: the machine's before and at the end."""
    said = [row for row in found if "jobs_per_s" in row]
    counted = [row for row in found if "verdict" in row]
    lines = [
        page.machine(load),
        f"{said[-1]['what']}: {said[-1]['jobs_per_s']} a second through the whole stack.",
        "",
        "| what | before | half way | after | difference | leak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['what']} | {row['before']:,} | {row['half']:,} | {row['after']:,} | {row['difference']:+,} | {row['verdict']} |"
        for row in counted
    ]
    return "\n".join(lines)


def judged(name: str, before: int, half: int, after: int, jobs: int) -> Row:
    grown = after - (half if name.endswith(_KEPT) else before)
    row = {"what": name, "before": before, "half": half, "after": after, "difference": after - before}
    return {**row, "verdict": "LEAK" if grown > room(name, jobs) else "none"}


def room(name: str, jobs: int) -> int:
    """By how much a number may have grown: what a process keeps (:data:`_KEPT`) in the second half, anything else in the whole run.

    The kernel keeps some free objects of each kind for each CPU, and counts them; an object kept for every twentieth job is more than that in
    a long run.
    """
    if name.endswith("kB"):
        return 4 * _GROWTH_KB if name.startswith("kernel: ") else _GROWTH_KB
    if name.startswith("kernel: "):
        return max(200, jobs // 20)
    return 3 if name.endswith(("descriptors", ": threads")) else 0


def quiet(running: Stack, reference: Counts | None = None) -> Counts:
    """What is held once no job runs and no sandbox is left; with a reference, once no more is held than that, or after a while."""
    deadline = time.monotonic() + _QUIET_SECONDS
    while True:
        counts = held.of_everything(running)
        idle = not counts["containers"] and not any(
            worker["current_job_ids"] for worker in running.client.get("/workers").json()["items"]
        )
        more = reference and any(
            counts[name] > reference[name] + room(name, 0) for name in reference if not name.endswith("kB")
        )
        if (idle and not more) or time.monotonic() > deadline:
            return counts
        time.sleep(0.5)


@contextmanager
def prepared() -> Iterator[tuple[Stack, Load]]:
    """A stack with the plugin at both levels, whose waiting sandboxes are given up soon; and a place that its jobs may reach."""
    folder = Path(tempfile.mkdtemp(prefix="cloche-bench-"))
    try:
        plugin_at(folder, LEVELS["container"], "container")
        plugin_at(folder, LEVELS["namespace"], "namespace")
        with _echo() as where:
            settings = {
                "plugin_path": str(folder),
                "sandbox_docker_socket": socket_path(),
                "worker_slots": str(SLOTS),
                "pool_idle": "2s",
                "cells_idle": "2s",
                "logging_level": "error",
                "egress_allow": where,
                "egress_private": "127.0.0.1",
            }
            with stack(**settings) as running:
                put = running.client.put("/egress-policy", json={"allow": [where]}, headers={"If-Match": '"v0"'})
                put.raise_for_status()
                yield running, Load(running, where)
    finally:
        shutil.rmtree(folder)


def plugin_at(folder: Path, version: str, level: str) -> None:
    """The plugin once more, as another version at this level."""
    target = folder / "mixed" / version
    shutil.copytree(_PLUGIN, target)
    text = (target / "plugin.toml").read_text().replace('version = "1.0.0"', f'version = "{version}"')
    (target / "plugin.toml").write_text(f'{text}\n[sandbox]\nisolation = "{level}"\n')


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1_000):
            self.request.sendall(data)


@contextmanager
def _echo() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _mixed(level: str) -> list[Kind]:
    """About a hundred, every kind as often as its share says, those of one kind far from each other. A cell has no way out."""
    kinds = [kind for kind in KINDS if level == "container" or kind.name != "egress"]
    places = [((n + 0.5) / kind.share, kind.name, kind) for kind in kinds for n in range(kind.share)]
    return [kind for _, _, kind in sorted(places, key=lambda place: place[:2])]
