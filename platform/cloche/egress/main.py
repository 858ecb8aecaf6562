"""Entry of the egress proxy: listens while it may, gives its privilege away, serves until a signal."""

from __future__ import annotations

import contextlib
import ctypes
import encodings.idna  # noqa: F401 - looked up by name at the first resolution, when its file may be out of our user's reach
import os
import resource
import signal
import threading

from cloche import logs
from cloche.config import Settings
from cloche.domain.egress import PlatformEgress, platform_egress
from cloche.egress.bounds import Bounds
from cloche.egress.server import EgressServer
from cloche.errors import EnvironmentProblem
from cloche.host_settings import EgressSettings

log = logs.get(__name__)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_GET_PDEATHSIG = 2


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        EnvironmentProblem: the socket cannot be made, or the privilege cannot be given away.
        SettingsError: the policy is malformed.
    """
    logs.setup(settings.logging.level, settings.logging.format, "egress")
    server = EgressServer(
        settings.egress_socket, allowed(settings.egress), Bounds.of(settings.egress), settings.egress.host_connections
    )
    server.bind()
    _drop_privilege(settings.egress.uid)
    _raise_descriptors()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    try:
        log.info("egress_listening", socket=str(settings.egress_socket), uid=os.geteuid())
        stop.wait()
    finally:
        server.close()
    log.info("egress_stopped")
    return 0


def allowed(settings: EgressSettings) -> PlatformEgress:
    """What these settings allow.

    Raises:
        SettingsError: they are malformed.
    """
    return platform_egress(settings.enabled, settings.allow, settings.private)


def _drop_privilege(uid: int) -> None:
    """Become ``uid`` for good, if we are root. The process talks to strangers' servers: it keeps no right that it does not need."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent, tether = os.getppid(), ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(tether), 0, 0, 0)
    if os.geteuid() == 0:
        try:
            os.chdir("/")
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError as error:
            raise EnvironmentProblem(f"cannot become user {uid}: {error.strerror}") from None
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise EnvironmentProblem("cannot give up privileges")
    # Another user id unties us from the supervisor that started us, so tie it again.
    libc.prctl(_PR_SET_PDEATHSIG, tether.value, 0, 0, 0)
    if tether.value and os.getppid() != parent:
        raise EnvironmentProblem("the supervisor has gone")


def _raise_descriptors() -> None:
    """Two descriptors a connection: as many as the host lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
