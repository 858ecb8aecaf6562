"""Statistics: of the tenant's jobs, of one queue, of the workers. Every number is bounded, and says where it stopped."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection, func, select

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import State
from cloche.domain.statistics import WINDOWS, flow_view, times_view
from cloche.errors import NotFound
from cloche.services import counting
from cloche.services.workers import live_first, status_of

_STATUSES = ("alive", "draining", "dead")
_MOST_WORKERS = 1_000


class StatisticsService:
    """Shared by a process's threads. It only reads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def overall(self, actor: Actor) -> dict[str, Any]:
        """Of all the tenant's queues, over 1 minute, 5 minutes and 1 hour. ``workers`` and ``slots`` are the platform's, and None for who
        may not see workers."""
        lengths = list(WINDOWS.values())

        def unit(connection: Connection) -> dict[str, Any]:
            now, tenant = now_ms(connection), actor.tenant_id
            names, all_names = counting.queue_names(connection, tenant)
            depths = {name: counting.live(connection, tenant, name) for name in names}
            flows = {name: counting.flows(connection, tenant, name, lengths, now) for name in names}
            times, complete = counting.timed(connection, tenant, names, now - max(lengths))
            letters, all_letters = counting.dead_letters(connection, tenant)
            rows = _worker_rows(connection, now) if actor.may(Permission.WORKER_READ) else None
            waiting = {
                state.value: sum(depth.depth[state.value] for depth in depths.values())
                for state in counting.LIVE_STATES
            }
            return {
                "generated_at": to_rfc3339(now),
                "jobs": waiting,
                "dead_letters": letters,
                "counts_complete": all_names and all_letters and all(depth.complete for depth in depths.values()),
                "windows": {
                    window: flow_view((flows[name][index] for name in names), complete=all_names)
                    for index, window in enumerate(WINDOWS)
                },
                "times": {"window": "1h", **times_view(times, complete=all_names and complete)},
                "workers": None if rows is None else _by_status(rows),
                "slots": None if rows is None else _slots(rows),
                "queues": [
                    {
                        "name": name,
                        "depth": depths[name].depth,
                        "oldest_age_s": _age_s(depths[name].oldest, now),
                        "windows": {window: flow_view([flows[name][index]]) for index, window in enumerate(WINDOWS)},
                    }
                    for name in names
                ],
            }

        return self._db.read(unit)

    def queue(self, actor: Actor, name: str, window_ms: int) -> dict[str, Any]:
        """Of one queue: what waits now, and what came and ended within the window.

        Raises:
            NotFound: the tenant has no such queue.
        """

        def unit(connection: Connection) -> dict[str, Any]:
            now, tenant = now_ms(connection), actor.tenant_id
            if not counting.queue_exists(connection, tenant, name):
                raise NotFound("there is no such queue; `GET /queues` lists them")
            depth = counting.live(connection, tenant, name)
            flows = counting.flows(connection, tenant, name, [window_ms], now)
            times, complete = counting.timed(connection, tenant, [name], now - window_ms)
            return {
                "name": name,
                "generated_at": to_rfc3339(now),
                "window_s": window_ms / 1000,
                "depth": depth.depth,
                "depth_complete": depth.complete,
                "oldest_age_s": _age_s(depth.oldest, now),
                "flow": flow_view(flows),
                "times": times_view(times, complete=complete),
            }

        return self._db.read(unit)

    def workers(self, actor: Actor, window_ms: int) -> dict[str, Any]:
        """How busy workers are, all tenants' jobs together as in their list; what each finished of the actor's tenant's in the window."""

        def unit(connection: Connection) -> dict[str, Any]:
            now, tenant = now_ms(connection), actor.tenant_id
            rows = _worker_rows(connection, now)
            names, all_names = counting.queue_names(connection, tenant)
            finished, seen, complete = counting.finished_by(connection, tenant, names, now - window_ms)
            return {
                "generated_at": to_rfc3339(now),
                "window_s": window_ms / 1000,
                "count": _by_status(rows),
                "slots": _slots(rows),
                "jobs_looked_at": seen,
                "complete": all_names and complete,
                "workers": [_finished(row, finished.get(row["id"], {})) for row in rows],
            }

        return self._db.read(unit)


def _worker_rows(connection: Connection, now: int) -> list[dict[str, Any]]:
    """The workers there are, live ones first: id, host, status, slots, and how many of them are busy."""
    held = select(t.job.c.lease_owner, func.count()).where(t.job.c.state == State.PROCESSING.value)
    held = held.execution_options(across_tenants="how busy a worker is, as a number")
    busy = {row[0]: row[1] for row in connection.execute(held.group_by(t.job.c.lease_owner))}
    worker = t.worker.c
    columns = (worker.id, worker.host, worker.status, worker.slots, worker.last_heartbeat_at)
    query = select(*columns).order_by(*live_first(now)).limit(_MOST_WORKERS)
    return [
        {
            "id": row["id"],
            "host": row["host"],
            "status": status_of(row, now),
            "slots": row["slots"],
            "busy": busy.get(row["id"], 0),
        }
        for row in connection.execute(query).mappings()
    ]


def _by_status(rows: list[dict[str, Any]]) -> dict[str, int]:
    counted = Counter(row["status"] for row in rows)
    return {status: counted[status] for status in _STATUSES}


def _slots(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the workers that take jobs: one that drains fills no slot again."""
    alive = [row for row in rows if row["status"] == "alive"]
    total, busy = sum(row["slots"] for row in alive), sum(min(row["busy"], row["slots"]) for row in alive)
    share = round(busy / total, 4) if total else None
    return {"total": total, "busy": busy, "free": total - busy, "utilisation": share}


def _finished(row: dict[str, Any], ends: dict[str, int]) -> dict[str, Any]:
    return {**row, "completed": ends.get("completed", 0), "failed": ends.get("failed", 0)}


def _age_s(oldest: int | None, now: int) -> float | None:
    return None if oldest is None else max(0, now - oldest) / 1000
