"""`./run bench [latency] [throughput] [submit] [batch] [sandbox] [leaks] [stores] [peers] [queue] [audit] [auth]`: the whole system on this machine.

Figures of different machines, or of different runs, do not compare; the ratios of one run do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench import (
    audit,
    auth,
    leaks,
    page,
    peers_kill,
    queue,
    queue_table,
    sandbox,
    sandbox_table,
    stores,
)
from bench.engine import engine_rate, run_seconds, socket_path
from bench.figures import Row, figures
from bench.sandbox_pool import until
from bench.stack import Stack, stack

LONG = ("leaks", "peers")  # take many minutes, and run only when they are named
NOOP = Path(__file__).parent / "plugins"
_PEERS = "CLOCHE_BENCH_PEERS"


def latency(running: Stack, image: str, rounds: int) -> list[Row]:
    """One job at a time: `POST` until its result is in hand, cold and warm; and `docker run` of the same image doing nothing."""
    cold, warm, engine = [], [], []
    one_job(running)
    for _ in range(rounds):
        began = time.perf_counter()
        one_job(running, limits={"pids": 63})  # not the plugin's own: none was made for it
        cold.append(time.perf_counter() - began)
        engine.append(run_seconds(image, "/bin/sh", "-c", ":"))
    for _ in range(rounds):
        wait_warm(running)
        began = time.perf_counter()
        one_job(running)
        warm.append(time.perf_counter() - began)
    rows = [
        figures("one job, POST to result, level container, cold", cold),
        figures("one job, POST to result, level container, warm", warm),
        figures("docker run of a no-op", engine),
    ]
    rows.append({"what": "ratio cold / docker run", "ratio": round(rows[0]["median_ms"] / rows[2]["median_ms"], 2)})
    rows.append({"what": "ratio docker run / warm", "ratio": round(rows[2]["median_ms"] / rows[1]["median_ms"], 1)})
    return rows


def wait_warm(running: Stack) -> None:
    """Return when a sandbox waits and none is being made, as told after the last job."""

    def there() -> bool:
        workers = running.client.get("/workers").json()["items"]
        pools = [pool for worker in workers for pool in worker["pools"]]
        return any(pool["warm"] and not pool["filling"] and not pool["busy"] for pool in pools)

    time.sleep(0.7)  # longer than the workers of this stack take to say what changed
    until(there, "a sandbox waits")


def throughput(running: Stack, image: str, count: int) -> list[Row]:
    """`count` jobs submitted at once, until the last has ended; and the engine's own rate of create, start, kill, remove."""
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: submit(running)["id"], range(count)))
    submitted = time.perf_counter() - began
    for job_id in ids:
        done = running.finished(job_id, 300)
        if done["status"] != "completed":
            raise RuntimeError(f"{job_id}: {done['reason_text']}")
    ours = count / (time.perf_counter() - began)
    engine = engine_rate(image, max(20, count // 4))
    return [
        {"what": f"{count} jobs through the whole system, level container", "jobs_per_s": round(ours, 1)},
        {"what": "submits a second, 8 clients, durable and audited", "per_s": round(count / submitted, 1)},
        {"what": "create + start + kill + remove on the engine", "per_s": round(engine, 1)},
        {"what": "ratio ours / the engine's limit", "ratio": round(ours / engine, 2)},
    ]


def submits(running: Stack, count: int) -> list[Row]:
    """Submits, one client and eight."""
    rows = []
    for clients in (1, 8):
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda _: submit(running), range(count)))
        rows.append({"what": f"submits, {clients} client(s)", "per_s": round(count / (time.perf_counter() - began), 1)})
    return rows


def batches(running: Stack, _count: int) -> list[Row]:
    """Batches of 1,000 and of 10,000 jobs, one client; then single submits beside batches of 10,000, and how long those have to wait."""
    rows: list[Row] = []
    headers = {"Content-Type": "application/json"}
    bodies = {
        size: json.dumps({"jobs": [{"type": "noop", "labels": {"n": str(n)}} for n in range(size)]})
        for size in (1_000, 10_000)
    }

    def one(size: int) -> float:
        began = time.perf_counter()
        answer = running.client.post("/jobs/batch", content=bodies[size], headers=headers, timeout=120)
        took = time.perf_counter() - began
        answer.raise_for_status()
        return took

    one(1_000)
    for size in bodies:
        took = [one(size) for _ in range(5)]
        rows.append(
            {
                **figures(f"batch of {size} jobs, durable and audited", took),
                "jobs_per_s": round(size / statistics.median(took)),
            }
        )
    with ThreadPoolExecutor(1) as pool:
        alone = [timed_submit(running) for _ in range(200)]
        batch = pool.submit(lambda: [one(10_000) for _ in range(3)])
        beside = []
        while not batch.done():
            beside.append(timed_submit(running))
            time.sleep(0.005)
        batch.result()
    for what, took in (("alone", alone), ("beside batches of 10,000", beside)):
        rows.append({**figures(f"one submit, {what}", took), "longest_ms": round(max(took) * 1000)})
    return rows


