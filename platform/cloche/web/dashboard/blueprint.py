"""The dashboard's addresses, put together: pages below ``/ui``, each with its permission, and errors as pages in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, g, request, session
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from cloche import logs
from cloche.domain.permissions import Permission
from cloche.errors import ClocheError, Forbidden, RateLimited, RequestError, TooLarge, Unauthenticated, Unavailable
from cloche.services.container import Services
from cloche.web.auth import Auth
from cloche.web.dashboard import (
    account_pages,
    audit_pages,
    batch_pages,
    callback_pages,
    dead_letter_pages,
    egress_pages,
    entry,
    job_pages,
    new_user_page,
    overview_pages,
    people_pages,
    plugin_pages,
    queue_pages,
    reset_page,
    role_pages,
    secret_pages,
    show,
    submit_page,
    tenant_pages,
    token_pages,
    usage_pages,
    user_token_pages,
    worker_pages,
)
from cloche.web.dashboard.live import Streams
from cloche.web.dashboard.site import BARE, Answer, Page, Site, go, is_part
from cloche.web.routing import PUBLIC

PAGES: tuple[Page, ...] = (
    *job_pages.PAGES,
    *submit_page.PAGES,
    *batch_pages.PAGES,
    *dead_letter_pages.PAGES,
    *queue_pages.PAGES,
    *callback_pages.PAGES,
    *plugin_pages.PAGES,
    *worker_pages.PAGES,
    *people_pages.PAGES,
    *new_user_page.PAGES,
    *user_token_pages.PAGES,
    *role_pages.PAGES,
    *secret_pages.PAGES,
    *egress_pages.PAGES,
    *usage_pages.PAGES,
    *tenant_pages.PAGES,
    *audit_pages.PAGES,
    *account_pages.PAGES,
    *token_pages.PAGES,
    *overview_pages.LAST_PAGES,
    *entry.PAGES,
    *reset_page.PAGES,
)
_SMALL_FORM = 256 << 10  # bytes; every form but the one that takes files
_log = logs.get(__name__)


def create_blueprint(services: Services, auth: Auth) -> Blueprint:
    """All pages. The app's ``cloche_slots`` bound the live streams together with the API's long polls."""
    site = Site(services, auth, Streams(services.broker), nav=[page for page in PAGES if page.label])
    blueprint = Blueprint("dashboard", __name__, template_folder="templates")
    for page in PAGES:
        blueprint.add_url_rule(page.path, page.name, _view(page, site), methods=list(page.methods))
    for name, filtered in show.FILTERS.items():
        blueprint.add_app_template_filter(filtered, name)
    blueprint.url_value_preprocessor(_Limits(services).apply)
    _register_errors(blueprint, site)
    return blueprint


class _Limits:
    """How much of a form is read. Set before the CSRF check, which reads it."""

    def __init__(self, services: Services) -> None:
        self._server = services.settings.server

    def apply(self, endpoint: str | None, _values: dict[str, Any] | None) -> None:
        # A cookie that we signed says that somebody has signed in; whether the session still holds is asked later.
        uploads = endpoint == "dashboard.submit" and "_user_id" in session
        request.max_content_length = self._server.max_upload + self._server.max_body if uploads else _SMALL_FORM
        request.max_form_memory_size = self._server.max_body if uploads else _SMALL_FORM
        request.max_form_parts = 1_000


def _view(page: Page, site: Site) -> Callable[..., Answer]:
    def view(**parameters: str) -> Answer:
        if page.permission is PUBLIC:
            actor = site.auth.actor()
        else:
            actor = site.auth.require(page.permission if isinstance(page.permission, Permission) else None)
        return page.view(site, actor, **parameters)

    view.__name__ = page.name
    return view


def _register_errors(blueprint: Blueprint, site: Site) -> None:
    """An error of a page is a page. Refusals are audited as the API's are."""

    def shown(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Answer:
        g.setdefault("actor", None)
        page = site.render(BARE, title=title, detail=detail, request_id=g.get("request_id"))
        return page, status, headers or {}

    def on_request_error(error: RequestError) -> Answer:
        if isinstance(error, Unauthenticated):
            if request.method == "GET" and not is_part() and request.accept_mimetypes.accept_html:
                return go("sign_in", next=request.full_path.rstrip("?"))
            return shown(401, "Not signed in", "The session has ended. Sign in again.")
        if isinstance(error, Forbidden):
            site.refused(error)
            if error.code == "csrf":
                detail = "The page was open for too long, or cookies are blocked. Load it anew and try again."
                return shown(403, "This form has lapsed", detail)
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, RateLimited) else {}
        if isinstance(error, TooLarge):
            headers["Connection"] = "close"  # the rest of the body is not read
        return shown(error.status, error.title, show.sentence(error.detail), headers)

    def on_unavailable(error: Unavailable) -> Answer:
        if request.endpoint == "dashboard.events":
            return "", 503, {"Retry-After": str(error.retry_after)}
        _log.warning("unavailable", detail=error.detail, path=request.path)
        detail = "A store does not answer at the moment. Nothing is lost; load the page again in a few seconds."
        return shown(503, "Temporarily unavailable", detail, {"Retry-After": str(error.retry_after)})

    def on_http(error: HTTPException) -> Answer:
        if isinstance(error, RequestEntityTooLarge):
            return on_request_error(TooLarge("The form and its files are larger than this server takes."))
        return shown(error.code or 500, error.name, error.description or error.name)

    def on_anything(error: Exception) -> Answer:
        _log.error("page failed", path=request.path, method=request.method, exc_info=error)
        return shown(
            500, "Something failed on our side", "The request's id below helps the operator to find it in the log."
        )

    blueprint.register_error_handler(RequestError, on_request_error)
    blueprint.register_error_handler(Unavailable, on_unavailable)
    blueprint.register_error_handler(HTTPException, on_http)
    blueprint.register_error_handler(ClocheError, on_anything)
    blueprint.register_error_handler(Exception, on_anything)
