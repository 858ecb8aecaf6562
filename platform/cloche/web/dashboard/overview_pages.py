"""Pages that show what there is: plugins; and the page of addresses that are none."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from cloche.domain.permissions import Actor, Permission
from cloche.errors import NotFound
from cloche.web.dashboard.site import Answer, Page, Site
from cloche.web.dashboard.skeleton import fields
from cloche.web.routing import SIGNED_IN


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


def missing(_site: Site, _actor: Actor, rest: str) -> Answer:
    raise NotFound(f"There is no page at /ui/{rest[:80]}.")


PAGES = (
    Page("/ui/plugins", "plugins", plugins, Permission.PLUGIN_READ, label="Plugins", under=("plugin",)),
    Page("/ui/plugins/<name>/<version>", "plugin", plugin, Permission.PLUGIN_READ),
)
LAST_PAGES = (Page("/ui/<path:rest>", "missing", missing, SIGNED_IN),)
