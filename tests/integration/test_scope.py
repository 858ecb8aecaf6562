"""A request's statements stay in its tenant, whatever a service asks: on both databases, in whichever thread they run."""

from __future__ import annotations

import threading
from itertools import starmap

import pytest
from flask import Flask, Response
from sqlalchemy import bindparam, delete, func, insert, literal, select, text, union_all, update

from cloche.clock import now_ms, uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.bulk import BulkInsert
from cloche.db.dialect import insert_or
from cloche.db.scope import OutOfScope
from cloche.errors import RateLimited
from cloche.services import members
from cloche.web import scoping, throttle
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


def test_what_hides_in_a_statement_is_found(db, tenants):
    """These gave, or changed, another tenant's rows."""
    mine, _, rows = tenants
    r, other = t.remote, t.remote.alias("other")
    own = r.c.tenant_id == mine
    count = select(func.count()).select_from(other).scalar_subquery()
    own_ids = select(select(r.c.id).where(own).subquery().c.id)
    here = union_all(own_ids, select(literal(rows[1]["id"]).label("id")))
    anybody = union_all(select(r.c.tenant_id).where(own), select(t.tenant.c.id))
    jobs = select(func.count(t.job.c.id)).where(t.job.c.tenant_id == mine, t.job.c.id == r.c.id)
    shared = select(func.count()).select_from(t.tenant, r).where(t.tenant.c.id == r.c.tenant_id).scalar_subquery()
    between = select(shared).select_from(select(literal(1).label("x")).subquery()).scalar_subquery()
    scope.act_in(mine)
    for statement in (
        select(r.c.name, func.coalesce(count, 0)).where(own),
        select(r.c.name).where(own, count.not_in([0])),
        select(r.c.name).where(own, text("1 = 0 OR 1 = 1")),
        select(r.alias("a").alias("b").c.name),
        select(r.c.name).where(jobs.exists()),
        select(r.c.name, between).where(own),
        select(other.c.name).where(other.c.tenant_id.in_(anybody)),
        update(r).where(own).values(version=2).returning(count),
        update(r).where(r.c.id.in_(here)).values(version=2),
        delete(r).where(own, text("1 = 0 OR 1 = 1")),
    ):
        with pytest.raises(OutOfScope):
            db.write(lambda c, statement=statement: c.execute(statement))
    assert db.read(lambda c: c.execute(select(r.c.name, r.c.version).where(own)).all()) == [("ours", 1)]


NAMED = ("id", "tenant_id", "name", "type", "options_encrypted", "version", "created_by", "created_at", "updated_at")


def test_what_is_written_is_the_tenants_too(db, tenants):
    """However the values come: with the statement, by the names of columns, many at once, from another statement."""
    mine, theirs, _ = tenants

    def ways(tenant_id):
        """Statements that write rows of this tenant, each with its values."""
        one, two, three = (remote(tenant_id, uuid7()[-12:]) for _ in range(3))
        whose = insert(t.remote).values(tenant_id=bindparam("whose"))
        columns = [literal(uuid7(), t.remote.c.id.type), literal(tenant_id, t.remote.c.tenant_id.type)]
        columns += [literal(uuid7()[-12:], t.remote.c.name.type), *(t.remote.c[name] for name in NAMED[3:])]
        ours = select(*columns).where(t.remote.c.tenant_id == mine, t.remote.c.name == "ours")
        own = update(t.remote).where(t.remote.c.tenant_id == mine, t.remote.c.name == "ours")
        yield insert(t.remote).values(**one), None
        yield insert(t.remote), two
        yield insert(t.remote), [remote(mine, uuid7()[-12:]), three]
        yield insert(t.remote).values([remote(mine, uuid7()[-12:]), remote(tenant_id, uuid7()[-12:])]), None
        values = {name: value for name, value in remote(mine, uuid7()[-12:]).items() if name != "tenant_id"}
        yield whose, values | {"whose": tenant_id}
        yield insert(t.remote).returning(t.remote.c.id), [remote(tenant_id, uuid7()[-12:]) for _ in range(2)]
        yield insert(t.remote).from_select(NAMED, ours), None
        yield own.values(tenant_id=tenant_id), None
        yield own, {"tenant_id": tenant_id}

    scope.act_in(mine)
    count = select(func.count()).select_from(t.remote)
    for (right, values), (wrong, others) in zip(ways(mine), ways(theirs), strict=True):
        for _ in range(2):  # looked at, and remembered
            with pytest.raises(OutOfScope, match="remote"):
                db.write(lambda c, wrong=wrong, others=others: c.execute(wrong, others))
        db.write(lambda c, right=right, values=values: c.execute(right, values))
    scope.act_in(None)
    assert db.read(lambda c: c.scalar(count.where(t.remote.c.tenant_id == theirs))) == 1


