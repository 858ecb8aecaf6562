"""What is left of sandboxes that are dead, or never came to be, until nothing is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from cloche import failpoints, logs
from cloche.errors import PlatformFailure
from cloche.failpoints import Point
from cloche.sandboxd.engine import Engine, EngineRefused
from cloche.sandboxd.groups import Groups
from cloche.sandboxd.uids import UidPool

log = logs.get(__name__)


@dataclass(frozen=True)
class Remains:
    """``container``: id or name; None when there is none, or the engine was never asked for one. ``dead``: every process of it is known to be.

    ``released``: cgroup, folder, mounts and user id are gone.
    """

    sandbox_id: str
    uid: int | None
    container: str | None
    dead: bool = False
    released: bool = False


class Leftovers:
    """Thread-safe. Folder and user id go only after whatever may still use them, the user id last.

    What the engine was told to start, and did not say that it has, may start at any time for as long as the engine has the container: where
    nobody saw it dead, everything else waits for the container's end.
    """

    def __init__(self, engine: Engine, groups: Groups, remove_site: Callable[[str], None], uids: UidPool) -> None:
        """``remove_site`` removes a sandbox's folder and mounts, or raises OSError; does nothing where there is nothing."""
        self._engine = engine
        self._groups = groups
        self._remove_site = remove_site
        self._uids = uids
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[Remains, str]] = {}  # with the last problem that was told of it, if any
        self.added: Callable[[], None] = lambda: None  # called when something has to be tried again; set before use

    def __len__(self) -> int:
        """How many wait for :meth:`retry`."""
        with self._lock:
            return len(self._waiting)

    def later(self, remains: Remains, problem: str) -> None:
        """Keep all of it for :meth:`retry`, and say why: nothing is asked of the engine by who calls this."""
        self._wait(remains.sandbox_id, remains, problem)

    def remove(self, remains: Remains) -> None:
        """Remove all of it; what cannot be removed now is kept for :meth:`retry`."""
        try:
            left, problem = self._removed(remains)
        except BaseException as error:
            self._wait(remains.sandbox_id, remains, repr(error))
            raise
        self._wait(remains.sandbox_id, left, problem)

    def release(self, remains: Remains) -> None:
        """Of what is dead, remove at once what takes no engine, and leave the container to :meth:`retry`: who calls this waits for no answer."""
        try:
            left, problem = self._released(remains)
        except BaseException as error:
            self._wait(remains.sandbox_id, remains, repr(error))
            raise
        self._wait(remains.sandbox_id, left, problem)

    def retry(self) -> None:
        """Try once more with each that waits. One thread at a time."""
        with self._lock:
            waiting = list(self._waiting.values())
        for remains, _ in waiting:
            with logs.survived(log, "sandbox_not_removed", sandbox=remains.sandbox_id):
                self.remove(remains)

    def _wait(self, sandbox_id: str, left: Remains | None, problem: str) -> None:
        with self._lock:
            before, told = self._waiting.pop(sandbox_id, (None, ""))
            if left is None:
                return
            self._waiting[sandbox_id] = left, problem or told
        if problem and (left != before or not told):
            log.warning("sandbox_not_removed_yet", sandbox=sandbox_id, container=left.container, error=problem)
        if left != before:
            self.added()

    def _removed(self, remains: Remains) -> tuple[Remains | None, str]:
        """What is left of it, None when nothing is; and why."""
        problem = ""
        if remains.container is not None:
            try:
                self._remove_container(remains.container, sure=not remains.dead)
            except (PlatformFailure, EngineRefused) as error:
                problem = str(error)
                if not remains.dead:
                    return remains, problem
            else:
                remains = replace(remains, container=None)
                failpoints.hit(Point.SANDBOXD_REMOVED)
        left, also = self._released(remains)
        return left, also or problem

    def _released(self, remains: Remains) -> tuple[Remains | None, str]:
        """See ``_removed``; whatever might use it is dead or was never there."""
        if not remains.released:
            try:
                self._groups.remove(remains.sandbox_id)
                self._remove_site(remains.sandbox_id)
            except OSError as error:
                return remains, str(error)
            if remains.uid is not None:
                self._uids.give_back(remains.uid)
            remains = replace(remains, released=True)
        return (None if remains.container is None else remains), ""

    def _remove_container(self, container: str, *, sure: bool) -> None:
        """``sure``: a removal that is still under way is none.

        Raises:
            PlatformFailure, EngineRefused: it may still be there.
        """
        self._engine.remove(container)
        if sure and self._engine.inspect(container) is not None:
            raise EngineRefused("the engine has not removed it yet")
