"""The API's own description and its pages. Outside ``/api/v1``."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, render_template

from cloche.web.routing import PUBLIC, Call, Raw, RouteGroup

group = RouteGroup("description")


@group.route(
    "GET",
    "/openapi.json",
    permission=PUBLIC,
    responses={200: Raw(("application/json",), "This description.")},
    summary="The API as OpenAPI 3.1.",
)
def openapi(_call: Call) -> Any:
    return current_app.extensions["cloche_openapi"]


@group.route(
    "GET",
    "/docs",
    permission=PUBLIC,
    responses={200: Raw(("text/html",), "A page to read and try the API.")},
    summary="The API as a page.",
)
def docs(call: Call) -> Response:
    csrf = call.auth.csrf_token() if call.auth.actor() is not None else None
    return Response(render_template("api/docs.html", csrf=csrf), mimetype="text/html")
