"""Level ``namespace`` beside the rest on a real engine: who has no cell, locks, versions that are given up, what operators see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche import config
from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.sandboxd.main import Sandboxd
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20
SMALL = {"memory": 64 * MIB, "output": 2 * MIB, "tmp": 2 * MIB, "shm": MIB, "pids": 16}
ECHO = """
from cloche_guest import hookimpl

@hookimpl
def run(job):
    return 1
"""
LOCKS = """
import fcntl, os, threading
from cloche_guest import hookimpl

def take():
    file = open("/tmp/locked", "wb")
    for place in range(0, 3_000, 2):
        fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
    return file

@hookimpl
def setup():
    global file
    file = take() if IN_SETUP else None

@hookimpl
def run(job):
    kept = take() if job.payload["lock"] else None
    while not os.path.exists("/job/in/go"):
        threading.Event().wait(0.02)
    return 90
"""

HOARD = """
from cloche_guest import hookimpl

@hookimpl
def setup():
    global kept
    kept = bytearray(b"x") * (40 << 20)

@hookimpl
def run(job):
    return len(kept)
"""

Home = tuple[Path, Sandboxd, SandboxdBackend]


@pytest.fixture(scope="module")
def shared() -> Iterator[Home]:
    with support.temporary_home() as home:
        daemon = Sandboxd(config.load(home=home))
        daemon.start()
        try:
            support.wait_until(lambda: daemon.host.health()["problem"] is None, "ready", support.READY_SECONDS)
            backend = support.client(home)
            try:
                yield home, daemon, backend
            finally:
                backend.close()
        finally:
            daemon.close()


def spec(bundle: str, **changes: Any) -> SandboxSpec:
    return replace(support.spec(bundle, "namespace", **SMALL), **changes)


def container_of(daemon: Sandboxd, made: Sandbox) -> str:
    running = daemon.host.find(made.id)
    assert running is not None
    return running.container


def cells_of(backend: SandboxdBackend, bundle: str) -> Mapping[str, Any]:
    return support.pool_of(backend, bundle)


@pytest.mark.parametrize("change", [{"warm": False}, {"egress": True}, {"level": "container"}], ids=str)
def test_who_has_a_container_all_the_same(shared: Home, change: dict[str, Any]) -> None:
    home, _, backend = shared
    made = backend.create(spec(support.write_bundle(home, ECHO), **change))
    try:
        assert made.level == "container"
    finally:
        made.destroy()


def test_locks_are_the_cells_own_and_end_no_neighbour(shared: Home) -> None:
    home, daemon, backend = shared
    bundle = support.write_bundle(home, LOCKS.replace("IN_SETUP", "False"))
    neighbour = backend.create(spec(bundle))
    try:
        neighbour.channel.send(support.job_frame(spec(bundle), {"lock": False}))
        places = []
        hostile = support.run_job(
            backend, spec(bundle), {"lock": True}, look=lambda made: places.append(container_of(daemon, made))
        )
        assert places == [container_of(daemon, neighbour)]
        assert hostile.remains is not None
        assert hostile.remains.usage["locks_over"] == 1_001
        (neighbour.in_folder / "go").write_text("")
        last = None
        while last is None or last["type"] != "result":
            last = neighbour.channel.receive(20)
            assert last is not None
        assert last["value"] == 90
    finally:
        neighbour.destroy()


def test_a_cell_that_waits_with_too_many_locks_goes(shared: Home) -> None:
    home, daemon, backend = shared
    bundle = support.write_bundle(home, LOCKS.replace("IN_SETUP", "True"))
    made = backend.create(spec(bundle))
    container = container_of(daemon, made)
    made.destroy()
    support.wait_until(lambda: container not in support.containers_of(home), "its container is gone")


def test_cells_are_told_of_and_given_up_with_their_version(shared: Home) -> None:
    home, daemon, backend = shared
    bundle = support.write_bundle(home, ECHO + "\nanother = 1\n")
    starts = []
    for _ in range(2):
        made = backend.create(spec(bundle))
        starts.append((made.start, made.why))
        made.destroy()
        support.wait_until(lambda: cells_of(backend, bundle)["warm"] == 1, "one waits")
    assert starts == [("cold", "no cell waited"), ("warm", None)]
    told = cells_of(backend, bundle)
    assert (told["hits"], told["cold_starts"], told["busy"], told["failures"]) == (1, 1, 0, 0)
    assert told["memory"] > 0
    waiting = [cell for each in daemon.host.watched() for cell in each.processes()]
    assert waiting
    assert backend.retire(bundle) == 1
    support.wait_until(lambda: not cells_of(backend, bundle), "nothing of it is left")
    assert backend.retire(bundle) == 0


def test_cells_and_pools_share_one_budget() -> None:
    """What waits as a container of its own gives way to cells that wait, where it has more than half."""
    with (
        support.temporary_home() as home,
        support.running_sandboxd(home, pool={"memory": 2 * SMALL["memory"]}) as daemon,
    ):
        backend = support.client(home)
        try:
            bundle, other = support.write_bundle(home, HOARD), support.write_bundle(home, HOARD + "\n# another\n")
            alone = [replace(support.spec(one, **SMALL), warm=True) for one in (bundle, other)]
            for each in alone:
                support.warm_up(backend, each)
            assert [support.pool_of(backend, one)["warm"] for one in (bundle, other)] == [1, 1], "no cell needs any"
            third = support.write_bundle(home, HOARD + "\n# a third\n")
            assert support.run_job(backend, spec(third)).value == 40 << 20
            support.wait_until(lambda: cells_of(backend, third)["warm"] == 1, "its slot has another cell", 60)

            def evicted() -> int:
                return sum(int(support.pool_of(backend, one)["evictions"]) for one in (bundle, other))

            def warm() -> list[int]:
                return sorted(int(support.pool_of(backend, one)["warm"]) for one in (bundle, other))

            support.wait_until(lambda: evicted() >= 1, "one of the two goes", 60)
            support.wait_until(lambda: warm() == [0, 1], "the other one stays", 60)
            assert cells_of(backend, third)["warm"] == 1, "the cell has less than half, and stays"
            assert daemon.host.health()["problem"] is None
        finally:
            backend.close()