def timed_submit(running: Stack) -> float:
    began = time.perf_counter()
    running.submit({"type": "noop"})
    return time.perf_counter() - began


def one_job(running: Stack, **more: Any) -> None:
    job = running.submit({"type": "noop", **more})
    if running.finished(job["id"])["status"] != "completed":
        raise RuntimeError(running.tail())


def submit(running: Stack) -> dict[str, Any]:
    return running.submit({"type": "noop"})


def sandboxes(options: argparse.Namespace) -> Iterator[Row]:
    run = sandbox.Run()
    yield from sandbox.rows(run, options.count, options.peers)
    yield {"what": "as a table", "markdown": "\n\n" + sandbox_table.text(run)}
    if options.write:
        sandbox_table.write(run)


def queues(options: argparse.Namespace) -> Iterator[Row]:
    run = queue.Run()
    yield from queue.rows(run, queue.Counts().times(options.count / 40), options.peers)
    yield {"what": "as a table", "markdown": "\n\n" + queue_table.text(run)}
    if options.write:
        queue_table.write(run)


def audited(options: argparse.Namespace) -> Iterator[Row]:
    run = audit.Run()
    yield from audit.rows(run, 1_500 * options.count)
    if options.write:
        page.put("audit", audit.table(run))


def leaking(options: argparse.Namespace) -> Iterator[Row]:
    load = os.getloadavg()[0]
    found = []
    for row in leaks.rows(options.namespace, options.container):
        found.append(row)
        yield row
    if options.write:
        page.put("leaks", leaks.table(found, (load, os.getloadavg()[0])))


def authorisation(options: argparse.Namespace) -> Iterator[Row]:
    run = auth.Run()
    yield from auth.rows(run, 50 * options.count)
    if options.write:
        page.put("auth", auth.table(run))


def main() -> None:
    peers = os.environ.pop(_PEERS, None)  # not a setting of Cloche, which refuses names that it does not know
    known: dict[str, Callable[[Stack, str, int], list[Row]]] = {"latency": latency, "throughput": throughput}
    unrun: dict[str, Callable[[Stack, int], list[Row]]] = {"submit": submits, "batch": batches}
    alone: dict[str, Callable[[], Iterator[Row]]] = {
        "sandbox": lambda: sandboxes(options),
        "leaks": lambda: leaking(options),
        "stores": lambda: stores.rows(5 * options.count),
        "peers": lambda: peers_kill.rows(options.watch),
        "queue": lambda: queues(options),
        "audit": lambda: audited(options),
        "auth": lambda: authorisation(options),
    }
    names = [*known, *unrun, *alone]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"{', '.join(names)}; all but {' and '.join(LONG)} when none is named"
    )
    parser.add_argument("--count", type=int, default=40, help="jobs per part")
    parser.add_argument("--namespace", type=int, default=10_000, help="leaks: jobs at level namespace")
    parser.add_argument("--container", type=int, default=300, help="leaks: jobs at level container")
    parser.add_argument("--watch", type=float, default=900, help="peers: seconds that each is watched")
    parser.add_argument(
        "--peers",
        type=Path,
        default=peers,
        help=f"queue, sandbox: a folder with others to measure beside (or {_PEERS})",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="sandbox, leaks, queue, audit, auth: put the tables into docs/performance.md",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(names):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    leaked = 0

    def show(rows: Iterable[Row]) -> None:
        nonlocal leaked
        for number, row in enumerate(rows):
            leaked += row.get("leaks", 0)
            if options.markdown:
                if number == 0:
                    print(cells(row), cells("---" for _ in row), sep="\n")
                print(cells(row.values()), flush=True)
            else:
                print(json.dumps(row) if options.json else line(row), flush=True)

    parts = options.parts or [name for name in names if name not in LONG]
    for part in parts:
        if part in alone:
            show(alone[part]())
    settings = {"plugin_path": str(NOOP), "sandbox_docker_socket": socket_path(), "logging_level": "warning"}
    if whole := [part for part in parts if part in known]:
        with stack(**settings, worker_slots="4", worker_heartbeat="500ms") as running:
            image = one_image(running)
            for part in whole:
                show(known[part](running, image, options.count))
    for part in parts:
        if part in unrun:
            # Nobody takes these jobs, and the stack is thrown away with them: to cancel them one by one would take minutes.
            with stack(**settings, worker_queues="sensitive") as running:
                show(unrun[part](running, options.count))
    if leaked:
        raise SystemExit(1)


def one_image(running: Stack) -> str:
    """The config digest that jobs run."""
    job = running.submit({"type": "noop"})
    return str(running.finished(job["id"])["plugin"]["image"])


def cells(values: Iterable[Any]) -> str:
    """One line of a table in Markdown."""
    return "| " + " | ".join(map(str, values)) + " |"


def line(row: Row) -> str:
    values = "  ".join(f"{key} {value}" for key, value in row.items() if key != "what")
    return f"{row['what']:<66} {values}"


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        raise SystemExit(f"the stack did not answer: {error}") from None
