"""Whether the platform lives and is ready, and its numbers. Outside ``/api/v1``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Response, current_app, request

from cloche import __version__
from cloche.clock import now_ms, to_rfc3339
from cloche.domain.permissions import Permission
from cloche.errors import Unavailable
from cloche.netnames import Networks
from cloche.web import metrics, shapes
from cloche.web.edge import FORWARDED
from cloche.web.readiness import Outage, Readiness
from cloche.web.routing import PUBLIC, Call, Raw, RouteGroup

group = RouteGroup("health")


@group.route(
    "GET",
    "/health",
    permission=PUBLIC,
    responses={200: shapes.HealthOut, 503: shapes.HealthOut},
    summary="Whether the platform works: `ok` or `degraded`.",
)
def health(call: Call) -> Any:
    outages = _readiness().outages()
    status = "ok" if not outages else "degraded"
    workers = {"running": False, "count": 0}
    if not any(outage.part == "database" for outage in outages):
        try:
            summary = call.services.workers.summary()
            workers = {"running": summary["running"], "count": summary["count"]}
        except Unavailable:
            pass
    version = __version__ if _sees_all(call) else None
    return {"status": status, "timestamp": to_rfc3339(now_ms()), "version": version, "workers": workers}


@group.route(
    "GET",
    "/healthz",
    permission=PUBLIC,
    responses={200: Raw(("text/plain",), "`ok`")},
    summary="Whether this process answers.",
)
def healthz(_call: Call) -> Response:
    return Response("ok\n", mimetype="text/plain")


@group.route(
    "GET",
    "/readyz",
    permission=PUBLIC,
    responses={200: shapes.ReadyOut, 503: shapes.ReadyOut},
    summary="Whether jobs are run now: database, Redis, disk, a worker with an engine. 503 says what is missing, since when, and what to do.",
)
def readyz(call: Call) -> Any:
    outages = _readiness().outages()
    ready = not outages
    away = any(outage.part == "database" for outage in outages)
    warnings = [] if away else _readiness().warnings(whole=_is_operator(call))
    if (outages or warnings) and not _sees_all(call):
        outages, warnings = [], []
    body = {
        "ready": ready,
        "reasons": [outage.reason for outage in outages],
        "parts": [_shown(outage) for outage in outages],
        "warnings": [_shown(outage) for outage in warnings],
    }
    return body, 200 if ready else 503, {} if ready else {"Retry-After": "2"}


@group.route(
    "GET",
    "/metrics",
    permission=PUBLIC,
    responses={200: Raw(("text/plain",), "Prometheus' text format.")},
    summary="Metrics; from where `CLOCHE_METRICS_ALLOW` says freely, from elsewhere with `queue:read`.",
)
def get_metrics(call: Call) -> Response:
    if not _sees_all(call):
        call.auth.require(Permission.QUEUE_READ)
    return Response(metrics.render(call.services), content_type=metrics.CONTENT_TYPE)


def _shown(outage: Outage) -> dict[str, Any]:
    return {**asdict(outage), "since": to_rfc3339(outage.since)}


def _readiness() -> Readiness:
    found: Readiness = current_app.extensions["cloche_readiness"]
    return found


def _sees_all(call: Call) -> bool:
    """Whether the request comes from where ``metrics.allow`` says, or from somebody with ``queue:read``."""
    if _from_trusted():
        return True
    actor = call.auth.actor()
    return actor is not None and actor.may(Permission.QUEUE_READ)


def _is_operator(call: Call) -> bool:
    """Whether the request comes from where ``metrics.allow`` says, or from an administrator of the platform."""
    if _from_trusted():
        return True
    actor = call.auth.actor()
    return actor is not None and actor.platform_admin


def _from_trusted() -> bool:
    # What passed a proxy that says nothing of its client, or one that is not trusted, comes from anywhere.
    return request.environ.get(FORWARDED) is not False and _trusted().hold(request.remote_addr)


def _trusted() -> Networks:
    found: Networks = current_app.extensions["cloche_watchers"]
    return found
