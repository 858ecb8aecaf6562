"""Errors as RFC 9457 ``application/problem+json``: always with a request id, never with a trace."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from cloche import logs
from cloche.errors import (
    ClocheError,
    Crowded,
    Forbidden,
    Problem,
    QuotaPace,
    RateLimited,
    RequestError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from cloche.web.denials import Denials

MEDIA_TYPE = "application/problem+json"
_log = logs.get(__name__)
_CODES = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 408: "timeout", 416: "range-not-satisfiable"}
_DETAILS = {
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
    416: "The range does not lie within the file.",
}


@dataclass(frozen=True)
class ParameterProblem(Problem):
    """One fault in the query: ``pointer`` is the parameter's name."""


class LengthRequired(RequestError):
    status, code, title = 411, "length-required", "Length required"


class PreconditionFailed(RequestError):
    status, code, title = 412, "precondition-failed", "Precondition failed"


class PreconditionRequired(RequestError):
    status, code, title = 428, "precondition-required", "Precondition required"


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document as a response."""
    body: dict[str, Any] = {"type": f"urn:cloche:problem:{code}", "title": title, "status": status, "detail": detail}
    body |= {"code": code, "request_id": g.get("request_id")}
    if problems:
        body["errors"] = [_entry(item) for item in problems]
    response = Response(
        json.dumps(body, ensure_ascii=False) + "\n", status, mimetype=MEDIA_TYPE, headers=dict(headers or {})
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _entry(item: Problem) -> dict[str, str]:
    where = "parameter" if isinstance(item, ParameterProblem) else "pointer"
    return {where: item.pointer, "detail": item.detail}


def register(app: Flask, denials: Denials, refused: Callable[[RequestError], None] = lambda _error: None) -> None:
    """Every error of the app becomes a problem document; refusals are also audited. ``refused`` is told of each."""

    def on_request_error(error: RequestError) -> Response:
        headers: dict[str, str] = {}
        refused(error)
        if isinstance(error, Unauthenticated):
            headers["WWW-Authenticate"] = 'Bearer realm="cloche"'
            denials.anonymous()
        elif isinstance(error, Forbidden):
            denials.refused(error.detail)
        elif isinstance(error, RateLimited):
            if isinstance(error, QuotaPace):  # as other quotas; what only asks too often would fill the record
                denials.refused(error.detail)
            headers["Retry-After"] = str(error.retry_after)
        elif isinstance(error, TooLarge):
            headers["Connection"] = "close"  # the rest of the body is not read
        return problem(error.status, error.code, error.title, error.detail, problems=error.problems, headers=headers)

    def on_unavailable(error: Unavailable) -> Response:
        if not isinstance(error, Crowded):
            _log.warning("unavailable", detail=error.detail, path=request.path)
        headers = {"Retry-After": str(error.retry_after)}
        return problem(503, "unavailable", "Temporarily unavailable", error.detail, headers=headers)

    def on_http(error: HTTPException) -> Response:
        if isinstance(error, RequestEntityTooLarge):
            return on_request_error(TooLarge("The request is larger than this server takes."))
        status = error.code or 500
        if status < 400:
            return Response(error.get_response().get_data(), status, headers=dict(error.get_headers()))
        kept = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After", "Content-Range")}
        detail = _DETAILS.get(status) or error.description or error.name
        return problem(status, _CODES.get(status, "error"), error.name, detail, headers=kept)

    def on_anything(error: Exception) -> Response:
        _log.error("request failed", path=request.path, method=request.method, exc_info=error)
        detail = "Something failed on our side. The request id helps the operator to find it in the log."
        return problem(500, "internal", "Internal error", detail)

    app.register_error_handler(RequestError, on_request_error)
    app.register_error_handler(Unavailable, on_unavailable)
    app.register_error_handler(HTTPException, on_http)
    app.register_error_handler(ClocheError, on_anything)
    app.register_error_handler(Exception, on_anything)
