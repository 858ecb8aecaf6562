"""Workers and queues on one page, with numbers that renew themselves; and draining a worker."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Actor, Permission
from cloche.errors import Conflict
from cloche.web.dashboard import queue_pages
from cloche.web.dashboard.site import Answer, Page, Site, go, is_part


def workers(site: Site, actor: Actor) -> Answer:
    last_event = site.last_event()
    values = {
        "queues": site.services.queues.list(actor) if actor.may(Permission.QUEUE_READ) else [],
        "scopes": queue_pages.scopes(actor),
        "workers": site.services.workers.list(actor),
        "may_drain": actor.may(Permission.WORKER_DRAIN),
    }
    if is_part():
        return site.render("_workers.html", **values)
    return site.render("workers.html", last_event=last_event, stats=_stats(site, actor), **values)


def _stats(site: Site, actor: Actor) -> dict[str, Any] | None:
    """None for who may not see queues."""
    return site.services.statistics.overall(actor) if actor.may(Permission.QUEUE_READ) else None


def statistics(site: Site, actor: Actor) -> Answer:
    """A part of the page of workers; by itself it is that page."""
    if not is_part():
        return go("workers")
    return site.render("_statistics.html", stats=_stats(site, actor))


def drain(site: Site, actor: Actor, worker_id: str) -> Answer:
    try:
        site.services.drains.drain(actor, worker_id)
    except Conflict as refused:
        if refused.code != "worker-dead":
            raise
        # It has gone meanwhile; the page says so.
    return go("workers")


PAGES = (
    Page("/ui/workers", "workers", workers, Permission.WORKER_READ, label="Workers"),
    Page("/ui/statistics", "statistics", statistics, Permission.QUEUE_READ),
    Page("/ui/workers/<worker_id>/drain", "drain", drain, Permission.WORKER_DRAIN, methods=("POST",)),
)
