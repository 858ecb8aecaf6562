"""Whatever a body or a query may name: another tenant's is answered exactly as one that never was.

Each text that a body or query takes either stands in :data:`CASES` with a request that names something, or its last word stands in
:data:`PLAIN`, because it names nothing that somebody has. A new field that is in neither fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.security import objects
from tests.security.objects import MARK, World
from tests.security.route_table import declared
from tests.support.web import running_site

NEVER_NAMED = "nobody-of-this-name"
Send = tuple[str, str, dict[str, Any]]  # method, path below /api/v1, options of the request


def job(**fields: Any) -> Callable[[World, str], Send]:
    """A single job, with what ``fields`` makes of the name."""

    def build(world: World, named: str) -> Send:
        body = world.job() | {key: _filled(value, named) for key, value in fields.items()}
        return "POST", "/jobs", {"json": body}

    return build


def batch(**fields: Any) -> Callable[[World, str], Send]:
    def build(world: World, named: str) -> Send:
        body = world.job() | {key: _filled(value, named) for key, value in fields.items()}
        return "POST", "/jobs/batch", {"json": {"jobs": [world.job(), body]}}

    return build


def body(method: str, path: str, **fields: Any) -> Callable[[World, str], Send]:
    return lambda _, named: (method, path, {"json": {key: _filled(value, named) for key, value in fields.items()}})


def query(path: str, name: str, form: str = "{}") -> Callable[[World, str], Send]:
    return lambda _, named: ("GET", path, {"query_string": {name: form.format(named)}})


def granted(world: World, named: str) -> Send:
    """The role, to somebody of ours."""
    return (
        "PUT",
        f"/users/{world.callers['viewer'].actor.user_id}/roles",
        {
            "json": {"roles": [named]},
            "headers": {"If-Match": "*"},
        },
    )


def _filled(value: Any, named: str) -> Any:
    if isinstance(value, str):
        return value.replace("{}", named)
    if isinstance(value, dict):
        return {key: _filled(part, named) for key, part in value.items()}
    return [_filled(part, named) for part in value] if isinstance(value, list) else value


def name_of(_world: World, _actor: Any) -> str:
    return MARK


def role(world: World, actor: Any) -> str:
    name = f"r-{next(world.numbers)}"
    world.make(actor, "/roles", json={"name": name, "permissions": ["job:read"]})
    return name


# The route and the field, what it names, how to name it; the last: what one that never was is called.
CASES: list[tuple[str, str, Any, Callable[[World, str], Send], str]] = [
    ("POST /jobs", "/inputs/*/from", objects.artifact, job(inputs=[{"from": "artifact:{}"}]), objects.NEVER),
    ("POST /jobs", "/inputs/*/from", objects.remote, job(inputs=[{"from": "{}:a.csv"}]), "r-none"),
    ("POST /jobs", "/outputs/*/to", objects.remote, job(outputs=[{"match": "*", "to": "{}:out"}]), "r-none"),
    ("POST /jobs", "/depends_on/*", objects.job, job(depends_on=["{}"]), objects.NEVER),
    (
        "POST /jobs/batch",
        "/jobs/*/inputs/*/from",
        objects.artifact,
        batch(inputs=[{"from": "artifact:{}"}]),
        objects.NEVER,
    ),
    ("POST /jobs/batch", "/jobs/*/inputs/*/from", objects.remote, batch(inputs=[{"from": "{}:a.csv"}]), "r-none"),
    (
        "POST /jobs/batch",
        "/jobs/*/outputs/*/to",
        objects.remote,
        batch(outputs=[{"match": "*", "to": "{}:out"}]),
        "r-none",
    ),
    ("POST /jobs/batch", "/jobs/*/depends_on/*", objects.job, batch(depends_on=["{}"]), objects.NEVER),
    (
        "POST /dead-letters/replay",
        "/ids/*",
        objects.failed_job,
        body("POST", "/dead-letters/replay", ids=["{}"]),
        objects.NEVER,
    ),
    ("DELETE /dead-letters", "/ids/*", objects.failed_job, body("DELETE", "/dead-letters", ids=["{}"]), objects.NEVER),
    ("PUT /users/{user_id}/roles", "/roles/*", role, granted, "r-none"),
    (
        "POST /users",
        "/roles/*",
        role,
        body("POST", "/users", username="n1", password="a password of some length", roles=["{}"]),
        "r-none",
    ),
    ("POST /audit/forget", "/value", name_of, body("POST", "/audit/forget", value="{}"), NEVER_NAMED),
    ("GET /jobs", "?submitted_by", name_of, query("/jobs", "submitted_by"), NEVER_NAMED),
    ("GET /jobs", "?cursor", objects.job, query("/jobs", "cursor"), objects.NEVER),
    ("GET /users", "?username", name_of, query("/users", "username"), NEVER_NAMED),
    ("GET /users", "?role", role, query("/users", "role"), "r-none"),
    ("GET /audit", "?actor", name_of, query("/audit", "actor"), NEVER_NAMED),
    ("GET /audit", "?object", objects.job, query("/audit", "object", "job:{}"), objects.NEVER),
    ("GET /audit", "?token_id", objects.token, query("/audit", "token_id"), objects.NEVER),
    ("GET /audit/export", "?actor", name_of, query("/audit/export", "actor"), NEVER_NAMED),
    ("GET /audit/export", "?object", objects.job, query("/audit/export", "object", "job:{}"), objects.NEVER),
    ("GET /audit/export", "?token_id", objects.token, query("/audit/export", "token_id"), objects.NEVER),
]
# Last words of fields that name nothing of one tenant: values, kinds, words of our own, what is shared by all, and names that are given here.
PLAIN = frozenset(
    """
    username password current_password new_password code name summary description value confirm addresses expires_in expires_at scopes
    permissions events url depends_on_condition to labels cpu memory output pids on_upstream_failure match payload queue backoff
    initial_delay max_delay max_retries retry_on schedule_at timeout type version versions label priority since until status submitted_by
    wait reason limit jobs submissions_per_minute storage_bytes
    cpu_seconds_per_day attempt last_event_id ref max_concurrency window options plugin allow action ip outcome request_id kind admin cursor prefix
    """.split()
)


def _leaves(schema: dict[str, Any], known: dict[str, Any], at: str = "") -> list[str]:
    """Pointers to every text that the schema takes."""
    if "$ref" in schema:
        return _leaves(known[schema["$ref"].rsplit("/", 1)[1]], known, at)
    found = [leaf for part in schema.get("anyOf", []) + schema.get("oneOf", []) for leaf in _leaves(part, known, at)]
    found += [
        leaf for name, part in schema.get("properties", {}).items() for leaf in _leaves(part, known, f"{at}/{name}")
    ]
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            found += _leaves(schema[inner], known, f"{at}/*")
    kinds = schema.get("type")
    text = "string" in kinds if isinstance(kinds, list) else kinds in ("string", None)
    return found or ([at] if text and "enum" not in schema and "const" not in schema else [])


def fields() -> list[tuple[str, str]]:
    """Every text field of every body (a pointer) and query (``?name``), with its route."""
    found = []
    for key, (_, route) in declared().items():
        for model, form in ((route.body, "{}"), (route.query, "?{}")):
            if isinstance(model, type):
                schema = model.model_json_schema(by_alias=True)
                leaves = _leaves(schema, schema.get("$defs", {}))
                found += [(key, leaf if form == "{}" else f"?{leaf.lstrip('/')}") for leaf in leaves if leaf]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as site:
        yield World(site)


def test_every_field_names_something_that_is_tried_or_nothing():
    tried = {(key, field) for key, field, *_ in CASES}
    unknown = [
        (key, field)
        for key, field in fields()
        if (key, field) not in tried and re.split(r"[/?]", field.removesuffix("/*"))[-1] not in PLAIN
    ]
    assert not unknown, f"say in CASES what these name, or in PLAIN that they name nothing: {unknown}"
    assert not tried - set(fields()), "a case is left of a field that is gone"


@pytest.mark.parametrize(
    ("key", "field", "make", "build", "never"), CASES, ids=[f"{key} {field}" for key, field, *_ in CASES]
)
def test_another_tenants_is_answered_as_one_that_never_was(world, key, field, make, build, never):
    theirs = make(world, world.stranger.actor)
    answers = []
    for named in (theirs, never):
        method, path, options = build(world, named)
        answer = world.send(world.callers["admin"], method, f"/api/v1{path}", **options)
        text = answer.get_data(as_text=True).replace(named, "NAMED")
        assert answer.status_code < 500
        answers.append((answer.status_code, _plain(text)))
    assert answers[0] == answers[1]
    assert MARK not in answers[0][1]
    if "audit" not in key and field[0] != "?" and "dead-letters" not in key:
        assert answers[0][0] in (404, 409, 422), answers[0]


def _plain(text: str) -> str:
    """Without what differs between any two answers: ids, and of an export the signed frame around its events."""
    lines = [line for line in text.splitlines() if not line.startswith(('{"checkpoint"', '{"filtered"', '{"end"'))]
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", "\n".join(lines))
