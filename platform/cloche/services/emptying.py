"""Empties a suspended tenant, some of it at a time: live jobs are canceled, ended ones removed, then the stored files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.domain.permissions import EVERYTHING, Actor, Permission
from cloche.domain.states import TERMINAL, State
from cloche.errors import Conflict, Invalid, NotFound, Problem
from cloche.queueing.broker import Broker
from cloche.services import effects, members
from cloche.services.files import FileService
from cloche.services.tenants import check_suspended, contents, row_of
from cloche.services.transitions import Transitions

_STEP = 50  # jobs or files in one transaction, or one look
_BUDGET_S = 5.0  # a request does what it can in this time; whoever asked asks again
_LIVE = [state.value for state in State if state not in TERMINAL]


class Emptying:
    """Thread-safe. Safe to repeat, and to do twice at once."""

    def __init__(
        self, db: Database, broker: Broker, audit: AuditLog, transitions: Transitions, files: FileService
    ) -> None:
        self._db = db
        self._broker = broker
        self._audit = audit
        self._transitions = transitions
        self._files = files

    def run(self, actor: Actor, tenant_id: str, confirm: str, version: int | None = None) -> dict[str, Any]:
        """Remove jobs and files of the tenant for some seconds. ``confirm`` is its name, so that nobody empties another by a slip.

        Returns ``{"removed": {"jobs", "files"}, "left": {"jobs", "files"}, "done"}``; while it is not done, ask again: what runs is being
        killed by its workers.

        Raises:
            NotFound: there is no such tenant.
            Invalid: ``confirm`` is another name.
            Conflict: it is not suspended, or no longer at ``version``.
        """
        deadline = time.monotonic() + _BUDGET_S
        self._db.write(lambda c: self._begin(c, actor, tenant_id, confirm, version))
        with scope.within(
            tenant_id, "a platform administrator empties a tenant, which need not be the one they are in"
        ):
            return self._empty(actor, tenant_id, deadline)

    def _empty(self, actor: Actor, tenant_id: str, deadline: float) -> dict[str, Any]:
        # The record of its jobs and files is the tenant's.
        there = replace(actor, tenant_id=tenant_id, permissions=EVERYTHING)
        removed = {"jobs": self._jobs(there, deadline), "files": 0}
        if not self._db.read(lambda c: contents(c, tenant_id))["jobs"]:
            removed["files"] = self._drop_files(there, deadline)
        left = self._db.read(lambda c: contents(c, tenant_id))
        return {"removed": removed, "left": left, "done": not any(left.values())}

    def _begin(self, connection: Connection, actor: Actor, tenant_id: str, confirm: str, version: int | None) -> None:
        members.begin(connection, actor, Permission.TENANT_MANAGE, [tenant_id])
        row = row_of(connection, tenant_id)
        if version is not None and version != row["version"]:
            raise Conflict("The tenant has changed since; read it again.", code="tenant-changed")
        if confirm != row["name"]:
            raise Invalid("Nothing was removed.", problems=[Problem("/confirm", "has to be the tenant's name")])
        check_suspended(row)
        with scope.within(tenant_id, "a platform administrator is told how much there is"):
            held = contents(connection, tenant_id)
        entry = AuditEntry(actor, Action.TENANT_EMPTY, f"tenant:{tenant_id}", before=held, details=held)
        self._audit.record(connection, entry)

    def _jobs(self, actor: Actor, deadline: float) -> int:
        job, removed, seen = t.job.c, 0, ""
        while time.monotonic() < deadline:
            live = select(job.id).where(job.tenant_id == actor.tenant_id, job.state.in_(_LIVE), job.id > seen)
            ids = self._some(live.order_by(job.id))
            if not ids:
                break
            seen = ids[-1]
            effects.apply(self._broker, self._db.write(lambda c, ids=ids: self._cancel(c, actor, ids)))  # type: ignore[misc]
        seen = ""
        while time.monotonic() < deadline:
            ended = select(job.id).where(job.tenant_id == actor.tenant_id, job.state.not_in(_LIVE), job.id > seen)
            ids = self._some(ended.order_by(job.id))
            if not ids:
                break
            seen = ids[-1]
            removed += len(self._db.write(lambda c, ids=ids: self._transitions.purge(c, actor, ids, now_ms(c))))  # type: ignore[misc]
        return removed

    def _cancel(self, connection: Connection, actor: Actor, ids: Sequence[str]) -> effects.Effects:
        done = effects.Effects()
        for job_id in ids:
            try:
                done.add(self._transitions.cancel(connection, actor, job_id, now_ms(connection)))
            except (Conflict, NotFound):
                continue  # it has ended, or is gone: both are what is wanted
        return done

    def _drop_files(self, actor: Actor, deadline: float) -> int:
        file, removed = t.artifact.c, 0
        while time.monotonic() < deadline:
            ids = self._some(select(file.id).where(file.tenant_id == actor.tenant_id))
            if not ids:
                break
            for file_id in ids:
                try:
                    self._files.delete(actor, file_id)
                    removed += 1
                except NotFound:
                    continue  # somebody else empties too
        return removed

    def _some(self, query: Any) -> Sequence[str]:
        ids: Sequence[str] = self._db.read(lambda c: c.scalars(query.limit(_STEP)).all())
        scope.vouch(ids)
        return ids
