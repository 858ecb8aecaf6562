"""Roles: which allows what, as a matrix; one of them with who has it; and the forms for a tenant's own ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import request

from cloche.domain.permissions import PLATFORM_PERMISSIONS, Actor, Permission
from cloche.errors import NotFound, RequestError
from cloche.web import people_models
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside, version_of
from cloche.web.dashboard.permission_words import Group, grouped
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site, go, say

_COLUMNS = 12  # roles beside each other; more are on the next page
_HOLDERS = 20  # users named on a role's page
_FIELDS = ("name", "summary", "permissions")
_CODES = {"role-exists": "name", "grant-exceeds-own": "permissions"}
_CHANGED = "Somebody else has changed this role since the page was loaded. Saving again replaces what they did."


def _givable() -> list[Group]:
    """What a role can allow: all but what concerns every tenant."""
    return grouped(permission for permission in Permission if permission not in PLATFORM_PERMISSIONS)


def roles(site: Site, actor: Actor) -> Answer:
    if name := request.args.get("name", "").strip():
        return _sought(site, actor, name)
    cursor = request.args.get("cursor") or None
    found = site.services.roles.list(actor, cursor, _COLUMNS)
    columns = [{**role, "allows": frozenset(role["permissions"])} for role in found["items"]]
    return site.render(
        "roles.html",
        columns=columns,
        groups=_givable(),
        next_cursor=found["next_cursor"],
        cursor=cursor,
        may_manage=actor.may(Permission.ROLE_MANAGE),
    )


def _sought(site: Site, actor: Actor, name: str) -> Answer:
    try:
        return go("role", name=site.services.roles.get(actor, name.casefold())["name"])
    except NotFound:
        say(f"There is no role “{name[:64]}” in this tenant.", good=False)
        return go("roles")


def role(site: Site, actor: Actor, name: str) -> Answer:
    found = site.services.roles.get(actor, name)
    return _role(site, actor, found, found, {})


def _role(site: Site, actor: Actor, found: Mapping[str, Any], typed: Mapping[str, Any], problems: Problems) -> str:
    """``typed``: summary and permissions as the form holds them."""
    holders = None
    if actor.may(Permission.USER_READ):
        holders = site.services.users.list(actor, {"role": found["name"]}, None, _HOLDERS)
    return site.render(
        "role.html",
        role=found,
        typed=typed,
        problems=problems,
        holders=holders,
        groups=_givable(),
        allows=grouped(found["permissions"]),
        held=actor.permissions,
        may_manage=actor.may(Permission.ROLE_MANAGE),
    )


def _typed() -> dict[str, Any]:
    return {"summary": request.form.get("summary", "").strip(), "permissions": request.form.getlist("permission")}


def change_role(site: Site, actor: Actor, name: str) -> Answer:
    found, typed, version = site.services.roles.get(actor, name), _typed(), version_of(request.form)
    try:
        body = validated(people_models.RoleSaid, typed)
        site.services.roles.change(actor, name, body.summary, body.permissions, version)
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        problems = beside(refused, _FIELDS, about={"permissions": typed["permissions"]}, codes=_CODES)
        if refused.code == "role-changed":
            found, problems = site.services.roles.get(actor, name), {"form": [_CHANGED]}
        return _role(site, actor, found, typed, problems), refused.status
    say("The role is changed. For everybody who has it that holds from their next request on.")
    return go("role", name=name)


def new_role(site: Site, actor: Actor) -> Answer:
    """``from``: a role whose permissions are ticked to begin with."""
    if request.method == "GET":
        begun = site.services.roles.get(actor, request.args["from"]) if request.args.get("from") else None
        permissions = [] if begun is None else [one for one in begun["permissions"] if one in actor.permissions]
        return _new(site, actor, {"name": "", "summary": "", "permissions": permissions}, {})
    typed = {"name": request.form.get("name", ""), **_typed()}
    try:
        body = validated(people_models.NewRole, typed)
        made = site.services.roles.create(actor, body.name, body.summary, body.permissions)
    except RequestError as refused:
        site.refused(refused)
        problems = beside(refused, _FIELDS, about={"permissions": typed["permissions"]}, codes=_CODES)
        return _new(site, actor, typed, problems), refused.status
    say("The role is made. Nobody has it yet.")
    return go("role", name=made["name"])


def _new(site: Site, actor: Actor, typed: Mapping[str, Any], problems: Problems) -> str:
    return site.render("role_new.html", typed=typed, problems=problems, groups=_givable(), held=actor.permissions)


def delete_role(site: Site, actor: Actor, name: str) -> Answer:
    found = site.services.roles.get(actor, name)
    try:
        site.services.roles.delete(actor, name, version_of(request.form))
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        return _role(site, actor, found, found, beside(refused, ())), refused.status
    say(f"The role “{name}” is removed.")
    return go("roles")


_OF_ONE = ("role", "new_role", "change_role", "delete_role")
PAGES = (
    Page("/ui/roles", "roles", roles, Permission.ROLE_READ, label="Roles", under=_OF_ONE, section=MANAGE),
    Page("/ui/roles/new", "new_role", new_role, Permission.ROLE_MANAGE, methods=("GET", "POST")),
    Page("/ui/roles/<name>", "role", role, Permission.ROLE_READ),
    Page("/ui/roles/<name>/change", "change_role", change_role, Permission.ROLE_MANAGE, methods=("POST",)),
    Page("/ui/roles/<name>/delete", "delete_role", delete_role, Permission.ROLE_MANAGE, methods=("POST",)),
)
