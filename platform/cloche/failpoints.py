"""Named places between two writes at which a test can kill, pause or fail the process. Off unless ``CLOCHE_FAILPOINTS`` names one.

``CLOCHE_FAILPOINTS="worker.claimed=kill,relay.pushed=pause:2,web.committed=error"``. Each named point acts **once** for a home, whichever process
comes to it first: it leaves ``<home>/run/failpoints/NAME`` (time and pid), and acts again once that file has been removed. So a process that is
started again does not die again at the same place, and whoever watches the file knows when it happened.

What is off costs a comparison. The points are listed here and, with these words, in docs/reliability.md; a test compares the two.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cloche import logs
from cloche.errors import SettingsError

_log = logs.get(__name__)
_LONGEST_PAUSE_S = 600.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Point(StrEnum):
    """Where a process can be made to fail; :data:`MEANING` says what has been written there and what has not."""

    WEB_COMMITTED = "web.committed"
    WEB_PUSHED = "web.pushed"
    BATCH_COMMITTED = "batch.committed"
    BATCH_PUSHED = "batch.pushed"
    BATCH_ASKED = "batch.asked"
    WORKER_TAKEN = "worker.taken"
    WORKER_CLAIMED = "worker.claimed"
    WORKER_SANDBOXED = "worker.sandboxed"
    WORKER_STAGED = "worker.staged"
    WORKER_DELIVERED = "worker.delivered"
    WORKER_RESULT = "worker.result"
    WORKER_STORED = "worker.stored"
    WORKER_SETTLED = "worker.settled"
    RELAY_PUSHED = "relay.pushed"
    SWEEPER_DUE = "sweeper.due"
    SWEEPER_TOLD = "sweeper.told"
    SWEEPER_CONFIRMED = "sweeper.confirmed"
    LEASES_RELEASED = "leases.released"
    INDEX_PUSHED = "index.pushed"
    SEALER_PREPARED = "sealer.prepared"
    SEALER_WRITTEN = "sealer.written"
    CALLBACK_CLAIMED = "callback.claimed"
    CALLBACK_SENT = "callback.sent"
    SANDBOXD_CREATED = "sandboxd.created"
    SANDBOXD_MADE = "sandboxd.made"
    SANDBOXD_DEAD = "sandboxd.dead"
    SANDBOXD_COLLECTED = "sandboxd.collected"
    SANDBOXD_REMOVED = "sandboxd.removed"


MEANING: Mapping[Point, str] = {
    Point.WEB_COMMITTED: "a job is committed, its id is not in the index, and the client has no answer",
    Point.WEB_PUSHED: "the id is in the index, and the client has no answer",
    Point.BATCH_COMMITTED: "all of a batch's jobs are committed, none of their ids is in the index, and the client has no answer",
    Point.BATCH_PUSHED: "their ids are in the index, and the client has no answer",
    Point.BATCH_ASKED: "that a batch is to be canceled or retried is recorded; nothing has been done to its jobs",
    Point.WORKER_TAKEN: "ids are out of the index, and nobody has claimed them in the database",
    Point.WORKER_CLAIMED: "claimed in the database; nothing has been started",
    Point.WORKER_SANDBOXED: "a sandbox has been handed over; nothing is staged",
    Point.WORKER_STAGED: "inputs are staged; the guest has not been given the job",
    Point.WORKER_DELIVERED: "that the job gets its secrets is recorded; the guest has neither them nor the job",
    Point.WORKER_RESULT: "the guest has answered; nothing of it is kept",
    Point.WORKER_STORED: "outputs are stored; the job's end is not written",
    Point.WORKER_SETTLED: "the end is committed; nobody has been told",
    Point.RELAY_PUSHED: "ids from the outbox are pushed; their rows are still there",
    Point.SWEEPER_DUE: "due jobs are pending, or expired ones canceled, in the database; the index does not know",
    Point.SWEEPER_TOLD: "some of very many dependents are told of an end in the database; the index does not know, the others are not told",
    Point.SWEEPER_CONFIRMED: "a lost worker's sandboxes are dead; its leases are not released",
    Point.LEASES_RELEASED: "leases are released in the database; the jobs' ids are not in the index",
    Point.INDEX_PUSHED: "a lost index is filled again; it is not marked as whole",
    Point.SEALER_PREPARED: "a batch is computed and signed; nothing of it is written",
    Point.SEALER_WRITTEN: "a batch is written; the sealer has not taken note",
    Point.CALLBACK_CLAIMED: "deliveries are claimed; nothing is sent",
    Point.CALLBACK_SENT: "the receiver has answered; that is not written",
    Point.SANDBOXD_CREATED: "the engine has made a container; it is not started",
    Point.SANDBOXD_MADE: "a sandbox is ready for its job; the worker has no answer",
    Point.SANDBOXD_DEAD: "a sandbox is dead; its outputs are not collected",
    Point.SANDBOXD_COLLECTED: "outputs are collected; the worker has no answer",
    Point.SANDBOXD_REMOVED: "a container is removed; its mounts and folders are still there",
}


class InjectedFault(Exception):
    """What ``error`` raises. Not a ClocheError: it stands for a fault that nobody foresaw."""


@dataclass(frozen=True)
class _Action:
    kind: str  # kill, pause, error
    seconds: float = 0.0


class _Armed:
    def __init__(self, actions: Mapping[Point, _Action], folder: Path) -> None:
        self._actions = actions
        self._folder = folder

    def hit(self, point: Point) -> None:
        action = self._actions.get(point)
        if action is None or not self._first(point):
            return
        if action.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        _log.warning("failpoint", point=point, action=action.kind)
        if action.kind == "pause":
            time.sleep(action.seconds)
        if action.kind == "error":
            raise InjectedFault(f"failpoint {point}")

    def _first(self, point: Point) -> bool:
        """Whether the point has not acted yet; takes the place for good."""
        try:
            fd = os.open(self._folder / point, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(fd, "w") as mark:
            mark.write(f"{time.time():.3f} {os.getpid()}\n")
        return True


_armed: _Armed | None = None  # the process's own; set once, at its entry


def arm(text: str, home: Path, host: str) -> None:
    """Called once by each process as it starts, with the setting. ``host``: what the server listens on.

    Raises:
        SettingsError: malformed, not a point, or others could reach the server: it does not break on purpose.
    """
    global _armed
    actions = parse(text)
    if not actions:
        _armed = None
        return
    if host not in _LOOPBACK:
        raise SettingsError(f"failpoints are for tests: with them the server listens on {' or '.join(_LOOPBACK)} only")
    folder = home / "run" / "failpoints"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _armed = _Armed(actions, folder)
    _log.warning("FAILPOINTS ARE ARMED: this process breaks on purpose, for tests", points=sorted(actions))


def hit(point: Point) -> None:
    """The process has come to ``point``."""
    if _armed is not None:
        _armed.hit(point)


def parse(text: str) -> dict[Point, _Action]:
    """
    Raises:
        SettingsError: malformed, or not a point.
    """
    actions: dict[Point, _Action] = {}
    for part in text.replace(",", " ").split():
        name, _, word = part.partition("=")
        kind, colon, seconds = word.partition(":")
        try:
            point = Point(name)
        except ValueError:
            raise SettingsError(f"failpoints: {name} is none; docs/reliability.md lists them") from None
        if kind == "pause":
            actions[point] = _Action(kind, _seconds(seconds))
        elif kind in ("kill", "error") and not colon:
            actions[point] = _Action(kind)
        else:
            raise SettingsError(f"failpoints: write {name}=kill, {name}=error or {name}=pause:SECONDS")
    return actions


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST_PAUSE_S:
        raise SettingsError(f"failpoints: a pause is more than 0 and at most {_LONGEST_PAUSE_S:.0f} seconds")
    return seconds
