"""Batches: the list, and one of them with how far it is and its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import request, url_for

from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import TERMINAL, State
from cloche.errors import Conflict, Invalid, Problem
from cloche.web.dashboard.show import sentence
from cloche.web.dashboard.site import Answer, Page, Site, go, is_part, say

_PAGE = 50


def batches(site: Site, actor: Actor) -> Answer:
    cursor = request.args.get("cursor") or None
    found = site.services.batches.list(actor, cursor, _PAGE)
    return site.render("batches.html", items=found["items"], next_cursor=found["next_cursor"], cursor=cursor)


def batch(site: Site, actor: Actor, batch_id: str) -> Answer:
    last_event = site.last_event()
    status, cursor = _status(), request.args.get("cursor") or None
    found = site.services.batches.get(actor, batch_id)
    page = site.services.batches.jobs(actor, batch_id, status, cursor, _PAGE)
    states = found["jobs"]
    live = any(count for name, count in states.items() if State(name) not in TERMINAL)
    values = {
        "batch": found,
        "states": {name: count for name, count in states.items() if count or name == status},
        "ended": found["purged"] + sum(states[state.value] for state in TERMINAL),
        "status": status,
        "items": page["items"],
        "next_cursor": page["next_cursor"],
        "cursor": cursor,
        "may_cancel": live and _may(actor, found, Permission.JOB_CANCEL, Permission.JOB_CANCEL_ANY),
        "may_retry": states[State.FAILED.value] and _may(actor, found, Permission.JOB_RETRY, Permission.JOB_RETRY_ANY),
    }
    if is_part():
        return site.render("_batch.html", **values)
    here = url_for(".batch", batch_id=batch_id, status=status, cursor=cursor)
    return site.render("batch.html", last_event=last_event, here=here, **values)


def _status() -> str | None:
    status = request.args.get("status") or None
    if status is not None and status not in {state.value for state in State}:
        raise Invalid("there is no such state of a job", problems=[Problem("/status", "is none of a job's states")])
    return status


def _may(actor: Actor, found: Mapping[str, Any], own: Permission, anybodys: Permission) -> bool:
    return actor.may(anybodys) or (found["submitted_by"] == actor.username and actor.may(own))


def cancel_batch(site: Site, actor: Actor, batch_id: str) -> Answer:
    try:
        site.services.batches.cancel(actor, batch_id)
        say("What was waiting is canceled; what runs is being stopped.")
    except Conflict as refused:  # somebody was faster; the page says how it is now
        say(sentence(refused.detail), good=False)
    return go("batch", batch_id=batch_id)


def retry_batch(site: Site, actor: Actor, batch_id: str) -> Answer:
    try:
        found = site.services.batches.retry(actor, batch_id)
        if left := found["skipped_count"]:
            text = f"{found['retried']:,} in line again; {left:,} left as {'it is' if left == 1 else 'they are'}."
            say(text, good=False, skipped=found["skipped"])
        else:
            say("What had failed, and what was canceled because of it, is in line again.")
    except Conflict as refused:
        say(sentence(refused.detail), good=False)
    return go("batch", batch_id=batch_id)


PAGES = (
    Page("/ui/batches", "batches", batches, Permission.JOB_READ, label="Batches", under=("batch",)),
    Page("/ui/batches/<batch_id>", "batch", batch, Permission.JOB_READ),
    Page("/ui/batches/<batch_id>/cancel", "cancel_batch", cancel_batch, Permission.JOB_CANCEL, methods=("POST",)),
    Page("/ui/batches/<batch_id>/retry", "retry_batch", retry_batch, Permission.JOB_RETRY, methods=("POST",)),
)
