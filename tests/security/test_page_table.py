"""Every page and form × every caller × own, another tenant's and a missing object, against the committed table."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.web.routing import PUBLIC
from tests.security.objects import MARK, World
from tests.security.page_table import CALLERS, SIGN_IN, TABLE, PageWalk, declared, load, shown, whose
from tests.security.route_table import MISSING, NONE, OTHER
from tests.support.web import running_site

HOW = "run `python -m tests.security.page_table --draw`, then read each new line of tests/security/page_table.csv"
PAGES = declared()
# Another's is answered as one that is not there, but not with 404; and why.
NO_404 = {
    "POST /account/sessions/{session_id}/end": "one's own list of sessions says that it had ended already",
    "POST /account/tokens/{token_id}/revoke": "one's own list of tokens says that it is not there",
}


def reaches(name, key):
    """Administrators of the platform have the pages of every account, whichever tenant it is in."""
    return name == "platform" and PAGES[key].path.startswith("/ui/users/<user_id>")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as site:
        yield World(site)


@pytest.fixture(scope="module")
def walk(world):
    return PageWalk(world)


@pytest.fixture(scope="module")
def table():
    return load()


def test_every_address_of_the_dashboard_is_walked(world):
    rules = [rule for rule in world.site.app.url_map.iter_rules() if str(rule).startswith("/ui")]
    served = {(method, rule.endpoint) for rule in rules for method in rule.methods - {"HEAD", "OPTIONS"}}
    walked = {(key.partition(" ")[0], f"dashboard.{page.name}") for key, page in PAGES.items() if page.path != "/"}
    assert len(served) > 75
    assert served == walked


def test_every_page_has_its_lines_and_no_line_is_left_of_one_that_is_gone(table):
    wanted = {(key, owner) for key, page in PAGES.items() for owner in whose(page)}
    assert not wanted - table.keys(), f"{sorted(wanted - table.keys())} have no line: {HOW}"
    assert not table.keys() - wanted, f"{sorted(table.keys() - wanted)} are no page any more: {HOW}"
    assert all(set(row) == {"page", "object", *CALLERS} for row in table.values()), f"a caller is new: {HOW}"
    assert TABLE.read_text("utf-8").count("\n") == len({id(row) for row in table.values()}) + 1, "a line twice"


def test_no_page_that_lists_shows_another_tenants_things(walk):
    """Everything there is in the other tenant, and then every address that names nothing. Before the walk: there the platform's administrators
    take people of the other tenant into their own."""
    for key, page in PAGES.items():
        if OTHER in whose(page):
            walk.ask(key, page, "viewer", OTHER)
    asked = 0
    for key, page in PAGES.items():
        if whose(page) != (NONE,) or not key.startswith("GET") or page.name == "events":
            continue
        for name in CALLERS:
            if (page.name, name) != ("tenants", "platform"):
                assert MARK not in walk.ask(key, page, name, NONE).text, f"{key} shows {name} the other tenant"
                asked += 1
    assert asked > 150


@pytest.mark.parametrize("key", PAGES)
def test_answers_are_the_tables(world, walk, table, key):
    page = PAGES[key]
    found = {owner: walk.row(key, page, owner) for owner in whose(page)}
    for owner, cells in found.items():
        told = {name: table[key, owner][name] for name in CALLERS}
        answered = {name: shown(cell) for name, cell in cells.items()}
        assert all(answered[name] in told[name].split("|") for name in CALLERS), f"{key}, {owner}: {answered} ≠ {told}"
        for name, cell in cells.items():
            lists = name == "platform" and page.name == "tenants"  # what lists the tenants lists them
            assert MARK not in cell.text or lists or reaches(name, key), (
                f"{key} shows {name} something of another tenant"
            )
    if OTHER in found:
        for name in CALLERS:
            other, missing = found[OTHER][name], found[MISSING][name]
            if reaches(name, key):
                continue
            assert other == missing, f"{key} tells {name} another tenant's object from one that is not there"


def test_the_table_itself_gives_nothing_away(table):
    """What the table may not say, whatever the answers are."""
    for (key, owner), row in table.items():
        for name in CALLERS:
            text = row[name].partition("|")[0]
            assert text == SIGN_IN or int(text) < 500, f"{key}, {owner}, {name}"
            if owner in (OTHER, MISSING) and key not in NO_404 and not (owner == OTHER and reaches(name, key)):
                assert text in (SIGN_IN, "401", "403", "404"), f"{key} answers {name} {text} for {owner}"
        if PAGES[key].permission is not PUBLIC:
            wanted = SIGN_IN if key.startswith("GET") else "401"
            assert row["anonymous"] == wanted, f"{key} answers nobody with {row['anonymous']}"
        if owner == NONE and key.startswith("GET") and PAGES[key].name != "missing":
            assert row["platform"] in ("200", "303"), f"{key} is not there for who may do everything"


def test_what_is_another_s_lives_on_where_the_answer_is_no_404(world, walk):
    for key in NO_404:
        walk.ask(key, PAGES[key], "admin", OTHER)
    theirs = world.stranger.actor.user_id
    session = select(t.session.c.handle).where(t.session.c.user_id == theirs)
    token = select(t.token.c.id).where(t.token.c.user_id == theirs, t.token.c.revoked_at.is_not(None))
    assert world.db.read(lambda c: c.scalar(session))
    assert world.db.read(lambda c: c.scalar(token)) is None
