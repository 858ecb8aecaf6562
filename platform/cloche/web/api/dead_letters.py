"""Jobs that have ended: retried, removed, and the dead letters among them replayed and purged in bulk."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web import models, shapes
from cloche.web.paging import page
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("jobs")


@group.route(
    "POST",
    "/jobs/<job_id>/retry",
    permission=Permission.JOB_RETRY,
    responses={202: shapes.JobOut},
    summary="Begin the next run of a job that has failed or was canceled.",
)
def retry(call: Call, job_id: str) -> Any:
    return call.services.ended.retry(call.actor, job_id), 202, {"Location": f"/api/v1/jobs/{job_id}"}


@group.route(
    "DELETE",
    "/jobs/<job_id>",
    permission=Permission.JOB_PURGE,
    responses={204: None},
    summary="Remove a job that has ended, with attempts, logs and trace; its audit events stay.",
)
def purge(call: Call, job_id: str) -> Any:
    call.services.ended.purge(call.actor, job_id)


@group.route(
    "GET",
    "/dead-letters",
    permission=Permission.JOB_READ,
    query=models.DeadLetterQuery,
    responses={200: shapes.Paged[shapes.DeadLetterOut]},
    summary="Failed jobs of one's tenant with error and attempts, the latest failure first.",
)
def dead_letters(call: Call) -> Any:
    query = call.query
    filters = query.model_dump(exclude={"cursor", "limit"}, exclude_none=True, mode="json")
    return page(call.services.ended.dead_letters(call.actor, filters, query.cursor, query.limit))


@group.route(
    "POST",
    "/dead-letters/replay",
    permission=Permission.JOB_RETRY_ANY,
    body=models.DeadLetterChoice,
    responses={200: shapes.BulkOut},
    summary="Retry dead letters, by ids or by filter; `dry_run` only counts.",
)
def replay(call: Call) -> Any:
    return call.services.ended.replay(call.actor, call.body.model_dump(exclude_none=True, mode="json"))


@group.route(
    "DELETE",
    "/dead-letters",
    permission=Permission.JOB_PURGE,
    body=models.DeadLetterChoice,
    responses={200: shapes.BulkOut},
    summary="Remove dead letters, by ids or by filter; `dry_run` only counts.",
)
def purge_dead_letters(call: Call) -> Any:
    return call.services.ended.purge_dead_letters(call.actor, call.body.model_dump(exclude_none=True, mode="json"))
