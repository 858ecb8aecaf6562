"""Which hosts the tenant's jobs may reach: shown, and set by those who may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import request

from cloche.domain.permissions import Actor, Permission
from cloche.errors import Conflict, Invalid
from cloche.web import models
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import lines, version_of
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site, go, say

_CHANGED = "Somebody else has changed the policy since this page was loaded. Beside it stands what it is now; saving replaces that."


def egress(site: Site, actor: Actor) -> Answer:
    found = site.services.egress.get(actor)
    return _shown(site, actor, found, "\n".join(found["allow"]), [])


def set_egress(site: Site, actor: Actor) -> Answer:
    """Set what the form holds; a form that is refused is shown again as it was typed."""
    typed, version = request.form.get("allow", ""), version_of(request.form)
    hosts = lines(typed)
    try:
        body = validated(models.EgressPolicy, {"allow": hosts})
        site.services.egress.put(actor, body.allow, version)
    except Conflict:
        return _shown(site, actor, site.services.egress.get(actor), typed, [_CHANGED]), 409
    except Invalid as refused:
        return _shown(site, actor, site.services.egress.get(actor), typed, _told(refused, hosts)), 422
    say("The egress policy is set. It holds for jobs that are submitted or begin from now on.")
    return go("egress")


def _told(refused: Invalid, hosts: Sequence[str]) -> list[str]:
    """What is wrong, each with the line that it is about."""
    told = []
    for problem in refused.problems:
        number = problem.pointer.rpartition("/")[2]
        about = f"{hosts[int(number)][:80]}: " if number.isdigit() and int(number) < len(hosts) else ""
        told.append(f"{about}{problem.detail}")
    return told[:20] or [refused.detail]


def _shown(site: Site, actor: Actor, found: Mapping[str, Any], typed: str, wrong: Sequence[str]) -> str:
    may_set = actor.may(Permission.EGRESS_MANAGE)
    return site.render("egress.html", policy=found, typed=typed, wrong=wrong, may_set=may_set)


PAGES = (
    Page("/ui/egress", "egress", egress, Permission.EGRESS_READ, label="Egress", under=("set_egress",), section=MANAGE),
    Page("/ui/egress/set", "set_egress", set_egress, Permission.EGRESS_MANAGE, methods=("POST",)),
)
