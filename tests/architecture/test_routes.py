"""Every address declares its permission and stands in docs/rest.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloche.domain.permissions import Permission
from cloche.web.app import API_PREFIX, api_routes, system_routes
from cloche.web.routing import Access
from tests.security import route_table
from tests.support.web import running_site

DOCS = Path(__file__).parents[2] / "docs" / "rest.md"
# Public on purpose; a new name here needs a reason.
PUBLIC = {
    "POST /api/v1/session",  # how one signs in
    "POST /api/v1/password-resets",  # how one comes in again; takes a code of 256 bits
    "GET /health",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",  # asks for itself, unless the request comes from this machine
    "GET /openapi.json",
    "GET /docs",
}

RENAMES: set[str] = set()  # routes whose body gives the object a new name, while the path has the old one


def declared():
    return [(API_PREFIX, route) for route in api_routes()] + [("", route) for route in system_routes()]


def test_every_route_declares_a_permission():
    for prefix, route in declared():
        assert isinstance(route.permission, (Permission, Access)), f"{route.method} {prefix}{route.path}"


def test_only_these_are_public():
    found = {
        f"{route.method} {prefix}{route.template}" for prefix, route in declared() if route.permission is Access.PUBLIC
    }
    assert found == PUBLIC


def test_every_route_has_its_lines_in_the_table_of_who_may_do_what():
    table = route_table.load()
    wanted = {(key, owner) for key, (_, route) in route_table.declared().items() for owner in route_table.whose(route)}
    how = "run `python -m tests.security.route_table --draw`, then read each new line of tests/security/route_table.csv"
    assert not wanted - table.keys(), f"no line for {sorted(wanted - table.keys())}: {how}"


def test_an_objects_id_comes_from_the_path_alone():
    """One that came a second time, in body or query, could be checked in one place and used from the other."""
    for _, route in declared():
        named = set(route.parameters) | {"id", *(f"{name}_id" for name in route.parameters)}
        for model in (route.body, route.query):
            if isinstance(model, type):
                names = {field.alias or name for name, field in model.model_fields.items()}
                again = (names & named) - ({"name"} if f"{route.method} {route.template}" in RENAMES else set())
                assert not again or not route.parameters, f"{route.method} {route.path} also reads {again}"


def test_no_view_was_added_past_the_declarations(tmp_path):
    known = {prefix + route.path for prefix, route in declared()} | {"/static/<path:filename>"}
    with running_site(tmp_path) as site:
        rules = [rule for rule in site.app.url_map.iter_rules() if not rule.endpoint.startswith("dashboard.")]
        assert {rule.rule for rule in rules} == known
        for rule in rules:
            assert rule.endpoint == "static" or "OPTIONS" not in rule.methods


def test_unauthenticated_requests_reach_nothing_that_is_not_public(tmp_path):
    with running_site(tmp_path) as site:
        for prefix, route in declared():
            if route.permission is Access.PUBLIC:
                continue
            path = re.sub(r"<[^>]+>", "x", prefix + route.path)
            answer = site.client().open(path, method=route.method, json={})
            assert answer.status_code == 401, f"{route.method} {path}: {answer.status_code}"


def test_a_viewer_reaches_only_what_a_viewer_may(tmp_path):
    from cloche.domain.permissions import BUILTIN_ROLES

    with running_site(tmp_path) as site:
        site.add("vera", "viewer")
        for _, route in ((p, r) for p, r in declared() if p):
            if isinstance(route.permission, Permission) and route.permission not in BUILTIN_ROLES["viewer"]:
                path = re.sub(r"<[^>]+>", "x", route.path)
                assert site.request(route.method, path, "vera").status_code == 403, path


@pytest.mark.parametrize(("prefix", "route"), declared(), ids=lambda item: getattr(item, "path", item) or "/")
def test_every_route_is_documented(prefix, route):
    needed = str(route.permission) if isinstance(route.permission, Permission) else f"({route.permission.value})"
    row = f"| `{route.method}` | `{prefix}{route.template}` | {needed} |"
    assert row in DOCS.read_text("utf-8"), f"docs/rest.md has no row that begins with: {row}"


def test_no_documented_route_is_gone():
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    known = {(route.method, prefix + route.template) for prefix, route in declared()}
    assert set(rows) == known
    assert len(rows) == len(known)
