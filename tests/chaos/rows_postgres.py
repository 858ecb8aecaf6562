"""Rows on PostgreSQL, which can be killed, cut off and asked for the time."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import make_url

from tests.chaos.matrix import Fault, Row, Scene
from tests.chaos.proxy import proxied
from tests.support.postgres import running_postgres
from tests.support.stores import until

Settings = dict[str, Any]


@contextmanager
def _server() -> Iterator[Settings]:
    with running_postgres() as server, server.schemaless() as url:
        yield {"database_url": url, "given": server}


@contextmanager
def _behind_proxy() -> Iterator[Settings]:
    """The database through a proxy that the fault may cut; the harness looks at it through the same one."""
    with running_postgres() as server, server.schemaless() as url:
        direct = make_url(url)
        with proxied((str(direct.host), int(direct.port or 5432))) as proxy:
            through = direct.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
            yield {"database_url": through, "given": proxy}


def _restart(how: signal.Signals) -> Fault:
    def fault(scene: Scene) -> None:
        for turn in range(2):
            scene.load.wait_for((turn + 1) / 3)
            scene.given.stop(how)
            time.sleep(2)
            scene.given.start()
            scene.returned(f"PostgreSQL ended by {how.name} and started")

    return fault


def _cut(scene: Scene) -> None:
    scene.load.wait_for(0.3)
    scene.given.cut.set()
    time.sleep(12)
    scene.given.cut.clear()
    scene.returned("the network is back")


def _resets(scene: Scene) -> None:
    scene.given.reset_some(0.01)
    scene.load.wait_for(1)
    scene.given.reset_some(0.0)
    scene.returned("no resets any more")


def _clock(offset: str) -> tuple[str, ...]:
    """The words before a command that make its clock go wrong. `faketime` itself would stand between it and its signals."""
    tool = shutil.which("faketime")
    assert tool, "no faketime: apt-get install faketime"
    asked = [tool, "-f", offset, "printenv", "LD_PRELOAD"]
    library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    # A clock that is set wrong leaves the one alone that time-outs are measured by.
    return (
        "env",
        f"LD_PRELOAD={library}",
        f"FAKETIME={offset}",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "DONT_FAKE_MONOTONIC=1",
    )


def _alive(scene: Scene) -> set[int]:
    """Process ids of workers that take jobs."""
    items = scene.system.client.get("/workers").json()["items"]
    return {item["pid"] for item in items if item["status"] == "alive" and item["status_reason"] is None}


def _other_time(offset: str) -> Fault:
    """A worker whose clock is wrong takes part; the others are stopped for a while, so that it has to do the work."""

    def fault(scene: Scene) -> None:
        before = _alive(scene)  # with those of earlier seeds
        other = scene.system.spawn("worker", "--slots", "2", before=_clock(offset))
        until(lambda: other.pid in _alive(scene), 240, "the worker with the other clock takes jobs")
        others = scene.system.supervised("worker")
        for pid in others:
            scene.system.signal(pid, signal.SIGSTOP)
        try:
            for _ in range(6):
                scene.load.more("files")
            time.sleep(3)
        finally:
            for pid in others:
                scene.system.signal(pid, signal.SIGCONT)
        scene.give_work(other.pid)
        assert _alive(scene) == {other.pid, *before}, "the wrong clock is nobody's death"
        scene.notes.append(f"a worker's clock {offset}")

    return fault


ROWS = (
    Row("postgres-kill", "PostgreSQL's server killed and started", _restart(signal.SIGKILL), setting=_server),
    Row("postgres-immediate", "PostgreSQL stopped `immediate` and started", _restart(signal.SIGQUIT), setting=_server),
    Row("postgres-cut", "the network to PostgreSQL silent for 12 s", _cut, setting=_behind_proxy),
    Row("postgres-resets", "connections to PostgreSQL reset in mid-command", _resets, setting=_behind_proxy),
    Row("clock-ahead", "a worker's clock 2 h ahead, on PostgreSQL", _other_time("+2h"), setting=_server),
    Row("clock-behind", "a worker's clock 2 h behind, on PostgreSQL", _other_time("-2h"), setting=_server),
)
