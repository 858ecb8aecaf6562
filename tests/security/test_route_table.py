"""Every route × every caller × own, a colleague's, another tenant's and a missing object, against the committed table."""

from __future__ import annotations

import pytest

from cloche.domain.permissions import BUILTIN_ROLES, Permission
from cloche.web.routing import Access
from tests.security.objects import CALLERS, MARK
from tests.security.route_table import MISSING, OTHER, TABLE, Walk, World, declared, load, whose
from tests.support.web import running_site

HOW = "run `python -m tests.security.route_table --draw`, then read each new line of tests/security/route_table.csv"
ROUTES = declared()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as site:
        yield World(site)


@pytest.fixture(scope="module")
def walk(world):
    return Walk(world)


@pytest.fixture(scope="module")
def table():
    return load()


def test_every_route_has_its_lines_and_no_line_is_left_of_one_that_is_gone(table):
    wanted = {(key, owner) for key, (_, route) in ROUTES.items() for owner in whose(route)}
    assert not wanted - table.keys(), f"{sorted(wanted - table.keys())} have no line: {HOW}"
    assert not table.keys() - wanted, f"{sorted(table.keys() - wanted)} are no route any more: {HOW}"
    assert all(set(row) == {"route", "object", *CALLERS} for row in table.values()), f"a caller is new: {HOW}"
    assert TABLE.read_text("utf-8").count("\n") == len({id(row) for row in table.values()}) + 1, "a line twice"


@pytest.mark.parametrize("key", ROUTES)
def test_answers_are_the_tables(walk, table, key):
    prefix, route = ROUTES[key]
    found = {owner: walk.row(prefix, route, owner) for owner in whose(route)}
    for owner, cells in found.items():
        told = {name: table[key, owner][name] for name in CALLERS}
        answered = {name: str(cell.status) for name, cell in cells.items()}
        assert all(answered[name] in told[name].split("|") for name in CALLERS), f"{key}, {owner}: {answered} ≠ {told}"
        for name, cell in cells.items():
            assert MARK not in cell.text or owner != OTHER, f"{key} shows {name} something of another tenant"
    if OTHER in found:
        for name in CALLERS:
            other, missing = found[OTHER][name], found[MISSING][name]
            assert other == missing, f"{key} tells {name} another tenant's object from one that is not there"


def test_the_table_itself_gives_nothing_away(table):
    """What the table may not say, whatever the answers are."""
    for (key, owner), row in table.items():
        _, route = ROUTES[key]
        for name in CALLERS:
            status = int(row[name].partition("|")[0])
            assert status < 500, f"{key}, {owner}, {name}"
            if owner in (OTHER, MISSING):
                assert status in (401, 403, 404), f"{key} answers {name} {status} for {owner}"
            if name == "anonymous" and route.permission is not Access.PUBLIC:
                assert status == 401, f"{key} answers nobody with {status}"
            if isinstance(route.permission, Permission) and name in ("narrow",) and route.permission != "job:read":
                assert status == 403, f"{key}: a token without the scope gets {status}"


def test_nothing_that_lists_shows_another_tenants_things(world, walk):
    """Everything there is in the other tenant, and then every address that names nothing."""
    for key, (_, route) in ROUTES.items():
        if OTHER in whose(route):
            walk.ask(*ROUTES[key], world.callers["viewer"], OTHER)
    theirs = {made for (_, user_id), made in walk.made.items() if user_id == world.stranger.actor.user_id}
    assert len(theirs) >= 5
    asked = 0
    for key, (prefix, route) in ROUTES.items():
        if route.method != "GET" or route.parameters:
            continue
        for name in CALLERS:
            if (key, name) == ("GET /tenants", "platform"):
                continue  # what lists the tenants lists them
            text = walk.ask(prefix, route, world.callers[name], "-", exact=True).text
            asked += 1
            assert MARK not in text, f"{key} shows {name} the other tenant"
            assert not [made for made in theirs if made in text], f"{key} shows {name} something of the other tenant"
    assert asked > 100


@pytest.fixture(scope="module")
def signed_in(world):
    """Gives who asks for a route; after one that ends sessions they sign in anew."""
    found = {}

    def one(key):
        if "caller" not in found or found["used"] in ("DELETE /session", "PUT /me/password"):
            before = found.get("caller") or world.custom("like-operator", BUILTIN_ROLES["operator"])
            found["caller"] = world.sign_in(before)
        found["used"] = key
        return found["caller"]

    return one


class TestWhoComesWithACookieAndARoleOfTheTenantsOwn:
    """They are answered as who has the same permissions by a built-in role, and comes with a token."""

    # What is a session's alone, or a token's.
    OTHERWISE = {
        "PUT /me/password": {"401"},  # a token may not even try
    }

    @pytest.mark.parametrize("key", ROUTES)
    def test_answers_are_the_built_in_roles(self, walk, table, signed_in, key):
        prefix, route = ROUTES[key]
        for owner in whose(route):
            told = set(table[key, owner]["operator"].split("|"))
            cell = walk.ask(prefix, route, signed_in(key), owner)
            assert str(cell.status) in self.OTHERWISE.get(key, told), f"{key}, {owner}: {cell.status} ≠ {told}"
            assert MARK not in cell.text or owner != OTHER
