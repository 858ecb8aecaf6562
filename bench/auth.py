"""What authorisation costs a request, and what a flood of sign-ins costs the others.

Both are ratios within one run: `GET /jobs/{id}` with a token against the same route of a web process that asks nobody who they are, and its 95th
percentile while sign-ins are tried against that while nothing else happens.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import auth_open, page
from bench.figures import Row, figures
from bench.http_load import Line, spelled
from bench.sandbox_pool import until
from bench.stack import ROOT, Stack, stack

SIGN_INS = 50  # at once
_ROUND = 200
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """What was measured, and how busy the machine was before and at the end."""

    rows: list[Row] = field(default_factory=list)
    load: tuple[float, float] = (0.0, 0.0)


def rows(run: Run, count: int) -> Iterator[Row]:
    """``count``: requests of each kind."""
    before = os.getloadavg()[0]
    for row in _measured(count):
        run.rows.append(row)
        yield row
    run.load = (before, os.getloadavg()[0])


def _measured(count: int) -> Iterator[Row]:
    plugins = Path(__file__).parent / "plugins"
    unlimited = {"rate_address": "0", "rate_user": "0", "rate_token": "0"}
    settings = {
        **unlimited,
        "plugin_path": str(plugins),
        "logging_level": "warning",
        "worker_count": "0",
        "egress_enabled": "false",
    }
    with stack("/healthz", **settings) as running:
        job_id = running.submit({"type": "noop"})["id"]
        yield from _ratio(running, job_id, count)
        yield from _flood(running, job_id, count)


def table(run: Run) -> str:
    """The run as docs/performance.md shows it."""
    lines = ["| what | median, ms | 95th percentile, ms | ratio |", "| --- | --- | --- | --- |"]
    for row in run.rows:
        cells = (row["what"], *(row.get(name, "") for name in ("median_ms", "p95_ms", "ratio")))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return page.machine(run.load) + "\n\n" + "\n".join(lines)


def _ratio(running: Stack, job_id: str, count: int) -> Iterator[Row]:
    path = f"/api/v1/jobs/{job_id}"
    token = running.client.headers["Authorization"]
    with _open(running.home) as (url, pid):
        asked = {
            "with a token": (
                running.url,
                _web(running),
                spelled(running.url + path, "GET", headers={"Authorization": token}),
            ),
            "nobody is asked": (url, pid, spelled(url + path, "GET")),
        }
        took: dict[str, list[float]] = {name: [] for name in asked}
        spent: dict[str, float] = dict.fromkeys(asked, 0.0)
        for _ in range(max(2, count // _ROUND)):  # in turns, so that what else the machine does falls on both
            for name, (where, process, request) in asked.items():
                before = _cpu(process)
                took[name] += _asked(where, request, _ROUND)
                spent[name] += _cpu(process) - before
    shown = {name: figures(f"GET /jobs/{{id}}, {name}", seconds) for name, seconds in took.items()}
    for name, row in shown.items():
        yield {
            **row,
            "median_us": round(statistics.median(took[name]) * 1e6),
            "cpu_us": round(spent[name] / len(took[name]) * 1e6),
        }
    asking, open_ = took.values()
    used, free = spent.values()
    yield {
        "what": "ratio with / without authorisation (mark: at most 1.3)",
        "ratio": round(statistics.median(asking) / statistics.median(open_), 2),
        "cpu_ratio": round(used / free, 2),
    }


def _flood(running: Stack, job_id: str, count: int) -> Iterator[Row]:
    request = spelled(
        f"{running.url}/api/v1/jobs/{job_id}", "GET", headers={"Authorization": running.client.headers["Authorization"]}
    )
    idle = _asked(running.url, request, count)
    yield figures("GET /jobs/{id}, nothing else happens", idle)
    for what, obedient in (("come again when they are told to", True), ("come again at once", False)):
        with _signing_in(running, obedient=obedient) as told:
            beside = _asked(running.url, request, count)
        yield {**figures(f"the same while {SIGN_INS} sign in at once, and {what}", beside), **told}
        yield {"what": "ratio of the 95th percentiles (mark: at most 2)", "ratio": round(_p95(beside) / _p95(idle), 2)}


@contextmanager
def _signing_in(running: Stack, *, obedient: bool) -> Iterator[dict[str, Any]]:
    """From another process, so that this one measures the server and not itself."""
    ends, told = multiprocessing.Event(), multiprocessing.Queue()
    sender = multiprocessing.Process(
        target=_flooding, args=(running.url, running.password, obedient, ends, told), daemon=True
    )
    sender.start()
    found: dict[str, Any] = {}
    try:
        time.sleep(1)  # until all of them are at it
        yield found
    finally:
        ends.set()
        found |= told.get(timeout=60)
        sender.join()


def _flooding(url: str, password: str, obedient: bool, ends: Any, told: Any) -> None:
    """Sign in over so many connections, each with the next try as soon as it has its answer, or when that says."""
    body = {"username": "admin", "password": password}
    request = spelled(f"{url}/api/v1/session", "POST", body)
    answers: dict[int, int] = {}
    resting: dict[Line, float] = {}
    with selectors.DefaultSelector() as waiting:
        for _ in range(SIGN_INS):
            line = Line(url)
            waiting.register(line.socket, selectors.EVENT_READ, line)
            line.socket.sendall(request)
        while not ends.is_set():
            for key, _ in waiting.select(0.02):
                answer = key.data.answer()
                if answer is not None:
                    answers[answer[0]] = answers.get(answer[0], 0) + 1
                    rest = 2.0 if obedient and answer[0] != 200 else 0.0  # what Retry-After says
                    resting[key.data] = time.monotonic() + rest
            for line, until_ in list(resting.items()):
                if time.monotonic() >= until_:
                    del resting[line]
                    line.socket.sendall(request)
    told.put({"signed_in": answers.get(200, 0), "sent_away": sum(n for status, n in answers.items() if status != 200)})


@contextmanager
def _open(home: Path) -> Iterator[tuple[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
    command = [sys.executable, "-m", "bench.auth_open", str(home), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    try:
        until(lambda: auth_open.answers(port), "the open web process answers")
        yield f"http://127.0.0.1:{port}", _last_child(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _web(running: Stack) -> int:
    """The process that answers: the last of those that the web process has made."""
    for pid in _children(running.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"web" in command:
            return _last_child(pid)
    raise RuntimeError("the stack has no web process")


def _last_child(pid: int) -> int:
    while children := _children(pid):
        pid = max(children, key=_cpu)
    return pid


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def _cpu(pid: int) -> float:
    """Seconds of processor that the process has used, by the clock's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _asked(url: str, request: bytes, count: int) -> list[float]:
    line, took = Line(url), []
    for number in range(count + 20):
        began = time.perf_counter()
        line.ask(request, 200)
        if number >= 20:
            took.append(time.perf_counter() - began)
    line.close()
    return took


def _p95(seconds: list[float]) -> float:
    return sorted(seconds)[min(len(seconds) - 1, round(len(seconds) * 0.95))]
