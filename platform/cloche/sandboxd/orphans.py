"""What an earlier sandboxd of a home left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cloche import logs
from cloche.isolation.spec import LABEL
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.places import Places
from cloche.sandboxd.runtimes import Runtimes

log = logs.get(__name__)
_AT_ONCE = 4  # more make the engine no faster


def reap(engine: Engine, home: str, runtimes: Runtimes, places: Places) -> None:
    """Remove its containers, mounts and folders.

    Raises:
        PlatformFailure, EngineRefused: see :func:`remove_orphans`.
        OSError: something of it does not go. Call again.
    """
    remove_orphans(engine, home)
    runtimes.reap()
    for name in places.leftovers():
        places.remove(name)


def remove_orphans(engine: Engine, home: str) -> None:
    """Kill and remove every container of the home, several at once: after a crash jobs wait for this.

    Raises:
        PlatformFailure, EngineRefused: the engine does not answer, or does not let go of one. Some may be gone; call again.
    """
    orphans = engine.containers(f"{LABEL}.home={home}")
    for orphan in orphans:
        log.info("orphan_removed", container=orphan["Id"], job=orphan["Labels"].get(f"{LABEL}.job"))
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reap") as reapers:
        list(reapers.map(lambda orphan: engine.remove(orphan["Id"]), orphans))
