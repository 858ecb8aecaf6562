"""Users and service accounts of one's tenant, and platform administrators."""

from __future__ import annotations

from typing import Any

from cloche.clock import parse_duration
from cloche.domain.permissions import Kind, Permission
from cloche.web import people_models, shapes, signin_models
from cloche.web.etags import etag, expected, unchanged
from cloche.web.paging import page
from cloche.web.people_shapes import UserOut, UserPermissionsOut
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("people")


@group.route(
    "GET",
    "/users",
    permission=Permission.USER_READ,
    query=people_models.UserFilter,
    responses={200: shapes.Paged[UserOut]},
    summary="Users of one's tenant, oldest first.",
)
def list_users(call: Call) -> Any:
    asked = call.query
    filters = {"username": asked.username, "prefix": asked.prefix, "role": asked.role, "kind": asked.kind}
    filters["everywhere"] = asked.scope == "platform"
    return page(call.services.users.list(call.actor, filters, asked.cursor, asked.limit))


@group.route(
    "POST",
    "/users",
    permission=Permission.USER_MANAGE,
    body=people_models.NewUser,
    responses={201: UserOut},
    summary="Create a user or a service account, with roles that allow no more than one's own.",
)
def create_user(call: Call) -> Any:
    asked = call.body
    made = call.services.users.create(call.actor, asked.username, asked.password, asked.roles, Kind(asked.kind))
    return made, 201, etag(made) | {"Location": f"/api/v1/users/{made['id']}"}


@group.route(
    "GET",
    "/users/<user_id>",
    permission=Permission.USER_READ,
    query=people_models.UserScope,
    responses={200: UserOut},
    summary="One user; the ETag is what every change asks for.",
)
def get_user(call: Call, user_id: str) -> Any:
    found = call.services.users.get(call.actor, user_id, everywhere=_everywhere(call))
    return found, 200, etag(found)


@group.route(
    "PATCH",
    "/users/<user_id>",
    permission=Permission.USER_MANAGE,
    query=people_models.UserScope,
    body=people_models.ChangedUser,
    headers=("If-Match",),
    responses={200: UserOut},
    summary="Disable a user, which ends their sessions and tokens, or enable them.",
)
def update_user(call: Call, user_id: str) -> Any:
    version = _expected(call, user_id)
    with unchanged("user"):
        users, everywhere = call.services.users, _everywhere(call)
        changed = users.set_disabled(call.actor, user_id, call.body.disabled, version, everywhere=everywhere)
    return changed, 200, etag(changed)


@group.route(
    "DELETE",
    "/users/<user_id>",
    permission=Permission.USER_MANAGE,
    query=people_models.UserScope,
    headers=("If-Match",),
    responses={204: None},
    summary="Take a user out of one's tenant; who is in no other is deleted.",
)
def delete_user(call: Call, user_id: str) -> None:
    version = _expected(call, user_id)
    with unchanged("user"):
        call.services.users.remove(call.actor, user_id, version, everywhere=_everywhere(call))


@group.route(
    "PUT",
    "/users/<user_id>/roles",
    permission=Permission.USER_MANAGE,
    query=people_models.UserScope,
    body=people_models.UserRoles,
    headers=("If-Match",),
    responses={200: UserOut},
    summary="A user's roles in one's tenant, all of them; they allow no more than one's own.",
)
def set_roles(call: Call, user_id: str) -> Any:
    version = _expected(call, user_id)
    with unchanged("user"):
        users, everywhere = call.services.users, _everywhere(call)
        changed = users.set_roles(call.actor, user_id, call.body.roles, version, everywhere=everywhere)
    return changed, 200, etag(changed)


@group.route(
    "GET",
    "/users/<user_id>/permissions",
    permission=Permission.USER_READ,
    query=people_models.UserScope,
    responses={200: UserPermissionsOut},
    summary="What a user could do in one's tenant, and by which roles.",
)
def user_permissions(call: Call, user_id: str) -> Any:
    return call.services.users.permissions(call.actor, user_id, everywhere=_everywhere(call))


@group.route(
    "GET",
    "/users/<user_id>/tokens",
    permission=Permission.USER_MANAGE,
    responses={200: shapes.Items[shapes.TokenOut]},
    summary="A user's tokens in one's tenant, without their secrets.",
)
def list_user_tokens(call: Call, user_id: str) -> Any:
    return {"items": call.services.users.tokens(call.actor, user_id)}


@group.route(
    "POST",
    "/users/<user_id>/tokens",
    permission=Permission.USER_MANAGE,
    basic=True,
    body=signin_models.NewToken,
    responses={201: shapes.NewTokenOut},
    summary="Issue a token of a service account, for no more than both it and oneself may do. Also takes HTTP Basic with user name and password.",
)
def issue_token(call: Call, user_id: str) -> Any:
    asked = call.body
    expires = parse_duration(asked.expires_in) if asked.expires_in is not None else None
    users = call.services.users
    return users.issue_token(call.actor, user_id, asked.name, asked.scopes, expires, asked.addresses), 201


@group.route(
    "DELETE",
    "/users/<user_id>/tokens/<token_id>",
    permission=Permission.USER_MANAGE,
    responses={204: None},
    summary="Revoke one of a user's tokens in one's tenant.",
)
def revoke_user_token(call: Call, user_id: str, token_id: str) -> None:
    call.services.users.revoke_token(call.actor, user_id, token_id)


@group.route(
    "PUT",
    "/users/<user_id>/platform-admin",
    permission=Permission.PLATFORM_MANAGE,
    query=people_models.UserScope,
    headers=("If-Match",),
    responses={200: UserOut},
    summary="Appoint an administrator of the platform.",
)
def appoint(call: Call, user_id: str) -> Any:
    return _platform_admin(call, user_id, appointed=True)


@group.route(
    "DELETE",
    "/users/<user_id>/platform-admin",
    permission=Permission.PLATFORM_MANAGE,
    query=people_models.UserScope,
    headers=("If-Match",),
    responses={200: UserOut},
    summary="Dismiss an administrator of the platform; the last one stays.",
)
def dismiss(call: Call, user_id: str) -> Any:
    return _platform_admin(call, user_id, appointed=False)


def _platform_admin(call: Call, user_id: str, *, appointed: bool) -> Any:
    version = _expected(call, user_id)
    with unchanged("user"):
        users, everywhere = call.services.users, _everywhere(call)
        changed = users.set_platform_admin(call.actor, user_id, appointed, version, everywhere=everywhere)
    return changed, 200, etag(changed)


def _everywhere(call: Call) -> bool:
    return bool(call.query.scope == "platform")


def _expected(call: Call, user_id: str) -> int | None:
    call.services.users.get(
        call.actor, user_id, everywhere=_everywhere(call)
    )  # who is not there is 404, whatever the condition
    return expected("user")
