"""Roles of one's tenant, and the permissions that they are made of."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web import models, people_models, shapes
from cloche.web.etags import etag, expected, unchanged
from cloche.web.paging import page
from cloche.web.people_shapes import RoleOut
from cloche.web.routing import SIGNED_IN, Call, RouteGroup

group = RouteGroup("roles")


@group.route(
    "GET",
    "/permissions",
    permission=SIGNED_IN,
    responses={200: shapes.Items[shapes.PermissionOut]},
    summary="Every permission, in words.",
)
def list_permissions(call: Call) -> Any:
    return {"items": call.services.roles.permissions()}


@group.route(
    "GET",
    "/roles",
    permission=Permission.ROLE_READ,
    query=models.Page,
    responses={200: shapes.Paged[RoleOut]},
    summary="Roles, what each allows and how many users have it: the built-in ones, then one's tenant's own.",
)
def list_roles(call: Call) -> Any:
    return page(call.services.roles.list(call.actor, call.query.cursor, call.query.limit))


@group.route(
    "POST",
    "/roles",
    permission=Permission.ROLE_MANAGE,
    body=people_models.NewRole,
    responses={201: RoleOut},
    summary="Create a role of permissions that one holds oneself.",
)
def create_role(call: Call) -> Any:
    asked = call.body
    made = call.services.roles.create(call.actor, asked.name, asked.summary, asked.permissions)
    return made, 201, etag(made) | {"Location": f"/api/v1/roles/{made['name']}"}


@group.route(
    "GET",
    "/roles/<name>",
    permission=Permission.ROLE_READ,
    responses={200: RoleOut},
    summary="One role; its ETag is what PUT and DELETE ask for. `GET /users?role=` lists who has it.",
)
def get_role(call: Call, name: str) -> Any:
    found = call.services.roles.get(call.actor, name)
    return found, 200, etag(found)


@group.route(
    "PUT",
    "/roles/<name>",
    permission=Permission.ROLE_MANAGE,
    body=people_models.RoleSaid,
    headers=("If-Match",),
    responses={200: RoleOut},
    summary="Say anew what a role allows, within what one holds oneself.",
)
def put_role(call: Call, name: str) -> Any:
    call.services.roles.get(call.actor, name)
    version = expected("role")
    with unchanged("role"):
        changed = call.services.roles.change(call.actor, name, call.body.summary, call.body.permissions, version)
    return changed, 200, etag(changed)


@group.route(
    "DELETE",
    "/roles/<name>",
    permission=Permission.ROLE_MANAGE,
    headers=("If-Match",),
    responses={204: None},
    summary="Remove a role that nobody has.",
)
def delete_role(call: Call, name: str) -> None:
    call.services.roles.get(call.actor, name)
    version = expected("role")
    with unchanged("role"):
        call.services.roles.delete(call.actor, name, version)
