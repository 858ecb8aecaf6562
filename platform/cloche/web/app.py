"""The Flask app: API, description, health and dashboard, behind one set of guards."""

from __future__ import annotations

import hashlib
import hmac
import threading
from itertools import chain

from flask import Blueprint, Flask

from cloche.services.container import Services
from cloche.web import headers, openapi, problems, reading
from cloche.web.api import audit, describe, egress, files, health, job_details, jobs, people, platform, remotes, session
from cloche.web.auth import API_BLUEPRINT, Auth
from cloche.web.dashboard.blueprint import create_blueprint
from cloche.web.denials import Denials
from cloche.web.routing import Route, bind
from cloche.web.slots import Slots

API_PREFIX = "/api/v1"
_API = (session, people, files, jobs, job_details, platform, remotes, egress, audit)
_SYSTEM = (health, describe)


def api_routes() -> list[Route]:
    """Every route below :data:`API_PREFIX`."""
    return list(chain.from_iterable(module.group.routes for module in _API))


def system_routes() -> list[Route]:
    """Every route of ours outside it, but for the dashboard's."""
    return list(chain.from_iterable(module.group.routes for module in _SYSTEM))


def create_app(services: Services, stopping: threading.Event | None = None) -> Flask:
    """The app over services that are already wired. ``stopping``, once set, ends long polls and live streams."""
    settings = services.settings
    app = Flask("cloche.web")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.compact = True  # type: ignore[attr-defined]
    app.config["MAX_CONTENT_LENGTH"] = settings.server.max_upload + (1 << 20)
    app.config["MAX_FORM_MEMORY_SIZE"] = settings.server.max_body
    reading.register(app, settings.server.threads)
    denials = Denials(services.access)
    services.closers.append(denials.close)
    headers.register(app, secure=settings.server.secure_cookies)
    problems.register(app, denials)
    auth = Auth(services.access)
    auth.init_app(app, settings, _session_key(services))
    app.extensions["cloche_slots"] = Slots(settings.server.max_waits, stopping or threading.Event())
    app.extensions["cloche_denials"] = denials
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
