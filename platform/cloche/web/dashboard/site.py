"""What every page shares: the services, the current actor, rendering, and how errors look."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flask import g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from cloche import __version__
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Unavailable
from cloche.services.container import Services
from cloche.web.auth import Auth
from cloche.web.dashboard import show
from cloche.web.dashboard.live import Streams
from cloche.web.routing import Access

STATIC = Path(__file__).parent.parent / "static"
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
        shown = [
            {"label": page.label, "endpoint": f".{page.name}", "here": request.endpoint in _endpoints(page)}
            for page in self.nav
            if actor is not None and _allowed(actor, page.permission)
        ]
        return render_template(
            f"dashboard/{template}",
            actor=actor,
            pages=shown,
            version=__version__,
            asset=asset,
            between=show.between,
            **values,
        )

    def last_event(self) -> str | None:
        """Where a page's stream should start: read before the page's data, so that no change falls between."""
        try:
            return self.services.broker.last_event_id()
        except Unavailable:
            return None  # the page polls until Redis is back


View = Callable[..., Answer]


@dataclass(frozen=True)
class Page:
    """One address. ``permission`` is declared always; ``label`` puts it into the navigation, ``under`` marks that entry as current."""

    path: str
    name: str
    view: View
    permission: Permission | Access
    methods: tuple[str, ...] = ("GET",)
    label: str | None = None
    under: tuple[str, ...] = ()


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


@cache
def _version(path: str) -> str:
    return hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:10]


def asset(path: str) -> str:
    """The address of a static file; it changes with the file's content, so that no browser keeps an old one."""
    return url_for("static", filename=path, v=_version(path))
