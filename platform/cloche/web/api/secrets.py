"""Secrets that jobs of a tenant get: written here, never read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import request

from cloche.domain.permissions import Permission
from cloche.errors import Conflict
from cloche.web import secret_shapes, shapes
from cloche.web.problems import PreconditionFailed, PreconditionRequired
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("secrets")
_ETAG = re.compile(r'^"v(\d{1,9})"$')
_CHANGED = "The secret has changed since; read it again."


@group.route(
    "GET",
    "/secrets",
    permission=Permission.SECRET_READ,
    responses={200: shapes.Items[secret_shapes.SecretOut]},
    summary="Secrets of one's tenant, without their values.",
)
def list_secrets(call: Call) -> Any:
    return {"items": call.services.secrets.list(call.actor)}


@group.route(
    "POST",
    "/secrets",
    permission=Permission.SECRET_MANAGE,
    body=secret_shapes.NewSecret,
    responses={201: secret_shapes.SecretOut},
    summary="Create a secret, granted to nobody yet.",
)
def create_secret(call: Call) -> Any:
    body = call.body
    made = call.services.secrets.create(call.actor, body.name, body.value, body.description)
    return made, 201, _etag(made) | {"Location": f"/api/v1/secrets/{made['name']}"}


@group.route(
    "GET",
    "/secrets/<name>",
    permission=Permission.SECRET_READ,
    responses={200: secret_shapes.SecretOut},
    summary="One secret without its value; its ETag is what PUT and DELETE ask for.",
)
def get_one_secret(call: Call, name: str) -> Any:
    found = call.services.secrets.get(call.actor, name)
    return found, 200, _etag(found)


@group.route(
    "PUT",
    "/secrets/<name>",
    permission=Permission.SECRET_MANAGE,
    body=secret_shapes.ChangedSecret,
    headers=("If-Match",),
    responses={200: secret_shapes.SecretOut},
    summary="Give a secret another value; who gets it stays.",
)
def put_secret(call: Call, name: str) -> Any:
    version = _expected(call, name)
    with _still_present():
        changed = call.services.secrets.put(call.actor, name, call.body.value, call.body.description, version)
    return changed, 200, _etag(changed)


@group.route(
    "PUT",
    "/secrets/<name>/grants",
    permission=Permission.SECRET_MANAGE,
    body=secret_shapes.Grants,
    headers=("If-Match",),
    responses={200: secret_shapes.SecretOut},
    summary="Set which plugin versions get a secret; an empty list: none.",
)
def put_grants(call: Call, name: str) -> Any:
    version = _expected(call, name)
    grants = [grant.model_dump() for grant in call.body.grants]
    with _still_present():
        changed = call.services.secrets.grant(call.actor, name, grants, version)
    return changed, 200, _etag(changed)


@group.route(
    "DELETE",
    "/secrets/<name>",
    permission=Permission.SECRET_MANAGE,
    headers=("If-Match",),
    responses={204: None},
    summary="Remove a secret with its grants.",
)
def delete_secret(call: Call, name: str) -> None:
    version = _expected(call, name)
    with _still_present():
        call.services.secrets.delete(call.actor, name, version)


def _etag(secret: dict[str, Any]) -> dict[str, str]:
    return {"ETag": f'"v{secret["version"]}"'}


@contextmanager
def _still_present() -> Iterator[None]:
    """The version is compared where the change is made, in one transaction."""
    try:
        yield
    except Conflict as error:
        if error.code != "secret-changed":
            raise
        raise PreconditionFailed(_CHANGED) from None


def _expected(call: Call, name: str) -> int:
    """The version named by If-Match; ``*`` means whichever is there."""
    given = request.headers.get("If-Match")
    present = int(call.services.secrets.get(call.actor, name)["version"])
    if given is None:
        raise PreconditionRequired("Send If-Match with the secret's ETag, so that nobody's change is lost.")
    if given.strip() == "*":
        return present
    match = _ETAG.match(given.strip())
    if match is None:
        raise PreconditionFailed(_CHANGED)
    return int(match[1])
