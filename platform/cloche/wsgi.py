"""The web process: granian in front of the app, one worker process with a thread per request at hand.

Tried with granian 2.8: request bodies and answers stream, a client that hangs up closes the answer's generator, SIGTERM lets requests
finish. What it does not do is done here: it binds with SO_REUSEPORT, so that a port in use would go unnoticed; it does not say when it
listens; a parent that is killed would leave its child behind; and live streams would hold up a stop.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from cloche import __version__, failpoints, logs, wiring
from cloche.audit.keys import KeyRing
from cloche.config import Settings
from cloche.db import migrate
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database, check_home
from cloche.domain.permissions import system_actor
from cloche.errors import ClocheError, EnvironmentProblem
from cloche.services.access import AccessService
from cloche.services.settings_record import record_start
from cloche.web.app import create_app

_KILL_AFTER_S = 15  # requests still running so long after SIGTERM are cut
_FEW_THREADS_S = 60  # an idle thread beyond the first ends after this
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # asked for, and where it is reached then: nothing is bound here # nosec B104
_log = logs.get(__name__)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; 0 after an orderly stop. Writes ``<home>/run/web.json`` once it answers.

    Raises:
        EnvironmentProblem: the port is in use, the home cannot be written, or the schema is a newer one.
    """
    check_home(settings.home)
    with _hold_port(settings.server.host, settings.server.port) as held:
        migrate.patiently(lambda: migrate.upgrade(settings.database_url))
        migrate.patiently(lambda: _first_start(settings))
        _run(settings, *held.getsockname()[:2])
    return 0


def _run(settings: Settings, host: str, port: int) -> None:
    server = Granian(
        "cloche.wsgi",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=settings.server.threads,
        blocking_threads_idle_timeout=_FEW_THREADS_S,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=15_000, max_buffer_size=128 << 10),
        websockets=False,
        log_level=LogLevels.error,
        workers_kill_timeout=_KILL_AFTER_S,
    )
    stopped = threading.Event()
    place = settings.home / "run" / "web.json"
    place.unlink(missing_ok=True)  # of a process that was killed
    announcer = threading.Thread(target=_announce, args=(place, host, port, stopped), name="announce", daemon=True)
    try:
        announcer.start()
        server.serve(target_loader=partial(load, settings), wrap_loader=False)
    finally:
        stopped.set()
        announcer.join()
        place.unlink(missing_ok=True)


def load(settings: Settings) -> Callable[..., Any]:
    """The WSGI application, built inside granian's worker process."""
    logs.setup(settings.logging.level, settings.logging.format, "web")
    failpoints.arm(settings.failpoints, settings.home, settings.server.host)
    stopping = threading.Event()
    _watch_signals(stopping)
    _watch_parent()
    try:
        services = wiring.build(settings, "web")
        tenant_id = migrate.patiently(services.access.default_tenant)
        migrate.patiently(lambda: services.plugins.sync(tenant_id))
        migrate.patiently(lambda: _record_start(services, tenant_id))
        app = create_app(services, stopping)
    except ClocheError as error:
        _log.error("cannot start", error=str(error))
        sys.exit(1)
    threading.Thread(target=_close_at_exit, args=(services,), name="closing").start()
    return app


def _first_start(settings: Settings) -> None:
    db = Database(settings.database_url)
    try:
        audit = AuditLog(KeyRing.load_or_create(settings.home / "keys").hmac_key)
        first = AccessService(db, audit, settings).bootstrap()
    finally:
        db.close()
    if first.password is not None:
        # To the terminal, not through the log: this is the one time that anybody sees it.
        sys.stdout.write(f"First start. User: admin   Password: {first.password}\nIt is not shown again. Keep it.\n")
        sys.stdout.flush()


def _record_start(services: wiring.Services, tenant_id: str) -> None:
    details = {"version": __version__, "plugins": len(services.catalog.bundles())}
    actor = system_actor(tenant_id, "web")
    services.db.write(
        lambda connection: record_start(connection, services.audit_log, actor, services.settings, details)
    )


def _close_at_exit(services: wiring.Services) -> None:
    # Not a daemon: the interpreter waits for it, so that counted denials and the last commits reach the disk.
    threading.main_thread().join()
    services.close()


def _hold_port(host: str, port: int) -> socket.socket:
    """Make sure that nobody listens there, and keep the address bound (not listening) while granian uses it.

    Raises:
        EnvironmentProblem: in use, or not an address of this machine.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            where = probe.getsockname()
        held = socket.socket(family, kind)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(where)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentProblem(
            f"cannot listen on {host}:{port}: {reason}. Set CLOCHE_SERVER_PORT to a free port."
        ) from None
    return held


def _watch_signals(stopping: threading.Event) -> None:
    """Set ``stopping`` at the first signal. granian installs handlers of its own; the wake-up descriptor hears each signal beside them."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        with reader, writer:
            while number := reader.recv(1):
                if number[0] in (signal.SIGTERM, signal.SIGINT):
                    stopping.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()


def _watch_parent() -> None:
    """End with the parent, even when it is killed: nobody else would."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _announce(place: Path, host: str, port: int, stopped: threading.Event) -> None:
    while not stopped.wait(0.05):
        if _answers(_ANY.get(host, host), port):
            text = json.dumps({"host": host, "port": port, "pid": os.getpid()})
            temporary = place.with_name(f".{place.name}.{os.getpid()}")
            temporary.write_text(text + "\n", "utf-8")
            temporary.replace(place)
            return


def _answers(host: str, port: int) -> bool:
    asked = http.client.HTTPConnection(host, port, timeout=5)
    try:
        asked.request("GET", "/healthz")
        return asked.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()
