"""The OpenAPI 3.1 description, made from the routes as they are declared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cloche.domain.permissions import Permission
from cloche.web.problems import MEDIA_TYPE
from cloche.web.routing import PUBLIC, Answer, Body, Query, Raw, Route

_REF = "#/components/schemas/{model}"
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "A stable word for programs."},
        "request_id": {"type": ["string", "null"]},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901 pointer into the body."},
                    "parameter": {"type": "string", "description": "A parameter of the query."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
_INTRO = (
    "Jobs over REST, each sealed in a container of its own. Errors are `application/problem+json`; every answer carries `X-Request-ID`. "
    "Programs send `Authorization: Bearer cloche_pat_…`; browsers a session cookie with `X-CSRFToken` on everything but GET."
)
API_VERSION = "1"  # of the interface: which release answers is nobody's business who has not signed in
Mode = Literal["validation", "serialization"]


def document(groups: Sequence[tuple[str, Sequence[Route]]]) -> dict[str, Any]:
    """The description. ``groups``: a path prefix and the routes below it."""
    routes = [(prefix, route) for prefix, members in groups for route in members]
    names, schemas = _schemas([route for _, route in routes])
    paths: dict[str, dict[str, Any]] = {}
    for prefix, route in routes:
        paths.setdefault(prefix + route.template, {})[route.method.lower()] = _operation(route, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cloche",
            "version": API_VERSION,
            "description": _INTRO,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(route.tag for _, route in routes)],
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM, **schemas},
            "responses": {"Problem": {"description": "What went wrong.", "content": {MEDIA_TYPE: _ref("Problem")}}},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "cloche_session"},
                "password": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _schemas(routes: Iterable[Route]) -> tuple[dict[Any, str], dict[str, Any]]:
    wanted: dict[type[BaseModel], Mode] = {}
    for route in routes:
        if isinstance(route.body, type):
            wanted[route.body] = "validation"
        for answer in route.responses.values():
            if isinstance(answer, type):
                wanted[answer] = "serialization"
    keys, whole = models_json_schema(list(wanted.items()), ref_template=_REF)
    names: dict[Any, str] = {model: schema["$ref"].rsplit("/", 1)[1] for (model, _), schema in keys.items()}
    return names, whole.get("$defs", {})


def _operation(route: Route, names: dict[Any, str]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [route.tag],
        "summary": route.summary,
        "operationId": f"{route.method.lower()}_{route.handler.__name__}",
        "security": _security(route),
        "responses": {str(status): _response(answer, names) for status, answer in route.responses.items()},
    }
    operation["responses"]["default"] = {"$ref": "#/components/responses/Problem"}
    if isinstance(route.permission, Permission):
        operation["description"] = f"Permission: `{route.permission}`."
        operation["x-permission"] = str(route.permission)
    if parameters := [*_path(route), *_query(route.query), *_headers(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = _request_body(route.body, names)
    return operation


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.permission is PUBLIC:
        return []
    ways: list[dict[str, list[str]]] = [{"token": []}, {"session": []}]
    return [*ways, {"password": []}] if route.basic else ways


def _path(route: Route) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.parameters]


def _query(model: type[Query] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema(ref_template=_REF)
    definitions = schema.get("$defs", {})
    found = []
    for name, part in schema["properties"].items():
        described = _inlined(part, definitions)
        description = described.pop("description", None)
        entry = {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": described}
        found.append(entry | ({"description": description} if description else {}))
    return found


def _inlined(part: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references to the query's own definitions replaced by what they name."""
    if isinstance(part, dict):
        if "$ref" in part:
            return _inlined(definitions[part["$ref"].rsplit("/", 1)[1]], definitions)
        return {key: _inlined(value, definitions) for key, value in part.items()}
    return [_inlined(item, definitions) for item in part] if isinstance(part, list) else part


def _headers(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": name == "If-Match", "schema": {"type": "string"}}
        for name in route.headers
    ]


def _request_body(body: type[Body] | Raw, names: dict[Any, str]) -> dict[str, Any]:
    if isinstance(body, Raw):
        part = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
        content = {kind: {"schema": part if kind == "multipart/form-data" else {}} for kind in body.media_types}
        return {"required": True, "description": body.summary, "content": content}
    return {"required": True, "content": {"application/json": _ref(names[body])}}


def _response(answer: Answer, names: dict[Any, str]) -> dict[str, Any]:
    if answer is None:
        return {"description": "Done."}
    if isinstance(answer, Raw):
        return {"description": answer.summary, "content": {kind: {} for kind in answer.media_types}}
    return {"description": "Success.", "content": {"application/json": _ref(names[answer])}}


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=name)}}
