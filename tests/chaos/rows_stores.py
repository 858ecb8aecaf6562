"""Rows in which a store, a disk, a network or the container engine fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from tests.chaos import stores
from tests.chaos.matrix import Row, Scene
from tests.chaos.proxy import proxied
from tests.chaos.system import kill
from tests.support.engine import running_engine
from tests.support.stores import until

Settings = dict[str, Any]
_DISK_MB = 96


def _flush(scene: Scene) -> None:
    for turn in range(3):
        scene.load.wait_for((turn + 1) / 4)
        with redis.Redis.from_url(scene.system.redis_url) as client:
            client.flushall()
        scene.returned("FLUSHALL")


def _kill_embedded(scene: Scene) -> None:
    for turn in range(2):
        scene.load.wait_for((turn + 1) / 3)
        before = scene.system.pids("valkey")
        kill(before[0])
        until(lambda old=before: set(scene.system.pids("valkey")) - set(old), 30, "Valkey runs again")
        scene.returned("embedded Valkey killed")


@contextmanager
def _valkey(aof: bool) -> Iterator[Settings]:
    with stores.server(aof=aof) as server:
        yield {"redis_url": server.url, "given": server}


def _restart_server(scene: Scene) -> None:
    server = scene.given
    for turn in range(2):
        scene.load.wait_for((turn + 1) / 3)
        server.kill()
        time.sleep(2)  # long enough for every process to have met its absence
        server.start()
        scene.returned("server killed and started")


@contextmanager
def _behind_proxy() -> Iterator[Settings]:
    with stores.server() as server, proxied(("127.0.0.1", server.port)) as proxy:
        yield {"redis_url": f"redis://127.0.0.1:{proxy.port}/0", "given": proxy}


def _late(scene: Scene) -> None:
    scene.given.delay_s = 0.2
    scene.load.wait_for(1)
    scene.given.delay_s = 0.0
    scene.returned("no delay any more")


def _cut(scene: Scene) -> None:
    scene.load.wait_for(0.3)
    scene.given.cut.set()
    time.sleep(12)  # longer than any socket's time-out here
    scene.given.cut.clear()
    scene.returned("the network is back")


def _resets(scene: Scene) -> None:
    scene.given.reset_some(0.05)
    scene.load.wait_for(1)
    scene.given.reset_some(0.0)
    scene.returned("no resets any more")


@contextmanager
def _small_home() -> Iterator[Settings]:
    with stores.small_disk(_DISK_MB) as place:
        home = place / "home"
        home.mkdir(mode=0o700)
        yield {"home": home, "given": place}


def _fill_home(scene: Scene) -> None:
    """The disk of database and files is full for a while: what is not accepted is answered 503 or 507, and tried again by the client."""
    scene.load.wait_for(0.3)
    ballast = stores.fill(scene.given)
    time.sleep(5)
    ballast.unlink()
    scene.returned("room on the disk again")


@contextmanager
def _small_valkey() -> Iterator[Settings]:
    with stores.small_disk(8) as place, stores.server(aof=True, folder=place) as server:
        yield {"redis_url": server.url, "given": (place, server)}


def _fill_redis(scene: Scene) -> None:
    place, server = scene.given
    scene.load.wait_for(0.3)
    ballast = stores.fill(place)
    time.sleep(5)
    ballast.unlink()
    if (
        not server.answers()
    ):  # one that writes its log at once gives up when it cannot, and its operator starts it again
        scene.notes.append("the server ended by itself and was started again")
    server.kill()
    server.start()
    scene.returned("room on its disk again")


@contextmanager
def _own_engine() -> Iterator[Settings]:
    with running_engine() as engine:
        yield {"sandbox_docker_socket": str(engine.socket), "given": engine}


def _kill_engine(scene: Scene) -> None:
    scene.load.wait_for(0.4)
    scene.given.kill()
    time.sleep(2)
    scene.given.start()
    scene.returned("dockerd killed and started")


def nothing(_scene: Scene) -> None:
    """The load itself is the fault."""


def _setting(manager: Any, *arguments: Any) -> Any:
    return lambda: manager(*arguments)


ROWS = (
    Row("redis-flush", "`FLUSHALL`", _flush, short=24, bounded=False),
    Row("redis-kill", "Redis killed and restarted without persistence", _kill_embedded),
    Row("redis-aof", "Redis killed and restarted with AOF", _restart_server, setting=_setting(_valkey, True)),
    Row("redis-late", "200 ms of delay each way between all and Redis", _late, setting=_behind_proxy),
    Row("redis-cut", "the network to Redis silent for 12 s", _cut, setting=_behind_proxy),
    Row("redis-resets", "connections to Redis reset in mid-command", _resets, setting=_behind_proxy, short=12),
    Row("redis-disk", "Redis' disk full", _fill_redis, setting=_small_valkey),
    Row("home-disk", "the disk of database and files full", _fill_home, setting=_small_home, short=10),
    Row("sqlite-writers", "SQLite under 4 workers, scheduler and web", nothing, {"worker_count": "4"}, bounded=False),
    Row("dockerd-kill", "dockerd killed and restarted", _kill_engine, setting=_own_engine),
)
