"""Signing in and out, and who one is."""

from __future__ import annotations

from typing import Any

from flask import current_app, request

from cloche.domain.permissions import Actor
from cloche.web import models, shapes
from cloche.web.routing import PUBLIC, SIGNED_IN, Call, RouteGroup

group = RouteGroup("session")


@group.route(
    "POST",
    "/session",
    permission=PUBLIC,
    body=models.SignIn,
    responses={200: shapes.SessionOut},
    summary="Sign in with user name and password; sets the session cookie.",
)
def sign_in(call: Call) -> Any:
    actor = call.auth.sign_in(call.body.username, call.body.password)
    token = call.auth.csrf_token()
    return {"user": _me(actor, token), "csrf_token": token}


@group.route(
    "DELETE",
    "/session",
    permission=SIGNED_IN,
    responses={204: None},
    summary="Sign out; ends the session on the server.",
)
def sign_out(call: Call) -> None:
    call.auth.sign_out()


@group.route(
    "GET", "/me", permission=SIGNED_IN, responses={200: shapes.MeOut}, summary="Who one is and what one may do."
)
def me(call: Call) -> Any:
    in_browser = current_app.config["SESSION_COOKIE_NAME"] in request.cookies
    return _me(call.actor, call.auth.csrf_token() if in_browser else None)


def _me(actor: Actor, csrf_token: str | None) -> dict[str, Any]:
    return {
        "id": actor.user_id,
        "username": actor.username,
        "tenant_id": actor.tenant_id,
        "roles": sorted(actor.roles),
        "permissions": sorted(actor.permissions),
        "platform_admin": actor.platform_admin,
        "token_id": actor.token_id,
        "csrf_token": csrf_token,
    }
