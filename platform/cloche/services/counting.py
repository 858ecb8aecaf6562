"""Bounded counts over one tenant's jobs. Each is answered by one index, reads at most so many rows of it, and never the jobs' table as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, select, text, union_all

from cloche.db import tables as t
from cloche.domain.jobs import QUEUES
from cloche.domain.queues import is_name
from cloche.domain.states import TERMINAL, State
from cloche.domain.statistics import MOST_COUNTED, MOST_TIMED, MOST_WAITING, Flow, Timed, counted
from cloche.services import queue_rows

_JOB = t.job.c
LIVE_STATES = tuple(state for state in State if state not in TERMINAL)
MOST_QUEUES = 100  # of one tenant that are looked at


def queue_names(connection: Connection, tenant_id: str) -> tuple[list[str], bool]:
    """Queues there are for the tenant: those everybody has, and those its jobs are in, at most :data:`MOST_QUEUES`; whether these are all."""
    found = set(QUEUES)
    last = ""
    while True:
        # From one name to the next within the index: the jobs between them are not read.
        following = select(_JOB.queue).where(_JOB.tenant_id == tenant_id, _JOB.queue > last).order_by(_JOB.queue)
        name = connection.execute(following.limit(1)).scalar_one_or_none()
        if name is None:
            return sorted(found), True
        if name not in found and len(found) == MOST_QUEUES:
            return sorted(found), False
        found.add(name)
        last = name


def queue_exists(connection: Connection, tenant_id: str, name: str) -> bool:
    """Whether it is a queue of the platform's, or one that jobs of the tenant were in."""
    if not is_name(name):
        return False
    if queue_rows.known(connection, name):
        return True
    return connection.execute(select(_JOB.id).where(*_of(tenant_id, name)).limit(1)).first() is not None


@dataclass(frozen=True)
class Live:
    """Jobs of one queue that have not ended: how many in each state, and since when the oldest pending one could run (ms).

    ``complete``: no count has stopped at :data:`MOST_WAITING`.
    """

    depth: dict[str, int]
    complete: bool
    oldest: int | None


def live(connection: Connection, tenant_id: str, queue: str) -> Live:
    """See :class:`Live`."""
    mine = (*_of(tenant_id, queue), text(t.LIVE))
    counts = []
    for state in LIVE_STATES:
        some = select(_JOB.state).where(*mine, _JOB.state == state.value).limit(MOST_WAITING).subquery()
        counts.append(select(func.count()).select_from(some).scalar_subquery())
    first = select(func.min(_JOB.ready_at)).where(*mine, _JOB.state == State.PENDING.value).scalar_subquery()
    *found, oldest = connection.execute(select(*counts, first)).one()
    depth = {state.value: number for state, number in zip(LIVE_STATES, found, strict=True)}
    return Live(depth, max(found) < MOST_WAITING, oldest)


def depth(connection: Connection, tenant_id: str, queue: str) -> Live:
    """As :func:`live`, and with what has ended: of that the newest :data:`MOST_WAITING` are counted, by state."""
    found = live(connection, tenant_id, queue)
    newest = select(_JOB.state).where(*_of(tenant_id, queue), text(t.ENDED)).order_by(_JOB.finished_at.desc())
    some = newest.limit(MOST_WAITING).subquery()
    rows = connection.execute(select(some.c.state, func.count()).group_by(some.c.state)).all()
    ends = dict.fromkeys(_states(), 0) | {state: number for state, number in rows}
    return Live(found.depth | ends, found.complete and sum(ends.values()) < MOST_WAITING, found.oldest)


def flows(connection: Connection, tenant_id: str, queue: str, windows: Sequence[int], now: int) -> list[Flow]:
    """One for each window (ms), which all end now."""
    arrived, ended = _arrived(tenant_id, queue, windows, now), _ended(tenant_id, queue, windows, now)
    came_seen, came_oldest, *came = connection.execute(arrived).one()
    end_seen, end_oldest, *ends = connection.execute(ended).one()
    states = _states()
    found = []
    for index, window in enumerate(windows):
        by_state = dict(zip(states, ends[index * len(states) : (index + 1) * len(states)], strict=True))
        found.append(
            Flow(
                counted(came[index], came_seen, came_oldest, now, window),
                counted(sum(by_state.values()), end_seen, end_oldest, now, window),
                by_state,
            )
        )
    return found


