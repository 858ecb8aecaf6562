"""Rows that accompany a change of a job: trace events, audit entries, stream events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.bulk import BulkInsert
from cloche.domain import callbacks
from cloche.domain.dependencies import Verdict
from cloche.domain.events import Action, Outcome, Trace
from cloche.domain.metering import metered
from cloche.domain.permissions import Actor
from cloche.domain.states import Reason, State
from cloche.services import callback_rows, quota_rows, usage_rows

TRACE = BulkInsert(t.trace_event, [column.name for column in t.trace_event.columns])
_OUTBOX = BulkInsert(t.outbox, ["job_id", "created_at"])
_SHOWN = ("type", "plugin_version", "plugin_digest", "inputs", "outputs")


@dataclass
class Records:
    """Gathers the rows of one transaction and writes each kind with one statement."""

    now: int
    trace: list[dict[str, Any]] = field(default_factory=list)
    audit: list[AuditEntry] = field(default_factory=list)
    outbox: list[dict[str, Any]] = field(default_factory=list)
    ends: list[Mapping[str, Any]] = field(default_factory=list)
    left: list[Mapping[str, Any]] = field(default_factory=list)
    uses: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=list)
    feed: bool = False  # whether extensions are told what attempts used

    def traced(self, job_id: str, attempt: int, event: Trace, **details: Any) -> None:
        self.trace.append(trace_row(job_id, attempt, event, self.now, details))

    def audited(
        self,
        actor: Actor,
        action: Action,
        job_id: str,
        seq: int,
        *,
        outcome: Outcome = Outcome.ALLOWED,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        entry = AuditEntry(
            actor=actor,
            action=action,
            object=f"job:{job_id}",
            object_seq=seq,
            outcome=outcome,
            reason=reason,
            details=details or {},
        )
        self.audit.append(entry)

    def accepted(self, actor: Actor, row: Mapping[str, Any]) -> None:
        """What is told of a new job. ``row``: the columns of ``job``."""
        self.traced(row["id"], 0, Trace.ACCEPTED, **traced_of(row))
        self.audited(actor, Action.JOB_SUBMIT, row["id"], 1, details=audited_of(row))

    def queued(self, job_id: str) -> None:
        self.outbox.append({"job_id": job_id, "created_at": self.now})

    def ended(self, row: Mapping[str, Any]) -> None:
        """The job has come to an end: whoever asked for a callback is told, and no quota counts it any more. ``row``: the columns of ``job``
        as they are now."""
        if callbacks.wanted(row["callback"], row["state"]):
            self.ends.append(row)
        if row["quota_counted"]:
            self.left.append(row)

    def used(self, row: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
        """The job's attempt has ended. ``row``: the columns of ``job``; ``usage``: what the attempt used."""
        self.uses.append((row, usage))

    def write(self, connection: Connection, log: AuditLog) -> None:
        for table, rows in ((TRACE, self.trace), (_OUTBOX, self.outbox)):
            table.execute(connection, table.spell(rows))
        if self.ends:
            callback_rows.add(connection, self.ends, self.now)
        if self.left:
            quota_rows.left(connection, self.left)
        for row, usage in self.uses:
            used = metered(usage)
            usage_rows.add(connection, row["tenant_id"], row["submitted_by"], row["id"], used, self.now)
            if self.feed:
                usage_rows.tell(connection, row, used, self.now)
        if self.audit:
            log.record(connection, *self.audit)


def traced_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the trace says of an accepted job."""
    batch = {} if row.get("batch_id") is None else {"batch": row["batch_id"]}
    sensitive = {"sensitive": True} if row.get("sensitive") else {}
    warnings = {"warnings": row["warnings"]} if row.get("warnings") else {}
    return {"type": row["type"], "version": row["plugin_version"], **batch, **sensitive, **warnings}


def audited_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of an accepted job: all that decides what will run, by digest."""
    batch = {} if row.get("batch_id") is None else {"batch": row["batch_id"]}
    callback = row.get("callback")
    told = {"callback": callbacks.parse_url(callback["url"]).origin} if callback else {}
    # A sensitive job has a keyed digest in the column: whoever reads the trail cannot guess at its payload with it.
    sensitive = {"sensitive": True} if row.get("sensitive") else {}
    digest = {"payload_hmac" if sensitive else "payload_sha256": row["payload_sha256"]}
    return {key: row[key] for key in _SHOWN} | digest | sensitive | batch | told


def trace_row(job_id: str, attempt: int, event: Trace, at: int, details: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``trace_event``."""
    return {
        "id": uuid7(),
        "job_id": job_id,
        "attempt": attempt,
        "event_type": event.value,
        "at": at,
        "details": details,
    }


def job_event(row: Mapping[str, Any], at: int) -> dict[str, Any]:
    """What the stream says of a change: never payload, result or log."""
    return {
        "type": "job",
        "id": row["id"],
        "tenant": row["tenant_id"],
        "status": row["state"],
        "reason": row["reason"],
        "attempt": row["attempt"],
        "at": at,
    }


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in slices of at most ``size`` (SQLite binds at most 32,766 values a statement)."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def begins(verdict: Verdict, later: bool) -> tuple[State, Reason]:
    """The first state of an accepted job. One that is canceled at once is blocked before that."""
    if verdict is not Verdict.RUN:
        return State.BLOCKED, Reason.WAITS_FOR_JOBS
    return (State.SCHEDULED, Reason.WAITS_FOR_TIME) if later else (State.PENDING, Reason.SUBMITTED)
