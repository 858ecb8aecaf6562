"""The Flask app: API, description, health and dashboard, behind one set of guards."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

from flask import Blueprint, Flask

from cloche.netnames import Networks
from cloche.services.container import Services
from cloche.web import cors, edge, headers, openapi, problems, read_record, reading, sending, throttle
from cloche.web.api import (
    audit,
    batches,
    callbacks,
    dead_letters,
    describe,
    egress,
    files,
    health,
    job_details,
    jobs,
    people,
    platform,
    queues,
    quotas,
    remotes,
    roles,
    secrets,
    session,
    statistics,
    tenants,
    tokens,
    workers,
)
from cloche.web.auth import API_BLUEPRINT, Auth
from cloche.web.dashboard.blueprint import create_blueprint
from cloche.web.denials import Denials
from cloche.web.readiness import Readiness
from cloche.web.routing import Route, bind
from cloche.web.slots import Slots

API_PREFIX = "/api/v1"
_API = (
    session,
    people,
    roles,
    tenants,
    tokens,
    files,
    jobs,
    dead_letters,
    job_details,
    batches,
    callbacks,
    queues,
    platform,
    workers,
    statistics,
    quotas,
    remotes,
    secrets,
    egress,
    audit,
)
_SYSTEM = (health, describe)


def api_routes() -> list[Route]:
    """Every route below :data:`API_PREFIX`."""
    return list(chain.from_iterable(module.group.routes for module in _API))


def system_routes() -> list[Route]:
    """Every route of ours outside it, but for the dashboard's."""
    return list(chain.from_iterable(module.group.routes for module in _SYSTEM))


class _App(Flask):
    """Every view is a plain function: Flask need not look at each, at each request, for whether it is a coroutine."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(services: Services, stopping: threading.Event | None = None, *, auth: Auth | None = None) -> Flask:
    """The app over services that are already wired. ``stopping``, once set, ends long polls and live streams.

    ``auth`` asks who is asking; a benchmark gives one that does not.
    """
    settings = services.settings
    app = _App("cloche.web")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.compact = True  # type: ignore[attr-defined]
    app.config["MAX_CONTENT_LENGTH"] = max(settings.server.max_upload, settings.server.max_batch) + (1 << 20)
    app.config["MAX_FORM_MEMORY_SIZE"] = settings.server.max_body
    reading.register(app, settings.server)
    denials = Denials(services.access)
    services.closers.append(denials.close)
    headers.register(app, secure=settings.server.secure_cookies)
    problems.register(app, denials, services.gate.refused)
    if settings.audit.reads and services.auditing.reads is not None:
        read_record.register(app, services.auditing.reads)
    services.closers.append(edge.register(app, settings.server).close)
    throttle.register(app, services.rates)
    cors.register(app, settings.server.cors_origins)
    sending.register(app, reading.places(settings.server))
    auth = auth or Auth(services.access, services.rates)
    auth.init_app(app, settings, _session_key(services))
    app.extensions["cloche_slots"] = Slots(settings.server.max_waits, stopping or threading.Event())
    app.extensions["cloche_denials"] = denials
    app.extensions["cloche_watchers"] = Networks(settings.metrics.allow)
    app.extensions["cloche_readiness"] = readiness = Readiness(services)
    services.closers.append(readiness.close)
    app.extensions["cloche_openapi"] = openapi.document([(API_PREFIX, api_routes()), ("", system_routes())])
    api = Blueprint(API_BLUEPRINT, __name__, url_prefix=API_PREFIX)
    bind(api, api_routes(), services, auth)
    system = Blueprint("system", __name__)
    bind(system, system_routes(), services, auth)
    app.register_blueprint(api)
    app.register_blueprint(system)
    app.register_blueprint(create_blueprint(services, auth))
    return app


def _session_key(services: Services) -> bytes:
    # Derived from a key file, so that all processes of a home sign cookies alike and a restart ends no session.
    return hmac.digest(services.keyring.hmac_key, b"cloche: session cookies, version 1", hashlib.sha256().name)
