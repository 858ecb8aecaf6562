"""Whether the platform lives and is ready, and its numbers. Outside ``/api/v1``."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

from flask import Response, request

from cloche import __version__
from cloche.clock import now_ms, to_rfc3339
from cloche.domain.permissions import Permission
from cloche.errors import Unavailable
from cloche.services.container import Services
from cloche.web import metrics, shapes
from cloche.web.routing import PUBLIC, Call, Raw, RouteGroup

group = RouteGroup("health")
_LOW_ROOM = 32 << 20  # bytes: less, and a claim, an upload or a result may not find room any more


@group.route(
    "GET",
    "/health",
    permission=PUBLIC,
    responses={200: shapes.HealthOut, 503: shapes.HealthOut},
    summary="Whether the platform works: `ok` or `degraded`.",
)
def health(call: Call) -> Any:
    reasons = not_ready(call.services)
    status = "ok" if not reasons else "degraded"
    try:
        summary = call.services.workers.summary()
        workers = {"running": summary["running"], "count": summary["count"]}
    except Unavailable:
        workers = {"running": False, "count": 0}
    return {"status": status, "timestamp": to_rfc3339(now_ms()), "version": __version__, "workers": workers}


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
    summary="Whether jobs are run now: database, Redis, room on the disk, a worker with a container engine. 503 says what is missing.",
)
def readyz(call: Call) -> Any:
    reasons = not_ready(call.services)
    return {"ready": not reasons, "reasons": reasons}, 503 if reasons else 200, {"Retry-After": "2"} if reasons else {}


@group.route(
    "GET",
    "/metrics",
    permission=PUBLIC,
    responses={200: Raw(("text/plain",), "Prometheus' text format.")},
    summary="Metrics; from this machine freely, from elsewhere with `queue:read`.",
)
def get_metrics(call: Call) -> Response:
    if not _from_here():
        call.auth.require(Permission.QUEUE_READ)
    return Response(metrics.render(call.services), content_type=metrics.CONTENT_TYPE)


def not_ready(services: Services) -> list[str]:
    """What keeps jobs from running, in words; empty when all is well."""
    reasons = []
    try:
        summary = services.workers.summary()
        if not summary["running"]:
            reasons.append("no worker is alive")
        elif not summary["ready"]:
            reasons += [f"no worker takes jobs: {reason}" for reason in summary["reasons"]]
    except Unavailable as error:
        reasons.append(error.detail)
    try:
        services.broker.ping()
    except Unavailable as error:
        reasons.append(error.detail)
    return reasons + no_room(services.settings.home)


def no_room(home: Path) -> list[str]:
    """Whether the home's disk is full. Workers notice by failed heartbeats; that takes until the last good one is stale."""
    try:
        facts = os.statvfs(home)
    except OSError as error:
        return [f"the home directory cannot be read: {error.strerror}"]
    if facts.f_bavail * facts.f_frsize < _LOW_ROOM:
        return [f"the home's disk is full: less than {_LOW_ROOM >> 20} MB are free"]
    if facts.f_files and not facts.f_favail:
        return ["the home's disk is full: no more files can be made on it"]
    return []


def _from_here() -> bool:
    # Behind a proxy every request seems to come from this machine; the proxy's own headers give it away.
    if any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")):
        return False
    try:
        return ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        return False
