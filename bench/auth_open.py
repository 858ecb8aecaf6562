"""A web process like Cloche's own, but nobody is asked who they are: what authorisation costs is measured against it.

python -m bench.auth_open HOME PORT, as `./run bench auth` starts it. It is no part of Cloche, and no setting of Cloche makes one.
"""

from __future__ import annotations

import http.client
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from sqlalchemy import select

from cloche import config, logs, wiring
from cloche.db import scope, tables
from cloche.domain.permissions import Actor, Permission
from cloche.services.actors import Origin, actor_of
from cloche.web.app import create_app
from cloche.web.auth import Auth


class Open(Auth):
    """Everybody is the same one, who was known before the request came."""

    def __init__(self, services: wiring.Services, actor: Actor) -> None:
        super().__init__(services.access, services.rates)
        self._known = actor

    def actor(self, *, basic: bool = False) -> Actor | None:  # noqa: ARG002
        scope.act_in(self._known.tenant_id)  # the guard under every query is no part of what is left out
        return self._known

    def require(self, permission: Permission | None = None, *, basic: bool = False) -> Actor:  # noqa: ARG002
        scope.act_in(self._known.tenant_id)
        return self._known

    def _guard(self) -> None:
        """Nothing that comes with a request is looked at."""


def load(home: Path) -> Callable[..., Any]:
    logs.setup("warning", "json", "open")
    services = wiring.build(config.load(home=str(home)), "open")
    first = select(tables.user.c.id).order_by(tables.user.c.id).limit(1)  # user admin
    actor = services.db.read(lambda connection: actor_of(connection, connection.scalars(first).one(), None, Origin()))
    return create_app(services, auth=Open(services, actor))


def main(home: Path, port: int) -> None:
    server = Granian(
        "bench.auth_open",
        address="127.0.0.1",
        port=port,
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=32,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=15_000, max_buffer_size=128 << 10),
        websockets=False,
        log_level=LogLevels.error,
    )
    server.serve(target_loader=partial(_loaded, home), wrap_loader=False)


def _loaded(home: Path) -> Callable[..., Any]:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return load(home)


def _end_with_parent() -> None:
    first = os.getppid()
    while os.getppid() == first:
        time.sleep(0.5)
    os._exit(1)


def answers(port: int) -> bool:
    """Whether somebody answers there."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
