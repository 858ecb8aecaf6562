"""`./run bench [latency] [throughput] [submit]`: the whole system on this machine, with the engine's own speed beside it.

Figures of different machines, or of different runs, do not compare; the ratios of one run do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import httpx

from bench.stack import Stack, stack

NOOP = Path(__file__).parent / "plugins"
Row = dict[str, Any]


def latency(running: Stack, image: str, rounds: int) -> list[Row]:
    """One job at a time: `POST` until its result is in hand; and `docker run` of the same image doing nothing."""
    ours, engine = [], []
    one_job(running)
    for _ in range(rounds):
        began = time.perf_counter()
        one_job(running)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", image, "-c", ":"]
        subprocess.run(command, check=True, capture_output=True)
        engine.append(time.perf_counter() - began)
    rows = [figures("one job, POST to result, level container, cold", ours), figures("docker run of a no-op", engine)]
    rows.append({"what": "ratio ours / docker run", "ratio": round(rows[0]["median_ms"] / rows[1]["median_ms"], 2)})
    return rows


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
        {"what": f"{count} jobs through the whole system, level container, cold", "jobs_per_s": round(ours, 1)},
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


def one_job(running: Stack) -> None:
    job = running.submit({"type": "noop"})
    if running.finished(job["id"])["status"] != "completed":
        raise RuntimeError(running.tail())


def submit(running: Stack) -> dict[str, Any]:
    return running.submit({"type": "noop"})


def engine_rate(image: str, count: int) -> float:
    client = docker.DockerClient(base_url="unix:///var/run/docker.sock", timeout=60)

    def once(_n: int) -> None:
        made = client.containers.create(
            image, ["/bin/sh", "-c", "sleep 60"], entrypoint=[], network_mode="none", read_only=True
        )
        made.start()
        made.remove(force=True)

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(once, range(count)))
    rate = count / (time.perf_counter() - began)
    client.close()
    return rate


def figures(what: str, seconds: list[float]) -> Row:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(len(ordered) * 0.95))]
    return {
        "what": what,
        "median_ms": round(statistics.median(ordered) * 1000, 1),
        "p95_ms": round(p95 * 1000, 1),
        "n": len(ordered),
    }


def main() -> None:
    known: dict[str, Callable[[Stack, str, int], list[Row]]] = {
        "latency": latency,
        "throughput": throughput,
        "submit": submits,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help="latency, throughput, submit; all when none is named")
    parser.add_argument("--count", type=int, default=40, help="jobs per part")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(known):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with stack(plugin_path=str(NOOP), worker_slots="4", logging_level="warning") as running:
        image = one_image(running)
        for part in options.parts or list(known):
            for row in known[part](running, image, options.count):
                print(json.dumps(row) if options.json else line(row), flush=True)


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