def test_a_row_in_the_way_is_the_tenants(db, tenants):
    mine, theirs, rows = tenants
    policy = {"allow": ["*"], "version": 9, "updated_by": uuid7(), "updated_at": now_ms()}
    db.write(lambda c: c.execute(insert(t.egress_policy), policy | {"tenant_id": theirs, "allow": []}))

    def put(connection, tenant_id, table=t.egress_policy, target="tenant_id", changes=None, **row):
        new = insert_or(connection, table).values(tenant_id=tenant_id, **row)
        connection.execute(new.on_conflict_do_update(index_elements=[target], set_=changes or {"version": 10}))

    scope.act_in(mine)
    for _ in range(2):
        db.write(lambda c: put(c, mine, **policy))
    own = {name: value for name, value in remote(mine, "new").items() if name != "tenant_id"}
    for refused in (
        lambda c: put(c, theirs, **policy),
        lambda c: put(c, mine, changes={"tenant_id": theirs}, **policy),
        lambda c: put(c, mine, t.remote, "id", **own | {"id": rows[1]["id"]}),
        lambda c: c.execute(insert(t.remote).prefix_with("OR REPLACE"), remote(mine, "new") | {"id": rows[1]["id"]}),
    ):
        with pytest.raises(OutOfScope):
            db.write(refused)
    query = select(t.egress_policy.c.allow, t.egress_policy.c.version)
    assert db.read(lambda c: c.execute(query.where(t.egress_policy.c.tenant_id == mine)).all()) == [(["*"], 10)]
    scope.act_in(None)
    assert db.read(lambda c: c.execute(query.where(t.egress_policy.c.tenant_id == theirs)).all()) == [([], 9)]


def test_many_rows_at_once_are_the_tenants(db, tenants):
    mine, theirs, _ = tenants
    bulk = BulkInsert(t.quota_delta, ["tenant_id", "user_id", "jobs", "bytes"])

    def add(*whose):
        rows = bulk.spell([{"tenant_id": one, "user_id": "u", "jobs": 1, "bytes": 0} for one in whose])
        db.write(lambda c: bulk.execute(c, rows))

    scope.act_in(mine)
    add(mine)
    add(mine, mine)
    for whose in ((theirs,), (mine, theirs)):
        with pytest.raises(OutOfScope, match="quota_delta"):
            add(*whose)
    total = select(func.sum(t.quota_delta.c.jobs))
    assert db.read(lambda c: c.scalar(total.where(t.quota_delta.c.tenant_id == mine))) == 3
    scope.act_in(None)
    add(theirs)
    assert db.read(lambda c: c.scalar(total)) == 4


@pytest.mark.parametrize(
    "words",
    [
        "INSERT INTO quota_refusal (kind, count) VALUES ('x', (select count(*) FROM remote))",
        "INSERT INTO quota_refusal (kind, count)\nSELECT\nname, 1 FROM remote",
        "INSERT INTO quota_refusal (kind, count) VALUES ('x', 1) on conflict (kind) DO UPDATE SET count = 7",
        "INSERT INTO quota_delta (tenant_id, user_id, jobs, bytes) VALUES ('theirs', 'u', 1, 1)",
    ],
)
def test_text_for_the_driver_inserts_nothing(db, tenants, words):
    scope.act_in(tenants[0])
    with pytest.raises(OutOfScope):
        db.write(lambda c: c.exec_driver_sql(words))


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


def test_who_says_where_acts_there_alone(db, tenants):
    """As administrators of the platform do; without a scope, as on the command line, nothing is narrowed."""
    mine, theirs, rows = tenants
    scope.act_in(mine)
    scope.vouch([rows[0]["id"]])
    with scope.within(theirs, "a test"):
        assert names(db, SEEN.where(t.remote.c.tenant_id == theirs)) == ["hidden"]
        db.write(lambda c: c.execute(insert(t.remote), remote(theirs, "more")))
        for query in (SEEN, SEEN.where(t.remote.c.tenant_id == mine), SEEN.where(t.remote.c.id == rows[0]["id"])):
            with pytest.raises(OutOfScope):
                names(db, query)
    with scope.within(mine, "a test"):
        assert names(db, SEEN.where(t.remote.c.id == rows[0]["id"])) == ["ours"]  # what was vouched for still is
    with pytest.raises(OutOfScope):
        names(db, SEEN.where(t.remote.c.tenant_id == theirs))
    scope.act_in(None)
    with scope.within(mine, "a test"):
        assert len(names(db)) == 3


