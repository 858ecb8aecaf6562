"""What the supervisor does itself on the database: the first start, and speaking for a worker that died."""

from __future__ import annotations

from types import TracebackType

from cloche.cli.up.loglines import Sink
from cloche.config import Settings
from cloche.errors import ClocheError
from cloche.isolation.client import SandboxdBackend
from cloche.wiring import Services, build


class Aftermath:
    """A context manager; its methods are called from one thread at a time."""

    def __init__(self, settings: Settings, sink: Sink) -> None:
        self._settings = settings
        self._sink = sink

    def __enter__(self) -> Aftermath:
        self._services: Services = build(self._settings)
        self._sandboxd = SandboxdBackend(self._settings.sandboxd_socket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sandboxd.close()
        self._services.close()

    def first_start(self) -> str | None:
        """Make the default tenant and its admin unless they exist; the password, if one was generated just now."""
        return self._services.access.bootstrap().password

    def worker_gone(self, name: str, worker_id: str) -> None:
        """Kill what the dead worker left in sandboxes, and only then release its leases: no attempt may run twice at once."""
        try:
            self._sandboxd.owner_gone(worker_id)
            released = self._services.workers.lost(worker_id)
        except ClocheError as error:
            self._sink.say(f"{name}: its jobs come back when their leases lapse ({error})", level="warning")
            return
        if released:
            self._sink.say(f"{name}: {released} of its jobs go back to the queue now")
