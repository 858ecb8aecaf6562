"""What an index that lost something may lack: pending jobs, rules of queues, what runs. Saying it again is harmless: what is there stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.jobs import DEFAULT_PRIORITY
from cloche.domain.states import State
from cloche.queueing.broker import Broker, Ready
from cloche.services import queue_rows
from cloche.services.records import chunks

PAGE = 500
_YOUNG_MS = 60_000  # rules this young may be those of a queue that was made after we looked
PENDING = (
    select(t.job.c.id, t.job.c.queue, t.job.c.tenant_id, t.job.c.ready_at, t.job.c.priority)
    .where(t.job.c.state == State.PENDING.value)
    .order_by(t.job.c.ready_at, t.job.c.id)
)


def front(connection: Connection, before: int) -> Sequence[Row[Any]]:
    """Those that are taken next, among the ones ready before that time (ms): the oldest, and the oldest of the urgent ones.

    What a worker took out of the index and never claimed was taken from there.
    """
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


def refresh(db: Database, broker: Broker) -> None:
    """Say again how queues are taken from and what runs; forget queues that are gone, and what is said to run and does not.

    Raises:
        Unavailable: a store does not answer.
    """
    rules, running, now = db.read(lambda c: (queue_rows.rules(c), queue_rows.running(c, now_ms(c)), now_ms(c)))
    broker.set_rules(rules)
    broker.keep(running)
    names = {each.queue for each in rules}
    for name in set(broker.queues()) - names:
        broker.drop(name, now - _YOUNG_MS)
    for name in names:
        for ids in chunks(broker.in_flight(name), PAGE):
            gone = db.read(lambda c, ids=ids: queue_rows.ended(c, ids))  # type: ignore[misc]
            broker.free((name, job_id) for job_id in gone)
