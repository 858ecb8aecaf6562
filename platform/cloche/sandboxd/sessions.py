"""Who owns which sandbox. A session ends when any of its connections ends, and takes its sandboxes with it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cloche import logs
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.spec import BadSpec
from cloche.sandboxd.host import Host
from cloche.sandboxd.running import Running

log = logs.get(__name__)
OWNER_GONE_SECONDS = 60


@dataclass(eq=False)
class Session:
    """One client process. ``uid`` and ``gid`` are the kernel's word for who it is."""

    key: str
    owner: str
    uid: int
    gid: int
    closers: list[Callable[[], None]] = field(default_factory=list)
    sandboxes: set[str] = field(default_factory=set)
    making: int = 0
    ended: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Sessions:
    """Thread-safe. One condition guards all sessions; no engine call is made while it is held."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._changed = threading.Condition()
        self._sessions: dict[str, Session] = {}

    def join(self, owner: str, key: str | None, uid: int, gid: int, closer: Callable[[], None]) -> Session:
        """A new session, or with its key the one there is. ``closer`` breaks the connection off.

        Raises:
            BadSpec: no such session (it has ended), or it belongs to somebody else.
        """
        with self._changed:
            if key is None:
                session = Session(secrets.token_hex(16), owner, uid, gid)
                self._sessions[session.key] = session
            else:
                found = self._sessions.get(key)
                if found is None or found.ended or found.owner != owner or found.uid != uid:
                    raise BadSpec("there is no such session")
                session = found
            session.closers.append(closer)
            return session

    def begin(self, session: Session) -> None:
        """Announce that a sandbox is about to be made.

        Raises:
            PlatformFailure: the session has ended.
        """
        with self._changed:
            if session.ended:
                raise PlatformFailure(Reason.WORKER_STOPPED, "the session has ended")
            session.making += 1

    def made(self, session: Session, running: Running | None) -> bool:
        """What became of it. False when the session ended meanwhile: the sandbox was not taken over and has to be destroyed
        before ``settled`` is called."""
        with self._changed:
            if running is not None and session.ended:
                return False
            if running is not None:
                session.sandboxes.add(running.id)
            session.making -= 1
            self._changed.notify_all()
            return True

    def settled(self, session: Session) -> None:
        with self._changed:
            session.making -= 1
            self._changed.notify_all()

    def owns(self, session: Session, sandbox_id: object) -> bool:
        with self._changed:
            return sandbox_id in session.sandboxes

    def forget(self, session: Session, sandbox_id: str) -> None:
        with self._changed:
            session.sandboxes.discard(sandbox_id)

    def end(self, session: Session) -> None:
        """Break its connections, kill all its sandboxes, then destroy them. Any number of times, from any thread."""
        with self._changed:
            first = not session.ended
            session.ended = True
            closers, sandboxes = list(session.closers), list(session.sandboxes)
        if not first:
            return
        for close in closers:
            close()
        for sandbox_id in sandboxes:
            with logs.survived(log, "sandbox_not_killed", sandbox=sandbox_id):
                running = self._host.find(sandbox_id)
                if running is not None:
                    running.kill()
        for sandbox_id in sandboxes:
            with logs.survived(log, "sandbox_not_destroyed", sandbox=sandbox_id):
                try:
                    self._host.destroy(sandbox_id)
                except PlatformFailure as error:
                    log.error("sandbox_not_destroyed", sandbox=sandbox_id, error=str(error))
        with self._changed:
            self._changed.wait_for(lambda: session.making == 0, OWNER_GONE_SECONDS)
            self._sessions.pop(session.key, None)
        session.done.set()
        log.info("session_ended", owner=session.owner, sandboxes=len(sandboxes))

    def owner_gone(self, owner: str) -> int:
        """End all sessions of a worker and wait until its sandboxes are dead; how many sessions there were.

        Raises:
            PlatformFailure: something of it is still alive.
        """
        with self._changed:
            found = [session for session in self._sessions.values() if session.owner == owner]
        for session in found:
            self.end(session)
        waited = all(session.done.wait(OWNER_GONE_SECONDS) for session in found)
        alive = [running for running in self._host.listing() if running.owner == owner and not running.is_dead()]
        if not waited or alive:
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"sandboxes of {owner} are still alive")
        return len(found)

    def end_all(self) -> None:
        with self._changed:
            found = list(self._sessions.values())
        for session in found:
            self.end(session)
