"""What the tenant's callbacks have told, and the secret that they are signed with."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web import batch_shapes, models, shapes
from cloche.web.paging import page
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("callbacks")
_SECRET = {"Cache-Control": "no-store"}


@group.route(
    "GET",
    "/callbacks",
    permission=Permission.JOB_READ,
    query=models.DeliveryFilter,
    responses={200: shapes.Paged[batch_shapes.TenantDeliveryOut]},
    summary="What the callbacks of all jobs of one's tenant were told, and what they are still to be told, newest first.",
)
def list_deliveries(call: Call) -> Any:
    query = call.query
    return page(call.services.jobs.deliveries(call.actor, query.status, query.cursor, query.limit))


@group.route(
    "GET",
    "/callback-secret",
    permission=Permission.CALLBACK_MANAGE,
    responses={200: batch_shapes.CallbackSecretOut},
    summary="The secret that callbacks of one's tenant are signed with; reading it is recorded.",
)
def get_secret(call: Call) -> Any:
    return call.services.callback_secrets.read(call.actor), 200, _SECRET


@group.route(
    "POST",
    "/callback-secret/renew",
    permission=Permission.CALLBACK_MANAGE,
    responses={200: batch_shapes.CallbackSecretOut},
    summary="A new secret; the one before signs beside it for 24 hours.",
)
def renew_secret(call: Call) -> Any:
    return call.services.callback_secrets.renew(call.actor), 200, _SECRET
