"""Ends of jobs that no row shows any more, so that what is counted over all time never falls.

Counters and durations are counted from the jobs' rows when somebody asks, which costs a finishing job nothing. A purge takes a row away and a
retry by hand empties it: what it showed is added here, in the same transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, select

from cloche.db import tables as t
from cloche.db.dialect import insert_or
from cloche.domain.jobs import DURATION_EDGES_MS
from cloche.domain.states import TERMINAL

COUNT, SUM_MS = "took_count", "took_ms"
NAMES = (*sorted(state.value for state in TERMINAL), COUNT, SUM_MS, *(f"took_le_{edge}" for edge in DURATION_EDGES_MS))


def add(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Remember the ends of these rows of ``job`` (``state``, ``started_at``, ``finished_at``)."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row["state"]] += 1
        if row["started_at"] is not None and row["finished_at"] is not None:
            took = row["finished_at"] - row["started_at"]
            sums[COUNT] += 1
            sums[SUM_MS] += took
            sums.update(f"took_le_{edge}" for edge in DURATION_EDGES_MS if took <= edge)
    for name in sorted(sums):  # in one order, so that two of these never wait for each other
        statement = insert_or(connection, t.job_past).values(name=name, value=sums[name])
        more = {"value": t.job_past.c.value + statement.excluded.value}
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=more))


def totals(connection: Connection) -> dict[str, int]:
    """All of :data:`NAMES`."""
    found = {row.name: int(row.value) for row in connection.execute(select(t.job_past))}
    return dict.fromkeys(NAMES, 0) | found
