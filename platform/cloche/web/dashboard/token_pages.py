"""One's own tokens: listed, made, revoked. A new one's text is on the page that answers its form, and on no other."""

from __future__ import annotations

from typing import Any

from flask import request

from cloche.clock import parse_duration
from cloche.domain.permissions import Actor, Permission
from cloche.errors import NotFound, RequestError
from cloche.web import signin_models
from cloche.web.bodies import validated
from cloche.web.dashboard import token_forms
from cloche.web.dashboard.fields import Problems, beside
from cloche.web.dashboard.permission_words import grouped
from cloche.web.dashboard.site import Answer, Page, Site, go, say
from cloche.web.dashboard.token_forms import TypedToken


def tokens(site: Site, actor: Actor) -> Answer:
    return _tokens(site, actor, None)


def _tokens(site: Site, actor: Actor, made: dict[str, Any] | None) -> str:
    valid, over = token_forms.by_life(site.services.access.list_tokens(actor), site.services.db.now_ms())
    return site.render("tokens.html", at_account="tokens", valid=valid, over=over, made=made)


def new_token(site: Site, actor: Actor) -> Answer:
    if request.method == "GET":
        return _form(site, actor, TypedToken(), {})
    typed = TypedToken.read(request.form, request.form.getlist("permission"))
    if fault := typed.fault():
        return _form(site, actor, typed, {"scopes": [fault]}), 422
    try:
        body = validated(signin_models.NewToken, typed.body())
        expires = None if body.expires_in is None else parse_duration(body.expires_in)
        made = site.services.access.create_token(actor, body.name, body.scopes, expires, body.addresses)
    except RequestError as refused:
        site.refused(refused)
        about = {"addresses": token_forms.lines(typed.addresses)}
        problems = beside(refused, token_forms.FIELDS, about=about, codes={"grant-exceeds-own": "scopes"})
        return _form(site, actor, typed, problems), refused.status
    return _tokens(site, actor, made)


def _form(site: Site, actor: Actor, typed: TypedToken, problems: Problems) -> str:
    return site.render(
        "token_new.html",
        at_account="tokens",
        typed=typed,
        problems=problems,
        groups=grouped(actor.permissions),
        lives=token_forms.LIVES,
    )


def revoke(site: Site, actor: Actor, token_id: str) -> Answer:
    try:
        site.services.access.revoke_token(actor, token_id)
        say("The token is revoked: it is worth nothing from now on.")
    except NotFound:
        say("There is no such token.", good=False)
    return go("tokens")


PAGES = (
    Page("/ui/account/tokens", "tokens", tokens, Permission.TOKEN_MANAGE),
    Page("/ui/account/tokens/new", "new_token", new_token, Permission.TOKEN_MANAGE, methods=("GET", "POST")),
    Page("/ui/account/tokens/<token_id>/revoke", "revoke_token", revoke, Permission.TOKEN_MANAGE, methods=("POST",)),
)
