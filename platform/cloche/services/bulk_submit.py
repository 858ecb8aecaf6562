"""New jobs, alone or by the thousand, in one transaction. Beside ``transitions`` the only writer of ``job.state``: its first value.

All that can be done before the transaction is done before: rows are made, numbered, signed and spelled for the driver. What is left is
writing, so that on SQLite, where one transaction writes at a time, the others wait for that alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection

from cloche.audit.event import Event
from cloche.db import guarded
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog, spell
from cloche.db.bulk import BulkInsert, Spelled
from cloche.db.engine import Database
from cloche.domain import states
from cloche.domain.dependencies import Verdict
from cloche.domain.events import Action, Trace
from cloche.domain.permissions import Actor
from cloche.domain.states import State
from cloche.queueing.broker import Ready
from cloche.services.effects import queue_entry
from cloche.services.records import audited_of, begins, trace_row, traced_of

_BATCH = BulkInsert(t.batch, [column.name for column in t.batch.columns])
_TRACE = BulkInsert(t.trace_event, [column.name for column in t.trace_event.columns])
_AUDIT = BulkInsert(t.audit_event, Event._fields)
_OUTBOX = BulkInsert(t.outbox, ["job_id", "created_at"])
_Write = tuple[BulkInsert, Spelled]


@dataclass(frozen=True)
class Prepared:
    """What only has to be written. ``ready``: what goes into the queue once it is."""

    writes: Sequence[_Write]
    ready: Sequence[Ready]

    def write(self, connection: Connection) -> None:
        """Insert all of it, in the caller's transaction."""
        for table, rows in self.writes:
            table.execute(connection, rows)


def prepare(
    connection: Connection,
    audit: AuditLog,
    actor: Actor,
    batch: Mapping[str, Any],
    jobs: Sequence[Mapping[str, Any]],
    entry: AuditEntry,
    now: int,
) -> Prepared:
    """``batch``: its row. ``jobs``: rows as :func:`cloche.services.admission.admit` makes them, with the batch's id, of jobs that wait for no
    others. ``entry``: the act of submitting the batch, recorded before the jobs' own. The connection is only read; the audit log has to know
    the actor."""
    spelling = _Spelling(batch["id"])
    full, traces, entries, outbox, queue = [], [], [entry], [], []
    for job in jobs:
        row = _first(job, now)
        full.append(row)
        traces.append(trace_row(row["id"], 0, Trace.ACCEPTED, now, spelling.traced(row)))
        name = f"job:{row['id']}"
        entries.append(AuditEntry(actor, Action.JOB_SUBMIT, name, object_seq=1, spelled=spelling.audited(row)))
        if row["state"] == State.PENDING:
            outbox.append((row["id"], now))
            queue.append(queue_entry(row))
    insert_jobs = _job_insert(tuple(full[0]) if full else ("id",))
    writes = (
        (_BATCH, _BATCH.spell([batch])),
        (insert_jobs, insert_jobs.spell(full)),
        (_TRACE, _TRACE.spell(traces)),
        (_OUTBOX, outbox),
        (_AUDIT, audit.events(connection, entries)),
    )
    return Prepared(writes, queue)


def prepare_one(
    connection: Connection, audit: AuditLog, actor: Actor, job: Mapping[str, Any], now: int
) -> tuple[Prepared, dict[str, Any]]:
    """The same for one job that waits for no others, and its row."""
    row = _first(job, now)
    pending = row["state"] == State.PENDING
    insert_job = _job_insert(tuple(row))
    entry = AuditEntry(actor, Action.JOB_SUBMIT, f"job:{row['id']}", object_seq=1, details=audited_of(row))
    writes = (
        (insert_job, insert_job.spell([row])),
        (_TRACE, _TRACE.spell([trace_row(row["id"], 0, Trace.ACCEPTED, now, traced_of(row))])),
        (_OUTBOX, [(row["id"], now)] if pending else []),
        (_AUDIT, audit.events(connection, [entry])),
    )
    queue = [queue_entry(row)] if pending else []
    return Prepared(writes, queue), row


def introduced(db: Database, audit: AuditLog, actor: Actor) -> None:
    """Make sure that the log knows the actor."""
    for _ in range(2):  # whoever is new to the log is known to it when asked again, after a commit
        if not audit.knows(actor):
            db.write(lambda connection: audit.introduce(connection, actor))


def _first(job: Mapping[str, Any], now: int) -> dict[str, Any]:
    ready_at = max(now, job.get("scheduled_at") or 0)
    state, reason = begins(Verdict.RUN, ready_at > now)
    states.check(None, state, reason)
    return guarded.first_row(job, state, reason, ready_at, now)


@lru_cache(maxsize=16)
def _job_insert(columns: tuple[str, ...]) -> BulkInsert:
    return BulkInsert(t.job, columns)


class _Spelling:
    """What is told of each job of one batch. Jobs of one kind differ by their parameters' digest alone: the rest is spelled once."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self._mark = secrets.token_hex(32)  # stands for the digest, and is found nowhere else
        self._traced: dict[tuple[str, str, bool], dict[str, Any]] = {}
        self._audited: dict[tuple[str, bool, str | None], tuple[str, str]] = {}

    def traced(self, row: Mapping[str, Any]) -> dict[str, Any]:
        kind = (row["type"], row["plugin_version"], row["sensitive"])
        if kind not in self._traced:
            self._traced[kind] = traced_of(row)
        return self._traced[kind]

    def audited(self, row: Mapping[str, Any]) -> str:
        if row["inputs"] or row["outputs"]:
            return spell(audited_of(row))
        kind = (row["plugin_digest"], row["sensitive"], row["callback"]["url"] if row["callback"] else None)
        if kind not in self._audited:
            before, mark, after = spell(audited_of({**row, "payload_sha256": self._mark})).partition(self._mark)
            if not mark or self._mark in after:
                raise ValueError("the details of an accepted job hold its parameters' digest once")
            self._audited[kind] = (before, after)
        before, after = self._audited[kind]
        return f"{before}{row['payload_sha256']}{after}"
