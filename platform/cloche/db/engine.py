"""The engine: many readers, and on SQLite one writer thread that groups commits.

SQLite lets one connection write at a time. Here a single thread owns the writing connection: units of work that arrive while a commit is
on its way to the disk share the next one (``synchronous=FULL``), each under a savepoint of its own, so that one unit's failure takes nothing
from its neighbours. A unit must do no I/O but its statements.
"""

from __future__ import annotations

import fcntl
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from cloche.errors import EnvironmentProblem, SettingsError, Unavailable

T = TypeVar("T")
Unit = Callable[[Connection], T]

_GROUP = 64  # units in one commit; more only lengthens the wait of the first
_BUSY_MS = 10_000


class Database:
    """One database, shared by a process's threads. ``read`` and ``write`` may be called from any of them.

    Call order: construct, use, ``close`` (safe to call twice). A unit given to ``write`` may run again when SQLite was busy: it must
    have no effect outside the connection.
    """

    def __init__(self, url: str, *, readers: int = 16) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            raise SettingsError("database url: this version stores in SQLite, such as sqlite:////srv/cloche/cloche.db")
        self.path = Path(parsed.database)
        self._engine = create_engine(
            parsed,
            pool_size=readers,
            max_overflow=readers,
            hide_parameters=True,  # a statement's values, password hashes among them, never reach a log
            connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False},
        )
        event.listen(self._engine, "connect", _on_connect)
        event.listen(self._engine, "begin", _on_begin)
        self._queue: queue.SimpleQueue[tuple[Unit[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._turn = _Turn(self.path)

    def read(self, unit: Unit[T]) -> T:
        """Run ``unit`` on a reader; it sees one consistent snapshot and must not write."""
        with self.reader() as connection:
            return unit(connection)

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        """A reading connection for the length of the block."""
        try:
            with self._engine.connect().execution_options(cloche_read=True) as connection:
                yield connection
        except OperationalError as error:
            raise _explained(error) from error

    def write(self, unit: Unit[T]) -> T:
        """Run ``unit`` in a transaction of its own and return once it is on the disk.

        Raises:
            Unavailable: the database stayed locked, or its disk is full. Nothing was written.
        """
        return self.submit(unit).result()

    def submit(self, unit: Unit[T]) -> Future[T]:
        """Like :meth:`write`, without waiting. The future holds the unit's value once it is on the disk."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Unavailable("the database is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="db-writer", daemon=True)
                self._thread.start()
            self._queue.put((unit, future))
        return future

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        self._turn.close()
        self._engine.dispose()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            last = False
            while len(group) < _GROUP:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    last = True
                    break
                group.append(item)
            self._commit(group)
            if last:
                return

    def _commit(self, group: list[tuple[Unit[Any], Future[Any]]]) -> None:
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._begun() as connection:
                for unit, future in group:
                    done.append((future, *_run_unit(connection, unit)))
        except _TransactionGone as gone:
            # SQLite gave up the whole transaction (disk full, I/O error): nothing of the group is stored. Each unit gets its own try.
            if len(group) == 1:
                group[0][1].set_exception(_explained(gone.cause))
            else:
                for single in group:
                    self._commit([single])
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may be left waiting, and the writer goes on
            for _, future in group:
                future.set_exception(_explained(error))
            return
        for future, value, failure in done:
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(value)

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        with self._turn, self._transaction() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        deadline = time.monotonic() + _BUSY_MS / 1000
        while True:
            connection = self._engine.connect()
            try:
                transaction = connection.begin()
                break
            except OperationalError as error:
                connection.close()
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
        try:
            yield connection
            transaction.commit()
        except BaseException:
            transaction.rollback()
            raise
        finally:
            connection.close()


class _Turn:
    """Whose turn it is to write, among the processes of a database file.

    SQLite's own lock is polled with growing pauses, so that a process which writes all the time starves the others for seconds. Here a waiter
    sleeps in the kernel on a lock file, is woken when the writer lets go, and finds a moment in which nobody else asks. Used by the one
    writer thread. It orders writers and protects nothing: without it SQLite's lock still does.
    """

    _MOMENT_S = 0.0005

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.with_name(f"{path.name}.turn").open("ab")
        except OSError as error:
            raise EnvironmentProblem(f"cannot write beside the database {path}: {error.strerror}") from None
        self._left = 0.0

    def __enter__(self) -> None:
        since = time.monotonic() - self._left
        if since < self._MOMENT_S:
            time.sleep(self._MOMENT_S - since)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._left = time.monotonic()

    def close(self) -> None:
        self._file.close()


class _TransactionGone(Exception):
    """The transaction that held the group was rolled back by SQLite itself."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _run_unit(connection: Connection, unit: Unit[Any]) -> tuple[Any, BaseException | None]:
    savepoint = connection.begin_nested()
    try:
        value = unit(connection)
        savepoint.commit()
    except BaseException as error:
        if not _in_transaction(connection):
            raise _TransactionGone(error) from error
        if savepoint.is_active:
            savepoint.rollback()
        if isinstance(error, OperationalError):
            return None, _explained(error)
        return None, error
    return value, None


def _in_transaction(connection: Connection) -> bool:
    raw = connection.connection.dbapi_connection
    return bool(raw is not None and raw.in_transaction)


def _on_connect(raw: Any, _record: object) -> None:
    raw.isolation_level = None  # SQLAlchemy's events begin transactions, not the driver
    cursor = raw.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    reading = connection.get_execution_options().get("cloche_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _explained(error: BaseException) -> Unavailable:
    text = str(getattr(error, "orig", error))
    if "full" in text:
        return Unavailable(f"the database's disk is full ({text})")
    return Unavailable(f"the database does not answer ({text})")


def check_home(home: Path) -> None:
    """Make the home directory and its folders (0700) and refuse one that cannot be written.

    Raises:
        EnvironmentProblem: with the path and what to do.
    """
    try:
        for folder in (home, home / "run", home / "keys", home / "artifacts", home / "bundles", home / "wheels"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write to the home directory {home}: {error.strerror}. Set CLOCHE_HOME to a folder of your own."
        ) from None
