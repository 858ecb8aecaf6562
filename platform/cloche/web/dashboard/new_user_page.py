"""The form for a new user or service account."""

from __future__ import annotations

import secrets
from typing import Any

from flask import request

from cloche.domain.permissions import Actor, Kind, Permission
from cloche.errors import RequestError
from cloche.web import people_models
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside
from cloche.web.dashboard.people_pages import link_of, one
from cloche.web.dashboard.role_choice import choice, chosen
from cloche.web.dashboard.site import Answer, Page, Site, go, say

_FIELDS = ("username", "password", "roles", "kind")
_CODES = {"username-taken": "username", "grant-exceeds-own": "roles"}


def new_user(site: Site, actor: Actor) -> Answer:
    """Without a password a person gets a link with which they set one: nobody else has to know it."""
    if request.method == "GET":
        return _form(site, actor, {"kind": "person", "username": "", "roles": ["submitter"]}, {})
    roles = chosen(request.form.getlist("role"), request.form.get("others", ""))
    typed = {"kind": request.form.get("kind", ""), "username": request.form.get("username", ""), "roles": roles}
    given = request.form.get("password", "")
    link = typed["kind"] == "person" and not given
    body: dict[str, Any] = {**typed, "password": secrets.token_urlsafe(32) if link else given or None}
    try:
        asked = validated(people_models.NewUser, body)
        made = site.services.users.create(actor, asked.username, asked.password, asked.roles, Kind(asked.kind))
    except RequestError as refused:
        site.refused(refused)
        problems = beside(refused, _FIELDS, about={"roles": roles}, codes=_CODES)
        return _form(site, actor, typed, problems), refused.status
    if link:
        code = site.services.access.create_reset(actor, made["id"])
        return one(site, actor, made["id"], made={"link": link_of(code), "expires_at": code["expires_at"], "new": True})
    say("The user is made." if asked.kind == Kind.PERSON else "The service account is made. Give it a token below.")
    return go("user", user_id=made["id"])


def _form(site: Site, actor: Actor, typed: dict[str, Any], problems: Problems) -> str:
    return site.render(
        "user_new.html",
        typed=typed,
        problems=problems,
        choice=choice(site, actor, typed["roles"]),
        least=site.services.settings.signin.password_min,
    )


PAGES = (Page("/ui/users/new", "new_user", new_user, Permission.USER_MANAGE, methods=("GET", "POST")),)
