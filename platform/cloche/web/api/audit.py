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
    filters = _filters(call.query)
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
    query=models.AuditFilters,
    responses={
        200: Raw(("application/x-ndjson",), "One JSON object a line, as `cloche audit verify --export` reads them.")
    },
    summary="The tenant's trail, to be verified elsewhere; with a filter what it finds, a proof with each event.",
)
def export(call: Call) -> Response:
    headers = {"Content-Disposition": 'attachment; filename="audit.ndjson"'}
    lines = call.services.auditing.export(call.actor, _filters(call.query))
    return Response(lines, mimetype="application/x-ndjson", headers=headers)


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


@group.route(
    "GET",
    "/audit/keys",
    permission=Permission.AUDIT_READ,
    responses={200: shapes.Items[shapes.AuditKeyOut]},
    summary="The public keys, the first one first, each with the batches it signs and the note that announces it.",
)
def keys(call: Call) -> Any:
    return {"items": call.services.auditing.keys(call.actor)}


@group.route(
    "POST",
    "/audit/forget",
    permission=Permission.AUDIT_FORGET,
    body=models.Forgotten,
    responses={200: shapes.ForgottenOut},
    summary="Forget a person's name or address in every tenant's trail; their events stay, and verify.",
)
def forget(call: Call) -> Any:
    return call.services.auditing.forget(call.actor, call.body.kind, call.body.value)


@group.route(
    "GET",
    "/audit/<event>/proof",
    permission=Permission.AUDIT_READ,
    responses={200: shapes.AuditProofOut},
    summary="A proof that an event, by its `seq` or id, is in the signed tree, for `cloche audit verify --proof`.",
)
def proof(call: Call, event: str) -> Any:
    return call.services.auditing.proof(call.actor, event)


def _filters(query: models.AuditFilters) -> dict[str, Any]:
    filters = query.model_dump(exclude={"cursor", "limit"}, exclude_none=True)
    for name in ("since", "until"):
        if name in filters:
            filters[name] = from_rfc3339(filters[name])
    return filters
