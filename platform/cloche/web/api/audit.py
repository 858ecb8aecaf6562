"""The audit trail for those who may read it."""

from __future__ import annotations

from typing import Any

from flask import Response

from cloche.clock import from_rfc3339
from cloche.domain.permissions import Permission
from cloche.web import models, shapes
from cloche.web.paging import page
from cloche.web.routing import Call, Raw, RouteGroup

group = RouteGroup("audit")


@group.route(
    "GET",
    "/audit",
    permission=Permission.AUDIT_READ,
    query=models.AuditQuery,
    responses={200: shapes.Paged[shapes.AuditEventOut]},
    summary="Audit events of one's tenant, newest first.",
)
def list_events(call: Call) -> Any:
    filters = call.query.model_dump(exclude={"cursor", "limit"}, exclude_none=True)
    for name in ("since", "until"):
        if name in filters:
            filters[name] = from_rfc3339(filters[name])
    return page(call.services.auditing.list(call.actor, filters, cursor=call.query.cursor, limit=call.query.limit))


@group.route(
    "GET",
    "/audit/verify",
    permission=Permission.AUDIT_READ,
    responses={200: shapes.VerifyOut},
    summary="Verify the whole trail: signatures, tree, numbering.",
)
def verify(call: Call) -> Any:
    return call.services.auditing.verify(call.actor)


@group.route(
    "GET",
    "/audit/export",
    permission=Permission.AUDIT_EXPORT,
    responses={
        200: Raw(("application/x-ndjson",), "One JSON object a line, as `cloche audit verify --export` reads them.")
    },
    summary="The tenant's trail, to be verified elsewhere.",
)
def export(call: Call) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="audit.ndjson"'}
    return Response(call.services.auditing.export(call.actor), mimetype="application/x-ndjson", headers=headers)


@group.route(
    "GET",
    "/audit/checkpoints",
    permission=Permission.AUDIT_READ,
    query=models.Page,
    responses={200: shapes.CheckpointsOut},
    summary="Signed checkpoints, to be kept where nobody here can change them.",
)
def checkpoints(call: Call) -> Any:
    result = call.services.auditing.checkpoints(call.actor, cursor=call.query.cursor, limit=call.query.limit)
    body, status, headers = page(result)
    return body | {"public_key": result["public_key"]}, status, headers
