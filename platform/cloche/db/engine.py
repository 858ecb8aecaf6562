"""The database as everybody above uses it: one class, whichever store its URL names."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError

from cloche.db import scope
from cloche.db.postgres_store import PostgresStore
from cloche.db.sqlite_store import SqliteStore
from cloche.db.store import Store, T, Unit, now_ms
from cloche.errors import EnvironmentProblem, SettingsError

__all__ = ["Database", "Unit", "check_home", "now_ms"]

FORMS = "write sqlite:////srv/cloche/cloche.db or postgresql://USER:PASSWORD@HOST:5432/DATABASE"
POOL = 16  # connections of one process, unless told otherwise


class Database:
    """One database, shared by a process's threads; see :class:`cloche.db.store.Store` for what holds of a unit.

    Call order: construct (connects to nothing), use, ``close`` (safe to call twice). ``pool``: connections that PostgreSQL is asked for at
    most. ``url`` may hold a password: show ``where`` instead.

    Raises:
        SettingsError: the URL names no database of a kind that is supported.
    """

    def __init__(self, url: str, *, pool: int = POOL) -> None:
        self.url = url
        self._store: Store
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise SettingsError(f"database.url is malformed: {FORMS}") from None
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            self._store = SqliteStore(parsed)
            self.where = f"the file {parsed.database}"
        elif parsed.drivername in ("postgresql", "postgresql+psycopg") and parsed.database:
            self._store = PostgresStore(parsed, pool=pool)
            self.where = f"PostgreSQL database {parsed.database}"
        else:
            raise SettingsError(f"database.url names no database: {FORMS}")

    @property
    def kind(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._store.kind

    @property
    def path(self) -> Path:
        """The file of an SQLite database; there is none on PostgreSQL, and asking is a mistake there."""
        if not isinstance(self._store, SqliteStore):
            raise TypeError(f"{self.where} is no file")
        return self._store.path

    def read(self, unit: Unit[T]) -> T:
        """Run ``unit`` on a reader; it sees one consistent snapshot and must not write.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._store.read(unit)  # in this thread: its scope is the caller's

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        """A reading connection for the length of the block: one consistent snapshot.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._store.reader() as connection:
            yield connection

    def write(self, unit: Unit[T]) -> T:
        """Run ``unit`` in a transaction of its own and return once it is on the disk.

        Raises:
            OutcomeUnknown: PostgreSQL was lost in the moment of the commit: the change was written, or not. To write it again, look first.
            Unavailable: the database does not answer, stayed locked, or its disk is full. Nothing was written.
        """
        return self._store.write(scope.carried(unit))

    def submit(self, unit: Unit[T]) -> Future[T]:
        """Like :meth:`write`, without waiting. The future holds the unit's value once it is on the disk."""
        return self._store.submit(scope.carried(unit))

    def number(self, query: str) -> int | None:
        """The whole number that ``query`` (of ours, without values) finds, or None: the cheapest read there is, outside any transaction.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._store.number(query)

    def now_ms(self) -> int:
        """The database's clock outside a transaction, as far as it is known; never fails. Inside one ask ``now_ms(connection)``."""
        return self._store.now_ms()

    def close(self) -> None:
        self._store.close()


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
