"""The egress policy: which hosts jobs of a tenant may reach."""

from __future__ import annotations

import re
from typing import Any

from flask import request

from cloche.domain.permissions import Permission
from cloche.errors import Conflict
from cloche.web import models, shapes
from cloche.web.problems import PreconditionFailed, PreconditionRequired
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("egress")
_ETAG = re.compile(r'^"v(\d{1,9})"$')
_CHANGED = "The egress policy has changed since; read it again."


@group.route(
    "GET",
    "/egress-policy",
    permission=Permission.EGRESS_READ,
    responses={200: shapes.EgressPolicyOut},
    summary="Which hosts jobs of one's tenant may reach; its ETag is what PUT asks for.",
)
def get_policy(call: Call) -> Any:
    found = call.services.egress.get(call.actor)
    return found, 200, _etag(found)


@group.route(
    "PUT",
    "/egress-policy",
    permission=Permission.EGRESS_MANAGE,
    body=models.EgressPolicy,
    headers=("If-Match",),
    responses={200: shapes.EgressPolicyOut},
    summary="Set which hosts jobs of one's tenant may reach; an empty list allows none.",
)
def put_policy(call: Call) -> Any:
    version = _expected(call)
    try:
        made = call.services.egress.put(call.actor, call.body.allow, version)
    except Conflict as error:
        raise PreconditionFailed(_CHANGED) from error
    return made, 200, _etag(made)


def _etag(policy: dict[str, Any]) -> dict[str, str]:
    return {"ETag": f'"v{policy["version"]}"'}


def _expected(call: Call) -> int:
    """The version named by If-Match; ``*`` means whichever is there."""
    given = request.headers.get("If-Match")
    if given is None:
        raise PreconditionRequired("Send If-Match with the policy's ETag, so that nobody's change is lost.")
    if given.strip() == "*":
        return int(call.services.egress.get(call.actor)["version"])
    match = _ETAG.match(given.strip())
    if match is None:
        raise PreconditionFailed(_CHANGED)
    return int(match[1])
