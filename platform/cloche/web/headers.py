"""What every response carries: a request id, and headers that leave a browser little room."""

from __future__ import annotations

import re

import structlog
from flask import Flask, Response, g, request

from cloche.clock import uuid7

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
CONTENT_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"  # around bytes a job or user made
)
_FIXED = {
    "Server": "cloche",  # what stands in front of the app would name itself
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_REQUEST_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{7,63}\Z")


def register(app: Flask, *, secure: bool) -> None:
    """``secure``: TLS ends in front of us, so browsers may be told to stay on it."""
    always = {"Content-Security-Policy": CSP, **_FIXED}
    if secure:
        always["Strict-Transport-Security"] = "max-age=31536000"
    lasting = [(name, value, name.lower()) for name, value in always.items()]

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if _REQUEST_ID.match(given) else uuid7()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.get("request_id") or uuid7()
        # Looked through once: `setdefault` would look through all of them for each.
        there = {name.lower() for name, _ in response.headers}
        for name, value, key in lasting:
            if key not in there:
                response.headers.add(name, value)
        if request.endpoint != "static" and "cache-control" not in there:
            response.headers.add("Cache-Control", "no-store")
        return response

    @app.teardown_request
    def end(_error: BaseException | None) -> None:
        structlog.contextvars.unbind_contextvars("request_id")
