"""Which processes `cloche up` runs, in which order, with which environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloche.cli.up import valkey
from cloche.cli.up.child import Service
from cloche.config import Settings
from cloche.worker.exits import DRAINED

# Started in this order, stopped in the opposite one. Those below 10 clean up after others, and are always given the time.
VALKEY, EGRESS, SANDBOXD, SCHEDULER, WEB, WORKERS = 1, 2, 3, 10, 11, 12
_PLAIN = {"CLOCHE_HOME", "CLOCHE_CONFIG", "HOME", "LANG", "PATH", "TZ", "VIRTUAL_ENV"}
_WORKER_MARGIN_S = 5.0  # over its own grace, to hand back what is unfinished
_EMPTY = "its place stays empty until `cloche up` starts again"
_DRAINED = {DRAINED: f"was drained and has left; {_EMPTY}"}
DIED_DRAINING = f"had been asked to drain when it died; {_EMPTY}"
_WEB_GRACE_S = 20.0  # over the 15 s it gives requests that still run
_SANDBOXD_GRACE_S = 30.0  # it destroys every sandbox that is left


def services(settings: Settings, environment: Mapping[str, str], *, own_valkey: bool) -> list[Service]:
    """Every process for these settings. ``environment`` is what each child gets."""
    planned: list[Service] = []
    if own_valkey:
        planned.append(_valkey(settings.home))
    if settings.egress.enabled:
        ready = settings.egress_socket.is_socket
        planned.append(
            Service("egress", EGRESS, _cloche("egress"), ready=ready, environment=_for_strangers(environment))
        )
    planned.append(
        Service(
            "sandboxd",
            SANDBOXD,
            _cloche("sandboxd"),
            _SANDBOXD_GRACE_S,
            ready=settings.sandboxd_socket.is_socket,
            ready_s=20.0,
            environment=environment,
        )
    )
    if settings.scheduler.enabled:
        planned.append(Service("scheduler", SCHEDULER, _cloche("scheduler"), environment=environment))
    planned.append(Service("web", WEB, _cloche("web"), _WEB_GRACE_S, environment=environment))
    grace_s = settings.worker.grace / 1000 + _WORKER_MARGIN_S
    numbers = range(1, settings.worker.count + 1)
    return planned + [
        Service(f"worker-{n}", WORKERS, _worker, grace_s, environment=environment, final=_DRAINED) for n in numbers
    ]


def child_environment(settings: Settings, port: int) -> dict[str, str]:
    """The supervisor's environment with what the command line changed, and without what no child needs."""
    return {
        **{name: value for name, value in os.environ.items() if name != "CLOCHE_ADMIN_PASSWORD"},
        "CLOCHE_HOME": str(settings.home),
        "CLOCHE_SERVER_HOST": settings.server.host,
        "CLOCHE_SERVER_PORT": str(port),
        "CLOCHE_LOGGING_FORMAT": "json",  # the supervisor reads it and writes it for people
        "PYTHONUNBUFFERED": "1",
    } | ({"CLOCHE_CONFIG": str(settings.config)} if settings.config else {})


def _for_strangers(environment: Mapping[str, str]) -> dict[str, str]:
    """What the egress proxy needs of it. It talks to strangers' servers, so it is given no password of a database or a queue."""
    return {
        name: value
        for name, value in environment.items()
        if name in _PLAIN or name.startswith(("CLOCHE_EGRESS_", "CLOCHE_LOGGING_", "CLOCHE_SANDBOX_", "LC_", "PYTHON"))
    }


def _cloche(*arguments: str) -> Callable[[str], Sequence[str]]:
    return lambda _run_id: [sys.executable, "-m", "cloche", *arguments]


def _worker(run_id: str) -> Sequence[str]:
    return [sys.executable, "-m", "cloche", "worker", "--id", run_id]


def _valkey(home: Path) -> Service:
    socket_path, folder = home / "run" / "valkey.sock", home / "valkey"
    valkey.check_socket_path(socket_path)
    folder.mkdir(mode=0o700, exist_ok=True)
    server = valkey.binary()
    return Service(
        "valkey",
        VALKEY,
        lambda _run_id: valkey.argv(server, socket_path, folder),
        ready=lambda: valkey.answers(socket_path),
        environment={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
    )
