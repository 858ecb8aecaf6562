"""The page of addresses that are none."""

from __future__ import annotations

from cloche.domain.permissions import Actor
from cloche.errors import NotFound
from cloche.web.dashboard.site import Answer, Page, Site
from cloche.web.routing import SIGNED_IN


def missing(_site: Site, _actor: Actor, rest: str) -> Answer:
    raise NotFound(f"There is no page at /ui/{rest[:80]}.")


LAST_PAGES = (Page("/ui/<path:rest>", "missing", missing, SIGNED_IN),)
