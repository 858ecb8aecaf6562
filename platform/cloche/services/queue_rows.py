"""Queues as the database has them: how each is taken from, what runs in it, whether it is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, String, bindparam, literal_column, or_, select, text

from cloche.db import tables as t
from cloche.db.readable import text_across_tenants
from cloche.domain.jobs import QUEUES
from cloche.domain.queues import WaitingFor
from cloche.domain.states import State
from cloche.queueing.broker import LINGER_MS, Rules, Running, Share

MISSING = "there is no queue '{name}'; GET /api/v1/queues lists them, or leave it out"


SUSPENDED = select(t.tenant.c.id).where(t.tenant.c.suspended)


def rules(connection: Connection, name: str | None = None) -> list[Rules]:
    """How each queue is taken from, or that one. For a suspended tenant every queue is paused."""
    queue, share = t.queue, t.queue_share
    queues = select(queue).order_by(queue.c.name)
    shares = select(share).execution_options(across_tenants="the index has to know every tenant's share")
    if name is not None:
        queues, shares = queues.where(queue.c.name == name), shares.where(share.c.queue == name)
    # The queues first: a share that changes in between comes with a version that is too low, and is said again.
    rows = connection.execute(queues).mappings().all()
    found: dict[str, dict[str, Share]] = defaultdict(dict)
    for row in connection.execute(shares).mappings():
        found[row["queue"]][row["tenant_id"]] = Share(row["paused"], row["weight"])
    for tenant_id in connection.scalars(SUSPENDED):
        for row in rows:
            weight = found[row["name"]].get(tenant_id, Share()).weight
            found[row["name"]][tenant_id] = Share(True, weight)
    return [
        Rules(row["name"], row["rules_version"], row["paused"], row["max_concurrency"], found[row["name"]])
        for row in rows
    ]


def running(connection: Connection, now: int) -> list[Running]:
    """Every attempt that a worker holds. One whose lease is over is held until somebody has taken it from its worker."""
    job = t.job.c
    query = select(job.id, job.queue, job.lease_until).where(job.state == State.PROCESSING.value)
    return [Running(row.id, row.queue, max(0, row.lease_until - now) + LINGER_MS) for row in connection.execute(query)]


def live(connection: Connection, job_ids: Sequence[str]) -> Sequence[Any]:
    """Those of the jobs that a worker can hold, or claim, as they are: state, and what their place in a queue follows from."""
    job = t.job.c
    query = select(job.id, job.state, job.queue, job.tenant_id, job.ready_at, job.priority)
    return connection.execute(
        query.where(job.id.in_(job_ids), job.state.in_((State.PENDING.value, State.PROCESSING.value)))
    ).all()


def waiting(connection: Connection, job_ids: Collection[str], now: int) -> set[str]:
    """Those of the jobs that may be claimed."""
    job = t.job.c
    in_time = or_(job.expires_at.is_(None), job.expires_at > now, job.started_at.is_not(None))
    pending = (job.id.in_(job_ids), job.state == State.PENDING.value, job.ready_at <= now, in_time)
    query = select(job.id).where(*pending, job.tenant_id.not_in(SUSPENDED))
    return set(connection.scalars(query)) if job_ids else set()


def known(connection: Connection, name: str) -> bool:
    """Whether there is such a queue."""
    return (
        name in QUEUES or connection.execute(select(t.queue.c.name).where(t.queue.c.name == name)).first() is not None
    )


def held(connection: Connection, names: Iterable[str]) -> set[str]:
    """Those of the queues that are there, and cannot be removed before the transaction ends.

    They can be paused and limited meanwhile: where one is always being submitted to, that would have to wait for ever.
    """
    asked = set(names)
    others = sorted(asked.difference(QUEUES))
    found = asked.intersection(QUEUES)
    if others:
        rows = select(t.queue.c.name).where(t.queue.c.name.in_(others)).order_by(t.queue.c.name)
        found |= set(connection.scalars(rows.with_for_update(read=True, key_share=True)))
    return found


# As text, because it is part of the query behind every answer that shows a job: made of expressions it costs more than the rest of the query. Both
# databases can replace; a queue's name holds nothing that JSON would escape.
_WHY = f"""CASE WHEN {{state}} <> '{State.PENDING}' THEN NULL
    WHEN (SELECT queue.paused FROM queue WHERE queue.name = {{queue}}) THEN '{WaitingFor.QUEUE_PAUSED}'
    WHEN (SELECT s.paused FROM queue_share s WHERE s.queue = {{queue}} AND s.tenant_id = {{tenant}}) THEN '{WaitingFor.SHARE_PAUSED}'
    WHEN (SELECT queue.max_concurrency FROM queue WHERE queue.name = {{queue}}) <=
        (SELECT count(*) FROM job busy WHERE busy.state = '{State.PROCESSING}' AND busy.queue = {{queue}}) THEN '{WaitingFor.QUEUE_FULL}'
    WHEN NOT EXISTS (SELECT 1 FROM worker w WHERE w.status = 'alive' AND w.status_reason IS NULL
        AND replace(CAST(w.queues AS TEXT), '"' || {{queue}} || '"', '') <> CAST(w.queues AS TEXT)) THEN '{WaitingFor.NO_WORKER}'
    END"""  # noqa: S608 - our own words alone # nosec B608
_LOOKED = "the tenant's share, and otherwise whether and how many, never a row"
_WAITING = literal_column(
    text_across_tenants(_LOOKED, _WHY.format(state="job.state", queue="job.queue", tenant="job.tenant_id")),
    String,
).label("waiting_for")
_NEW = text(text_across_tenants(_LOOKED, _WHY.format(state=":state", queue=":queue", tenant="tenant.id")))
_BESIDE = select(t.tenant.c.name, _NEW).where(t.tenant.c.id == bindparam("tenant"))


def with_waiting(query: Select[Any]) -> Select[Any]:
    """The query over ``job`` with ``waiting_for``: what a pending one waits for beside its turn, or null."""
    return query.add_columns(_WAITING)


def beside(connection: Connection, tenant_id: str, row: Mapping[str, Any]) -> tuple[str, str | None]:
    """The tenant's name, and ``waiting_for`` of a job that is about to be stored (``row``: its columns)."""
    found = connection.execute(_BESIDE, {"tenant": tenant_id, "state": row["state"], "queue": row["queue"]}).one()
    return found[0], found[1]
