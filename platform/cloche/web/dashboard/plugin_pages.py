"""Plugins: what there is, and which state each version is in. Platform administrators change that state on the version's page."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from flask import request

from cloche.domain.permissions import Actor, Permission
from cloche.domain.versions import VersionState
from cloche.errors import NotFound, RequestError
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside, version_of
from cloche.web.dashboard.site import Answer, Page, Site, go, say
from cloche.web.dashboard.skeleton import fields
from cloche.web.models import ChangedVersion

_CHANGED = "Somebody else has changed this version since the page was loaded. Below stands how it is now."
# What a person can make of a version, and what comes of it.
_ACTS = {
    VersionState.ENABLED: ("Enable", "The version takes jobs."),
    VersionState.DEPRECATED: ("Deprecate", "The version takes jobs, and each is told that it is deprecated."),
    VersionState.DISABLED: ("Disable", "The version takes no new jobs. Jobs that were accepted run on; none is retried by hand."),
    VersionState.YANKED: ("Yank", "The version takes no new jobs. Jobs that were accepted run on, and are retried."),
}  # fmt: skip


def plugins(site: Site, actor: Actor) -> Answer:
    listed = site.services.plugins.list(actor)
    groups = [(name, list(items)) for name, items in groupby(listed, key=lambda item: item["name"])]
    return site.render("plugins.html", groups=groups)


def plugin(site: Site, actor: Actor, name: str, version: str) -> Answer:
    return _page(site, actor, name, version, {})


def set_state(site: Site, actor: Actor, name: str, version: str) -> Answer:
    revision, reason = version_of(request.form), request.form.get("reason", "").strip()
    try:
        asked = validated(ChangedVersion, {"state": request.form.get("state", ""), "reason": reason or None})
        state = VersionState(asked.state)
        site.services.plugins.set_state(actor, name, version, state, asked.reason, revision)
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        changed = refused.code == "version-changed"
        problems: Problems = {"form": [_CHANGED]} if changed else beside(refused, ("reason",))
        return _page(site, actor, name, version, problems, reason), refused.status
    say(_ACTS[state][1])
    return go("plugin", name=name, version=version)


def _page(site: Site, actor: Actor, name: str, version: str, problems: Problems, typed: str = "") -> str:
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
    may_manage = actor.may(Permission.PLUGIN_MANAGE) and found["revision"] is not None
    return site.render(
        "plugin.html",
        plugin=found,
        schema=found["params"],
        fields=fields(found["params"]),
        limits=found["limits"],
        facts=facts,
        may_submit=actor.may(Permission.JOB_SUBMIT),
        acts=[(state.value, *words) for state, words in _ACTS.items() if state != found["state"]] if may_manage else [],
        problems=problems,
        typed=typed,
    )


def _count(inputs: dict[str, Any]) -> str:
    low, high = inputs["min"], inputs["max"]
    if high is None:
        return f"{low} or more" if low else "any number"
    return str(low) if low == high else f"{low} to {high}"


PAGES = (
    Page("/ui/plugins", "plugins", plugins, Permission.PLUGIN_READ, label="Plugins", under=("plugin",)),
    Page("/ui/plugins/<name>/<version>", "plugin", plugin, Permission.PLUGIN_READ),
    Page("/ui/plugins/<name>/<version>/state", "set_state", set_state, Permission.PLUGIN_MANAGE, methods=("POST",)),
)
