"""Tokens of others: issued for service accounts, and revoked."""

from __future__ import annotations

from flask import request

from cloche.clock import parse_duration
from cloche.domain.permissions import Actor, Permission
from cloche.errors import NotFound, RequestError
from cloche.web import signin_models
from cloche.web.bodies import validated
from cloche.web.dashboard import token_forms
from cloche.web.dashboard.fields import Problems, beside
from cloche.web.dashboard.people_pages import one
from cloche.web.dashboard.permission_words import grouped
from cloche.web.dashboard.site import Answer, Page, Site, go, say
from cloche.web.dashboard.token_forms import TypedToken

_CODES = {"grant-exceeds-own": "scopes"}


def new_token(site: Site, actor: Actor, user_id: str) -> Answer:
    if request.method == "GET":
        return _form(site, actor, user_id, TypedToken(), {})
    typed = TypedToken.read(request.form, request.form.getlist("permission"))
    if fault := typed.fault():
        return _form(site, actor, user_id, typed, {"scopes": [fault]}), 422
    try:
        body = validated(signin_models.NewToken, typed.body())
        expires = None if body.expires_in is None else parse_duration(body.expires_in)
        users = site.services.users
        made = users.issue_token(actor, user_id, body.name, body.scopes, expires, body.addresses)
    except NotFound:
        raise
    except RequestError as refused:
        site.refused(refused)
        about = {"addresses": token_forms.lines(typed.addresses)}
        problems = beside(refused, token_forms.FIELDS, about=about, codes=_CODES)
        return _form(site, actor, user_id, typed, problems), refused.status
    return one(site, actor, user_id, made={"token": made})


def _form(site: Site, actor: Actor, user_id: str, typed: TypedToken, problems: Problems) -> str:
    found = site.services.users.get(actor, user_id)
    could = site.services.users.permissions(actor, user_id)["items"]
    both = actor.permissions & {item["name"] for item in could if item["granted"]}
    return site.render(
        "user_token_new.html",
        user=found,
        typed=typed,
        problems=problems,
        groups=grouped(both),
        lives=token_forms.LIVES,
    )


def revoke(site: Site, actor: Actor, user_id: str, token_id: str) -> Answer:
    site.services.users.revoke_token(actor, user_id, token_id)
    say("The token is revoked: it is worth nothing from now on.")
    return go("user", user_id=user_id)


_NEW, _REVOKE = "/ui/users/<user_id>/tokens/new", "/ui/users/<user_id>/tokens/<token_id>/revoke"
PAGES = (
    Page(_NEW, "user_token", new_token, Permission.USER_MANAGE, methods=("GET", "POST")),
    Page(_REVOKE, "revoke_user_token", revoke, Permission.USER_MANAGE, methods=("POST",)),
)
