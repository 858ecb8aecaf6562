"""Answers for pages of other origins: none, unless ``server.cors_origins`` names them.

They may send tokens, never the session's cookie: no answer says that credentials are allowed, and the cookie is ``SameSite=Strict``.
"""

from __future__ import annotations

from flask import Flask, Response, request

from cloche.netnames import origins

_API = "/api/v1/"
_METHODS = "GET, POST, PUT, PATCH, DELETE"
_ASKS = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Range, X-Cloche-Tenant, X-Request-ID"
_TELLS = "ETag, Link, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-ID"
_FOR_S = 600


def register(app: Flask, setting: str) -> None:
    """``setting``: ``server.cors_origins``. Nothing is registered when it is empty."""
    known = origins(setting)
    if not known:
        return

    @app.before_request
    def preflight() -> Response | None:
        if (
            request.method != "OPTIONS"
            or not _concerned(known)
            or "Access-Control-Request-Method" not in request.headers
        ):
            return None
        return Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _ASKS,
                "Access-Control-Max-Age": str(_FOR_S),
            },
        )

    @app.after_request
    def allow(response: Response) -> Response:
        if request.path.startswith(_API):
            response.vary.add("Origin")
            if _concerned(known):
                response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
                response.headers["Access-Control-Expose-Headers"] = _TELLS
        return response


def _concerned(known: frozenset[str]) -> bool:
    return request.path.startswith(_API) and request.headers.get("Origin") in known
