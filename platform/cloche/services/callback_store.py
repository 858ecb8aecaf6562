"""The rows of deliveries: which are due, who sends them now, how each try ended. Several schedulers may work on them at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, and_, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from cloche.clock import to_rfc3339, uuid7_floor
from cloche.db import tables as t
from cloche.domain.callbacks import Delivery, Outcome
from cloche.domain.events import Trace
from cloche.services.records import trace_row

_delivery = t.callback_delivery
_c = _delivery.c
_LOOKED_AT = 5_000  # deliveries that one page looks at
_PENDING = text(
    "callback_delivery.status = 'pending'"
)  # the words of the partial index: a bound value would not be looked behind


class Receiver(NamedTuple):
    """Deliveries are shared out between these: one that is slow or dead holds up no other."""

    tenant_id: str
    name: str  # host:port


class Result(NamedTuple):
    """How one try ended. ``next_try_at`` is set while there will be another."""

    outcome: Outcome
    http_status: int | None
    error: str | None
    next_try_at: int | None


# Both pass over what waits for its next try, and look at the index alone: thousands of dead receivers would else use up round after round.


def next_tenant(connection: Connection, after: str | None, now: int) -> str | None:
    """The first tenant behind ``after`` that something is due of."""
    query = select(_c.tenant_id).where(_PENDING, _c.next_try_at <= now).order_by(_c.tenant_id).limit(1)
    return connection.execute(query if after is None else query.where(_c.tenant_id > after)).scalar()


def next_receiver(connection: Connection, tenant_id: str, after: str | None, now: int) -> Receiver | None:
    """The tenant's first receiver whose name is behind ``after`` that something is due to."""
    query = select(_c.receiver).where(_PENDING, _c.tenant_id == tenant_id, _c.next_try_at <= now)
    query = query.order_by(_c.receiver).limit(1)
    name = connection.execute(query if after is None else query.where(_c.receiver > after)).scalar()
    return None if name is None else Receiver(tenant_id, name)


