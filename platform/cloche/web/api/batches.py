"""Batches of jobs: submitted, looked at, canceled together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask import request

from cloche.domain.permissions import Permission
from cloche.errors import Problem
from cloche.web import batch_shapes, models, shapes
from cloche.web.api.jobs import idempotency_key
from cloche.web.batch_body import NewBatch
from cloche.web.bodies import refusal
from cloche.web.paging import page
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("batches")


@group.route(
    "POST",
    "/jobs/batch",
    permission=Permission.JOB_SUBMIT,
    body=NewBatch,
    headers=("Idempotency-Key",),
    responses={202: batch_shapes.AcceptedBatchOut},
    summary="Submit up to 10,000 jobs at once: all are stored, or none is.",
    large=True,
)
def submit_batch(call: Call) -> Any:
    asked = call.body
    _bounded(asked.jobs, call.services.settings.server.max_body)
    batch = call.services.batches.submit(call.actor, asked.name, asked.jobs, idempotency_key=idempotency_key())
    return batch, 202, {"Location": f"/api/v1/batches/{batch['id']}"}


def _bounded(jobs: Sequence[Mapping[str, Any]], limit: int) -> None:
    """Each job may be as long as it could be alone."""
    announced = request.content_length
    if announced is not None and announced <= limit:
        return
    sizes = (len(json.dumps(job, ensure_ascii=False, separators=(",", ":")).encode()) for job in jobs)
    detail = f"is longer than the {limit} bytes a job may have"
    problems = [Problem(f"/jobs/{number}", detail) for number, size in enumerate(sizes) if size > limit]
    if problems:
        raise refusal(problems)


@group.route(
    "GET",
    "/batches",
    permission=Permission.JOB_READ,
    query=models.Page,
    responses={200: shapes.Paged[batch_shapes.BatchOut]},
    summary="Batches of one's tenant, newest first.",
)
def list_batches(call: Call) -> Any:
    return page(call.services.batches.list(call.actor, cursor=call.query.cursor, limit=call.query.limit))


@group.route(
    "GET",
    "/batches/<batch_id>",
    permission=Permission.JOB_READ,
    responses={200: batch_shapes.BatchProgressOut},
    summary="One batch, and how many of its jobs are in which state.",
)
def get_batch(call: Call, batch_id: str) -> Any:
    return call.services.batches.get(call.actor, batch_id)


@group.route(
    "GET",
    "/batches/<batch_id>/jobs",
    permission=Permission.JOB_READ,
    query=models.BatchJobFilter,
    responses={200: shapes.Paged[shapes.JobOut]},
    summary="The batch's jobs, in the order in which they were submitted.",
)
def batch_jobs(call: Call, batch_id: str) -> Any:
    query = call.query
    found = call.services.batches.jobs(
        call.actor, batch_id, status=query.status, cursor=query.cursor, limit=query.limit
    )
    return page(found)


@group.route(
    "POST",
    "/batches/<batch_id>/cancel",
    permission=Permission.JOB_CANCEL,
    responses={202: batch_shapes.BatchProgressOut},
    summary="Cancel every job of the batch that has not ended.",
)
def cancel_batch(call: Call, batch_id: str) -> Any:
    batch = call.services.batches.cancel(call.actor, batch_id)
    return batch, 202, {"Location": f"/api/v1/batches/{batch_id}"}


@group.route(
    "POST",
    "/batches/<batch_id>/retry",
    permission=Permission.JOB_RETRY,
    responses={202: batch_shapes.RetriedBatchOut},
    summary="Retry every job of the batch that has failed, and those canceled because of it.",
)
def retry_batch(call: Call, batch_id: str) -> Any:
    batch = call.services.batches.retry(call.actor, batch_id)
    return batch, 202, {"Location": f"/api/v1/batches/{batch_id}"}
