"""Secrets of the tenant: who gets which, and values that go in and never come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flask import request

from cloche.domain.permissions import Actor, Permission
from cloche.errors import NotFound, RequestError
from cloche.web import secret_shapes
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside, lines, version_of
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site, go, say

_FIELDS = ("name", "value", "description", "grants")
_CODES = {"secret-exists": "name"}
_CHANGED = "Somebody else has changed this secret since the page was loaded. Saving again replaces what they did."


def secrets(site: Site, actor: Actor) -> Answer:
    return site.render(
        "secrets.html", items=site.services.secrets.list(actor), may_manage=actor.may(Permission.SECRET_MANAGE)
    )


def new_secret(site: Site, actor: Actor) -> Answer:
    typed = {name: request.form.get(name, "") for name in ("name", "description")}
    if request.method == "GET":
        return site.render("secret_new.html", typed=typed, problems={})
    try:
        body = validated(secret_shapes.NewSecret, {**typed, "value": _value()})
        made = site.services.secrets.create(actor, body.name, body.value, body.description)
    except RequestError as refused:
        site.refused(refused)
        problems = beside(refused, _FIELDS, codes=_CODES)
        return site.render("secret_new.html", typed=typed, problems=problems), refused.status
    say("The secret is stored. No plugin gets it yet.")
    return go("secret", name=made["name"])


def _value() -> str:
    """Browsers send line feeds as CR LF, in which a key of several lines would be another one."""
    return request.form.get("value", "").replace("\r\n", "\n")


def secret(site: Site, actor: Actor, name: str) -> Answer:
    return _secret(site, actor, name, {})


def _secret(site: Site, actor: Actor, name: str, problems: Problems, typed: Mapping[str, str] | None = None) -> str:
    """``typed``: what a refused form held, but for the value."""
    found = site.services.secrets.get(actor, name)
    granted = "\n".join(f"{grant['plugin']} {grant['versions']}" for grant in found["grants"])
    return site.render(
        "secret.html",
        secret=found,
        typed={"description": found["description"], "grants": granted, **(typed or {})},
        problems=problems,
        may_manage=actor.may(Permission.SECRET_MANAGE),
    )


def put_secret(site: Site, actor: Actor, name: str) -> Answer:
    version, description = version_of(request.form), request.form.get("description", "")

    def act() -> str:
        body = validated(secret_shapes.ChangedSecret, {"value": _value(), "description": description})
        site.services.secrets.put(actor, name, body.value, body.description, version)
        return "The value is replaced. Jobs that begin from now on get it."

    return _tried(site, actor, name, act, {"description": description})


def grant_secret(site: Site, actor: Actor, name: str) -> Answer:
    """The form has a grant a line: a plugin's name, and behind it the versions; none are all."""
    version, text = version_of(request.form), request.form.get("grants", "")

    def act() -> str:
        body = validated(secret_shapes.Grants, {"grants": [_grant(line) for line in lines(text)]})
        site.services.secrets.grant(actor, name, [grant.model_dump() for grant in body.grants], version)
        return "The grants are set."

    return _tried(site, actor, name, act, {"grants": text})


def _grant(line: str) -> dict[str, str]:
    plugin, _, versions = line.partition(" ")
    return {"plugin": plugin, "versions": versions.strip()}


def _tried(site: Site, actor: Actor, name: str, act: Callable[[], str], typed: dict[str, str]) -> Answer:
    try:
        say(act())
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        problems = beside(refused, _FIELDS, about={"grants": lines(typed.get("grants", ""))})
        if refused.code == "secret-changed":
            problems = {"form": [_CHANGED]}
        return _secret(site, actor, name, problems, typed), refused.status
    return go("secret", name=name)


def delete_secret(site: Site, actor: Actor, name: str) -> Answer:
    try:
        site.services.secrets.delete(actor, name, version_of(request.form))
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        problems: Problems = {"form": [_CHANGED]} if refused.code == "secret-changed" else beside(refused, ())
        return _secret(site, actor, name, problems), refused.status
    say(f"The secret {name} is removed. Plugins that name it fail from now on.")
    return go("secrets")


_OF_ONE = ("secret", "new_secret", "put_secret", "grant_secret", "delete_secret")
_MANAGE = Permission.SECRET_MANAGE
PAGES = (
    Page("/ui/secrets", "secrets", secrets, Permission.SECRET_READ, label="Secrets", under=_OF_ONE, section=MANAGE),
    Page("/ui/secrets/new", "new_secret", new_secret, _MANAGE, methods=("GET", "POST")),
    Page("/ui/secrets/<name>", "secret", secret, Permission.SECRET_READ),
    Page("/ui/secrets/<name>/value", "put_secret", put_secret, _MANAGE, methods=("POST",)),
    Page("/ui/secrets/<name>/grants", "grant_secret", grant_secret, _MANAGE, methods=("POST",)),
    Page("/ui/secrets/<name>/delete", "delete_secret", delete_secret, _MANAGE, methods=("POST",)),
)
