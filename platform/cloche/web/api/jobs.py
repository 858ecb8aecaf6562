"""Submitting, finding, waiting for and canceling jobs."""

from __future__ import annotations

import time
from typing import Any

from flask import current_app, request

from cloche.clock import parse_duration
from cloche.domain.permissions import Permission
from cloche.domain.states import TERMINAL
from cloche.errors import BadRequest
from cloche.web import models, shapes
from cloche.web.paging import page
from cloche.web.routing import Call, RouteGroup
from cloche.web.slots import Slots

group = RouteGroup("jobs")
_SLICE_S = 1.0  # a long poll looks this often whether the process is stopping
_MAX_KEY = 255


@group.route(
    "POST",
    "/jobs",
    permission=Permission.JOB_SUBMIT,
    body=models.NewJob,
    headers=("Idempotency-Key",),
    responses={202: shapes.JobOut},
    summary="Submit a job. 202 means that it is stored and will reach an end.",
)
def submit(call: Call) -> Any:
    key = idempotency_key()
    body = call.body.model_dump(by_alias=True, exclude_unset=True)
    status, job = call.services.jobs.submit(call.actor, body, idempotency_key=key)
    return job, status, {"Location": f"/api/v1/jobs/{job['id']}"}


def idempotency_key() -> str | None:
    """The request's, or None.

    Raises:
        BadRequest: it is malformed.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise BadRequest(
            f"An Idempotency-Key has 1 to {_MAX_KEY} printable ASCII characters.", code="bad-idempotency-key"
        )
    return key


@group.route(
    "GET",
    "/jobs",
    permission=Permission.JOB_READ,
    query=models.JobFilter,
    responses={200: shapes.Paged[shapes.JobOut]},
    summary="Jobs of one's tenant, newest first.",
)
def list_jobs(call: Call) -> Any:
    filters = call.query.model_dump(exclude={"cursor", "limit"}, exclude_none=True, mode="json")
    return page(call.services.jobs.list(call.actor, filters, cursor=call.query.cursor, limit=call.query.limit))


@group.route(
    "GET",
    "/jobs/<job_id>",
    permission=Permission.JOB_READ,
    query=models.Wait,
    responses={200: shapes.JobOut},
    summary="One job; with `wait`, once it has ended or after that time.",
)
def get_job(call: Call, job_id: str) -> Any:
    reveal = call.query.reveal == "true"
    read = call.services.reveals.job if reveal else call.services.jobs.get
    if call.query.wait is None:
        return read(call.actor, job_id)
    text = call.query.wait
    timeout_s = parse_duration(int(text) if text.isdigit() else text) / 1000
    slots: Slots = current_app.extensions["cloche_slots"]
    with slots.maybe() as free:
        if not free:
            # Answering at once is right too: the caller sees that the job has not ended and asks again.
            return read(call.actor, job_id), 200, {"Retry-After": "1"}
        job = _waited(call, job_id, timeout_s, slots)
    return read(call.actor, job_id) if reveal else job


def _waited(call: Call, job_id: str, timeout_s: float, slots: Slots) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        job = call.services.jobs.wait(call.actor, job_id, max(0.0, min(left, _SLICE_S)))
        if job["status"] in TERMINAL or left <= _SLICE_S or slots.stopping.is_set():
            return job


def cancel(call: Call, job_id: str) -> Any:
    return call.services.jobs.cancel(call.actor, job_id), 202, {"Location": f"/api/v1/jobs/{job_id}"}


for _method in ("POST", "DELETE"):
    group.route(
        _method,
        "/jobs/<job_id>/cancel",
        permission=Permission.JOB_CANCEL,
        responses={202: shapes.JobOut},
        summary="Cancel a job: a waiting one at once, a running one by killing its sandbox.",
    )(cancel)
