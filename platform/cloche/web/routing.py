"""Typed routes: each declares its permission, its body, its query and its answers, and OpenAPI is made from the same declaration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel, ConfigDict

from cloche.domain.permissions import Actor, Permission
from cloche.errors import Unauthenticated
from cloche.services.container import Services
from cloche.web import reading
from cloche.web.auth import Auth
from cloche.web.bodies import parsed, read_json, read_query, refuse_body


class Access(Enum):
    """Routes that need no single permission."""

    PUBLIC = "public"  # anybody
    SIGNED_IN = "signed in"  # any valid credential


PUBLIC, SIGNED_IN = Access.PUBLIC, Access.SIGNED_IN


class Body(BaseModel):
    """Base of every request body and query: unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def read(cls, value: Any) -> Any:
        """What the handler gets as ``call.body``: the value as this model, unless the model has a reading of its own.

        Raises:
            ValidationError, Invalid: it does not fit.
        """
        return cls.model_validate(value)


class Query(BaseModel):
    """Base of every query: text is converted, unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")


class Shape(BaseModel):
    """Base of every answer's description."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Raw:
    """An answer that is no JSON object: its media types, and what it is."""

    media_types: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class Call:
    """One request as its handler sees it. ``body`` and ``query`` are validated; ``actor`` is None on public routes without credential."""

    services: Services
    auth: Auth
    _actor: Actor | None
    body: Any = None
    query: Any = None

    @property
    def actor(self) -> Actor:
        """The asking actor. Only routes that are not public have one for certain."""
        if self._actor is None:
            raise Unauthenticated("Sign in first.")
        return self._actor


Handler = Callable[..., Any]
Answer = type[Shape] | Raw | None


@dataclass(frozen=True)
class Route:
    """One method of one path. ``path`` is below the group's prefix, in Flask's notation."""

    method: str
    path: str
    handler: Handler
    permission: Permission | Access
    summary: str
    tag: str
    body: type[Body] | Raw | None = None
    query: type[Query] | None = None
    responses: Mapping[int, Answer] = field(default_factory=dict)
    headers: Sequence[str] = ()
    basic: bool = False
    large: bool = False

    @property
    def template(self) -> str:
        """The path in OpenAPI's notation: ``/jobs/{job_id}``."""
        return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", self.path)

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"<(?:\w+:)?(\w+)>", self.path)


class RouteGroup:
    """Routes declared by decorators at import; bound to an app by :meth:`blueprint`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.routes: list[Route] = []

    def route(
        self,
        method: str,
        path: str,
        *,
        permission: Permission | Access | None = None,
        summary: str = "",
        body: type[Body] | Raw | None = None,
        query: type[Query] | None = None,
        responses: Mapping[int, Answer] | None = None,
        headers: Sequence[str] = (),
        basic: bool = False,
        large: bool = False,
    ) -> Callable[[Handler], Handler]:
        """Declare a route. ``headers`` names the request headers it reads; ``basic`` also takes user name and password; ``large``: its body
        may be ``server.max_batch`` bytes long, and few of its requests are answered at once.

        Raises:
            TypeError: no permission, no summary or no answer is declared.
        """
        if not isinstance(permission, (Permission, Access)):
            raise TypeError(f"{method} {path} declares no permission")
        if not summary or not responses:
            raise TypeError(f"{method} {path} needs a summary and its responses")
        granted: Permission | Access = permission
        answers = dict(responses)

        def declare(handler: Handler) -> Handler:
            kept = (body, query, answers, tuple(headers), basic, large)
            self.routes.append(Route(method, path, handler, granted, summary, self.tag, *kept))
            return handler

        return declare


def bind(blueprint: Blueprint, routes: Sequence[Route], services: Services, auth: Auth) -> None:
    """Make the routes views of a blueprint."""
    for index, route in enumerate(routes):
        blueprint.add_url_rule(
            route.path,
            endpoint=f"{route.handler.__name__}_{index}",
            view_func=_view(route, services, auth),
            methods=[route.method],
            provide_automatic_options=False,
        )


def _view(route: Route, services: Services, auth: Auth) -> Callable[..., Response]:
    def view(**parameters: str) -> Response:
        actor = authorize(route, auth)
        query = read_query(route.query)
        if not isinstance(route.body, type):
            if route.body is None:
                refuse_body()
            return respond(route.handler(Call(services, auth, actor, None, query), **parameters))
        server = services.settings.server
        raw = read_json(server.max_batch if route.large else server.max_body)
        with reading.large() if route.large else nullcontext():
            body = parsed(route.body, raw)
            return respond(route.handler(Call(services, auth, actor, body, query), **parameters))

    view.__name__ = route.handler.__name__
    return view


def authorize(route: Route, auth: Auth) -> Actor | None:
    """The actor, allowed to use the route."""
    if route.permission is PUBLIC:
        return None
    needed = route.permission if isinstance(route.permission, Permission) else None
    return auth.require(needed, basic=route.basic)


def respond(result: Any) -> Response:
    """A handler's value as a response: a Response as it is, None as 204, data, ``(data, status)`` or ``(data, status, headers)``."""
    if isinstance(result, Response):
        return result
    data, status, headers = result, 200, {}
    if isinstance(result, tuple):
        data, status, headers = (*result, {})[:3]
    if data is None:
        return Response(status=204 if status == 200 else status, headers=headers)
    response = jsonify(data)
    response.status_code = status
    response.headers.extend(headers)
    return response
