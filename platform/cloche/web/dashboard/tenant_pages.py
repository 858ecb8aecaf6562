"""Tenants, for those who administer the platform: made, suspended, emptied, removed, and entered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import request

from cloche.domain.permissions import Actor, Permission
from cloche.errors import NotFound, RequestError
from cloche.web import people_models
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside, version_of
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site, go, say

_PAGE = 50
_FIELDS = ("name", "admin", "confirm")
_CODES = {"tenant-exists": "name"}
_CHANGED = "Somebody else has changed this tenant since the page was loaded. Below stands how it is now."


def tenants(site: Site, _actor: Actor) -> Answer:
    cursor, name = request.args.get("cursor") or None, request.args.get("name", "").strip()[:64] or None
    found = site.services.tenants.list(name, cursor, _PAGE)
    return site.render("tenants.html", items=found["items"], next_cursor=found["next_cursor"], cursor=cursor, name=name)


def new_tenant(site: Site, actor: Actor) -> Answer:
    typed = {"name": request.form.get("name", ""), "admin": request.form.get("admin", "").strip()}
    if request.method == "GET":
        return site.render("tenant_new.html", typed=typed, problems={})
    try:
        body = validated(people_models.NewTenant, {"name": typed["name"], "admin": typed["admin"] or None})
        made = site.services.tenants.create(actor, body.name, body.admin)
    except RequestError as refused:
        site.refused(refused)
        problems = beside(refused, _FIELDS, codes=_CODES)
        return site.render("tenant_new.html", typed=typed, problems=problems), refused.status
    say("The tenant is made.")
    return go("tenant", tenant_id=made["id"])


def tenant(site: Site, actor: Actor, tenant_id: str) -> Answer:
    return _tenant(site, actor, tenant_id, {})


def _tenant(
    site: Site, actor: Actor, tenant_id: str, problems: Problems, emptied: Mapping[str, Any] | None = None
) -> str:
    found = site.services.tenants.get(tenant_id)
    return site.render(
        "tenant.html", tenant=found, here=tenant_id == actor.tenant_id, problems=problems, emptied=emptied
    )


def suspend(site: Site, actor: Actor, tenant_id: str) -> Answer:
    return _suspended(
        site, actor, tenant_id, True, "The tenant is suspended: nobody of it is let in, and none of its jobs starts."
    )


def resume(site: Site, actor: Actor, tenant_id: str) -> Answer:
    return _suspended(site, actor, tenant_id, False, "The tenant is active again.")


def _suspended(site: Site, actor: Actor, tenant_id: str, suspended: bool, words: str) -> Answer:
    version = version_of(request.form)

    def act() -> Answer:
        site.services.tenants.set_suspended(actor, tenant_id, suspended, version)
        say(words)
        return go("tenant", tenant_id=tenant_id)

    return _tried(site, actor, tenant_id, act)


def empty(site: Site, actor: Actor, tenant_id: str) -> Answer:
    """Some seconds of it; the page says what is left, and whoever asked asks again."""
    version, confirm = version_of(request.form), request.form.get("confirm", "").strip()

    def act() -> Answer:
        body = validated(people_models.EmptiedTenant, {"confirm": confirm})
        done = site.services.emptying.run(actor, tenant_id, body.confirm, version)
        return _tenant(site, actor, tenant_id, {}, done)

    return _tried(site, actor, tenant_id, act)


def delete(site: Site, actor: Actor, tenant_id: str) -> Answer:
    version = version_of(request.form)

    def act() -> Answer:
        site.services.tenants.delete(actor, tenant_id, version)
        say("The tenant is removed.")
        return go("tenants")

    return _tried(site, actor, tenant_id, act)


def _tried(site: Site, actor: Actor, tenant_id: str, act: Callable[[], Answer]) -> Answer:
    try:
        return act()
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        problems = {"form": [_CHANGED]} if refused.code == "tenant-changed" else beside(refused, _FIELDS, codes=_CODES)
        return _tenant(site, actor, tenant_id, problems), refused.status


_OF_ONE = (
    *("tenant", "new_tenant", "suspend_tenant", "resume_tenant", "empty_tenant", "delete_tenant"),
    *("tenant_quota", "set_tenant_quota"),
)
_NEEDED = Permission.TENANT_MANAGE
PAGES = (
    Page("/ui/tenants", "tenants", tenants, _NEEDED, label="Tenants", under=_OF_ONE, section=MANAGE),
    Page("/ui/tenants/new", "new_tenant", new_tenant, _NEEDED, methods=("GET", "POST")),
    Page("/ui/tenants/<tenant_id>", "tenant", tenant, _NEEDED),
    Page("/ui/tenants/<tenant_id>/suspend", "suspend_tenant", suspend, _NEEDED, methods=("POST",)),
    Page("/ui/tenants/<tenant_id>/resume", "resume_tenant", resume, _NEEDED, methods=("POST",)),
    Page("/ui/tenants/<tenant_id>/empty", "empty_tenant", empty, _NEEDED, methods=("POST",)),
    Page("/ui/tenants/<tenant_id>/delete", "delete_tenant", delete, _NEEDED, methods=("POST",)),
)
