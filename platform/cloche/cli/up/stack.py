"""The order of a start: check, lock, migrate, first start, then the supervisor until somebody stops it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from cloche.cli.up import checks, plan, valkey
from cloche.cli.up.aftermath import Aftermath
from cloche.cli.up.announce import Announcer, address
from cloche.cli.up.child import Service
from cloche.cli.up.loglines import Console, JsonLines, Sink
from cloche.cli.up.supervisor import Supervisor
from cloche.config import Settings
from cloche.db import migrate
from cloche.db.engine import check_home
from cloche.domain.egress import platform_egress


class Stack:
    """One ``cloche up``. ``run`` once, in the main thread; ``stop`` from a signal handler, before or during it."""

    def __init__(self, settings: Settings, out: TextIO, log: TextIO) -> None:
        self._settings = settings
        self._out = out
        self._log = log
        self._supervisor: Supervisor | None = None
        self._announcer: Announcer | None = None
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        if self._announcer is not None:
            self._announcer.hush()
        if self._supervisor is not None:
            self._supervisor.stop()

    def run(self) -> None:
        """Start, and return after ``stop`` when everything has ended.

        Raises:
            EnvironmentProblem, SettingsError: nothing has been started.
        """
        settings = self._settings
        checks.require_root()
        platform_egress(
            settings.egress.enabled, settings.egress.allow, settings.egress.private
        )  # refused here, not by each process
        valkey.check_socket_path(settings.sandboxd_socket)
        check_home(settings.home)
        lock = checks.take_lock(settings.home)
        try:
            port = checks.free_port(settings.server.host, settings.server.port)
            planned = plan.services(settings, plan.child_environment(settings, port), own_valkey=self._own_valkey())
            migrate.upgrade(settings.database_url)
            self._supervise(planned, port, lock)
        finally:
            os.close(lock)

    def _own_valkey(self) -> bool:
        if self._settings.redis.url:
            return False
        # The lock says that no child of an earlier `up` lives, so whoever answers here was put here by the operator.
        return not valkey.answers(self._settings.home / "run" / "valkey.sock")

    def _supervise(self, planned: list[Service], port: int, lock: int) -> None:
        settings = self._settings
        sink = _sink(settings, self._log, tuple(service.name for service in planned))
        # One thread: deaths are dealt with in order, and a slow answer never holds up the supervisor.
        with ThreadPoolExecutor(1, thread_name_prefix="aftermath") as later, Aftermath(settings, sink) as aftermath:

            def gone(service: Service, run_id: str) -> None:
                if service.stage == plan.WORKERS:
                    later.submit(worker_gone, service.name, run_id)

            def worker_gone(name: str, worker_id: str) -> None:
                if aftermath.was_draining(worker_id):
                    supervisor.vacate(name, plan.DIED_DRAINING)
                aftermath.worker_gone(name, worker_id)

            self._first_start(aftermath)
            self._supervisor = supervisor = Supervisor(planned, sink, gone, keep=[lock])
            self._announcer = announcer = self._make_announcer(sink, port)
            if self._stopped:
                self._supervisor.stop()
            sink.say(_uid_note(settings.home))
            announcer.start()
            aftermath.watch(self._supervisor.kill)
            try:
                self._supervisor.run()
            finally:
                announcer.stop()
        sink.say("stopped")

    def _first_start(self, aftermath: Aftermath) -> None:
        password = aftermath.first_start()
        if password is None:
            return
        # To the terminal, not through the log: this is the one time that anybody sees it.
        self._out.write(f"\nFirst start. User: admin   Password: {password}\nIt is not shown again. Keep it.\n\n")
        self._out.flush()

    def _make_announcer(self, sink: Sink, port: int) -> Announcer:
        where = address(self._settings.server.host, port)

        def listening() -> None:
            self._out.write(f"Cloche: {where}\n")
            self._out.flush()

        return Announcer(
            self._settings.server.host,
            port,
            listening=listening,
            waiting=lambda reason: sink.say(f"not ready yet: {reason}", level="warning"),
            ready=lambda: sink.say("ready: jobs run"),
        )


def _sink(settings: Settings, log: TextIO, names: tuple[str, ...]) -> Sink:
    if log.isatty() or settings.logging.format == "console":
        return Console(log, color=log.isatty() and "NO_COLOR" not in os.environ, names=names)
    return JsonLines(log)


def _uid_note(home: Path) -> str:
    return (
        f"home {home}; all processes run as uid {os.geteuid()} here, so only sandboxes are separated from each other. "
        "docs/operations.md shows how to give each process a user of its own."
    )
