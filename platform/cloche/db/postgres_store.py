"""PostgreSQL: pooled connections; units run beside each other, each in a READ COMMITTED transaction.

Why READ COMMITTED: every change of a job is a guarded update of its row, and at this level a guard that had to wait for another transaction
looks at the row as that one left it. Claims take their rows with SKIP LOCKED, so that workers never wait for each other. What a unit reads
in order to decide, it reads with ``with_for_update()``; a key that two units find free is given to one, and the other runs again and sees
it. SERIALIZABLE would spare that care, and was tried: submits and claims read and write the same pages of the job's index, four threads
of each made two conflicts for every job, and a unit that is slower than the heartbeats beside it never came through. Readers see one
snapshot (REPEATABLE READ, READ ONLY).

A commit whose answer is lost is asked after by its transaction's id, and only a no can be believed. A crash forgets the ids of transactions
whose commits had not reached the disk, and the server gives them out again: that the id is committed now may be true of another
transaction. That it is not is true of both, for an id that has reached the disk is never given out again. So a unit runs again when its
transaction is known to have been rolled back, and in every other case the caller is told that it is not known. A session that lived through
it would prove a yes, but after a crash or a fail-over, which is nearly always what it was, there is none.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cloche import clock, logs
from cloche.db.postgres_connection import BoundedConnection, open_engine
from cloche.db.postgres_errors import is_conflict, is_lost, is_nul, is_taken, is_unassigned, state_of, unavailable
from cloche.db.store import CLOCK, SERVER_US, T, Unit
from cloche.errors import Invalid, OutcomeUnknown, Unavailable

_log = logs.get(__name__)
_RANDOM = random.SystemRandom()
_LANES = 4  # threads that write what `submit` was given
_PATIENCE_S = 10.0  # for conflicts
_LOST_TRIES = 3  # a connection that is lost in mid-unit is replaced so often; then the caller decides
_TAKEN_TRIES = 2
_SETTLE_S = 10.0  # how long to ask what became of a commit whose answer was lost
# A unit does nothing but statements: a client that stands still in one is stopped or gone, and must not keep its rows locked.
_WRITER_IDLE_MS = 10_000
# One round trip: it also proves that a pooled connection still lives, and brings the server's clock and the transaction's id.
_BEGIN_READ = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT {SERVER_US}, NULL"
_BEGIN_WRITE = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = {_WRITER_IDLE_MS};"
    f" SELECT {SERVER_US}, pg_current_xact_id()::text"
)
# A standby may be behind the server that was asked to commit, and has no say in it.
_OUTCOME = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_xact_status(%s::text::xid8) END"


class PostgresStore:
    """See :class:`cloche.db.store.Store`. Connects on first use, and again after a loss."""

    kind = "postgresql"

    def __init__(self, url: URL, *, pool: int) -> None:
        self._engine = open_engine(url, pool=pool)
        self._lanes = _Lanes(min(_LANES, pool))
        self._offset: float | None = None  # the server's seconds minus this process's monotonic ones
        self._closed = False

    def read(self, unit: Unit[T]) -> T:
        for last in (False, True):
            try:
                with self._begun(_BEGIN_READ) as (connection, _):
                    return unit(connection)
            except DBAPIError as error:
                if last or not is_lost(error):
                    raise _raised(error) from error
        raise AssertionError("unreachable")

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        try:
            with self._begun(_BEGIN_READ) as (connection, _):
                yield connection
        except DBAPIError as error:
            raise _raised(error) from error

    def write(self, unit: Unit[T]) -> T:
        self._lanes.drain_own()
        return self._run(unit)

    def submit(self, unit: Unit[T]) -> Future[T]:
        if self._closed:
            raise Unavailable("the database is closed")
        return self._lanes.submit(lambda: self._run(unit))

    def number(self, query: str) -> int | None:
        # In place of a transaction's beginning: one statement by itself, in one round trip.
        with self._begun(f"SELECT {SERVER_US}, ({query})::text") as (_, found):
            return int(found) if found else None

    def now_ms(self) -> int:
        offset = self._offset
        return clock.now_ms() if offset is None else int((time.monotonic() + offset) * 1000)

    def close(self) -> None:
        self._closed = True
        self._lanes.close()
        self._engine.dispose()

    def _run(self, unit: Unit[T]) -> T:
        """Run the unit until it is committed, or lost for another reason than chance.

        It runs again only after a try of which nothing was stored; so an error of the last try speaks for all of them.
        """
        deadline = time.monotonic() + _PATIENCE_S
        conflicts = lost = taken = 0
        while True:
            if self._closed:
                raise Unavailable("the database is closed")
            try:
                return self._once(unit)
            except _NotCommitted:
                continue
            except DBAPIError as error:
                if is_conflict(error) and time.monotonic() < deadline:
                    conflicts += 1
                    time.sleep(_RANDOM.uniform(0, min(0.2, 0.001 * 2**conflicts)))
                elif is_taken(error) and taken < _TAKEN_TRIES:
                    taken += 1
                elif is_lost(error) and lost < _LOST_TRIES:
                    lost += 1
                    _log.warning("connection to the database lost; the unit runs again", tries=lost)
                    time.sleep(_RANDOM.uniform(0, 0.1 * lost))
                else:
                    raise _raised(error) from error

    def _once(self, unit: Unit[T]) -> T:
        with self._begun(_BEGIN_WRITE) as (connection, xid):
            value = unit(connection)
            raw = _raw(connection)
            if raw.info.transaction_status == TransactionStatus.INERROR:
                # COMMIT would roll back without an error, and the caller take it for done
                raise RuntimeError("a unit went on after one of its statements had failed; nothing of it was stored")
            try:
                connection.commit()
            except Exception as error:  # whatever it is called: the commit may have happened
                if state_of(error) and raw.info.transaction_status == TransactionStatus.IDLE:
                    raise  # the session lives: the server refused, and rolled back
                _log.warning("the database was lost in a commit", kind=type(error).__name__)
            else:
                return value
        self._rule_out(xid)
        raise _NotCommitted

    def _rule_out(self, xid: str) -> None:
        """Wait until the server says that nothing of this transaction was stored.

        Raises:
            OutcomeUnknown: it does not say so.
        """
        deadline = time.monotonic() + _SETTLE_S
        pause = 0.05
        while True:
            outcome = self._outcome(xid)
            if outcome in ("aborted", "committed") or time.monotonic() > deadline:
                break
            time.sleep(pause)
            pause = min(1.0, pause * 2)
        _log.warning("asked what became of the commit", outcome=outcome)
        if outcome != "aborted":
            raise OutcomeUnknown

    def _outcome(self, xid: str) -> str | None:
        """What the server says of this id now: ``aborted``, ``committed``, ``in progress``; None when it cannot be asked, or does not know."""
        try:
            with self._begun(_BEGIN_READ) as (connection, _):
                try:
                    status: str | None = connection.exec_driver_sql(_OUTCOME, (xid,)).scalar()
                except DBAPIError as error:
                    if is_unassigned(error):
                        return "aborted"  # forgotten in a crash, so never on the disk
                    raise
                return status
        except Exception as error:  # noqa: BLE001 - no failure of the question is an answer to it
            _log.warning("the database cannot be asked what became of a commit", kind=type(error).__name__)
            return None

    @contextmanager
    def _begun(self, begin: str) -> Iterator[tuple[Connection, str]]:
        """A connection in a transaction of that kind, rolled back unless the block commits, and the transaction's id."""
        connection, xid = self._opened(begin)
        try:
            yield connection, xid
        except BaseException:
            _leave(connection)
            raise
        _leave(connection)

    def _opened(self, begin: str) -> tuple[Connection, str]:
        # The first failure of a pooled connection discards all that were made before it, so that the second try makes a new one.
        for last in (False, True):
            try:
                connection = self._engine.connect()
            except (SQLAlchemyError, psycopg.Error) as error:
                raise _raised(error) from None
            try:
                connection.begin()
                row = _first(_raw(connection), begin)
            except psycopg.Error as error:
                connection.invalidate(error)
                connection.close()
                if last:
                    raise _raised(error) from None
                self._engine.dispose()
                continue
            except BaseException:
                connection.invalidate()
                connection.close()
                raise
            now = time.monotonic()
            connection.info[CLOCK] = (row[0], now)
            self._offset = row[0] / 1_000_000 - now
            return connection, row[1] or ""
        raise AssertionError("unreachable")


