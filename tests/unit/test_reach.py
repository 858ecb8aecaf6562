"""Which values hold a statement within one tenant: what counts as a condition, and above all what does not."""

from __future__ import annotations

import pytest
from sqlalchemy import and_, delete, exists, func, insert, literal_column, not_, or_, select, text, union_all, update
from sqlalchemy.dialects import sqlite

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
        # Nobody can look into text.
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
    assert found(new.on_conflict_do_update(index_elements=["tenant_id"], set_={"allow": []})) == []
    new = sqlite.insert(t.secret).values(name="s")
    assert found(new.on_conflict_do_update(index_elements=["name"], set_={"name": "x"})) == [("secret", [])]


@pytest.mark.parametrize(
    "statement",
    [select(t.queue), select(t.worker).where(t.worker.c.id == "w"), select(tenant), text("SELECT 1"), insert(job)],
)
def test_what_is_nobodys_needs_nothing(statement):
    assert found(statement) == []