def pending_of(job_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether something of this job, a column of another table, is still to be delivered or given up."""
    return select(_c.id).where(_c.job_id == job_id, _c.status == Delivery.PENDING.value).exists()


def due(connection: Connection, receiver: Receiver, now: int, limit: int) -> list[str]:
    """Ids of what may be sent to the receiver now, the longest due first; of each job the first that is not settled alone."""
    earlier = t.callback_delivery.alias("earlier")
    before = and_(
        earlier.c.job_id == _c.job_id, earlier.c.number < _c.number, earlier.c.status == Delivery.PENDING.value
    )
    query = (
        select(_c.id)
        .where(_PENDING, _c.tenant_id == receiver.tenant_id, _c.receiver == receiver.name)
        .where(_c.next_try_at <= now, _c.claimed_until <= now, ~select(earlier.c.id).where(before).exists())
        .order_by(_c.next_try_at)
        .limit(limit)
    )
    return list(connection.scalars(query))


def claim(connection: Connection, ids: Sequence[str], owner: str, now: int, until: int) -> list[RowMapping]:
    """Take those that nobody else has taken; with the URL they go to."""
    mine = (
        update(_delivery)
        .where(_c.id.in_(ids), _c.status == Delivery.PENDING.value, _c.claimed_until <= now, _c.next_try_at <= now)
        .values(claimed_by=owner, claimed_until=until, attempts=_c.attempts + 1, last_attempt_at=now)
        .returning(_c.id)
    )
    taken = list(connection.scalars(mine))
    query = select(_delivery, t.job.c.callback, t.job.c.attempt).join(t.job, t.job.c.id == _c.job_id)
    return list(connection.execute(query.where(_c.id.in_(taken))).mappings()) if taken else []


def settle(connection: Connection, row: RowMapping, owner: str, result: Result, now: int) -> bool:
    """Write how a try ended. False when it was no longer the owner's: its time was over and another one sends it."""
    ended = result.next_try_at is None
    status = Delivery.PENDING
    if ended:
        settled = {Outcome.DELIVERED: Delivery.DELIVERED, Outcome.GONE: Delivery.GONE}
        status = settled.get(result.outcome, Delivery.GIVEN_UP)
    values: dict[str, Any] = {
        "status": status.value,
        "claimed_by": None,
        "claimed_until": 0,
        "last_status": result.http_status,
        "last_outcome": result.outcome.value,
        "last_error": None if result.error is None else result.error[:300],
        "ended_at": now if ended else None,
    }
    if result.next_try_at is not None:
        values["next_try_at"] = result.next_try_at
    mine: ColumnElement[bool] = and_(_c.id == row["id"], _c.claimed_by == owner, _c.status == Delivery.PENDING.value)
    if connection.execute(update(_delivery).where(mine).values(values)).rowcount != 1:
        return False
    count(connection, [result.outcome, *([Outcome.GIVEN_UP] if status is Delivery.GIVEN_UP else [])])
    if status is Delivery.GONE:
        _refuse_rest(connection, row["job_id"], now)
    if ended:
        told = {"event": row["event"], "number": row["number"], "attempts": row["attempts"]}
        if status is not Delivery.DELIVERED:
            told |= {"status": status.value, "error": values["last_error"]}
        event = Trace.CALLBACK_DELIVERED if status is Delivery.DELIVERED else Trace.CALLBACK_FAILED
        connection.execute(insert(t.trace_event), trace_row(row["job_id"], row["attempt"], event, now, told))
    return True


def count(connection: Connection, outcomes: Iterable[Outcome]) -> None:
    """Add to the sums that metrics show."""
    total = t.callback_total
    for outcome in outcomes:
        added = update(total).where(total.c.outcome == outcome.value).values(count=total.c["count"] + 1)
        if connection.execute(added).rowcount:
            continue
        try:
            with connection.begin_nested():
                connection.execute(insert(total), {"outcome": outcome.value, "count": 1})
        except IntegrityError:  # another scheduler was first
            connection.execute(added)


def totals(connection: Connection) -> tuple[int, dict[str, int]]:
    """How many deliveries are not settled, and how many tries ever ended how."""
    pending = connection.execute(select(func.count()).select_from(_delivery).where(_PENDING)).scalar_one()
    rows = connection.execute(select(t.callback_total.c.outcome, t.callback_total.c["count"])).all()
    return pending, {outcome.value: 0 for outcome in Outcome} | {outcome: number for outcome, number in rows}


def newest(
    connection: Connection, tenant_id: str, status: str | None, before: str | None, limit: int
) -> tuple[list[RowMapping], str | None]:
    """The tenant's deliveries, newest first, behind the id ``before``; and the id behind which to go on, None at the end.

    Looks at so many of all tenants' at a time, so that a small tenant's page costs no more than a large one's; it may be short, and still
    not be the last. Where it ends is then told by the millisecond alone: the id that is there may be of another tenant.
    """
    window = select(_c.id).order_by(_c.id.desc()).limit(_LOOKED_AT)
    first = select(func.min((window if before is None else window.where(_c.id < before)).subquery().c.id))
    why = "how far back a page looks: of the id that is found its millisecond alone is told"
    last = connection.scalar(first.execution_options(across_tenants=why))
    if last is None:
        return [], None
    last = uuid7_floor(last)
    query = select(_delivery).where(_c.tenant_id == tenant_id, _c.id >= last).order_by(_c.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(_c.id < before)
    if status is not None:
        query = query.where(_c.status == status)
    found = list(connection.execute(query).mappings())
    if len(found) > limit:
        return found[:limit], str(found[limit - 1]["id"])
    older = select(_c.id).where(_c.id < last).limit(1)
    more = connection.scalar(older.execution_options(across_tenants=why)) is not None
    return found, last if more else None


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A delivery as the answers of REST show it."""
    waiting = row["status"] == Delivery.PENDING.value
    return {
        "id": row["id"],
        "number": row["number"],
        "event": row["event"],
        "receiver": row["receiver"],
        "status": row["status"],
        "attempts": row["attempts"],
        "created_at": to_rfc3339(row["created_at"]),
        "last_attempt_at": to_rfc3339(row["last_attempt_at"]),
        "last_status": row["last_status"],
        "last_outcome": row["last_outcome"],
        "last_error": row["last_error"],
        "next_try_at": to_rfc3339(row["next_try_at"]) if waiting else None,
        "ended_at": to_rfc3339(row["ended_at"]),
    }


def _refuse_rest(connection: Connection, job_id: str, now: int) -> None:
    """Whoever answers 410 gets nothing more of the job, nor what was already written for it."""
    rest = and_(_c.job_id == job_id, _c.status == Delivery.PENDING.value)
    connection.execute(update(_delivery).where(rest).values(status=Delivery.GONE.value, ended_at=now))
