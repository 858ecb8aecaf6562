"""What every kind of database offers, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from sqlalchemy import Connection, text

from cloche import clock

T = TypeVar("T")
Unit = Callable[[Connection], T]

CLOCK = "cloche_clock"  # in a connection's ``info``: (the server's microseconds, this process's monotonic seconds when they came)
SERVER_US = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_ASK = text(f"SELECT {SERVER_US}")


class Store(Protocol):
    """One database, shared by a process's threads; all methods may be called from any of them. ``close`` is safe to call twice.

    A unit is a function of a connection. It does no I/O but its statements, has no effect outside the connection, and may run more than
    once: what it did before is rolled back first. Units of several processes run one after the other on SQLite and beside each other on
    PostgreSQL, where each statement sees what is committed when it begins: a unit that reads in order to decide has to take the row with
    ``with_for_update()`` (on SQLite that says nothing), or to write under a guard. After a statement that failed a unit cannot go on, unless
    it made a savepoint before. What one thread hands over with ``submit`` is written in that order, and before
    anything that this thread writes later.
    """

    kind: str  # "sqlite" or "postgresql"

    def read(self, unit: Unit[T]) -> T: ...

    def reader(self) -> AbstractContextManager[Connection]: ...

    def write(self, unit: Unit[T]) -> T: ...

    def submit(self, unit: Unit[T]) -> Future[T]: ...

    def number(self, query: str) -> int | None: ...

    def now_ms(self) -> int: ...

    def close(self) -> None: ...


def now_ms(connection: Connection) -> int:
    """Milliseconds since the epoch by the clock that all programs of this database share: PostgreSQL's own, or on SQLite the machine's.

    Whatever one program writes and another compares with its now (leases, heartbeats, due times, expiry) is measured by this one: the
    hosts' own clocks may differ. It costs no round trip: the server's time comes with each transaction's beginning.
    """
    if connection.dialect.name != "postgresql":
        return clock.now_ms()
    return _server_us(connection) // 1_000


def new_id(connection: Connection) -> str:
    """A UUIDv7 by that clock. Ids of one process made at one moment may come in any order."""
    if connection.dialect.name != "postgresql":
        return clock.uuid7()
    return clock.uuid7_at(_server_us(connection))


def _server_us(connection: Connection) -> int:
    known = connection.info.get(CLOCK)
    if known is None:  # a connection that no Store began
        return int(connection.execute(_ASK).scalar_one())
    return int(known[0] + (time.monotonic() - known[1]) * 1_000_000)
