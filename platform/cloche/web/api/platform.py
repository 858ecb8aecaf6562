"""Plugins: what there is, and which state each version is in."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.domain.versions import VersionState
from cloche.web import models, shapes
from cloche.web.etags import etag, expected, unchanged
from cloche.web.routing import Call, RouteGroup

group = RouteGroup("platform")


@group.route(
    "GET",
    "/plugins",
    permission=Permission.PLUGIN_READ,
    responses={200: shapes.Items[shapes.PluginOut]},
    summary="Every version of every job type.",
)
def list_plugins(call: Call) -> Any:
    return {"items": call.services.plugins.list(call.actor)}


@group.route(
    "GET",
    "/plugins/<name>",
    permission=Permission.PLUGIN_READ,
    query=models.PluginQuery,
    responses={200: shapes.PluginDetailOut},
    summary="One job type with its parameters' schema: the default version, or the one asked for.",
)
def get_plugin(call: Call, name: str) -> Any:
    return call.services.plugins.get(call.actor, name, call.query.version)


@group.route(
    "GET",
    "/plugins/<name>/<version>",
    permission=Permission.PLUGIN_READ,
    responses={200: shapes.PluginDetailOut},
    summary="One version of a job type; its ETag is what PATCH asks for.",
)
def get_plugin_version(call: Call, name: str, version: str) -> Any:
    found = call.services.plugins.get(call.actor, name, version)
    return found, 200, _etag(found)


@group.route(
    "PATCH",
    "/plugins/<name>/<version>",
    permission=Permission.PLUGIN_MANAGE,
    body=models.ChangedVersion,
    headers=("If-Match",),
    responses={200: shapes.PluginOut},
    summary="Enable, deprecate, disable or yank a version, for every tenant.",
)
def update_plugin_version(call: Call, name: str, version: str) -> Any:
    call.services.plugins.get(call.actor, name, version)
    revision, asked = expected("version"), call.body
    with unchanged("version"):
        changed = call.services.plugins.set_state(
            call.actor, name, version, VersionState(asked.state), asked.reason, revision
        )
    return changed, 200, _etag(changed)


def _etag(shown: dict[str, Any]) -> dict[str, str]:
    """The version's own name is no count of its changes."""
    return etag({"version": shown["revision"]})
