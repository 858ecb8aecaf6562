"""Which values hold a statement within one tenant: what counts as a condition, and above all what does not."""

from __future__ import annotations

import pytest
from sqlalchemy import (
    BindParameter,
    Integer,
    MetaData,
    Table,
    and_,
    bindparam,
    column,
    delete,
    exists,
    func,
    insert,
    lateral,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
    table,
    tablesample,
    text,
    true,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite

from cloche.db import tables as t
from cloche.db.reach import Owned, reach

OWNED = Owned(t.metadata)
job, attempt, batch, tenant, held = t.job, t.attempt, t.batch, t.tenant, t.user_role
MINE = job.c.tenant_id == "mine"
OF_JOB = attempt.c.job_id == job.c.id


def found(statement):
    """Each place of a tenant-owned table, and by what it may be held."""
    return [(need.table, sorted(seed.what for seed in need.seeds)) for need in reach(statement, OWNED)]


def test_what_belongs_to_tenants_is_what_has_their_id_or_hangs_on_a_job():
    children = {"attempt", "job_log", "job_output", "trace_event", "job_dependency", "job_release", "outbox"}
    direct = {table.name for table in t.metadata.sorted_tables if "tenant_id" in table.c}
    assert set(OWNED.columns) == direct | children | {"tenant"}
    assert {"job", "artifact", "secret", "remote", "account_role", "audit_event"} <= direct


recent = select(job.c.id).where(MINE).order_by(job.c.id.desc()).limit(5).subquery()
chosen = select(job.c.id).where(MINE).cte("chosen")
other = job.alias("other")
mine = select(job.c.id).where(MINE).subquery()
count = select(func.count()).select_from(other).scalar_subquery()
name = select(t.secret.c.name).limit(1).scalar_subquery()
their_tenants = select(tenant.c.id)
both = union_all(select(job.c.id).where(MINE), select(job.c.id).where(MINE, job.c.state == "failed")).subquery()


@pytest.mark.parametrize(
    "statement",
    [
        select(job).where(MINE),
        select(job).where(job.c.state == "failed", and_(MINE, job.c.queue == "default")),
        select(func.count()).select_from(job).where(MINE),
        select(other).where(other.c.tenant_id == "mine"),
        update(job).where(MINE).values(state="x"),
        delete(job).where(job.c.id == "one", MINE),
        select(attempt).join(job, OF_JOB).where(MINE),
        select(attempt, job).where(OF_JOB, MINE),
        select(job, attempt).outerjoin(attempt, OF_JOB).where(MINE),
        select(attempt).where(attempt.c.job_id.in_(select(job.c.id).where(MINE))),
        select(attempt).where(exists().where(OF_JOB, MINE)),
        select(job, select(func.count()).select_from(attempt).where(OF_JOB).scalar_subquery()).where(MINE),
        select(job).where(MINE, ~select(attempt.c.number).where(OF_JOB).exists()),
        select(job).where(MINE, job.c.id.not_in(select(t.job_release.c.upstream_id))),
        select(job).where(MINE, job.c.id == select(chosen.c.id).limit(1).scalar_subquery()),
        select(attempt).join(recent, recent.c.id == attempt.c.job_id),
        update(job).where(job.c.id.in_(select(chosen.c.id))).values(state="x"),
        select(attempt).join(both, both.c.id == attempt.c.job_id),
        union_all(select(job.c.id).where(MINE), select(other.c.id).where(other.c.tenant_id == "mine")),
        select(held).join(tenant, tenant.c.id == held.c.tenant_id).where(tenant.c.id == "mine"),
        insert(t.outbox).from_select(["job_id"], select(job.c.id).where(MINE)),
        # Functions, what is returned, and what orders: each with a statement in it that is held.
        select(job.c.id, func.coalesce(select(func.count(attempt.c.number)).where(OF_JOB).scalar_subquery(), 0)).where(
            MINE
        ),
        update(job).where(MINE).values(name="x").returning(select(mine.c.id).limit(1).scalar_subquery()),
        select(job).where(MINE).order_by(select(mine.c.id).limit(1).scalar_subquery()),
        select(job.c.name).ext(postgresql.distinct_on(job.c.queue)).where(MINE),
        select(mine.alias("again")),
        select(func.json_each(job.c.payload).table_valued("value").c.value).where(MINE),
        select(job).join(values(column("n", Integer), name="v").data([(1,)]), true()).where(MINE),
        select(job.c.id).where(MINE, job.c.name.op("->>")("x") == "y"),
        # With a statement further out only where it says so; a subquery that is said to be of the nearest alone.
        select(
            job.c.id,
            select(select(func.count(attempt.c.number)).where(OF_JOB).correlate(job).scalar_subquery())
            .select_from(t.worker)
            .scalar_subquery(),
        ).where(MINE),
        # EXISTS of rows, also with an end.
        select(attempt).where(select(job.c.id).where(OF_JOB, MINE).limit(1).exists()),
        select(attempt).where(select(literal(1)).where(OF_JOB, MINE).exists()),
        # A union of what is of one kind, through a subquery too.
        select(attempt).where(attempt.c.job_id.in_(union_all(select(mine.c.id), select(job.c.id).where(MINE)))),
        select(t.secret).where(
            t.secret.c.tenant_id.in_(
                union_all(select(job.c.tenant_id).where(MINE), select(other.c.tenant_id).where(other.c.id == mine.c.id))
            )
        ),
        # What is written.
        insert(t.secret).values(tenant_id="mine", name="s"),
        insert(t.secret).values([{"tenant_id": "mine", "name": "s"}, {"tenant_id": "mine", "name": "t"}]),
        insert(t.secret).values(tenant_id=bindparam("whose"), name="s"),
        insert(t.secret).from_select(["tenant_id", "name"], select(job.c.tenant_id, job.c.name).where(MINE)),
        insert(t.secret).from_select(["tenant_id", "name"], select(literal("mine"), job.c.name).where(MINE)),
        update(job).where(MINE).values(tenant_id="mine"),
        update(job).where(MINE).values(tenant_id=job.c.tenant_id),
        update(job).where(MINE, job.c.id == mine.c.id).values(name=mine.c.id),
    ],
)
def test_held_by_the_tenants_id(statement):
    needs = found(statement)
    assert needs
    assert all("tenant_id" in by for _, by in needs), needs


@pytest.mark.parametrize(
    "statement",
    [
        select(job),
        select(job).where(job.c.state == "failed"),
        select(job).where(or_(MINE, job.c.state == "failed")),
        select(job).where(or_(MINE, job.c.tenant_id == "other")),
        select(job).where(not_(MINE)),
        select(job).where(job.c.tenant_id != "other"),
        select(job).where(job.c.tenant_id >= "mine"),
        select(job).where(func.lower(job.c.tenant_id) == "mine"),
        select(job).where(job.c.name == "mine"),
        select(job).where(job.c.tenant_id == job.c.tenant_id),
        select(job).order_by(MINE),
        select(MINE).select_from(job),
        update(job).values(tenant_id="mine"),
        delete(job),
        # One of two places is held, the other is not.
        select(job, other).where(MINE),
        select(job, other).where(MINE, other.c.state == job.c.state),
        select(job, other).where(MINE, or_(other.c.tenant_id == job.c.tenant_id, other.c.state == "failed")),
        select(job, other).where(MINE, other.c.tenant_id != job.c.tenant_id),
        update(job).where(job.c.id.in_(select(chosen.c.id)) | (job.c.state == "x")).values(state="y"),
        # What an outer join may leave out holds only itself.
        select(job, attempt).outerjoin(attempt, and_(OF_JOB, MINE)),
        select(attempt, job).select_from(attempt).outerjoin(job, and_(OF_JOB, MINE)),
        select(job, attempt).join(attempt, and_(OF_JOB, MINE), full=True),
        # A subquery holds what it is about, and nothing around it.
        select(job).where(exists().where(other.c.tenant_id == "mine")),
        select(job).where(~exists().where(OF_JOB).where(MINE)),
        select(job).where(or_(job.c.id.in_(select(chosen.c.id)), job.c.state == "failed")),
        select(job).where(job.c.id.not_in(select(chosen.c.id))),
        select(job, select(func.count()).select_from(attempt).scalar_subquery()).where(MINE),
        select(job, select(func.count()).select_from(other).scalar_subquery()).where(MINE),
        select(job).where(MINE, job.c.id.in_(select(other.c.id).limit(1))),
        select(select(job.c.id, job.c.tenant_id).subquery()).where(MINE),
        # Each part of a union by itself.
        union_all(select(job.c.id).where(MINE), select(job.c.id)),
        select(attempt).join(
            union_all(select(job.c.id).where(MINE), select(t.worker.c.id)).subquery().alias("u"), text("1 = 1")
        ),
        insert(t.outbox).from_select(["job_id"], select(job.c.id)),
        select(attempt).where(attempt.c.job_id.in_(union_all(select(mine.c.id), select(other.c.name).where(MINE)))),
        update(job).where(job.c.id.in_(union_all(select(mine.c.id), select(literal("theirs").label("id"))))),
        update(job).where(job.c.id.in_(union_all(select(literal("theirs").label("id")), select(mine.c.id)))),
        select(t.secret).where(t.secret.c.tenant_id.in_(union_all(select(job.c.tenant_id).where(MINE), their_tenants))),
        select(t.secret).where(t.secret.c.tenant_id.in_(union_all(their_tenants, select(job.c.tenant_id).where(MINE)))),
        # In whatever part of a statement.
        select(job.c.id, func.coalesce(count, 0)).where(MINE),
        select(job.c.id).where(MINE, func.coalesce(name, "") != ""),
        select(func.coalesce(name, "")),
        select(func.sum(select(func.count()).select_from(attempt).scalar_subquery()).over()).where(MINE),
        select(job.c.id).where(MINE).order_by(func.coalesce(count, 0)),
        select(job.c.id).where(MINE).limit(count),
        select(job.c.id).where(MINE).distinct().group_by(job.c.id).having(count > 1),
        select(job.c.id).ext(postgresql.distinct_on(count)).where(MINE),
        select(func.json_each(name).table_valued("value").c.value),
        update(job).where(MINE).values(name="x").returning(count),
        update(job).where(MINE).ordered_values((job.c.name, count)),
        delete(job).where(MINE).returning(name),
        insert(job).returning(count),
        update(job).where(MINE).values(name=t.secret.c.name),
        union_all(select(job.c.id).where(MINE), select(job.c.id).where(MINE)).order_by(count),
        union_all(select(job.c.id).where(MINE), select(job.c.id).where(MINE)).limit(count),
        select(job.c.id).where(MINE, count.not_in([0])),
        select(job.c.id).where(MINE, count.in_([0])),
        select(job.c.id).where(MINE, job.c.name.not_in([name])),
        # However the table is named.
        select(t.secret.alias("a").alias("b")),
        select(tablesample(t.secret, func.bernoulli(100))),
        select(lateral(t.secret)),
        select(table("secret", column("name"))),
        select(Table("sqlite_master", MetaData())),
        select(literal_column("name")).select_from(text("secret")),
        # A statement two further out is not shared without a word.
        select(
            job.c.id,
            select(select(func.count()).select_from(t.queue).where(t.queue.c.name == job.c.queue).scalar_subquery())
            .select_from(t.worker)
            .scalar_subquery(),
        ).where(MINE),
        # There is a sum of no rows too.
        select(attempt).where(select(func.count(job.c.id)).where(OF_JOB, MINE).exists()),
        select(attempt).where(select(func.coalesce(func.max(job.c.id), "")).where(OF_JOB, MINE).exists()),
        select(attempt).where(select(literal_column("count(*)")).where(OF_JOB, MINE).exists()),
        select(attempt).where(select(literal(1)).where(OF_JOB, MINE).order_by(func.count()).exists()),
        select(attempt).where(select(literal(1)).where(OF_JOB, MINE).having(func.count() >= 0).exists()),
        # Which row is taken, others decide.
        select(job).where(MINE, job.c.id.in_(select(other.c.id).order_by(other.c.name).fetch(1))),
        select(job).where(MINE, job.c.id.in_(select(other.c.id).ext(postgresql.distinct_on(other.c.queue)))),
        select(job).where(MINE, job.c.id == select(other.c.id).order_by(other.c.name).scalar_subquery()),
        # What is written.
        insert(t.secret).values(tenant_id=func.lower("mine"), name="s"),
        insert(t.secret).values(tenant_id=null(), name="s"),
        insert(t.secret).values(tenant_id=select(tenant.c.id).scalar_subquery(), name="s"),
        insert(t.secret).from_select(["tenant_id", "name"], select(tenant.c.id, tenant.c.name)),
        insert(t.secret).from_select(["tenant_id", "name"], select(job.c.name, job.c.tenant_id).where(MINE)),
        insert(t.secret).prefix_with("OR REPLACE").values(tenant_id="mine", name="s"),
        update(job).where(MINE).values(tenant_id=job.c.name),
        # Nobody can look into text.
        select(job).where(MINE, text("1 = 0 OR 1 = 1")),
        select(job).where(MINE, literal_column("0 or 1")),
        select(job).where(MINE, job.c.name.op("= 'x' OR")("y")),
        select(job).where(MINE, text("1 = 1 --")),
        select(job).where(MINE, text("1 = 1 /*")),
        select(job).where(MINE).order_by(text("1; DROP")),
        select(job.c.id).where(MINE).suffix_with("UNION SELECT 1"),
        select(job.c.id).where(MINE).prefix_with("ALL"),
        select(job.c.id).where(MINE).with_statement_hint("x"),
        text("TABLE secret"),
        text("TRUNCATE secret"),
        text("COPY secret TO STDOUT"),
        text("SELECT * FROM job"),
        text("SELECT id FROM job WHERE tenant_id = :t").columns(job.c.id),
        select(literal_column("(SELECT count(*) FROM job)")),
        select(job).where(MINE, text("id IN (SELECT job_id FROM attempt)")),
    ],
)
def test_not_held(statement):
    needs = found(statement)
    assert any("tenant_id" not in by for _, by in needs), needs


def test_a_key_alone_is_told_apart():
    assert found(select(job).where(job.c.id == "one")) == [("job", ["job.id"])]
    assert found(select(attempt).where(attempt.c.job_id.in_(["one", "two"]))) == [("attempt", ["job.id"])]
    assert found(select(job).where(job.c.batch_id == "b")) == [("job", ["batch.id"])]
    assert found(select(t.secret).where(t.secret.c.name == "s")) == [("secret", [])]
    assert found(select(t.job_dependency).where(t.job_dependency.c.upstream_id == "one")) == [
        ("job_dependency", ["job.id"])
    ]


def test_the_same_table_inside_and_outside_are_two_places():
    inside = select(job.c.id).where(MINE).correlate(None)
    assert found(select(job).where(or_(job.c.id.in_(inside), job.c.state == "x"))) == [
        ("job", []),
        ("job", ["tenant_id"]),
    ]


def test_a_row_that_stands_in_the_way_may_be_anybodys():
    new = sqlite.insert(t.egress_policy).values(tenant_id="mine", allow=[])
    assert found(new.on_conflict_do_update(index_elements=["tenant_id"], set_={"allow": []})) == [
        ("egress_policy", ["tenant_id"])
    ]
    new = sqlite.insert(t.secret).values(name="s")
    assert found(new.on_conflict_do_update(index_elements=["name"], set_={"name": "x"})) == [("secret", [])]
    new = sqlite.insert(t.secret).values(tenant_id="mine", name="s")
    for target, changed in (
        (["id"], {"name": "x"}),
        (["name"], {"name": "x"}),
        (["tenant_id", "name"], {"tenant_id": "theirs"}),
        (["tenant_id", "name"], {"tenant_id": new.excluded.name}),
        (["tenant_id", "name"], {"name": name}),
    ):
        assert ("secret", []) in found(new.on_conflict_do_update(index_elements=target, set_=changed))
    looked = new.on_conflict_do_update(index_elements=["tenant_id", "name"], set_={"name": "x"}, where=count > 0)
    assert ("job", []) in found(looked)
    named = postgresql.insert(t.secret).values(tenant_id="mine", name="s")
    assert ("secret", []) in found(named.on_conflict_do_update(constraint="any", set_={"name": "x"}))
    child = sqlite.insert(t.outbox).values(job_id="one")
    assert found(child.on_conflict_do_update(index_elements=["job_id"], set_={"created_at": 1})) == [("outbox", [])]
    assert found(child.on_conflict_do_nothing()) == []


def test_a_tenant_that_is_written_is_named_as_the_driver_is_given_it():
    """Of several rows SQLAlchemy names the values itself: see ``clauses.rows_of``."""
    rows = insert(t.quota).values([{"tenant_id": "mine", "user_id": "u"}, {"tenant_id": "theirs", "user_id": "v"}])
    binds = [seed.bind for need in reach(rows, OWNED) for seed in need.seeds]
    assert all(isinstance(bind, BindParameter) for bind in binds)
    params = rows.compile(dialect=sqlite.dialect()).params
    assert [params[bind.key] for bind in binds] == ["mine", "theirs"]


@pytest.mark.parametrize(
    "statement",
    [select(t.queue), select(t.worker).where(t.worker.c.id == "w"), select(tenant), text("SELECT 1"), insert(job)],
)
def test_what_is_nobodys_needs_nothing(statement):
    assert found(statement) == []
