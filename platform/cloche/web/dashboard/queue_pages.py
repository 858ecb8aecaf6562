"""Queues are paused and resumed from the page of workers and queues."""

from __future__ import annotations

from flask import request

from cloche.domain.permissions import Actor, Permission
from cloche.domain.queues import Scope
from cloche.errors import Invalid, Problem
from cloche.web.dashboard.site import Answer, Page, Site, go


def scopes(actor: Actor) -> list[str]:
    """For whom this person may pause a queue."""
    needed = {Scope.TENANT: Permission.QUEUE_PAUSE, Scope.PLATFORM: Permission.QUEUE_MANAGE}
    return [scope.value for scope, permission in needed.items() if actor.may(permission)]


def pause(site: Site, actor: Actor, name: str) -> Answer:
    return _said(site, actor, name, paused=True)


def resume(site: Site, actor: Actor, name: str) -> Answer:
    return _said(site, actor, name, paused=False)


def _said(site: Site, actor: Actor, name: str, *, paused: bool) -> Answer:
    try:
        scope = Scope(request.form.get("scope", ""))
    except ValueError:
        raise Invalid("the form is not one of this page", problems=[Problem("/scope", "tenant or platform")]) from None
    site.services.queues.change(actor, name, scope, {"paused": paused})
    return go("workers")


PAGES = (
    Page("/ui/queues/<name>/pause", "pause_queue", pause, Permission.QUEUE_PAUSE, methods=("POST",)),
    Page("/ui/queues/<name>/resume", "resume_queue", resume, Permission.QUEUE_PAUSE, methods=("POST",)),
)
