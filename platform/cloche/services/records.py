"""Rows that accompany a change of a job: trace events, audit entries, stream events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.domain.events import Action, Outcome, Trace
from cloche.domain.permissions import Actor


@dataclass
class Records:
    """Gathers the rows of one transaction and writes each kind with one statement."""

    now: int
    trace: list[dict[str, Any]] = field(default_factory=list)
    audit: list[AuditEntry] = field(default_factory=list)
    outbox: list[dict[str, Any]] = field(default_factory=list)

    def traced(self, job_id: str, attempt: int, event: Trace, **details: Any) -> None:
        self.trace.append(
            {
                "id": uuid7(),
                "job_id": job_id,
                "attempt": attempt,
                "event_type": event.value,
                "at": self.now,
                "details": details,
            }
        )

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

    def queued(self, job_id: str) -> None:
        self.outbox.append({"job_id": job_id, "created_at": self.now})

    def write(self, connection: Connection, log: AuditLog) -> None:
        for table, rows in ((t.trace_event, self.trace), (t.outbox, self.outbox)):
            if rows:
                connection.execute(insert(table), rows)
        if self.audit:
            log.record(connection, *self.audit)


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
