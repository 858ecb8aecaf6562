"""`./run bench stores`: what the queue's writes cost on SQLite and on PostgreSQL, without HTTP, Redis and sandboxes.

Each job is submitted, claimed and finished as in the running system: with trace, audit event and outbox row, on the disk when it returns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import Row
from cloche.db import migrate
from cloche.db.engine import Database, now_ms
from cloche.domain.jobs import Success
from cloche.domain.permissions import Actor
from cloche.queueing.memory_broker import MemoryBroker
from tests.support import jobs, postgres, stores

CLAIM = 16  # jobs in one claim
WORKERS = 4


def rows(count: int) -> Iterator[Row]:
    """``count`` jobs with one thread, and eight times as many with eight."""
    with tempfile.TemporaryDirectory(prefix="cloche-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'cloche.db'}"
        migrate.upgrade(url)
        sqlite = list(measured("SQLite", url, count))
    yield from sqlite
    try:
        postgres.binaries()
    except AssertionError as missing:
        yield {"what": "PostgreSQL", "not measured": str(missing)}
        return
    with postgres.running_postgres() as server, server.database() as url:
        for mine, theirs in zip(measured("PostgreSQL", url, count), sqlite, strict=True):
            yield mine | {"ratio to SQLite": round(mine["per_s"] / theirs["per_s"], 2)}


def measured(name: str, url: str, count: int) -> Iterator[Row]:
    db = Database(url)
    try:
        actor = stores.add_actor(db, stores.add_tenant(db), "bench")
        submit(db, actor, 20)  # connections made, statements prepared
        yield row(f"{name}: submits, 1 thread", count, lambda: submit(db, actor, count))
        ids: list[str] = []
        yield row(
            f"{name}: submits, 8 threads", 8 * count, lambda: ids.extend(spread(lambda _: submit(db, actor, count), 8))
        )
        parts = [ids[number::WORKERS] for number in range(WORKERS)]
        yield row(
            f"{name}: claims by {CLAIM}, {WORKERS} workers",
            len(ids),
            lambda: spread(lambda n: claim(db, n, parts[n]), WORKERS),
        )
        yield row(
            f"{name}: finishes, {WORKERS} workers", len(ids), lambda: spread(lambda n: finish(db, n, parts[n]), WORKERS)
        )
    finally:
        db.close()


def row(what: str, count: int, act: Callable[[], object]) -> Row:
    began = time.perf_counter()
    act()
    return {"what": what, "per_s": round(count / (time.perf_counter() - began), 1)}


def spread(act: Callable[[int], Sequence[str]], threads: int) -> list[str]:
    with ThreadPoolExecutor(threads) as pool:
        return [one for part in pool.map(act, range(threads)) for one in part]


def submit(db: Database, actor: Actor, count: int) -> list[str]:
    broker = MemoryBroker()
    return [jobs.submit(db, broker, actor) for _ in range(count)]


def claim(db: Database, worker: int, ids: Sequence[str]) -> list[str]:
    done: list[str] = []
    for start in range(0, len(ids), CLAIM):
        batch = ids[start : start + CLAIM]
        found, _ = db.write(
            lambda c, b=batch: jobs.transitions().claim(c, b, f"w{worker}", now_ms(c) + 60_000, 600_000)
        )
        done += [one["id"] for one in found]
    if len(done) != len(ids):
        raise RuntimeError(f"worker {worker} claimed {len(done)} of {len(ids)} jobs")
    return done


def finish(db: Database, worker: int, ids: Sequence[str]) -> list[str]:
    outcome = Success(result=None, outputs=(), usage={})
    for job_id in ids:
        db.write(lambda c, j=job_id: jobs.transitions().succeed(c, j, 1, f"w{worker}", outcome, now_ms(c)))
    return list(ids)
