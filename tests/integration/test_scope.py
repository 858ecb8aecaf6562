"""A request's statements stay in its tenant, whatever a service asks: on both databases, in whichever thread they run."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import delete, insert, select, text, update

from cloche.clock import now_ms, uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.scope import OutOfScope
from tests.support import stores
from tests.support.web import problem, running_site

SEEN = select(t.remote.c.name)


def remote(tenant_id, name):
    row = {"id": uuid7(), "tenant_id": tenant_id, "name": name, "type": "s3", "options_encrypted": b"", "version": 1}
    return row | {"created_by": uuid7(), "created_at": now_ms(), "updated_at": now_ms()}


@pytest.fixture
def tenants(db):
    """Two of them, each with a remote, by key."""
    mine, theirs = stores.add_tenant(db, "mine"), stores.add_tenant(db, "theirs")
    rows = [remote(mine, "ours"), remote(theirs, "hidden")]
    db.write(lambda c: c.execute(insert(t.remote), rows))
    yield mine, theirs, rows
    scope.act_in(None)


def names(db, query=SEEN):
    return db.read(lambda c: c.execute(query).scalars().all())


def test_without_a_scope_everything_is_seen(db, tenants):
    assert sorted(names(db)) == ["hidden", "ours"]


def test_in_a_scope_its_own_tenant_alone(db, tenants):
    mine, theirs, _ = tenants
    scope.act_in(mine)
    for _ in range(2):  # looked at, and remembered
        assert names(db, SEEN.where(t.remote.c.tenant_id == mine)) == ["ours"]
        with pytest.raises(OutOfScope, match="remote"):
            names(db, SEEN.where(t.remote.c.tenant_id == theirs))
        with pytest.raises(OutOfScope, match="remote"):
            names(db)
    scope.act_in(theirs)
    assert names(db, SEEN.where(t.remote.c.tenant_id == theirs)) == ["hidden"]


@pytest.mark.parametrize("change", [update(t.remote).values(name="taken"), delete(t.remote)])
def test_nothing_is_changed_by_what_is_refused(db, tenants, change):
    mine, theirs, rows = tenants
    scope.act_in(mine)
    for which in (t.remote.c.id == rows[1]["id"], t.remote.c.id == rows[0]["id"], t.remote.c.tenant_id == theirs):
        with pytest.raises(OutOfScope):
            db.write(lambda c, which=which: c.execute(change.where(which)))
        with pytest.raises(OutOfScope):
            db.submit(lambda c, which=which: c.execute(change.where(which))).result(20)
    scope.act_in(None)
    assert sorted(names(db)) == ["hidden", "ours"]


def test_a_key_counts_once_it_is_vouched_for(db, tenants):
    mine, _, rows = tenants
    by_key = SEEN.where(t.remote.c.id == rows[0]["id"])
    either = SEEN.where(t.remote.c.id.in_([row["id"] for row in rows]))
    scope.act_in(mine)
    with pytest.raises(OutOfScope):
        names(db, by_key)
    scope.vouch([rows[0]["id"]])
    assert names(db, by_key) == ["ours"]
    assert names(db, SEEN.where(t.remote.c.id.in_([rows[0]["id"]]))) == ["ours"]
    assert names(db, SEEN.where(t.remote.c.id.in_([]))) == []
    with pytest.raises(OutOfScope):  # one of two is not enough
        names(db, either)
    scope.act_in(None)
    scope.act_in(mine)  # the next request knows nothing of it
    with pytest.raises(OutOfScope):
        names(db, by_key)


def test_text_is_refused_unless_it_reads_nothing(db, tenants):
    scope.act_in(tenants[0])
    assert db.read(lambda c: c.execute(text("SELECT 1")).scalar()) == 1
    with pytest.raises(OutOfScope):
        db.read(lambda c: c.execute(text("SELECT name FROM remote")).all())
    with pytest.raises(OutOfScope):
        db.read(lambda c: c.exec_driver_sql("SELECT name FROM remote").all())


def test_who_says_why_sees_all(db, tenants):
    scope.act_in(tenants[0])
    with scope.across_tenants("a test"):
        assert len(names(db)) == 2
        assert len(db.submit(lambda c: c.execute(SEEN).all()).result(20)) == 2
    assert len(names(db, SEEN.execution_options(across_tenants="a test"))) == 2
    with pytest.raises(OutOfScope):
        names(db)


def test_a_unit_runs_in_the_scope_of_who_gave_it(db, tenants):
    """Whichever thread writes: on SQLite one writes for another."""
    mine, theirs, _ = tenants
    results: dict[str, list[str]] = {}
    start = threading.Barrier(2)

    def act(tenant_id):
        scope.act_in(tenant_id)
        start.wait(20)
        query = SEEN.where(t.remote.c.tenant_id == tenant_id)
        results[tenant_id] = [name for _ in range(30) for name in db.write(lambda c: c.scalars(query).all())]

    threads = [threading.Thread(target=act, args=(one,)) for one in (mine, theirs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {mine: ["ours"] * 30, theirs: ["hidden"] * 30}


def test_what_is_made_bit_by_bit_keeps_its_scope(db, tenants):
    def parts():
        yield names(db, SEEN.where(t.remote.c.tenant_id == tenants[0]))
        yield names(db)

    scope.act_in(tenants[0])
    made = scope.kept(parts())
    scope.act_in(None)
    assert next(made) == ["ours"]
    assert len(names(db)) == 2  # in between the thread is its own
    with pytest.raises(OutOfScope):
        next(made)


def test_a_request_that_asks_for_everybodys_rows_fails_closed(tmp_path, database_url, monkeypatch):
    with running_site(tmp_path, database=database_url) as site:
        site.add("vera", "viewer")
        there = stores.add_tenant(site.services.db, "theirs")
        site.services.db.write(lambda c: c.execute(insert(t.remote), remote(there, "hidden")))

        def careless(_actor):
            return [{"name": name} for name in names(site.services.db)]

        site.app.config["PROPAGATE_EXCEPTIONS"] = False
        monkeypatch.setattr(site.services.remotes, "list", careless)
        answer = site.request("GET", "/remotes")
        problem(answer, 500)
        assert "hidden" not in answer.text
        monkeypatch.undo()
        assert site.request("GET", "/remotes").status_code == 200  # the thread is none the worse
        assert len(names(site.services.db)) == 1
