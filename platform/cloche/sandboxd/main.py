"""Entry of the root process: puts the parts together, serves until a signal, leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from pathlib import Path

from cloche import logs
from cloche.config import Settings
from cloche.errors import EnvironmentProblem
from cloche.isolation.cell_spec import UIDS
from cloche.sandboxd import image_parts
from cloche.sandboxd.cells.container import Facts
from cloche.sandboxd.cells.home import Bounds
from cloche.sandboxd.cells.level import CellLevel
from cloche.sandboxd.cells.pool import Cells
from cloche.sandboxd.egress import EgressLink
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.groups import Groups
from cloche.sandboxd.host import Host
from cloche.sandboxd.image import ensure_image
from cloche.sandboxd.leftovers import Leftovers
from cloche.sandboxd.locks import LockWatch
from cloche.sandboxd.making import Ready
from cloche.sandboxd.places import Places, home_digest
from cloche.sandboxd.proof import Proof
from cloche.sandboxd.runtimes import Runtimes
from cloche.sandboxd.server import Server
from cloche.sandboxd.supply import Supply, budget
from cloche.sandboxd.uids import LOCKS, UidPool

UID_BLOCKS = LOCKS.with_name("uid-blocks")
log = logs.get(__name__)


class Sandboxd:
    """The assembled process, startable inside a test too. ``start`` once, ``close`` once."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            EnvironmentProblem: not root, the home cannot be used, or another sandboxd serves it.
        """
        if os.geteuid() != 0:
            raise EnvironmentProblem(
                "sandboxd needs root: it mounts output quotas and hands out user ids. Start it with sudo."
            )
        home = settings.home
        self._lock_fd = _lock(home)
        try:
            owner = home.stat()  # the account that owns the home is the one that workers run under
            digest = home_digest(home)
            sandbox = settings.sandbox
            self._memory = budget(settings.pool)
            uids = self._uids = UidPool(sandbox.uid_base, sandbox.uid_count, start=int(digest, 16))
            self._blocks = UidPool(
                settings.cells.uid_base // UIDS, settings.cells.uid_blocks, locks=UID_BLOCKS, start=int(digest, 16)
            )
            places = Places(home, owner.st_uid, owner.st_gid)
            engine = Engine(sandbox.docker_socket)
            seccomp = _profile("seccomp.json")
            groups = Groups(digest)
            leftovers = Leftovers(engine, groups, places.remove, uids)
            proof = Proof(home=digest, uids=uids, seccomp=seccomp, leftovers=leftovers)
            self.host = Host(
                engine=engine,
                places=places,
                uids=uids,
                home=digest,
                seccomp=seccomp,
                max_running=sandbox.max_running,
                make_image=lambda engine: ensure_image(
                    engine, sandbox.image, emit=lambda line: log.info("image", message=line)
                ),
                runtimes=Runtimes(engine, groups, sandbox.runtime, sandbox.runsc_name, proof.prove),
                leftovers=leftovers,
                egress=EgressLink(settings.egress_socket, frozenset({0, owner.st_uid})),
                cells=self._make_cells(settings, engine, places, digest) if settings.cells.enabled else None,
            )
            self._locks = LockWatch(self.host.watched)
            self.supply = Supply(self.host, settings.pool, places.root, self._memory.share())
            self.server = Server(self.host, self.supply, settings.sandboxd_socket, owner.st_uid, owner.st_gid)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _make_cells(self, settings: Settings, engine: Engine, places: Places, home: str) -> CellLevel:
        cells = settings.cells
        bounds = Bounds(cells.containers, cells.jobs, cells.lifetime / 1_000, cells.idle / 1_000, self._memory.share())
        seccomp = _profile("seccomp-namespace.json")

        def facts(ready: Ready) -> Facts:
            return Facts(
                engine=engine,
                places=places,
                home=home,
                seccomp=seccomp,
                image=ready.image.id,
                host_cpus=int(ready.engine["NCPU"]),
                counts_swap=bool(ready.engine.get("SwapLimit")),
                slots=cells.slots,
                preloads=cells.preload,
            )

        return CellLevel(Cells(self._uids, self._blocks, bounds), facts)

    def start(self) -> None:
        self._uids.clean()
        self._blocks.clean()
        self.host.start()
        self._locks.start()
        self.supply.start()
        self.server.start()

    def close(self) -> None:
        """No new requests, then every sandbox dead and gone, then the lock."""
        try:
            self.server.close()
        finally:
            try:
                self.supply.close()
            finally:
                self._close_host()

    def _close_host(self) -> None:
        try:
            self.host.close()
        finally:
            self._locks.close()
            self._uids.clean()
            self._blocks.clean()
            os.close(self._lock_fd)


def _profile(name: str) -> str:
    return (image_parts.image_folder() / name).read_text("utf-8")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises:
        EnvironmentProblem: see :class:`Sandboxd`.
    """
    logs.setup(settings.logging.level, settings.logging.format, "sandboxd")
    stop = threading.Event()
    daemon = Sandboxd(settings)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        daemon.start()
        log.info("sandboxd_listening", socket=str(settings.sandboxd_socket))
        stop.wait()
    finally:
        daemon.close()
    log.info("sandboxd_stopped")
    return 0


def _lock(home: Path) -> int:
    path = home / "run" / "sandboxd.lock"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EnvironmentProblem(f"cannot use {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise EnvironmentProblem(f"another sandboxd already serves {home}") from None
    return fd
