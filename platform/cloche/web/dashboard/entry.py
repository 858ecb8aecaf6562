"""Sign in and out."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import request, url_for
from werkzeug.utils import redirect

from cloche.domain.permissions import Actor
from cloche.errors import RateLimited, Unauthenticated, Unavailable
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
    except (Unauthenticated, RateLimited, Unavailable) as error:
        page = site.render("sign_in.html", next=target, username=username, problem=_told(error))
        headers = {} if isinstance(error, Unauthenticated) else {"Retry-After": str(error.retry_after)}
        return page, 503 if isinstance(error, Unavailable) else error.status, headers
    return redirect(target, 303)


def _told(error: Unauthenticated | RateLimited | Unavailable) -> str:
    """What helps the person at the form. That an account is disabled is told to nobody: a stranger may be guessing names."""
    if isinstance(error, RateLimited):
        return f"Too many sign-ins have failed, for this name or from this address. Try again in {_wait(error)}."
    if isinstance(error, Unavailable):
        return f"Too much is going on at the moment. Try again in {_wait(error)}."
    return error.detail


def _wait(error: RateLimited | Unavailable) -> str:
    seconds = error.retry_after
    if seconds < 60:
        return f"{seconds} second{'' if seconds == 1 else 's'}"
    return "a minute" if seconds == 60 else f"{-(-seconds // 60)} minutes"


def sign_out(site: Site, _actor: Actor | None) -> Answer:
    site.auth.sign_out()
    return go("sign_in")


def _local(target: str) -> str:
    """The page to go to after signing in: one of ours, whatever the address said."""
    home = url_for("dashboard.jobs")
    try:
        parts = urlsplit(target)
    except ValueError:  # an address of IPv6 that is none
        return home
    inside = not parts.scheme and not parts.netloc and parts.path.startswith("/ui/") and "\\" not in target
    return target if inside and "sign-in" not in parts.path else home


PAGES = (
    Page("/ui/sign-in", "sign_in", sign_in, PUBLIC, methods=("GET", "POST")),
    Page("/ui/sign-out", "sign_out", sign_out, PUBLIC, methods=("POST",)),
)