def _arrived(tenant_id: str, queue: str, windows: Sequence[int], now: int) -> Select[Any]:
    at = _JOB.created_at
    newest = select(at).where(*_of(tenant_id, queue), at > now - max(windows)).order_by(at.desc())
    some = newest.limit(MOST_COUNTED).subquery()
    sums: list[ColumnElement[Any]] = [_sum(some.c.created_at > now - w) for w in windows]
    return select(*[func.count(), func.min(some.c.created_at), *sums])


def _ended(tenant_id: str, queue: str, windows: Sequence[int], now: int) -> Select[Any]:
    at = _JOB.finished_at
    newest = select(at, _JOB.state).where(*_of(tenant_id, queue), text(t.ENDED), at > now - max(windows))
    some = newest.order_by(at.desc()).limit(MOST_COUNTED).subquery()
    sums = [_sum((some.c.finished_at > now - w) & (some.c.state == state)) for w in windows for state in _states()]
    return select(*[func.count(), func.min(some.c.finished_at), *sums])


def timed(
    connection: Connection, tenant_id: str, queues: Sequence[str], since: int, limit: int = MOST_TIMED
) -> tuple[list[Timed], bool]:
    """The newest ends in these queues after ``since``, the latest first, and whether these are all."""
    from_on, seen = _reach(connection, tenant_id, queues, since, limit)
    columns = (_JOB.state, _JOB.ready_at, _JOB.started_at, _JOB.finished_at)
    rows = connection.execute(_ends(tenant_id, queues, from_on, limit, *columns))
    return [Timed(*row) for row in rows], seen < limit


def finished_by(
    connection: Connection, tenant_id: str, queues: Sequence[str], since: int, limit: int = MOST_TIMED
) -> tuple[dict[str, dict[str, int]], int, bool]:
    """How many of the newest ends each worker wrote, by state: ``{worker: {state: n}}``; how many were looked at; whether these are all."""
    from_on, seen = _reach(connection, tenant_id, queues, since, limit)
    columns = (_JOB.id, _JOB.attempt, _JOB.state, _JOB.finished_at)
    ends = _ends(tenant_id, queues, from_on, limit, *columns).subquery()
    tried = t.attempt.c
    # An attempt that was taken from its worker, or is older than a cancel, did not end the job.
    last = (tried.job_id == ends.c.id) & (tried.number == ends.c.attempt) & (tried.outcome == ends.c.state)
    query = select(tried.worker_id, ends.c.state, func.count()).select_from(ends.join(t.attempt, last))
    found: dict[str, dict[str, int]] = {}
    for worker, state, number in connection.execute(query.group_by(tried.worker_id, ends.c.state)):
        found.setdefault(worker, {})[state] = number
    return found, seen, seen < limit


def _reach(connection: Connection, tenant_id: str, queues: Sequence[str], since: int, limit: int) -> tuple[int, int]:
    """From which time on the newest ``limit`` ends of these queues lie, and how many there are, at most ``limit``.

    Asked first, of the index alone: what is read of the table afterwards is no more than that.
    """
    at = _JOB.finished_at
    parts = []
    for queue in queues:
        mine = select(at).where(*_of(tenant_id, queue), text(t.ENDED), at > since)
        parts.append(select(mine.order_by(at.desc()).limit(limit).subquery()))
    merged = union_all(*parts)
    some = merged.order_by(merged.selected_columns.finished_at.desc()).limit(limit).subquery()
    oldest, seen = connection.execute(select(func.min(some.c.finished_at), func.count())).one()
    return (oldest if seen == limit else since + 1), seen


def _ends(tenant_id: str, queues: Sequence[str], from_on: int, limit: int, *columns: ColumnElement[Any]) -> Any:
    """Ends of these queues, the latest first; ``from_on`` is what :func:`_reach` found."""
    at = _JOB.finished_at
    parts = [select(*columns).where(*_of(tenant_id, queue), text(t.ENDED), at >= from_on) for queue in queues]
    merged = union_all(*parts)
    return merged.order_by(merged.selected_columns.finished_at.desc()).limit(limit)


def dead_letters(connection: Connection, tenant_id: str) -> tuple[int, bool]:
    """How many there are, and whether the count did not stop at :data:`MOST_COUNTED`."""
    some = select(_JOB.id).where(_JOB.tenant_id == tenant_id, text(t.DEAD_LETTER)).limit(MOST_COUNTED)
    number = connection.execute(select(func.count()).select_from(some.subquery())).scalar_one()
    return number, number < MOST_COUNTED


def _states() -> list[str]:
    return sorted(state.value for state in TERMINAL)


def _of(tenant_id: str, queue: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _JOB.tenant_id == tenant_id, _JOB.queue == queue


def _sum(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)
