"""What callbacks have told, and what they still have to."""

from __future__ import annotations

from flask import request

from cloche.domain.callbacks import Delivery
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Invalid, Problem
from cloche.web.dashboard.site import Answer, Page, Site

_PAGE = 50
_WORDS = {
    Delivery.PENDING.value: "To be told",
    Delivery.DELIVERED.value: "Delivered",
    Delivery.GIVEN_UP.value: "Given up",
    Delivery.GONE.value: "Refused for good",
}


def callbacks(site: Site, actor: Actor) -> Answer:
    status, cursor = request.args.get("status") or None, request.args.get("cursor") or None
    if status is not None and status not in _WORDS:
        raise Invalid(
            "there is no such state of a delivery", problems=[Problem("/status", f"is one of {', '.join(_WORDS)}")]
        )
    found = site.services.jobs.deliveries(actor, status, cursor, _PAGE)
    return site.render(
        "callbacks.html",
        items=found["items"],
        next_cursor=found["next_cursor"],
        cursor=cursor,
        status=status,
        statuses=_WORDS,
    )


PAGES = (Page("/ui/callbacks", "callbacks", callbacks, Permission.JOB_READ, label="Callbacks"),)
