"""Jobs that have ended, one or many: retried by hand, listed as dead letters, removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, select, text

from cloche.clock import from_rfc3339, to_rfc3339
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem, QuotaExceeded
from cloche.queueing.broker import Broker
from cloche.services import effects
from cloche.services.afterlife import refuse_purge
from cloche.services.cursors import decode_moment, encode_moment
from cloche.services.job_pages import joined, labelled
from cloche.services.jobs import JobService
from cloche.services.transitions import Transitions
from cloche.services.views import job_view

MAX_AT_ONCE = 1_000  # jobs that one request may replay or purge
_STEP = 50  # jobs in one transaction of it
Items = list[dict[str, Any]]
Act = Callable[[Connection, list[str]], tuple[list[str], Items, effects.Effects]]


class EndedService:
    """Thread-safe. Every method is scoped to the actor's tenant."""

    def __init__(self, db: Database, broker: Broker, transitions: Transitions, jobs: JobService) -> None:
        self._db = db
        self._broker = broker
        self._transitions = transitions
        self._jobs = jobs

    def retry(self, actor: Actor, job_id: str) -> dict[str, Any]:
        """Begin the next run of a failed or canceled job; the job as it is then.

        Raises:
            NotFound, Conflict: see ``Afterlife.rerun``.
            Forbidden: it is somebody else's, and the actor may retry only their own.
        """

        def unit(connection: Connection) -> effects.Effects:
            if _owner(connection, actor, job_id) != actor.user_id and not actor.may(Permission.JOB_RETRY_ANY):
                raise Forbidden(f"this is somebody else's job; retrying it needs {Permission.JOB_RETRY_ANY}")
            return self._transitions.rerun(connection, actor, job_id, now_ms(connection))

        effects.apply(self._broker, self._db.write(unit))
        return self._jobs.get(actor, job_id)

    def purge(self, actor: Actor, job_id: str) -> None:
        """Remove a job that has ended, with all but its audit events and its stored files.

        Raises:
            NotFound: no such job in the tenant.
            Conflict: it has not ended, or its dependents are still being told that it has.
        """

        def unit(connection: Connection) -> None:
            mine = (t.job.c.id == job_id) & (t.job.c.tenant_id == actor.tenant_id)
            state = connection.execute(select(t.job.c.state).where(mine)).scalar()
            if state is None:
                raise NotFound("there is no such job")
            if refused := refuse_purge(state):
                raise refused
            scope.vouch([job_id])
            if not self._transitions.purge(connection, actor, [job_id], now_ms(connection)):
                raise Conflict("the jobs that depend on it are still being told of its end; try again in a moment")

        self._db.write(unit)

    def dead_letters(
        self, actor: Actor, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """Failed jobs, the latest failure first, each with its attempts. ``filters``: type, queue, reason, label, since, until (of the failure)."""
        query = joined(_filtered(select(t.job), actor, filters))
        if cursor is not None:
            at, job_id = decode_moment(cursor)
            behind = (t.job.c.finished_at < at) | ((t.job.c.finished_at == at) & (t.job.c.id < job_id))
            query = query.where(behind)
        query = query.order_by(t.job.c.finished_at.desc(), t.job.c.id.desc()).limit(limit + 1)

        def unit(connection: Connection) -> tuple[list[dict[str, Any]], Items]:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            shown = rows[:limit]
            scope.vouch(row["id"] for row in shown)
            tries = _attempts(connection, [row["id"] for row in shown])
            items = [job_view(row, row["username"], row["tenant"]) | {"attempts": tries[row["id"]]} for row in shown]
            return rows, items

        rows, items = self._db.read(unit)
        last = rows[limit - 1] if len(rows) > limit else None
        following = encode_moment(last["finished_at"], last["id"]) if last is not None else None
        return {"items": items, "next_cursor": following}

    def replay(self, actor: Actor, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Retry dead letters, by ``ids`` or by ``filter`` (at most ``limit``, oldest failure first).

        Returns ``{"matched", "done", "remaining", "dry_run", "ids", "skipped": [{"id", "detail"}]}``: how many fit when it began, were done,
        and fit still; in a dry run nothing is done.
        """

        def act(connection: Connection, ids: list[str]) -> tuple[list[str], Items, effects.Effects]:
            done, skipped, told = [], [], effects.Effects()
            for job_id in ids:
                try:
                    # A refusal comes before anything is written, so that the others' changes stand.
                    told.add(self._transitions.rerun(connection, actor, job_id, now_ms(connection)))
                    done.append(job_id)
                except (Conflict, NotFound, QuotaExceeded) as error:
                    skipped.append({"id": job_id, "detail": error.detail})
            return done, skipped, told

        return self._bulk(actor, chosen, act)

    def purge_dead_letters(self, actor: Actor, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Remove dead letters, chosen and answered as in :meth:`replay`. A job that is not failed is never touched."""

        def act(connection: Connection, ids: list[str]) -> tuple[list[str], Items, effects.Effects]:
            gone = self._transitions.purge(connection, actor, ids, now_ms(connection))
            left = [{"id": one, "detail": "its dependents are being told of its end"} for one in ids if one not in gone]
            return gone, left, effects.Effects()

        return self._bulk(actor, chosen, act)

    def _bulk(self, actor: Actor, chosen: Mapping[str, Any], act: Act) -> dict[str, Any]:
        dry_run, limit = bool(chosen.get("dry_run")), int(chosen.get("limit") or MAX_AT_ONCE)
        ids, matched = self._chosen(actor, chosen, limit)
        done: list[str] = []
        over = 0  # those that do not fit any more, without us
        found = set(ids)
        asked = dict.fromkeys(chosen.get("ids") or ())
        skipped = [{"id": one, "detail": "is not a dead letter"} for one in asked if one not in found]
        for start in range(0, 0 if dry_run else len(ids), _STEP):
            step = ids[start : start + _STEP]

            def unit(connection: Connection, step: list[str] = step) -> tuple[list[str], Items, effects.Effects]:
                # Again, in the transaction that acts: what is no dead letter any more is nobody's business here.
                query = _filtered(select(t.job.c.id), actor, chosen.get("filter") or {}).where(t.job.c.id.in_(step))
                # In the order of their ids, as everywhere: upstreams come first, and two of these never wait for each other.
                ids = list(connection.execute(query.order_by(t.job.c.id)).scalars())
                scope.vouch(ids)
                return act(connection, ids)

            acted, left, told = self._db.write(unit)
            effects.apply(self._broker, told)
            known = {*acted, *(item["id"] for item in left)}
            gone = [{"id": one, "detail": "is no such dead letter any more"} for one in step if one not in known]
            done += acted
            over += len(gone)
            skipped += [*left, *gone]
        return {
            "matched": matched,
            "done": len(done),
            "remaining": matched - len(done) - over,
            "dry_run": dry_run,
            "ids": ids if dry_run else done,
            "skipped": skipped,
        }

    def _chosen(self, actor: Actor, chosen: Mapping[str, Any], limit: int) -> tuple[list[str], int]:
        """The ids to act on, and how many dead letters the choice fits."""
        if chosen.get("ids") is not None:
            query = _dead(select(t.job.c.id), actor).where(t.job.c.id.in_(chosen["ids"]))
            found = set(self._db.read(lambda c: c.execute(query).scalars().all()))
            ids = [one for one in dict.fromkeys(chosen["ids"]) if one in found]
            return ids, len(ids)
        count = _filtered(select(func.count()).select_from(t.job), actor, chosen["filter"])
        oldest = _filtered(select(t.job.c.id), actor, chosen["filter"]).order_by(t.job.c.finished_at, t.job.c.id)
        return self._db.read(
            lambda c: (list(c.execute(oldest.limit(limit)).scalars()), int(c.execute(count).scalar_one()))
        )


def _owner(connection: Connection, actor: Actor, job_id: str) -> str:
    mine = (t.job.c.id == job_id) & (t.job.c.tenant_id == actor.tenant_id)
    found = connection.execute(select(t.job.c.submitted_by).where(mine)).scalar()
    if found is None:
        raise NotFound("there is no such job")
    scope.vouch([job_id])
    return str(found)


def _dead(query: Select[Any], actor: Actor) -> Select[Any]:
    return query.where(t.job.c.tenant_id == actor.tenant_id, text(f"job.{t.DEAD_LETTER}"))


def _filtered(query: Select[Any], actor: Actor, filters: Mapping[str, Any]) -> Select[Any]:
    query = _dead(query, actor)
    for name in ("type", "queue", "reason"):
        if filters.get(name) is not None:
            query = query.where(t.job.c[name] == filters[name])
    for name in ("since", "until"):
        if filters.get(name) is not None:
            try:
                moment = from_rfc3339(filters[name])
            except ValueError as error:
                raise Invalid("a filter is wrong", problems=[Problem(f"/{name}", str(error))]) from None
            at = t.job.c.finished_at
            query = query.where(at >= moment if name == "since" else at < moment)
    return query.where(labelled(filters["label"])) if filters.get("label") else query


def _attempts(connection: Connection, job_ids: Sequence[str]) -> dict[str, Items]:
    """Every attempt of the jobs in short: a page holds many, so that what is long about an error stays with the job itself."""
    attempt = t.attempt.c
    columns = (
        attempt.job_id,
        attempt.number,
        attempt.run,
        attempt.outcome,
        attempt.reason,
        attempt.error,
        attempt.started_at,
        attempt.finished_at,
    )
    found: dict[str, Items] = {job_id: [] for job_id in job_ids}
    query = select(*columns).where(attempt.job_id.in_(job_ids)).order_by(attempt.job_id, attempt.number)
    for row in connection.execute(query):
        found[row.job_id].append(
            {
                "number": row.number,
                "run": row.run,
                "outcome": row.outcome,
                "reason": row.reason,
                "message": (row.error or {}).get("message"),
                "started_at": to_rfc3339(row.started_at),
                "finished_at": to_rfc3339(row.finished_at),
            }
        )
    return found
