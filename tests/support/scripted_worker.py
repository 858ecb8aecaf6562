"""A worker over scripted sandboxes and a site's own services: its claims, its frames and its writes are real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloche.domain.limits import Limits
from cloche.isolation.scripted import Script, ScriptedBackend
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder
from cloche.services.container import Services
from cloche.services.sealing import JobVault
from cloche.services.watch import EventHub
from cloche.worker.execute import Tools
from cloche.worker.holds import Holds
from cloche.worker.loop import WorkerLoop
from tests.support import jobs
from tests.support.queues import make_whole


class NoFiles:
    """A job's files when it has none. ``level`` and ``preload``: what its plugin asks for."""

    def __init__(self, level: str = "container", preload: tuple[str, ...] = ()) -> None:
        self._asked = (level, preload)

    def bundle(self, _job):
        return "b" * 64, None

    def own_image(self, _job):
        return None

    def limits(self, _job):
        return Limits()

    def runtime(self, _job):
        return "runc"

    def isolation(self, _job):
        return self._asked[0]

    def preload(self, _job):
        return self._asked[1]

    def stage_in(self, _job, _folder, _stop):
        return []

    def stage_out(self, _job, _remains, _stop):
        return []


@contextmanager
def scripted_worker(
    services: Services, folder: Path, script: Script | Callable[..., Script], name: str = "w0", **tools: Any
) -> Iterator[ScriptedBackend]:
    """Its vault is its own, as that of a process is. ``tools`` override or add fields of :class:`Tools`."""
    broker = services.broker
    make_whole(broker)
    hub = EventHub(broker)
    services.workers.register(name, "host", 1, ["default", "sensitive"], 1)
    holds = Holds(services.db, hub, jobs.transitions(), services.workers, name, lease_ms=15_000, heartbeat_ms=100)
    holds.on_effects = lambda done: effects.apply(broker, done)
    backend = ScriptedBackend(folder / name, script)
    vault = JobVault(services.settings.home / "keys", services.db)
    made = {"files": NoFiles(), "outbound": lambda _job: (), "vault": vault, **tools}
    recorder = AttemptRecorder(services.db, name)
    loop = WorkerLoop(
        Tools(
            db=services.db,
            broker=broker,
            backend=backend,
            transitions=jobs.transitions(),
            recorder=recorder,
            worker_id=name,
            **made,
        ),
        holds,
        slots=1,
        lease_ms=15_000,
        poll_ms=50,
        grace_ms=100,
    )
    holds.start()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield backend
    finally:
        loop.stop()
        thread.join(20)
        assert not thread.is_alive()
        holds.close()
        hub.close()
