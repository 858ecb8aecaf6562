"""Tenants, for the platform's administrators."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web import people_models, shapes
from cloche.web.etags import etag, expected, unchanged
from cloche.web.paging import page
from cloche.web.people_shapes import EmptiedOut, TenantOut
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("tenants")


@group.route(
    "GET",
    "/tenants",
    permission=Permission.TENANT_MANAGE,
    query=people_models.TenantFilter,
    responses={200: shapes.Paged[TenantOut]},
    summary="Every tenant, oldest first. `GET /me` lists one's own.",
)
def list_tenants(call: Call) -> Any:
    return page(call.services.tenants.list(call.query.name, call.query.cursor, call.query.limit))


@group.route(
    "POST",
    "/tenants",
    permission=Permission.TENANT_MANAGE,
    body=people_models.NewTenant,
    responses={201: TenantOut},
    summary="Create a tenant, with a first administrator or none.",
)
def create_tenant(call: Call) -> Any:
    made = call.services.tenants.create(call.actor, call.body.name, call.body.admin)
    return made, 201, etag(made) | {"Location": f"/api/v1/tenants/{made['id']}"}


@group.route(
    "GET",
    "/tenants/<tenant_id>",
    permission=Permission.TENANT_MANAGE,
    responses={200: TenantOut},
    summary="One tenant; its ETag is what every change asks for.",
)
def get_tenant(call: Call, tenant_id: str) -> Any:
    found = call.services.tenants.get(tenant_id)
    return found, 200, etag(found)


@group.route(
    "PATCH",
    "/tenants/<tenant_id>",
    permission=Permission.TENANT_MANAGE,
    body=people_models.ChangedTenant,
    headers=("If-Match",),
    responses={200: TenantOut},
    summary="Suspend a tenant: its users and tokens are refused, and none of its jobs starts. Or resume it.",
)
def update_tenant(call: Call, tenant_id: str) -> Any:
    version = _expected(call, tenant_id)
    with unchanged("tenant"):
        changed = call.services.tenants.set_suspended(call.actor, tenant_id, call.body.suspended, version)
    return changed, 200, etag(changed)


@group.route(
    "POST",
    "/tenants/<tenant_id>/empty",
    permission=Permission.TENANT_MANAGE,
    body=people_models.EmptiedTenant,
    headers=("If-Match",),
    responses={200: EmptiedOut},
    summary="Remove jobs and files of a suspended tenant for some seconds; again until `done`.",
)
def empty_tenant(call: Call, tenant_id: str) -> Any:
    version = _expected(call, tenant_id)
    with unchanged("tenant"):
        return call.services.emptying.run(call.actor, tenant_id, call.body.confirm, version)


@group.route(
    "DELETE",
    "/tenants/<tenant_id>",
    permission=Permission.TENANT_MANAGE,
    headers=("If-Match",),
    responses={204: None},
    summary="Remove a tenant that is suspended and empty; users who are in no other are deleted.",
)
def delete_tenant(call: Call, tenant_id: str) -> None:
    version = _expected(call, tenant_id)
    with unchanged("tenant"):
        call.services.tenants.delete(call.actor, tenant_id, version)


def _expected(call: Call, tenant_id: str) -> int | None:
    call.services.tenants.get(tenant_id)  # what is not there is 404, whatever the condition
    return expected("tenant")
