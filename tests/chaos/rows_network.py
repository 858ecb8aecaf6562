"""Rows in which one worker, in a network namespace of its own, loses its way to a store that all others still reach."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import make_url

from tests.chaos import stores
from tests.chaos.matrix import HIT_S, Row, Scene
from tests.chaos.netns import Link, linked
from tests.support.postgres import running_postgres
from tests.support.stores import until

_CUT_S = 20.0  # longer than a lease, and than any socket's time-out


@dataclass(frozen=True)
class Far:
    """``settings``: of a worker behind the link, which has another address for the store."""

    link: Link
    settings: dict[str, str]


@contextmanager
def _redis() -> Iterator[dict[str, Any]]:
    with linked() as link, stores.server(also=link.here) as server:
        far = Far(link, {"redis_url": f"redis://{link.here}:{server.port}/0"})
        yield {"redis_url": server.url, "given": far}


@contextmanager
def _database() -> Iterator[dict[str, Any]]:
    with linked() as link, running_postgres((link.here, link.network)) as server, server.schemaless() as url:
        there = make_url(url).set(host=link.here).render_as_string(hide_password=False)
        yield {"database_url": url, "given": Far(link, {"database_url": there})}


def _cut(scene: Scene) -> None:
    """In the middle of a job of that worker; afterwards it works again."""
    far: Far = scene.given
    count = int(scene.system.settings_given["worker_count"]) + 1
    worker = scene.system.spawn("worker", "--slots", "2", before=far.link.inside, **far.settings)
    until(lambda: scene.system.taking_jobs() >= count, HIT_S, "the worker behind the link takes jobs")
    scene.give_work(worker.pid)
    scene.returned("the link cut")
    far.link.cut()
    for _ in range(4):
        scene.load.more("quick")  # the others go on
    time.sleep(_CUT_S)
    far.link.mend()
    scene.returned("the link whole again")
    until(lambda: scene.system.taking_jobs() >= count, HIT_S, "the worker behind the link takes jobs again")
    scene.give_work(worker.pid)
    scene.notes.append(f"cut for {_CUT_S:.0f} s; the worker works again")


ROWS = (
    Row("cut-redis", "the network between one worker and Redis cut (network namespace)", _cut, setting=_redis),
    Row(
        "cut-database", "the network between one worker and PostgreSQL cut (network namespace)", _cut, setting=_database
    ),
)
