"""Pages that show what there is: plugins, workers and queues, the audit trail."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from flask import request

from cloche.domain.permissions import Actor, Permission
from cloche.errors import NotFound
from cloche.web.dashboard.site import Answer, Page, Site, is_part
from cloche.web.dashboard.skeleton import fields
from cloche.web.routing import SIGNED_IN

_PAGE = 50
_VERDICTS = {
    "valid": "Valid.",
    "tampered": "Tampered.",
    "incomplete": "Incomplete.",
}


def plugins(site: Site, actor: Actor) -> Answer:
    listed = site.services.plugins.list(actor)
    groups = [(name, list(items)) for name, items in groupby(listed, key=lambda item: item["name"])]
    return site.render("plugins.html", groups=groups)


def plugin(site: Site, actor: Actor, name: str, version: str) -> Answer:
    found = site.services.plugins.get(actor, name, version)
    configuration = found["configuration"]
    facts = [
        ("Isolation", found["isolation"]),
        ("Network", ", ".join(configuration["network"]) or "none"),
        ("Files", _count(found["inputs"])),
        ("Accepts", ", ".join(found["inputs"]["accept"]) or "any kind"),
        ("Python packages", ", ".join(configuration["python"]) or "none"),
    ]
    if configuration["image"] is not None:
        facts += [("Image", configuration["image"]), ("Command", " ".join(map(repr, configuration["command"])))]
    return site.render(
        "plugin.html",
        plugin=found,
        schema=found["params"],
        fields=fields(found["params"]),
        limits=found["limits"],
        facts=facts,
        may_submit=actor.may(Permission.JOB_SUBMIT),
    )


def _count(inputs: dict[str, Any]) -> str:
    low, high = inputs["min"], inputs["max"]
    if high is None:
        return f"{low} or more" if low else "any number"
    return str(low) if low == high else f"{low} to {high}"


def workers(site: Site, actor: Actor) -> Answer:
    last_event = site.last_event()
    values = {
        "queues": site.services.queues.list(actor) if actor.may(Permission.QUEUE_READ) else [],
        "workers": site.services.workers.list(actor),
    }
    if is_part():
        return site.render("_workers.html", **values)
    return site.render("workers.html", last_event=last_event, **values)


def audit(site: Site, actor: Actor) -> Answer:
    verdict = _verdict(site.services.auditing.verify(actor)) if request.method == "POST" else None
    cursor = request.args.get("cursor") or None
    found = site.services.auditing.list(actor, {}, cursor, _PAGE)
    return site.render(
        "audit.html", items=found["items"], next_cursor=found["next_cursor"], cursor=cursor, verdict=verdict
    )


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    """The verdict in one sentence."""
    status = found["status"]
    bad = found["first_bad"]
    parts = [f"{found['events']} events in {found['batches']} sealed batches were checked."]
    if bad:
        parts = [f"The first bad one is number {bad['seq']}: {bad['why']}."]
    parts += [f"{note.rstrip('.')}." for note in found["notes"]]
    return {"good": status == "valid", "word": _VERDICTS.get(status, status), "text": " ".join(parts)}


def missing(_site: Site, _actor: Actor, rest: str) -> Answer:
    raise NotFound(f"There is no page at /ui/{rest[:80]}.")


PAGES = (
    Page("/ui/plugins", "plugins", plugins, Permission.PLUGIN_READ, label="Plugins", under=("plugin",)),
    Page("/ui/plugins/<name>/<version>", "plugin", plugin, Permission.PLUGIN_READ),
    Page("/ui/workers", "workers", workers, Permission.WORKER_READ, label="Workers"),
    Page("/ui/audit", "audit", audit, Permission.AUDIT_READ, methods=("GET", "POST"), label="Audit"),
    Page("/ui/<path:rest>", "missing", missing, SIGNED_IN),
)
