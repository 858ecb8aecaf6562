"""What is done to many jobs of a batch: to which, by whom, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from cloche.db import tables as t
from cloche.db.engine import now_ms
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Conflict, NotFound, QuotaExceeded
from cloche.services import effects
from cloche.services.queue_rows import held

Act = Callable[[Connection, Actor, str, int], effects.Effects]
MAX_SKIPPED = 100  # that are named in an answer; all are counted
_SHOWN = 5  # queues that are named in words


@dataclass(frozen=True)
class Asked:
    """What is to be done to which jobs of a batch, by whom if it is another's, and how it is recorded."""

    which: ColumnElement[bool]
    permission: Permission
    doing: str
    action: Action
    counted: str
    nothing: Conflict  # when there is no such job
    queued: bool = False  # whether they go to their queues, which have to be there


@dataclass
class Acted:
    """How many jobs it was done to, and which were left as they are."""

    done: int = 0
    left: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)  # the first of them, each with its id and why
    over: QuotaExceeded | None = None  # the first refusal by a quota

    def leave(self, job_id: str, error: Conflict | NotFound | QuotaExceeded) -> None:
        self.left += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append({"id": job_id, "detail": error.detail})
        if self.over is None and isinstance(error, QuotaExceeded):
            self.over = error

    def add(self, other: Acted) -> None:
        self.done += other.done
        self.left += other.left
        self.skipped += other.skipped[: MAX_SKIPPED - len(self.skipped)]
        self.over = self.over or other.over


def acting(actor: Actor, ids: Sequence[str], act: Act) -> Callable[[Connection], tuple[Acted, effects.Effects]]:
    """One transaction's work."""

    def unit(connection: Connection) -> tuple[Acted, effects.Effects]:
        acted, done = Acted(), effects.Effects()
        for job_id in ids:
            try:
                # A refusal comes before anything is written, so that the others' changes stand.
                done.add(act(connection, actor, job_id, now_ms(connection)))
                acted.done += 1
            except (Conflict, NotFound, QuotaExceeded) as error:
                acted.leave(job_id, error)  # in another state since it was found, or gone; or there is no room for it
        return acted, done

    return unit


def require_queues(connection: Connection, *which: ColumnElement[bool]) -> None:
    """
    Raises:
        Conflict: the queue of one of these jobs is gone: each would be left as it is.
    """
    names = set(connection.scalars(select(t.job.c.queue).where(*which).distinct()))
    if gone := sorted(names - held(connection, names)):
        named = ", ".join(f"'{name}'" for name in gone[:_SHOWN]) + (", …" if len(gone) > _SHOWN else "")
        detail = f"no longer there: {named}, where jobs of this batch were; create it again, or retry jobs one by one"
        raise Conflict(detail, code="queue-gone")
