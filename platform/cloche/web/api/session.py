"""Signing in and out, who one is, one's sessions, and new passwords."""

from __future__ import annotations

from typing import Any

from flask import current_app, request

from cloche.domain.permissions import Actor, Permission
from cloche.web import shapes, signin_models
from cloche.web.auth import origin
from cloche.web.routing import PUBLIC, SIGNED_IN, Call, RouteGroup

group = RouteGroup("session")


@group.route(
    "POST",
    "/session",
    permission=PUBLIC,
    body=signin_models.SignIn,
    responses={200: shapes.SessionOut},
    summary="Sign in with user name and password; sets the session cookie.",
)
def sign_in(call: Call) -> Any:
    actor = call.auth.sign_in(call.body.username, call.body.password)
    token = call.auth.csrf_token()
    return {"user": _me(call, actor, token), "csrf_token": token}


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
    return _me(call, call.actor, call.auth.csrf_token() if in_browser else None)


@group.route(
    "PUT",
    "/me/password",
    permission=SIGNED_IN,
    basic=True,
    body=signin_models.NewPassword,
    responses={200: shapes.MeOut},
    summary="Change one's password, which takes the old one; ends one's sessions, and follows the one that asks with a new one.",
)
def change_password(call: Call) -> Any:
    body = call.body
    actor = call.auth.change_password(body.current_password, body.new_password, revoke_tokens=body.revoke_tokens)
    return _me(call, actor, call.auth.csrf_token() if actor.session_id is not None else None)


@group.route(
    "GET",
    "/sessions",
    permission=SIGNED_IN,
    responses={200: shapes.Items[shapes.SessionRowOut]},
    summary="One's own sessions, the newest first.",
)
def list_sessions(call: Call) -> Any:
    return {"items": call.services.access.list_sessions(call.actor)}


@group.route(
    "DELETE",
    "/sessions",
    permission=SIGNED_IN,
    responses={200: shapes.SessionsEndedOut},
    summary="End all of one's sessions but the one that asks.",
)
def end_other_sessions(call: Call) -> Any:
    return {"ended": call.services.access.end_other_sessions(call.actor)}


@group.route(
    "DELETE",
    "/sessions/<session_id>",
    permission=SIGNED_IN,
    responses={204: None},
    summary="End one of one's own sessions.",
)
def end_session(call: Call, session_id: str) -> None:
    call.services.access.end_session(call.actor, session_id)


@group.route(
    "POST",
    "/users/<user_id>/password-reset",
    permission=Permission.USER_MANAGE,
    responses={201: shapes.ResetOut},
    summary="Make a code with which this user, who holds no more than oneself, sets a new password, once and soon.",
)
def create_reset(call: Call, user_id: str) -> Any:
    return call.services.access.create_reset(call.actor, user_id), 201


@group.route(
    "POST",
    "/password-resets",
    permission=PUBLIC,
    body=signin_models.UsedReset,
    responses={204: None},
    summary="Set a new password with a code of an administrator's.",
)
def use_reset(call: Call) -> None:
    body = call.body
    call.services.access.use_reset(body.code, body.new_password, origin(), revoke_tokens=body.revoke_tokens)


def _me(call: Call, actor: Actor, csrf_token: str | None) -> dict[str, Any]:
    return {
        "id": actor.user_id,
        "username": actor.username,
        "tenant_id": actor.tenant_id,
        "tenants": call.services.access.tenants(actor),
        "roles": sorted(actor.roles),
        "permissions": sorted(actor.permissions),
        "platform_admin": actor.platform_admin,
        "token_id": actor.token_id,
        "csrf_token": csrf_token,
    }
