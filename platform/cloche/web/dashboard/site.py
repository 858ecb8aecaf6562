"""What every page shares: the services, the current actor, rendering, and how errors look."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from flask import current_app, g, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from cloche import __version__
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Forbidden, RequestError, Unavailable
from cloche.services.container import Services
from cloche.web.auth import Auth
from cloche.web.dashboard import show
from cloche.web.dashboard.live import Streams
from cloche.web.denials import Denials
from cloche.web.routing import Access

STATIC = Path(__file__).parent.parent / "static"
MANAGE = "Manage"  # the section of what one administers, and of the record
BARE = "problem.html"  # the page of errors: it asks no store for anything
_SAID = 10  # jobs that a note names: it travels in the session's cookie
Answer = str | Response | tuple[str, int] | tuple[str, int, Mapping[str, str]]


@dataclass(frozen=True)
class Site:
    """Passed to every page's view."""

    services: Services
    auth: Auth
    streams: Streams
    nav: list[Page] = field(default_factory=list)

    def render(self, template: str, **values: Any) -> str:
        """A template with what every page needs beside ``values``."""
        actor: Actor | None = g.get("actor")
        mine = [page for page in self.nav if actor is not None and _allowed(actor, page.permission)]
        shown, beside = _navigation(mine)
        return render_template(
            f"dashboard/{template}",
            actor=actor,
            pages=shown,
            beside=beside,
            version=__version__ if actor is not None else "",
            asset=asset,
            between=show.between,
            where=None if actor is None or is_part() or template == BARE else self._where(actor),
            said=None if is_part() or "said" not in session else session.pop("said"),
            **values,
        )

    def _where(self, actor: Actor) -> str | None:
        """The tenant's name, for those who could be in another one."""
        mine = {tenant["id"]: str(tenant["name"]) for tenant in self.services.access.tenants(actor)}
        if len(mine) < 2 and not actor.platform_admin:
            return None
        return mine.get(actor.tenant_id) or str(self.services.tenants.get(actor.tenant_id)["name"])

    def refused(self, error: RequestError) -> None:
        """Every refusal of a right is audited, whether a view answers it beside a field or leaves it to the page of errors; repeated ones
        are counted, as the API's are."""
        actor: Actor | None = g.get("actor")
        if actor is None or not isinstance(error, Forbidden):
            return  # nobody to name; the page to sign in is the answer
        denials: Denials = current_app.extensions["cloche_denials"]
        denials.refused(error.detail)

    def last_event(self) -> str | None:
        """Where a page's stream should start: read before the page's data, so that no change falls between."""
        try:
            return self.services.broker.last_event_id()
        except Unavailable:
            return None  # the page polls until Redis is back


View = Callable[..., Answer]


@dataclass(frozen=True)
class Page:
    """One address. ``permission`` is declared always; ``label`` puts it into the navigation, ``under`` marks that entry as current.
    Pages of one ``section`` share an entry of the navigation, and stand beside each other in a second line."""

    path: str
    name: str
    view: View
    permission: Permission | Access
    methods: tuple[str, ...] = ("GET",)
    label: str | None = None
    under: tuple[str, ...] = ()
    section: str | None = None


def _navigation(pages: Sequence[Page]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The entries of the navigation, and those beside the current page. A section of one page is that page."""
    shown: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    for section, group in groupby(sorted(pages, key=lambda page: page.section or ""), lambda page: page.section):
        entries = [_entry(page) for page in group]
        if section is None or len(entries) == 1:
            shown += entries
            continue
        here = any(entry["here"] for entry in entries)
        shown.append({"label": section, "endpoint": entries[0]["endpoint"], "here": here})
        beside = entries if here else beside
    return shown, beside


def _entry(page: Page) -> dict[str, Any]:
    return {"label": page.label, "endpoint": f".{page.name}", "here": request.endpoint in _endpoints(page)}


def _endpoints(page: Page) -> set[str]:
    return {f"dashboard.{name}" for name in (page.name, *page.under)}


def _allowed(actor: Actor, permission: Permission | Access) -> bool:
    return not isinstance(permission, Permission) or actor.may(permission)


def is_part() -> bool:
    """Whether htmx asks for a part of the page, not for the page."""
    return request.headers.get("HX-Request") == "true"


def go(endpoint: str, **values: Any) -> Response:
    """See another page with GET."""
    return redirect(url_for(f"dashboard.{endpoint}", **values), 303)


def say(text: str, *, good: bool = True, skipped: Sequence[Mapping[str, str]] = ()) -> None:
    """A note above the next page that is shown whole: a form is answered by a page to go to, so that loading it again repeats nothing.

    ``skipped``: jobs (``id``) that were left, and why (``detail``); the first ten are named.
    """
    named = [{"id": item["id"], "detail": item["detail"][:120]} for item in skipped[:_SAID]]
    session["said"] = {"text": text, "good": good, "skipped": named, "more": len(skipped) - len(named)}


@cache
def _version(path: str) -> str:
    return hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:10]


def asset(path: str) -> str:
    """The address of a static file; it changes with the file's content, so that no browser keeps an old one."""
    return url_for("static", filename=path, v=_version(path))
