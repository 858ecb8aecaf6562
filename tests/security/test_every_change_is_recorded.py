"""Whatever a request changes is in the record, under the request's own id: every route that is no GET, walked by a platform administrator."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.domain.events import Action
from tests.security.objects import World, failed_job
from tests.security.route_table import BODIES, NONE, OWN, Walk, declared, whose
from tests.support.web import running_site

ROUTES = {key: found for key, found in declared().items() if found[1].method != "GET"}
# What changes nothing, and why; a new name here needs a reason.
NOTHING = {
    "POST /remotes/{name}/test": "it looks whether the remote answers",
    "DELETE /session": "it ends the session of whoever asks, and a token has none",
    "DELETE /sessions": "it ends the others, and there are none",
}
# What there has to be besides the object that the path names.
BEFORE = {"POST /dead-letters/replay": failed_job, "DELETE /dead-letters": failed_job}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as site:
        yield World(site)


@pytest.fixture(scope="module")
def walk(world):
    return Walk(world)


@pytest.mark.parametrize("key", ROUTES)
def test_what_was_changed_is_in_the_record(world, walk, key, monkeypatch):
    prefix, route = ROUTES[key]
    sent, send = [], world.send

    def noting(caller, *arguments, **options):
        answer = send(caller, *arguments, **options)
        sent.append(answer.headers["X-Request-ID"])
        return answer

    monkeypatch.setattr(world, "send", noting)
    if key in BEFORE:
        BEFORE[key](world, world.callers["platform"].actor)
        monkeypatch.setitem(BODIES, key, lambda _: {"filter": {}})  # in earnest
    owner = OWN if OWN in whose(route) else NONE
    answer = walk.ask(prefix, route, world.callers["platform"], owner)
    event = t.audit_event.c
    found = select(event.action).where(event.request_id == sent[-1])
    actions = set(world.db.read(lambda c: c.scalars(found).all())) - {Action.AUDIT_READ.value}
    assert answer.status < 500, answer.text
    if answer.status < 300 and key not in NOTHING:
        assert actions, f"{key} answers {answer.status} and leaves no event"
    if answer.status in (401, 403):
        return  # refused: the denials are gathered and written later
    assert answer.status < 300 or not actions - {Action.SESSION_CREATE.value, Action.ACCESS_DENY.value}, actions
