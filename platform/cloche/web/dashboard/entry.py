"""Sign in and out."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import request, url_for
from werkzeug.utils import redirect

from cloche.domain.permissions import Actor
from cloche.errors import RateLimited, Unauthenticated
from cloche.web.dashboard.site import Answer, Page, Site, go
from cloche.web.routing import PUBLIC


def sign_in(site: Site, actor: Actor | None) -> Answer:
    target = _local(request.values.get("next", ""))
    if request.method == "GET":
        if actor is not None:
            return redirect(target, 303)
        return site.render("sign_in.html", next=target, username="", problem=None)
    username = request.form.get("username", "")
    try:
        site.auth.sign_in(username, request.form.get("password", ""))
    except (Unauthenticated, RateLimited) as error:
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, RateLimited) else {}
        page = site.render("sign_in.html", next=target, username=username, problem=error.detail)
        return page, error.status, headers
    return redirect(target, 303)


def sign_out(site: Site, _actor: Actor | None) -> Answer:
    site.auth.sign_out()
    return go("sign_in")


def _local(target: str) -> str:
    """The page to go to after signing in: one of ours, whatever the address said."""
    parts = urlsplit(target)
    home = url_for("dashboard.jobs")
    inside = not parts.scheme and not parts.netloc and parts.path.startswith("/ui/") and "\\" not in target
    return target if inside and "sign-in" not in parts.path else home


PAGES = (
    Page("/ui/sign-in", "sign_in", sign_in, PUBLIC, methods=("GET", "POST")),
    Page("/ui/sign-out", "sign_out", sign_out, PUBLIC, methods=("POST",)),
)
