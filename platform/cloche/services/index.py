"""What an index that lost something may lack: pending jobs, rules of queues, what runs. Saying it again is harmless: what is there stays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.jobs import DEFAULT_PRIORITY
from cloche.domain.states import State
from cloche.queueing.broker import Broker, Ready
from cloche.services import queue_rows
from cloche.services.effects import ready
from cloche.services.records import chunks

PAGE = 500
_YOUNG_MS = 60_000  # rules this young may be those of a queue that was made after we looked
PENDING = (
    select(t.job.c.id, t.job.c.queue, t.job.c.tenant_id, t.job.c.ready_at, t.job.c.priority)
    .where(t.job.c.state == State.PENDING.value)
    .order_by(t.job.c.ready_at, t.job.c.id)
)


def front(connection: Connection, before: int) -> Sequence[Row[Any]]:
    """Of the ones ready before that time (ms) the oldest, and the oldest of the urgent ones."""
    old = PENDING.where(t.job.c.ready_at < before).limit(PAGE)
    urgent = old.where(t.job.c.priority > DEFAULT_PRIORITY)
    rows = [*connection.execute(old), *connection.execute(urgent)]
    return list({row.id: row for row in rows}.values())


def rebuild(db: Database, broker: Broker, pending: Sequence[Ready]) -> None:
    """Make the index whole from the database.

    Raises:
        Unavailable: a store does not answer.
    """
    rules, running = db.read(lambda c: (queue_rows.rules(c), queue_rows.running(c, now_ms(c))))
    broker.rebuild(pending, rules, running)


def refresh(db: Database, broker: Broker, doubted: Collection[str] = ()) -> set[str]:
    """Say again how queues are taken from and what runs; forget queues that are gone, and what is said to run and does not.

    ``doubted``: what the call before this one returned. See :func:`settle`.

    Raises:
        Unavailable: a store does not answer.
    """
    rules, running, now = db.read(lambda c: (queue_rows.rules(c), queue_rows.running(c, now_ms(c)), now_ms(c)))
    broker.set_rules(rules)
    broker.keep(running)
    names = {each.queue for each in rules}
    for name in set(broker.queues()) - names:
        broker.drop(name, now - _YOUNG_MS)
    return settle(db, broker, names, doubted)


def settle(db: Database, broker: Broker, queues: Iterable[str], doubted: Collection[str] | None) -> set[str]:
    """Ask the database about all that is in flight: free what has ended, and put back what is still pending, to be taken again at once.

    Somebody took that one out of the index and never claimed it; or is claiming it just now, which looks the same. So only the ``doubted`` are put
    back (None: all of them). A second copy of an id harms nobody, but where what is being claimed is freed a limit lets a job more through, until the
    worker's next heartbeat. Returns the ids that are pending, to be doubted later. The work is that of what runs, and of what crashes left.

    Raises:
        Unavailable: a store does not answer.
    """
    pending: set[str] = set()
    for name in queues:
        for ids in chunks(broker.in_flight(name, over=True), PAGE):
            live = db.read(lambda c, ids=ids: queue_rows.live(c, ids))  # type: ignore[misc]
            taken = [row for row in live if row.state == State.PENDING.value]
            back = [row for row in taken if doubted is None or row.id in doubted]
            gone = {*ids}.difference(row.id for row in live)
            with broker.together() as said:
                said.free((name, job_id) for job_id in gone.union(row.id for row in back))
                said.push(ready(row.id, row.queue, row.tenant_id, row.ready_at, row.priority) for row in back)
            pending.update(row.id for row in taken)
    return pending
