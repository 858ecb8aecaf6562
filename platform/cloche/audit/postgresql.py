"""The trail in a PostgreSQL database, read by a session of its own and without writing a byte of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any

import psycopg

from cloche.audit.event import Event, TamperedTrail
from cloche.audit.note import PublicKey
from cloche.audit.trail import Batch, Break, Leaf, Person, Prune
from cloche.errors import EnvironmentProblem, Unavailable

_TABLES = ("audit_event", "audit_leaf", "audit_batch", "audit_person")
_CHUNK = 5_000  # rows fetched at once
_EVENT = ", ".join(f"e.{name}" for name in Event._fields)
_LEAVES = (
    f"SELECT l.seq, l.event_id, l.hash, {_EVENT} FROM audit_leaf l LEFT JOIN audit_event e ON e.id = l.event_id"  # noqa: S608 # nosec B608
    " WHERE l.seq >= %s ORDER BY l.seq"
)
_UNSEALED = (
    f"SELECT {_EVENT} FROM audit_event e WHERE NOT EXISTS (SELECT 1 FROM audit_leaf l WHERE l.event_id = e.id AND l.seq >= 0)"  # noqa: S608 # nosec B608
    " ORDER BY e.txid, e.id"
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
_PERSONS = "SELECT commitment, kind, value, salt FROM audit_person ORDER BY commitment"
_SHORT = (
    "SELECT j.id, j.audit_seq, coalesce(s.last, 0) FROM job j LEFT JOIN (SELECT object, max(object_seq) AS last FROM audit_event"
    " WHERE object_seq IS NOT NULL GROUP BY object) s ON s.object = 'job:' || j.id"
    " WHERE j.audit_seq > coalesce(s.last, 0)"
    " AND NOT (s.last IS NULL AND coalesce(j.finished_at, j.created_at) <= %s) ORDER BY j.id LIMIT 1"
)


class PostgresTrail:
    """A trail in a PostgreSQL database, seen as one snapshot from construction to ``close``. One thread at a time.

    Raises:
        EnvironmentProblem: not a Cloche database.
        Unavailable: the server does not answer.
    """

    truncated = False
    as_of = None

    def __init__(self, url: str) -> None:
        self._names = count(1)
        try:
            self._connection = psycopg.connect(
                url.replace("postgresql+psycopg://", "postgresql://", 1),
                connect_timeout=5,
                keepalives_idle=5,
                tcp_user_timeout=10_000,
                application_name="cloche audit",
            )
        except psycopg.Error as error:
            raise Unavailable(f"the database does not answer ({type(error).__name__})") from None
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True
        found = {
            row[0]
            for row in self._rows("SELECT tablename FROM pg_tables WHERE schemaname = ANY(current_schemas(false))")
        }
        if not found.issuperset(_TABLES):
            self.close()
            raise EnvironmentProblem(f"this is not a Cloche database: it has no table {min(set(_TABLES) - found)}")
        self._has_jobs = "job" in found
        self._has_marks = "audit_prune" in found  # older schemas have none
        # The clock that the events were dated by
        self.now_ms: int = next(self._rows("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"))[0]

    def __enter__(self) -> PostgresTrail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        return map(Person._make, self._rows(_PERSONS))

    def finish(self, key: PublicKey, until: int) -> Iterator[str]:  # noqa: ARG002 - part of the protocol
        """A job's row counts its events: one that is missing at the end shows there."""
        if self._has_jobs:
            for job_id, counted, there in self._rows(_SHORT, until):
                raise TamperedTrail(f"event {there + 1} of job:{job_id} is missing (the job counts {counted})")
        yield from ()

    def _rows(self, statement: str, *values: int) -> Iterator[tuple[Any, ...]]:
        """A cursor of the server's for each, so that memory does not grow with the trail. The server looks for the next rows while these
        are checked: a thread waits for them."""
        try:
            with (
                self._connection.cursor(f"trail_{next(self._names)}") as cursor,
                ThreadPoolExecutor(1, thread_name_prefix="trail") as ahead,
            ):
                cursor.execute(statement, values or None)  # constants of this module
                coming = ahead.submit(cursor.fetchmany, _CHUNK)
                while rows := coming.result():
                    coming = ahead.submit(cursor.fetchmany, _CHUNK)
                    yield from rows
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise Unavailable(f"the database does not answer ({type(error).__name__})") from None
        except (psycopg.Error, UnicodeError) as error:
            raise TamperedTrail(f"the database cannot be read as a trail ({type(error).__name__})") from None
