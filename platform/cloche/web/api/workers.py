"""Workers: looked at, and drained."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web import shapes
from cloche.web.routing import Call, RouteGroup
from cloche.web.worker_shapes import WorkerOut

group = RouteGroup("workers")


@group.route(
    "GET",
    "/workers",
    permission=Permission.WORKER_READ,
    responses={200: shapes.Items[WorkerOut]},
    summary="Workers and what they do.",
)
def list_workers(call: Call) -> Any:
    return {"items": call.services.workers.list(call.actor)}


@group.route(
    "POST",
    "/workers/<worker_id>/drain",
    permission=Permission.WORKER_DRAIN,
    responses={202: WorkerOut},
    summary="Have a worker take nothing more, finish what it runs, and leave.",
)
def drain_worker(call: Call, worker_id: str) -> Any:
    return call.services.drains.drain(call.actor, worker_id), 202
