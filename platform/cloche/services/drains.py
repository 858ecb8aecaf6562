"""Draining a worker, which works for every tenant: it takes nothing more, finishes what it runs, and leaves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from cloche.clock import is_uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.errors import Conflict, NotFound
from cloche.services.workers import status_of, worker_views


class Drains:
    """Shared by a process's threads."""

    def __init__(self, db: Database, audit: AuditLog) -> None:
        self._db = db
        self._audit = audit

    def drain(self, actor: Actor, worker_id: str) -> dict[str, Any]:
        """Ask it, and return the worker as it is now. It hears of it with its next heartbeat. Asking again changes nothing.

        Raises:
            NotFound: there is no such worker.
            Conflict: it is dead.
        """
        if not is_uuid7(worker_id):
            raise NotFound("there is no such worker")
        one = select(t.worker).where(t.worker.c.id == worker_id)

        def unit(connection: Connection) -> dict[str, Any]:
            row = connection.execute(one.with_for_update()).mappings().one_or_none()
            if row is None:
                raise NotFound("there is no such worker; those gone for an hour are forgotten")
            now = now_ms(connection)
            if status_of(row, now) == "dead":
                raise Conflict("the worker is dead: there is nothing to drain", code="worker-dead")
            if row["drain_requested_at"] is None:
                asked = {"drain_requested_at": now, "status": "draining"}
                connection.execute(update(t.worker).where(t.worker.c.id == worker_id).values(**asked))
                details = {"host": row["host"], "pid": row["pid"]}
                before, after = ({"status": each["status"]} for each in (row, asked))
                entry = AuditEntry(
                    actor, Action.WORKER_DRAIN, f"worker:{worker_id}", before=before, after=after, details=details
                )
                self._audit.record(connection, entry)
            return worker_views(connection, actor.tenant_id, one)[0]

        return self._db.write(unit)
