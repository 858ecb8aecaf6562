"""One job from the inside: attempts, log, trace, outputs, and its live stream."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from flask import Response, current_app, request

from cloche.domain.permissions import Permission
from cloche.errors import NotFound, Unavailable
from cloche.services.sealing import JobSeal
from cloche.web import batch_shapes, detail_queries, models, shapes
from cloche.web.content import download
from cloche.web.job_stream import JobStream
from cloche.web.paging import page
from cloche.web.routing import Call, Raw, RouteGroup
from cloche.web.slots import Slot, Slots

group = RouteGroup("jobs")
_TEXT = Raw(("text/plain",), "What the job printed, in order.")
_BYTES = Raw(("application/octet-stream",), "The bytes.")


@group.route(
    "GET",
    "/jobs/<job_id>/attempts",
    permission=Permission.JOB_READ,
    query=detail_queries.AttemptQuery,
    responses={200: shapes.Paged[shapes.AttemptOut]},
    summary="Every try of the job, the first one first.",
)
def attempts(call: Call, job_id: str) -> Any:
    read = call.services.reveals.attempts if call.query.reveal == "true" else call.services.jobs.attempts
    return page(read(call.actor, job_id, call.query.cursor, call.query.limit))


@group.route(
    "GET",
    "/jobs/<job_id>/logs",
    permission=Permission.JOB_READ,
    query=detail_queries.LogQuery,
    responses={200: _TEXT},
    summary="What the job printed, as text; of all attempts or of one.",
)
def logs(call: Call, job_id: str) -> Response:
    job = call.services.jobs.get(call.actor, job_id)
    chosen = [call.query.attempt] if call.query.attempt is not None else list(range(1, job["attempt"] + 1))
    seal = call.services.reveals.log(call.actor, job_id) if call.query.reveal == "true" else None
    return Response(_log_text(call, job_id, chosen, seal), mimetype="text/plain")


def _log_text(call: Call, job_id: str, numbers: list[int], seal: JobSeal | None) -> Iterator[str]:
    for attempt in numbers:
        seq: int | None = None
        while pieces := call.services.jobs.logs(call.actor, job_id, attempt=attempt, after=seq, seal=seal):
            seq = pieces[-1]["seq"]
            yield "".join(piece["text"] for piece in pieces)


@group.route(
    "GET",
    "/jobs/<job_id>/events",
    permission=Permission.JOB_READ,
    query=detail_queries.EventQuery,
    headers=("Last-Event-ID",),
    responses={200: Raw(("text/event-stream",), "Events `job`, `log` and, last, `end`.")},
    summary="The job as it happens, as server-sent events.",
)
def events(call: Call, job_id: str) -> Response:
    call.services.jobs.get(call.actor, job_id)  # 404 before the stream begins
    slots: Slots = current_app.extensions["cloche_slots"]
    slot = slots.take()
    if slot is None:
        raise Unavailable("All live streams of this server are taken.", retry_after=5)
    resume = request.headers.get("Last-Event-ID") or call.query.last_event_id
    actor, access = call.actor, call.services.access
    allowed = partial(access.still_may, actor, Permission.JOB_READ)
    stream = JobStream(call.services.jobs, call.services.hub, actor, job_id, slots.stopping, allowed)
    body = _released(stream.events(resume), slot)
    response = Response(body, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
    response.call_on_close(slot.release)  # for an answer whose body is never begun, as with HEAD
    return response


def _released(parts: Iterator[str], slot: Slot) -> Iterator[str]:
    try:
        yield from parts
    finally:
        slot.release()


@group.route(
    "GET",
    "/jobs/<job_id>/callbacks",
    permission=Permission.JOB_READ,
    responses={200: shapes.Items[batch_shapes.DeliveryOut]},
    summary="What the job's callback was told, and what it is still to be told.",
)
def callbacks(call: Call, job_id: str) -> Any:
    return {"items": call.services.jobs.callbacks(call.actor, job_id)}


@group.route(
    "GET",
    "/jobs/<job_id>/outputs",
    permission=Permission.JOB_READ,
    responses={200: shapes.Items[shapes.OutputOut]},
    summary="Files the accepted attempt left.",
)
def outputs(call: Call, job_id: str) -> Any:
    return {"items": call.services.jobs.outputs(call.actor, job_id)}


@group.route(
    "GET",
    "/jobs/<job_id>/outputs/<path:path>",
    permission=Permission.FILE_READ,
    query=models.ContentQuery,
    headers=("Range", "If-None-Match"),
    responses={200: _BYTES, 206: _BYTES},
    summary="The bytes of one output that lies in the artifact store.",
)
def output_content(call: Call, job_id: str, path: str) -> Response:
    for item in call.services.jobs.outputs(call.actor, job_id):
        if item["path"] == path and item["artifact_id"] is not None:
            return download(call.services.files, call.actor, item["artifact_id"], inline=call.query.inline == "1")
    raise NotFound("The job has no such output in the artifact store.")


@group.route(
    "GET",
    "/trace/<job_id>",
    permission=Permission.JOB_READ,
    query=detail_queries.TraceQuery,
    responses={200: shapes.Paged[shapes.TraceOut]},
    summary="What happened to the job, step by step.",
)
def trace(call: Call, job_id: str) -> Any:
    return page(call.services.jobs.trace(call.actor, job_id, call.query.cursor, call.query.limit))
