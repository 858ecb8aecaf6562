"""The explicit read of what a sensitive job holds: by its submitter, or by who may read anybody's. Each is audited before it is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Select

from cloche.db import scope
from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Forbidden, PlatformFailure, Unavailable
from cloche.services import job_parts
from cloche.services.job_pages import joined
from cloche.services.jobs import missing, scoped
from cloche.services.masking import opened_error, opened_job
from cloche.services.sealing import JobSeal, JobVault
from cloche.services.transitions import Transitions
from cloche.services.views import attempt_view, job_view

T = TypeVar("T")


class Reveals:
    """Thread-safe. A job that is not sensitive is answered as ever, and nothing is recorded.

    Every method raises:
        NotFound: there is no such job in the actor's tenant.
        Forbidden: it is somebody else's, or the actor's credential may not read it. The route audits that.
        Unavailable: its key is not here, or the database does not answer; nothing was recorded.
    """

    def __init__(self, db: Database, transitions: Transitions, vault: JobVault) -> None:
        self._db = db
        self._transitions = transitions
        self._vault = vault

    def job(self, actor: Actor, job_id: str) -> dict[str, Any]:
        """The job with payload, result, error and progress in clear."""

        def unit(connection: Connection) -> dict[str, Any]:
            row = _found(connection, joined(scoped(actor, job_id)))
            held = self._opened(connection, actor, row, "job")
            clear = row if held is None else opened_job(row, *held)
            return job_view(clear, row["username"], row["tenant"], opened=held is not None)

        return self._run(unit)

    def attempts(self, actor: Actor, job_id: str, cursor: str | None = None, limit: int = 100) -> dict[str, Any]:
        """As :meth:`JobService.attempts`, with each one's error in clear; every page is recorded."""
        query = job_parts.attempts(job_id, cursor, limit)

        def unit(connection: Connection) -> dict[str, Any]:
            held = self._opened(connection, actor, _found(connection, scoped(actor, job_id)), "attempts")
            rows = [dict(row) for row in connection.execute(query).mappings()]
            if held is not None:
                rows = [{**row, "error": opened_error(row["error"], held[0])} for row in rows]
            following = job_parts.after_attempt(rows, limit)
            return {"items": [attempt_view(row) for row in rows[:limit]], "next_cursor": following}

        return self._run(unit)

    def log(self, actor: Actor, job_id: str) -> JobSeal | None:
        """What opens the job's log for :meth:`JobService.logs`; None where nothing is sealed."""

        def unit(connection: Connection) -> JobSeal | None:
            held = self._opened(connection, actor, _found(connection, scoped(actor, job_id)), "log")
            return None if held is None else held[0]

        return self._run(unit)

    def _run(self, unit: Callable[[Connection], T]) -> T:
        try:
            return self._db.write(unit)
        except PlatformFailure as failure:
            raise Unavailable(f"what the job holds cannot be shown: {failure.message}", retry_after=60) from None

    def _opened(
        self, connection: Connection, actor: Actor, row: Mapping[str, Any], what: str
    ) -> tuple[JobSeal, dict[str, Any]] | None:
        """The job's seal and its payload, once it is recorded that the actor reads ``what``. None: the job is not sensitive."""
        if not row["sensitive"]:
            return None
        own = row["submitted_by"] == actor.user_id
        if not actor.may(Permission.JOB_REVEAL_ANY) and not (own and actor.may(Permission.JOB_REVEAL)):
            needed = Permission.JOB_REVEAL if own else Permission.JOB_REVEAL_ANY
            raise Forbidden(f"job {row['id']} is sensitive; reading what it holds needs the permission {needed}")
        held = self._vault.seal_of(row["tenant_id"], row["id"], row["payload"])
        self._transitions.revealed(connection, actor, row["id"], what, now_ms(connection))
        return held


def _found(connection: Connection, query: Select[Any]) -> dict[str, Any]:
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise missing()
    scope.vouch([row["id"]])
    return dict(row)