def test_tokens_of_one_tenant_end_in_it_alone(db, tenants):
    """Also those that they made, wherever a row says that was."""
    mine, theirs, _ = tenants
    actor = stores.add_actor(db, mine, "tom")
    ids = [uuid7(), uuid7(), uuid7()]

    def make(connection):
        for token_id, tenant_id, parent in zip(ids, (mine, mine, theirs), (None, ids[0], ids[0]), strict=True):
            row = {"id": token_id, "tenant_id": tenant_id, "user_id": actor.user_id, "name": "t", "parent_id": parent}
            connection.execute(insert(t.token), row | {"secret_sha256": token_id, "scopes": [], "created_at": 1})

    db.write(make)
    scope.act_in(mine)
    assert db.write(lambda c: members.end_tokens(c, actor.user_id, 5, mine)) == 2
    scope.act_in(None)
    query = select(t.token.c.id).where(t.token.c.revoked_at.is_(None))
    assert db.read(lambda c: c.scalars(query).all()) == [ids[2]]


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
    made = scope.Kept(parts())
    scope.act_in(None)
    assert next(made) == ["ours"]
    assert len(names(db)) == 2  # in between the thread is its own
    with pytest.raises(OutOfScope):
        next(made)


class Parts:
    """As of a live page: an object that is iterated, and closed by itself."""

    def __init__(self, make):
        self.make, self.closed = make, 0

    def __iter__(self):
        try:
            yield self.make()
            yield self.make()
        finally:
            self.closed += 1

    def close(self):
        self.closed += 10


def test_what_is_closed_is_what_was_made(db, tenants):
    whole, begun, unread = Parts(lambda: "x"), Parts(lambda: "x"), Parts(lambda: "x")
    assert list(scope.Kept(whole)) == ["x", "x"]
    for parts in (made := scope.Kept(begun), scope.Kept(unread)):
        if parts is made:
            assert next(parts) == "x"
        parts.close()
    assert (whole.closed, begun.closed, unread.closed) == (1, 11, 10)


def test_before_anybody_is_known_nobodys_rows_are_reached(db, tenants):
    """Nor after: what is called when the answer is closed is still the request's."""
    mine, _, rows = tenants
    app, late = Flask(__name__), []
    scoping.register(app)

    def refused():
        scope.vouch([rows[0]["id"]])
        for query in (SEEN, SEEN.where(t.remote.c.tenant_id == mine)):
            with pytest.raises(OutOfScope):
                names(db, query)
        with pytest.raises(OutOfScope):
            db.write(lambda c: c.execute(insert(t.remote), remote(mine, "planted")))

    @app.get("/<tenant_id>")
    def view(tenant_id):
        refused()
        response = Response("x")
        if tenant_id == "nobody":
            response.call_on_close(lambda: late.append(refused()))
        else:
            scope.act_in(tenant_id)
            response.call_on_close(lambda: late.append(names(db, SEEN.where(t.remote.c.tenant_id == tenant_id))))
        return response

    for asked, found in (("nobody", None), (mine, ["ours"]), ("nobody", None)):
        assert app.test_client().get(f"/{asked}", buffered=True).status_code == 200
        assert late.pop() == found
        assert len(names(db)) == 2  # the thread is what it was


def test_a_public_page_of_everybodys_rows_fails_closed(tmp_path, database_url):
    with running_site(tmp_path, database=database_url) as site:
        there = stores.add_tenant(site.services.db, "theirs")
        site.services.db.write(lambda c: c.execute(insert(t.remote), remote(there, "hidden")))
        site.app.config["PROPAGATE_EXCEPTIONS"] = False
        site.app.before_request_funcs[None].append(lambda: "".join(names(site.services.db)))
        answer = site.client().get("/healthz")
        assert answer.status_code == 500
        assert "hidden" not in answer.text


@pytest.mark.parametrize("shape", [Parts, lambda make: starmap(make, [(), ()]), lambda make: iter(make, None)])
def test_an_answer_of_parts_is_made_in_the_requests_tenant(db, tenants, shape):
    app = Flask(__name__)
    scoping.register(app)

    @app.get("/")
    def view():
        scope.act_in(tenants[0])
        return Response(shape(lambda: "".join(names(db))))

    with pytest.raises(OutOfScope):
        app.test_client().get("/", buffered=True)
    assert len(names(db)) == 2


def test_a_refusal_by_a_limit_is_in_the_tenant(tmp_path, database_url, monkeypatch):
    """Who asks is known by then: what is recorded of it is their tenant's."""
    seen = []

    def charge(_limits, *who):
        if who:
            with pytest.raises(OutOfScope):
                names(site.services.db)
            seen.append(names(site.services.db, SEEN.where(t.remote.c.tenant_id == home)))
        raise RateLimited("enough", retry_after=1)

    with running_site(tmp_path, database=database_url) as site:
        site.add("vera", "viewer")
        site.headers("vera")
        home = site.services.access.default_tenant()
        monkeypatch.setattr(throttle, "charge", charge)
        problem(site.request("GET", "/remotes", "vera"), 429)
        assert seen == [[]]


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
