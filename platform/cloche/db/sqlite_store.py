"""SQLite: many readers, and one writer at a time that groups commits.

SQLite lets one connection write at a time. So does this process: units of work that arrive while a commit is on its way to the disk share
the next one (``synchronous=FULL``), each under a savepoint of its own, so that one unit's failure takes nothing from its neighbours. Whoever
waits for a unit and finds nobody writing writes by itself, with what else has come, until its own is done: to hand it to another thread and
be woken again takes longer than the commit. What nobody waits for, and what came last to a writer that is done, a thread of the store's own
writes. A unit must do no I/O but its statements.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import OperationalError

from cloche import logs
from cloche.clock import now_ms
from cloche.db import scope
from cloche.db.store import T, Unit
from cloche.errors import EnvironmentProblem, Unavailable

_log = logs.get(__name__)
_GROUP = 64  # units in one commit; more only lengthens the wait of the first
_BUSY_MS = 10_000
# How long a caller waits for its turn. A process that stands still in a transaction keeps everybody else waiting for as long as it does.
_PATIENCE_S = 20.0
_IDLE = (
    16  # connections kept in hand: for the pool to take one back and give it out again costs as much as a short read
)


class SqliteStore:
    """See :class:`cloche.db.store.Store`. A unit runs again when SQLite was busy, or gave up the transaction it shared with others."""

    kind = "sqlite"

    def __init__(self, url: URL, *, readers: int = 16) -> None:
        self.path = Path(url.database or "")
        self._engine = create_engine(
            url,
            pool_size=readers,
            max_overflow=readers + _IDLE,
            hide_parameters=True,  # a statement's values, password hashes among them, never reach a log
            connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False},
        )
        event.listen(self._engine, "connect", _on_connect)
        scope.guard(self._engine)
        self._idle: deque[Connection] = deque()
        self._queue: deque[tuple[Unit[Any], Future[Any]]] = deque()  # in the order of arrival, written from the left
        self._writing = threading.Lock()  # held by whoever writes
        self._left_over = threading.Event()  # there may be something that nobody is writing
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._turn = _Turn(self.path)

    def read(self, unit: Unit[T]) -> T:
        with self.reader() as connection:
            return unit(connection)

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        try:
            with self._connected() as connection:
                _begin(connection, "BEGIN")
                yield connection
        except OperationalError as error:
            raise _explained(error) from error

    def write(self, unit: Unit[T]) -> T:
        future = self._put(unit)
        if self._writing.acquire(blocking=False):
            try:
                self._write(future)
            except BaseException:
                future.cancel()  # the caller is told that it failed: nobody may write it later
                raise
        wait([future], _PATIENCE_S)
        if future.cancel():  # it has not begun, and will not
            raise Unavailable(f"the database does not answer (nothing could be written for {_PATIENCE_S:.0f} s)")
        return future.result()

    def submit(self, unit: Unit[T]) -> Future[T]:
        future = self._put(unit)
        self._left_over.set()
        return future

    def _put(self, unit: Unit[T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the database is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="db-writer", daemon=True)
                self._thread.start()
            self._queue.append((unit, future))
        return future

    def number(self, query: str) -> int | None:
        try:
            with self._connected() as connection:
                row = _driver(connection).execute(query).fetchone()
        except (OperationalError, sqlite3.OperationalError) as error:
            raise _explained(error) from error
        return None if row is None else int(row[0])

    def now_ms(self) -> int:
        return now_ms()  # a file has no clock of its own

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._left_over.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)
            if self._thread.is_alive():
                return  # in line behind a process that stands still; what is left ends with this one
        with self._writing:  # somebody may be at it who found the store open
            self._turn.close()
        with suppress(IndexError):  # a reader may take the last one meanwhile
            while True:
                self._idle.pop().close()
        self._engine.dispose()

    def _run(self) -> None:
        while not (self._closed and not self._queue):
            self._left_over.wait()
            self._left_over.clear()
            self._writing.acquire()
            self._write(None)

    def _write(self, own: Future[Any] | None) -> None:
        """Write what has come, until ``own`` is done (None: until nothing is left), and let the next one write. For ``own`` nobody stands in
        line behind another process: then the store's own thread does, and the caller waits as long as it has patience."""
        try:
            while self._queue and not (own is not None and own.done()):
                if not self._turn.take(in_line=own is None):
                    break
                try:
                    self._commit([self._queue.popleft() for _ in range(min(_GROUP, len(self._queue)))])
                finally:
                    self._turn.leave()
        finally:
            self._writing.release()
            # Whoever came before the release found somebody writing, and waits; whoever comes after it writes.
            if self._queue or self._closed:
                self._left_over.set()

    def _commit(self, group: list[tuple[Unit[Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        alone = len(group) == 1
        try:
            with self._transaction() as connection:
                for unit, future in group:
                    if _wanted(future):
                        value, failure = (_run_alone if alone else _run_unit)(connection, unit)
                        done.append((future, value, failure))
        except _UnitFailed as failed:
            group[0][1].set_exception(failed.cause)
            return
        except _TransactionGone as gone:
            # SQLite gave up the whole transaction (disk full, I/O error): nothing of the group is stored. Each unit gets its own try.
            if alone:
                _fail(group[0][1], gone.cause)
            else:
                for single in group:
                    self._commit([single])
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting, and the writer goes on
            for _, future in group:
                _fail(future, error)
            return
        except BaseException as error:  # this thread is to end: it takes nobody along
            for _, future in group:
                _fail(future, error)
            raise
        for future, value, failure in done:
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        deadline = time.monotonic() + _BUSY_MS / 1000
        with self._connected() as connection:
            while True:
                transaction = connection.begin()
                try:
                    _begin(connection, "BEGIN IMMEDIATE")
                    break
                except OperationalError as error:
                    transaction.rollback()
                    if "locked" not in str(error) or time.monotonic() > deadline:
                        raise
            try:
                yield connection
                transaction.commit()
            except BaseException:
                transaction.rollback()
                raise

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection; afterwards no transaction is left in it. One that met an error is not used again."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._engine.connect()
        try:
            yield connection
            connection.rollback()
            if _in_transaction(connection):  # SQLAlchemy ends none in which it has run nothing
                _driver(connection).rollback()
        except BaseException:
            connection.close()
            raise
        if self._closed or len(self._idle) >= _IDLE:
            connection.close()
        else:
            self._idle.append(connection)


class _Turn:
    """Whose turn it is to write, among the processes of a database file.

    SQLite's own lock is polled with growing pauses, so that a process which writes all the time starves the others for seconds. Here a waiter
    sleeps in the kernel on a lock file, is woken when the writer lets go, and finds a moment in which nobody else asks. Used by one
    thread at a time. It orders writers and protects nothing: without it SQLite's lock still does.
    """

    _MOMENT_S = 0.0005

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.with_name(f"{path.name}.turn").open("ab")
        except OSError as error:
            raise EnvironmentProblem(f"cannot write beside the database {path}: {error.strerror}") from None
        self._left = 0.0
        self._told = False

    def take(self, *, in_line: bool) -> bool:
        """Whether it is ours now; ``in_line``: wait for it."""
        since = time.monotonic() - self._left
        if since < self._MOMENT_S:
            time.sleep(self._MOMENT_S - since)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX if in_line else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self._none(error)
        return True

    def leave(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            self._none(error)
        self._left = time.monotonic()

    def _none(self, error: OSError) -> None:
        """The file system has no lock to give (ENOLCK): who writes is then up to SQLite alone."""
        if not self._told:
            self._told = True
            _log.warning("cannot stand in line to write", error=error.strerror)

    def close(self) -> None:
        self._file.close()


class _TransactionGone(Exception):
    """The transaction that held the group was rolled back by SQLite itself."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _wanted(future: Future[Any]) -> bool:
    """Whether somebody still waits for it. From then on it cannot be given up. May be asked again, when a group is tried again or has failed."""
    if future.running():
        return True
    return not future.cancelled() and future.set_running_or_notify_cancel()


def _fail(future: Future[Any], error: BaseException) -> None:
    if _wanted(future):
        future.set_exception(_explained(error))


class _UnitFailed(Exception):
    """A unit that had the transaction to itself failed: the transaction is to be rolled back."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _run_alone(connection: Connection, unit: Unit[Any]) -> tuple[Any, None]:
    try:
        return unit(connection), None
    except BaseException as error:
        if not _in_transaction(connection):
            raise _TransactionGone(error) from error
        raise _UnitFailed(_explained(error) if isinstance(error, OperationalError) else error) from error


def _run_unit(connection: Connection, unit: Unit[Any]) -> tuple[Any, BaseException | None]:
    # On the driver itself: SQLAlchemy's savepoint is an object with a history, and takes longer than what it marks.
    raw = _driver(connection)
    raw.execute("SAVEPOINT unit")
    try:
        value = unit(connection)
        raw.execute("RELEASE unit")
    except BaseException as error:
        if not raw.in_transaction:
            raise _TransactionGone(error) from error
        raw.execute("ROLLBACK TO unit")
        raw.execute("RELEASE unit")
        return None, _explained(error) if isinstance(error, (OperationalError, sqlite3.OperationalError)) else error
    return value, None


def _driver(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.dbapi_connection
    if not isinstance(raw, sqlite3.Connection):
        raise RuntimeError("the connection has been closed")
    return raw


def _in_transaction(connection: Connection) -> bool:
    return _driver(connection).in_transaction


def _on_connect(raw: Any, _record: object) -> None:
    raw.isolation_level = None  # SQLAlchemy's events begin transactions, not the driver
    cursor = raw.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.close()


def _begin(connection: Connection, statement: str) -> None:
    # SQLAlchemy has an event for it. An engine that anybody listens to asks for listeners at every statement, which costs more than this.
    try:
        _driver(connection).execute(statement)
    except sqlite3.OperationalError as error:
        raise OperationalError(statement, None, error) from error


def _explained(error: BaseException) -> Unavailable:
    text = str(getattr(error, "orig", error))
    if "full" in text:
        return Unavailable(f"the database's disk is full ({text})")
    return Unavailable(f"the database does not answer ({text})")
