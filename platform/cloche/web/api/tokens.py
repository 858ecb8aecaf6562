"""One's own tokens."""

from __future__ import annotations

from typing import Any

from cloche.clock import parse_duration
from cloche.domain.permissions import Permission
from cloche.web import shapes, signin_models
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("people")


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
    body=signin_models.NewToken,
    responses={201: shapes.NewTokenOut},
    summary="Create a token; its text is shown this once. Also takes HTTP Basic with user name and password.",
)
def create_token(call: Call) -> Any:
    expires = parse_duration(call.body.expires_in) if call.body.expires_in is not None else None
    body = call.body
    return call.services.access.create_token(call.actor, body.name, body.scopes, expires, body.addresses), 201


@group.route(
    "DELETE",
    "/tokens/<token_id>",
    permission=Permission.TOKEN_MANAGE,
    responses={204: None},
    summary="Revoke one of one's own tokens.",
)
def revoke_token(call: Call, token_id: str) -> None:
    call.services.access.revoke_token(call.actor, token_id)
