"""Plugins, to look at."""

from __future__ import annotations

from typing import Any

from cloche.domain.permissions import Permission
from cloche.web import models, shapes
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
