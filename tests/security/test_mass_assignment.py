"""Nobody sets what a body does not declare by naming it: every route with a body, and every object within one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from tests.security import objects
from tests.security.objects import World
from tests.security.route_table import BODIES, NONE, OWN, Walk, declared, whose
from tests.support.web import problem, running_site, where

# What decides whose a thing is, what it may, and what became of it.
NAMES = {
    "tenant": "default",
    "tenant_id": objects.NEVER,
    "submitted_by": "admin",
    "created_by": objects.NEVER,
    "user_id": objects.NEVER,
    "owner": "admin",
    "status": "completed",
    "state": "completed",
    "attempt": 7,
    "roles": ["admin"],
    "permissions": ["tenant:manage"],
    "platform_admin": True,
    "builtin": True,
    "id": objects.NEVER,
    "version": 9,
    "created_at": "2020-01-01T00:00:00Z",
}
ROUTES = {key: found for key, found in declared().items() if isinstance(found[1].body, type)}
# Bodies with more objects within them than the walk over the table sends.
FULL = {
    "POST /jobs": lambda w: w.job() | {"retry": {"max_retries": 1}, "limits": {"timeout": 5}},
    "POST /jobs/batch": lambda w: {"jobs": [w.job() | {"retry": {"max_retries": 1}, "limits": {"timeout": 5}}]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as site:
        yield World(site)


@pytest.fixture(scope="module")
def walk(world):
    return Walk(world)


def _places(schema: Any, known: Any, value: Any, at: str = "") -> Iterator[tuple[str, set[str]]]:
    """Where the value has an object that takes declared names alone: the pointer, and the names."""
    schema = known[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for other in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _places(other, known, value, at)
    if isinstance(value, dict):
        own = schema.get("properties", {})
        if schema.get("additionalProperties") is False:
            yield at, set(own)
        for name in value.keys() & own.keys():
            yield from _places(own[name], known, value[name], f"{at}/{name}")
    if isinstance(value, list) and "items" in schema:
        for index, part in enumerate(value):
            yield from _places(schema["items"], known, part, f"{at}/{index}")


def _with(body: Any, at: str, name: str) -> Any:
    """The body, and in its object ``at`` the name too."""
    found = body = copy.deepcopy(body)
    for step in at.split("/")[1:]:
        found = found[int(step) if isinstance(found, list) else step]
    found[name] = NAMES[name]
    return body


@pytest.mark.parametrize("key", ROUTES)
def test_what_a_body_does_not_declare_is_refused_by_its_name(world, walk, key):
    prefix, route = ROUTES[key]
    caller = world.callers["platform"]
    body = FULL.get(key, BODIES.get(key, lambda _: {}))(world)
    schema = route.body.model_json_schema(by_alias=True)
    places = list(_places(schema, schema.get("$defs", {}), body))
    assert ("", set(schema["properties"])) in places, "the body takes any name"
    path = prefix + walk.path(route, caller, OWN if OWN in whose(route) else NONE)
    headers = {"If-Match": "*"} if "If-Match" in route.headers else {}
    tried = 0
    for at, own in places:
        for name in NAMES.keys() - own:
            answer = world.send(caller, route.method, path, json=_with(body, at, name), headers=headers)
            assert f"{at}/{name}" in where(problem(answer, 422)), (at, name, answer.text)
            assert not _events(world, answer.headers["X-Request-ID"]), f"{key} with {at}/{name} did something"
            tried += 1
    assert tried > len(NAMES) / 2


def _events(world: World, request_id: str) -> list[str]:
    query = select(t.audit_event.c.action).where(t.audit_event.c.request_id == request_id)
    return list(world.db.read(lambda connection: connection.scalars(query).all()))


def test_a_job_has_several_objects_within_it():
    """Or the walk above does not look where the most can be named."""
    body = {"type": "x", "inputs": [{"from": "artifact:x"}], "retry": {"max_retries": 1}, "limits": {"timeout": 5}}
    schema = ROUTES["POST /jobs"][1].body.model_json_schema(by_alias=True)
    assert {at for at, _ in _places(schema, schema["$defs"], body)} == {"", "/inputs/0", "/retry", "/limits"}