class _NotCommitted(Exception):
    """The connection was lost in a commit, and the server says that nothing was stored."""


class _Lanes:
    """A few threads, each with a queue of its own. What one thread submits goes through one of them, so that its order holds."""

    def __init__(self, count: int) -> None:
        self._executors = [ThreadPoolExecutor(1, thread_name_prefix="db-writer") for _ in range(count)]
        self._turns = cycle(self._executors)
        self._own = threading.local()

    def submit(self, task: Any) -> Future[Any]:
        if not hasattr(self._own, "lane"):
            self._own.lane = next(self._turns)
        try:
            future: Future[Any] = self._own.lane.submit(task)
        except RuntimeError:
            raise Unavailable("the database is closed") from None
        self._own.last = future
        return future

    def drain_own(self) -> None:
        """Wait until what the calling thread submitted is written, or has failed."""
        last: Future[Any] | None = getattr(self._own, "last", None)
        if last is not None:
            wait([last])
            self._own.last = None

    def close(self) -> None:
        for lane in self._executors:
            lane.shutdown(wait=True)


def _raw(connection: Connection) -> BoundedConnection:
    raw = connection.connection.driver_connection
    if raw is None:
        raise RuntimeError("the connection has been closed")
    return raw


def _first(raw: Any, statements: str) -> tuple[Any, ...]:
    """The row of the last of several statements, sent in one round trip."""
    with raw.cursor() as cursor:
        cursor.execute(statements)
        while cursor.nextset():
            pass
        return tuple(cursor.fetchone())


def _leave(connection: Connection) -> None:
    """Give the connection back; a transaction that is still open is rolled back, a connection that cannot do so is thrown away.

    Never raises for a lost connection: what the block has to say, or its own error, must not be covered by that.
    """
    try:
        connection.close()
    except (SQLAlchemyError, psycopg.Error) as error:
        _log.info("a connection was lost on its way back", kind=type(error).__name__)  # the pool has thrown it away


def _raised(error: Exception) -> Exception:
    """What callers get for it."""
    if is_nul(error):
        return Invalid("text may not hold the character U+0000")
    return unavailable(error) or error
