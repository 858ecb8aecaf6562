"""The record: sought through, verified on demand, one event with its proof, checkpoints and keys. Reading is itself recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import request, url_for

from cloche.domain.events import Action
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Conflict
from cloche.web.dashboard import audit_words
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site

_PAGE = 50
_ACTIONS = sorted(action.value for action in Action)
# What has a page of its own: that page, the name of its place in the address, and who may see it.
_PAGES_OF = {
    "job": ("job", "job_id", Permission.JOB_READ),
    "user": ("user", "user_id", Permission.USER_READ),
    "role": ("role", "name", Permission.ROLE_READ),
    "tenant": ("tenant", "tenant_id", Permission.TENANT_MANAGE),
}


def audit(site: Site, actor: Actor) -> Answer:
    """The trail, and above it a verdict where one was asked for, whatever is filtered: it is always over the whole."""
    found = audit_words.verdict(site.services.auditing.verify(actor)) if request.method == "POST" else None
    typed = audit_words.typed(request.args)
    filters, problems = audit_words.filters(typed)
    cursor = request.args.get("cursor") or None
    page = site.services.auditing.list(actor, filters, cursor, _PAGE)
    return site.render(
        "audit.html",
        items=[{**item, "link": _link(actor, item["object"])} for item in page["items"]],
        next_cursor=page["next_cursor"],
        cursor=cursor,
        typed=typed,
        problems=problems,
        actions=_ACTIONS,
        verdict=found,
        export=_export(typed) if actor.may(Permission.AUDIT_EXPORT) and not problems else None,
    )


def _link(actor: Actor, target: str) -> str | None:
    kind, _, name = target.partition(":")
    endpoint, place, needed = _PAGES_OF.get(kind, ("", "", None))
    if needed is None or not name or not actor.may(needed) or "/" in name:
        return None
    values: dict[str, Any] = {place: name}
    return url_for(f"dashboard.{endpoint}", **values)


def _export(typed: Mapping[str, str]) -> str:
    """The API's address, with the same filters in its form."""
    asked = {name: audit_words.rfc3339(text) if name in ("since", "until") else text for name, text in typed.items()}
    return f"/api/v1/audit/export?{urlencode(asked)}" if asked else "/api/v1/audit/export"


def event(site: Site, actor: Actor, event_id: str) -> Answer:
    try:
        proof = site.services.auditing.proof(actor, event_id)
    except Conflict:
        return site.render("audit_event.html", proof=None, event_id=event_id), 409
    known = {person["commitment"]: person["value"] for person in proof["people"]}
    return site.render(
        "audit_event.html",
        proof=proof,
        event=proof["event"],
        link=_link(actor, proof["event"]["object"]),
        known=known,
        details=_details(proof["event"]["details"]),
        download=f"/api/v1/audit/{proof['seq']}/proof",
    )


def _details(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def checkpoints(site: Site, actor: Actor) -> Answer:
    cursor = request.args.get("cursor") or None
    found = site.services.auditing.checkpoints(actor, cursor, _PAGE)
    return site.render(
        "checkpoints.html",
        items=found["items"],
        next_cursor=found["next_cursor"],
        cursor=cursor,
        public_key=found["public_key"],
        keys=site.services.auditing.keys(actor),
    )


PAGES = (
    Page(
        "/ui/audit",
        "audit",
        audit,
        Permission.AUDIT_READ,
        methods=("GET", "POST"),
        label="Audit",
        under=("audit_event", "checkpoints"),
        section=MANAGE,
    ),
    Page("/ui/audit/checkpoints", "checkpoints", checkpoints, Permission.AUDIT_READ),
    Page("/ui/audit/<event_id>", "audit_event", event, Permission.AUDIT_READ),
)
