"""Queues: what they hold, and how they are taken from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import request

from cloche.domain.permissions import Permission
from cloche.domain.queues import Scope
from cloche.errors import Conflict
from cloche.web import models, shapes
from cloche.web.problems import PreconditionFailed, PreconditionRequired
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("queues")
_ETAG = re.compile(r'^"v([0-9]{1,9}\.[0-9]{1,9}\.[0-9a-f]{1,16})"$')
_CHANGED = "The queue has changed since; read it again."


@group.route(
    "GET",
    "/queues",
    permission=Permission.QUEUE_READ,
    responses={200: shapes.Items[shapes.QueueOut]},
    summary="Queues and how full they are.",
)
def list_queues(call: Call) -> Any:
    return {"items": call.services.queues.list(call.actor)}


@group.route(
    "POST",
    "/queues",
    permission=Permission.QUEUE_MANAGE,
    body=models.NewQueue,
    responses={201: shapes.QueueOut},
    summary="Create a queue, for every tenant.",
)
def create_queue(call: Call) -> Any:
    asked = call.body
    made = call.services.queues.create(
        call.actor, asked.name, asked.description, asked.max_concurrency, paused=asked.paused
    )
    return made, 201, _etag(made) | {"Location": f"/api/v1/queues/{made['name']}"}


@group.route(
    "GET",
    "/queues/<name>",
    permission=Permission.QUEUE_READ,
    responses={200: shapes.QueueOut},
    summary="One queue; its ETag is what PATCH and DELETE ask for.",
)
def get_queue(call: Call, name: str) -> Any:
    found = call.services.queues.get(call.actor, name)
    return found, 200, _etag(found)


@group.route(
    "PATCH",
    "/queues/<name>",
    permission=Permission.QUEUE_PAUSE,
    body=models.ChangedQueue,
    headers=("If-Match",),
    responses={200: shapes.QueueOut},
    summary="Pause or resume a queue for one's tenant; with `scope` `platform` (`queue:manage`) for everybody, and set its limits.",
)
def update_queue(call: Call, name: str) -> Any:
    asked = {key: getattr(call.body, key) for key in call.body.model_fields_set if key != "scope"}
    call.services.queues.get(call.actor, name)
    version = _expected()
    with _still_present():
        changed = call.services.queues.change(call.actor, name, Scope(call.body.scope), asked, version)
    return changed, 200, _etag(changed)


@group.route(
    "DELETE",
    "/queues/<name>",
    permission=Permission.QUEUE_MANAGE,
    headers=("If-Match",),
    responses={204: None},
    summary="Remove a queue that no live job is in.",
)
def delete_queue(call: Call, name: str) -> None:
    call.services.queues.get(call.actor, name)
    version = _expected()
    with _still_present():
        call.services.queues.delete(call.actor, name, version)


def _etag(queue: dict[str, Any]) -> dict[str, str]:
    return {"ETag": f'"v{queue["version"]}"'}


@contextmanager
def _still_present() -> Iterator[None]:
    """The version is compared where the change is made, in one transaction."""
    try:
        yield
    except Conflict as error:
        if error.code != "queue-changed":
            raise
        raise PreconditionFailed(_CHANGED) from None


def _expected() -> str | None:
    """The version named by If-Match; None for ``*``, which means whichever is there."""
    given = request.headers.get("If-Match")
    if given is None:
        raise PreconditionRequired("Send If-Match with the queue's ETag, so that nobody's change is lost.")
    if given.strip() == "*":
        return None
    match = _ETAG.match(given.strip())
    if match is None:
        raise PreconditionFailed(_CHANGED)
    return match[1]
