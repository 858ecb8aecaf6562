"""Remotes: storages that jobs read from and write to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import request

from cloche.domain.permissions import Permission
from cloche.errors import Conflict
from cloche.web import models, shapes
from cloche.web.problems import PreconditionFailed, PreconditionRequired
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("remotes")
_ETAG = re.compile(r'^"v(\d{1,9})"$')


@group.route(
    "GET",
    "/remotes",
    permission=Permission.REMOTE_READ,
    responses={200: shapes.Items[shapes.RemoteOut]},
    summary="Remotes of one's tenant; secrets are masked.",
)
def list_remotes(call: Call) -> Any:
    return {"items": call.services.remotes.list(call.actor)}


@group.route(
    "POST",
    "/remotes",
    permission=Permission.REMOTE_MANAGE,
    body=models.NewRemote,
    responses={201: shapes.RemoteOut},
    summary="Create a remote.",
)
def create_remote(call: Call) -> Any:
    made = call.services.remotes.create(call.actor, call.body.name, call.body.type, call.body.options)
    return made, 201, _etag(made) | {"Location": f"/api/v1/remotes/{made['name']}"}


@group.route(
    "GET",
    "/remotes/<name>",
    permission=Permission.REMOTE_READ,
    responses={200: shapes.RemoteOut},
    summary="One remote; its ETag is what PATCH and DELETE ask for.",
)
def get_remote(call: Call, name: str) -> Any:
    found = call.services.remotes.get(call.actor, name)
    return found, 200, _etag(found)


@group.route(
    "PATCH",
    "/remotes/<name>",
    permission=Permission.REMOTE_MANAGE,
    body=models.ChangedRemote,
    headers=("If-Match",),
    responses={200: shapes.RemoteOut},
    summary="Change options; those left out stay, null removes one.",
)
def update_remote(call: Call, name: str) -> Any:
    version = _expected(call, name)
    with _still_present():
        changed = call.services.remotes.update(call.actor, name, call.body.options, version)
    return changed, 200, _etag(changed)


@group.route(
    "DELETE",
    "/remotes/<name>",
    permission=Permission.REMOTE_MANAGE,
    headers=("If-Match",),
    responses={204: None},
    summary="Remove a remote.",
)
def delete_remote(call: Call, name: str) -> None:
    version = _expected(call, name)
    with _still_present():
        call.services.remotes.delete(call.actor, name, version)


@group.route(
    "POST",
    "/remotes/<name>/test",
    permission=Permission.REMOTE_MANAGE,
    responses={200: shapes.RemoteTestOut},
    summary="Try to list the remote's root.",
)
def test_remote(call: Call, name: str) -> Any:
    return call.services.remotes.test(call.actor, name)


def _etag(remote: dict[str, Any]) -> dict[str, str]:
    return {"ETag": f'"v{remote["version"]}"'}


@contextmanager
def _still_present() -> Iterator[None]:
    """Somebody may be faster between our look and the write."""
    try:
        yield
    except Conflict as error:
        if error.code != "remote-changed":
            raise
        raise PreconditionFailed("The remote has changed since; read it again.") from None


def _expected(call: Call, name: str) -> int:
    """The version named by If-Match, which has to be the present one; ``*`` means whichever is there."""
    given = request.headers.get("If-Match")
    present = int(call.services.remotes.get(call.actor, name)["version"])
    if given is None:
        raise PreconditionRequired("Send If-Match with the remote's ETag, so that nobody's change is lost.")
    if given.strip() == "*":
        return present
    match = _ETAG.match(given.strip())
    if match is None or int(match[1]) != present:
        raise PreconditionFailed("The remote has changed since; read it again.")
    return present
