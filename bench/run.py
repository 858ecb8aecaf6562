"""`./run bench [latency] [throughput] [submit] [sandbox]`: the whole system on this machine, with the engine's own speed beside it.

Figures of different machines, or of different runs, do not compare; the ratios of one run do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench import sandbox_cells, sandbox_pool
from bench.engine import engine_rate
from bench.figures import Row, figures
from bench.sandbox_pool import until
from bench.stack import Stack, stack

NOOP = Path(__file__).parent / "plugins"


def latency(running: Stack, image: str, rounds: int) -> list[Row]:
    """One job at a time: `POST` until its result is in hand, cold and warm; and `docker run` of the same image doing nothing."""
    cold, warm, engine = [], [], []
    one_job(running)
    for _ in range(rounds):
        began = time.perf_counter()
        one_job(running, limits={"pids": 63})  # not the plugin's own: none was made for it
        cold.append(time.perf_counter() - began)
        began = time.perf_counter()
        command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", image, "-c", ":"]
        subprocess.run(command, check=True, capture_output=True)
        engine.append(time.perf_counter() - began)
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


def submits(running: Stack, _image: str, count: int) -> list[Row]:
    """Submits with an idempotency key, one client and eight."""
    rows = []
    for clients in (1, 8):
        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            ids = list(pool.map(lambda _: submit(running)["id"], range(count)))
        rows.append({"what": f"submits, {clients} client(s)", "per_s": round(count / (time.perf_counter() - began), 1)})
        for job_id in ids:
            running.client.post(f"/jobs/{job_id}/cancel")
    return rows


def one_job(running: Stack, **more: Any) -> None:
    job = running.submit({"type": "noop", **more})
    if running.finished(job["id"])["status"] != "completed":
        raise RuntimeError(running.tail())


def submit(running: Stack) -> dict[str, Any]:
    return running.submit({"type": "noop"})


def sandboxes(count: int) -> Iterator[Row]:
    """sandboxd by itself: level ``container`` cold and warm, then level ``namespace``."""
    yield from sandbox_pool.rows(count)
    yield from sandbox_cells.rows(10 * count)


def main() -> None:
    known: dict[str, Callable[[Stack, str, int], list[Row]]] = {
        "latency": latency,
        "throughput": throughput,
        "submit": submits,
    }
    alone: dict[str, Callable[[int], Iterator[Row]]] = {"sandbox": sandboxes}
    names = [*known, *alone]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(names)}; all when none is named")
    parser.add_argument("--count", type=int, default=40, help="jobs per part")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(names):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")

    def show(rows: Iterable[Row]) -> None:
        for row in rows:
            print(json.dumps(row) if options.json else line(row), flush=True)

    parts = options.parts or names
    for part in parts:
        if part in alone:
            show(alone[part](options.count))
    if whole := [part for part in parts if part in known]:
        settings = {
            "plugin_path": str(NOOP),
            "worker_slots": "4",
            "worker_heartbeat": "500ms",
            "logging_level": "warning",
        }
        with stack(**settings) as running:
            image = one_image(running)
            for part in whole:
                show(known[part](running, image, options.count))


def one_image(running: Stack) -> str:
    """The config digest that jobs run."""
    job = running.submit({"type": "noop"})
    return str(running.finished(job["id"])["plugin"]["image"])


def line(row: Row) -> str:
    values = "  ".join(f"{key} {value}" for key, value in row.items() if key != "what")
    return f"{row['what']:<66} {values}"


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as error:
        raise SystemExit(f"the stack did not answer: {error}") from None
