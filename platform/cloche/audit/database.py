"""The trail in a database file, read without a server and without writing a byte of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from cloche.audit.event import Event, TamperedTrail
from cloche.audit.note import PublicKey
from cloche.audit.trail import Batch, Break, Leaf, Person, Prune
from cloche.errors import EnvironmentProblem, Unavailable

_TABLES = ("audit_event", "audit_leaf", "audit_batch", "audit_person")
_EVENT = ", ".join(f"e.{name}" for name in Event._fields)
_LEAVES = f"SELECT l.seq, l.event_id, l.hash, {_EVENT} FROM audit_leaf l LEFT JOIN audit_event e ON e.id = l.event_id WHERE l.seq >= ? ORDER BY l.seq"  # noqa: S608 # nosec B608
_UNSEALED = (
    f"SELECT {_EVENT} FROM audit_event e WHERE NOT EXISTS"  # noqa: S608 # nosec B608
    " (SELECT 1 FROM audit_leaf l WHERE l.event_id = e.id AND l.seq >= 0) ORDER BY e.rowid"
)
_BATCHES = "SELECT number, size, root, previous, at, note FROM audit_batch ORDER BY number"
_PRUNES = "SELECT number, upto, at, note FROM audit_prune ORDER BY number"
# Counted by the store, from its index: of a whole trail nothing is fetched.
_BREAKS = (
    "SELECT n.object, n.object_seq, n.previous, (SELECT e.id FROM audit_event e WHERE e.object = n.object AND e.object_seq = n.object_seq),"
    " (SELECT l.seq FROM audit_event e JOIN audit_leaf l ON l.event_id = e.id WHERE e.object = n.object AND e.object_seq = n.object_seq)"
    " FROM (SELECT object, object_seq, lag(object_seq) OVER (PARTITION BY object ORDER BY object_seq) AS previous FROM audit_event"
    " WHERE object_seq IS NOT NULL) n WHERE n.object_seq <> coalesce(n.previous, 0) + 1 ORDER BY n.object, n.object_seq"
)
_SHORT = (
    "SELECT j.id, j.audit_seq, coalesce((SELECT max(e.object_seq) FROM audit_event e WHERE e.object = 'job:' || j.id), 0) AS there"
    " FROM job j WHERE j.audit_seq > there AND NOT (there = 0 AND coalesce(j.finished_at, j.created_at) <= ?) ORDER BY j.id LIMIT 1"
)


class DatabaseTrail:
    """A trail in an SQLite file, seen as one snapshot from construction to ``close``. One thread at a time.

    Raises:
        EnvironmentProblem: no such file, or not a Cloche database.
        Unavailable: the file stayed locked.
    """

    truncated = False
    as_of = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._immutable = not _in_use(path)
        self._connection = _open(path, immutable=self._immutable)
        try:
            names = {row[0] for row in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except TamperedTrail as error:
            self.close()
            raise EnvironmentProblem(f"{path} is not a Cloche database ({error.why})") from None
        if not names.issuperset(_TABLES):
            self.close()
            raise EnvironmentProblem(f"{path} is not a Cloche database: it has no table {min(set(_TABLES) - names)}")
        self._has_jobs = "job" in names
        self._has_marks = "audit_prune" in names  # older schemas have none

    def __enter__(self) -> DatabaseTrail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def disturbed(self) -> bool:
        """Whether somebody may have written while this read without locks: what it found wrong has to be looked at again."""
        return self._immutable and _in_use(self._path)

    def close(self) -> None:
        self._connection.close()

    def leaves(self, start: int = 0) -> Iterator[Leaf]:
        for row in self._rows(_LEAVES, start):
            yield Leaf(row[0], row[1], row[2], None if row[3] is None else Event._make(row[3:]))

    def batches(self) -> Iterator[Batch]:
        return map(Batch._make, self._rows(_BATCHES))

    def prunes(self) -> Iterator[Prune]:
        return map(Prune._make, self._rows(_PRUNES)) if self._has_marks else iter(())

    def unsealed(self) -> Iterator[Event]:
        return map(Event._make, self._rows(_UNSEALED))

    def breaks(self) -> Iterator[Break]:
        return map(Break._make, self._rows(_BREAKS))

    def persons(self) -> Iterator[Person]:
        return map(Person._make, self._rows("SELECT commitment, kind, value, salt FROM audit_person ORDER BY rowid"))

    def finish(self, key: PublicKey, until: int) -> Iterator[str]:  # noqa: ARG002 - part of the protocol
        """A job's row counts its events: one that is missing at the end shows there. And the file's own indexes must hold."""
        if self._has_jobs:
            for job_id, counted, there in self._rows(_SHORT, until):
                raise TamperedTrail(f"event {there + 1} of job:{job_id} is missing (the job counts {counted})")
        for table in _TABLES:
            for (said,) in self._rows(f"PRAGMA integrity_check({table})"):
                if said != "ok":
                    raise TamperedTrail(f"the database file is damaged: {said}")
        yield from ()

    def _rows(self, statement: str, *values: int) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(statement, values)
        except (sqlite3.Error, UnicodeError) as error:
            if "locked" in str(error) or "busy" in str(error):
                raise Unavailable(f"the database is locked ({error})") from None
            raise TamperedTrail(f"the database file cannot be read as a trail ({error})") from None


def _in_use(path: Path) -> bool:
    """Whether a log lies beside the file: somebody has it open, or had when the machine stopped."""
    return any(path.with_name(path.name + end).exists() for end in ("-wal", "-journal"))


def _open(path: Path, *, immutable: bool) -> sqlite3.Connection:
    if not path.is_file():
        raise EnvironmentProblem(f"there is no database {path}")
    # Opened as immutable SQLite neither locks nor makes files beside it, so a medium that cannot be written will do
    uri = f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if immutable else ''}"
    try:
        return _begun(uri)
    except sqlite3.OperationalError as error:
        raise EnvironmentProblem(f"cannot read the database {path} ({error})") from None
    except (sqlite3.DatabaseError, UnicodeError) as error:  # a damaged file can put any bytes into SQLite's message
        raise EnvironmentProblem(f"{path} is not a Cloche database ({error})") from None


def _begun(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.Error, UnicodeError):
        connection.close()
        raise
    return connection
