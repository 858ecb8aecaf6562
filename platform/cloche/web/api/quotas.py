"""Quotas of tenants and users, and what was used."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web.etags import etag, expected, unchanged
from cloche.web.quota_shapes import QuotaBody, QuotaOut, UsageLimitsOut, UsageOut, UsageQuery, to_day
from cloche.web.routing import SIGNED_IN, Call, RouteGroup

group = RouteGroup("quotas")


@group.route(
    "GET",
    "/usage",
    permission=Permission.USAGE_READ,
    query=UsageQuery,
    responses={200: UsageOut},
    summary="What jobs of one's tenant have used, by `group`, summed over whole days of UTC.",
)
def get_usage(call: Call) -> Any:
    asked = call.query
    since = None if asked.since is None else to_day(asked.since)
    until = None if asked.until is None else to_day(asked.until)
    platform = asked.scope == "platform"
    return call.services.usage.report(call.actor, since, until, asked.group, platform=platform)


@group.route(
    "GET",
    "/usage/limits",
    permission=SIGNED_IN,
    responses={200: UsageLimitsOut},
    summary="What oneself and one's tenant may use, and have used.",
)
def get_limits(call: Call) -> Any:
    return call.services.quotas.own(call.actor)


@group.route(
    "GET",
    "/tenants/<tenant_id>/quotas",
    permission=Permission.QUOTA_MANAGE,
    responses={200: QuotaOut},
    summary="What a tenant may use; its ETag is what PUT asks for.",
)
def get_tenant_quotas(call: Call, tenant_id: str) -> Any:
    return _answer(call.services.quotas.tenant(tenant_id))


@group.route(
    "PUT",
    "/tenants/<tenant_id>/quotas",
    permission=Permission.QUOTA_MANAGE,
    body=QuotaBody,
    headers=("If-Match",),
    responses={200: QuotaOut},
    summary="Set what a tenant may use; what is not named is as by default.",
)
def put_tenant_quotas(call: Call, tenant_id: str) -> Any:
    call.services.quotas.tenant(tenant_id)
    version = expected("quota")
    with unchanged("quota"):
        return _answer(call.services.quotas.set_tenant(call.actor, tenant_id, call.body.model_dump(), version))


@group.route(
    "GET",
    "/users/<user_id>/quotas",
    permission=Permission.QUOTA_ASSIGN,
    responses={200: QuotaOut},
    summary="What a user of one's tenant may use; its ETag is what PUT and DELETE ask for.",
)
def get_user_quotas(call: Call, user_id: str) -> Any:
    return _answer(call.services.quotas.user(call.actor, user_id))


@group.route(
    "PUT",
    "/users/<user_id>/quotas",
    permission=Permission.QUOTA_ASSIGN,
    body=QuotaBody,
    headers=("If-Match",),
    responses={200: QuotaOut},
    summary="Set what a user of one's tenant may use, within the tenant's own quota.",
)
def put_user_quotas(call: Call, user_id: str) -> Any:
    call.services.quotas.user(call.actor, user_id)
    version = expected("quota")
    with unchanged("quota"):
        return _answer(call.services.quotas.set_user(call.actor, user_id, call.body.model_dump(), version))


@group.route(
    "DELETE",
    "/users/<user_id>/quotas",
    permission=Permission.QUOTA_ASSIGN,
    headers=("If-Match",),
    responses={204: None},
    summary="Let the default hold for a user again.",
)
def delete_user_quotas(call: Call, user_id: str) -> None:
    call.services.quotas.user(call.actor, user_id)
    version = expected("quota")
    with unchanged("quota"):
        call.services.quotas.clear_user(call.actor, user_id, version)


def _answer(quota: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
    return quota, 200, etag(quota)
