"""Users, roles, permissions and tokens."""

from __future__ import annotations

from typing import Any

from cloche.clock import parse_duration
from cloche.domain.permissions import Permission
from cloche.web import models, shapes
from cloche.web.routing import SIGNED_IN, Call, RouteGroup

group = RouteGroup("people")


@group.route(
    "GET",
    "/users",
    permission=Permission.USER_READ,
    responses={200: shapes.Items[shapes.UserOut]},
    summary="Users of one's tenant.",
)
def list_users(call: Call) -> Any:
    return {"items": call.services.access.list_users(call.actor)}


@group.route(
    "POST",
    "/users",
    permission=Permission.USER_MANAGE,
    body=models.NewUser,
    responses={201: shapes.UserOut},
    summary="Create a user with roles one holds oneself.",
)
def create_user(call: Call) -> Any:
    return call.services.access.create_user(call.actor, call.body.username, call.body.password, call.body.roles), 201


@group.route(
    "GET",
    "/roles",
    permission=Permission.ROLE_READ,
    responses={200: shapes.Items[shapes.RoleOut]},
    summary="Roles and what each allows.",
)
def list_roles(call: Call) -> Any:
    return {"items": call.services.access.roles()}


@group.route(
    "GET",
    "/permissions",
    permission=SIGNED_IN,
    responses={200: shapes.Items[shapes.PermissionOut]},
    summary="Every permission, in words.",
)
def list_permissions(call: Call) -> Any:
    return {"items": call.services.access.permissions()}


@group.route(
    "GET",
    "/tokens",
    permission=Permission.TOKEN_MANAGE,
    responses={200: shapes.Items[shapes.TokenOut]},
    summary="One's own tokens, without their secrets.",
)
def list_tokens(call: Call) -> Any:
    return {"items": call.services.access.list_tokens(call.actor)}


@group.route(
    "POST",
    "/tokens",
    permission=Permission.TOKEN_MANAGE,
    basic=True,
    body=models.NewToken,
    responses={201: shapes.NewTokenOut},
    summary="Create a token; its text is shown this once. Also takes HTTP Basic with user name and password.",
)
def create_token(call: Call) -> Any:
    expires = parse_duration(call.body.expires_in) if call.body.expires_in is not None else None
    return call.services.access.create_token(call.actor, call.body.name, call.body.scopes, expires), 201


@group.route(
    "DELETE",
    "/tokens/<token_id>",
    permission=Permission.TOKEN_MANAGE,
    responses={204: None},
    summary="Revoke one of one's own tokens.",
)
def revoke_token(call: Call, token_id: str) -> None:
    call.services.access.revoke_token(call.actor, token_id)
