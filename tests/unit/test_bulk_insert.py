"""Rows written in bulk are the rows that SQLAlchemy would have written."""

from __future__ import annotations

from sqlalchemy import Text, cast, insert, select

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.bulk import BulkInsert
from cloche.db.guarded import first_row
from cloche.domain.states import Reason, State
from cloche.registry.payload import PayloadCheck
from cloche.registry.unfolding import MOST
from cloche.services.bulk_submit import introduced, prepare_one
from tests.support import jobs


def first_rows(actor, count: int):
    shared = {"max_retries": 1}
    changes = [
        {"labels": {"ü": "\u2028"}},
        {"payload": {"n": [1.5, None, True]}},
        {"inputs": [{"from": "x"}]},
        {"name": "a"},
    ]
    made = [jobs.row(actor, retry=shared, **changes[n % len(changes)]) for n in range(count)]
    return [first_row(row, State.PENDING, Reason.SUBMITTED, 17, 17) for row in made]


def test_bulk_rows_are_the_same_rows(db, admin):
    rows = first_rows(admin, 8)
    again = [{**row, "id": uuid7()} for row in rows]
    bulk = BulkInsert(t.job, rows[0].keys())
    spelled = bulk.spell(rows)
    db.write(lambda c: bulk.execute(c, spelled))
    without = [{key: value for key, value in row.items() if key != "callback"} for row in again]
    db.write(lambda c: c.execute(insert(t.job), without))

    def read(wanted):
        query = select(t.job).where(t.job.c.id.in_([row["id"] for row in wanted])).order_by(t.job.c.id)
        return [{**row, "id": None} for row in db.read(lambda c: c.execute(query).mappings().all())]

    assert read(rows) == read(again)
    as_text = [cast(t.job.c[name], Text) for name in ("payload", "labels", "inputs")]
    spelling = select(*as_text, t.job.c.callback.is_(None))
    mine, its = (
        db.read(lambda c, i=i: c.execute(spelling.where(t.job.c.id == i)).one())
        for i in (rows[0]["id"], again[0]["id"])
    )
    assert tuple(mine) == tuple(its)
    assert mine[3]


def test_columns_may_come_in_any_order_and_nothing_is_written_for_no_rows(db, tenant):
    bulk = BulkInsert(t.batch, ["created_at", "count", "submitted_by", "id", "tenant_id", "name"])
    row = {"id": uuid7(), "tenant_id": tenant, "name": None, "count": 3, "submitted_by": "u", "created_at": 5}
    db.write(lambda c: bulk.execute(c, []))
    db.write(lambda c: bulk.execute(c, bulk.spell([row])))
    assert dict(db.read(lambda c: c.execute(select(t.batch)).mappings().one())) == row


def test_a_check_that_is_used_often_has_an_end():
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    check = PayloadCheck(schema, left=5_000)
    payload = {"a": list(range(100))}
    answers = [check.problems(payload, f"/jobs/{n}/payload") for n in range(100)]
    assert answers[0] == []
    assert "send fewer" in answers[-1][0].detail
    assert answers[-1][0].pointer == "/jobs/99/payload"
    assert PayloadCheck(schema).left == MOST


def test_one_job_written_at_once_is_the_job_that_a_transition_writes(db, admin):
    asked = {"labels": {"a": "b"}, "payload": {"n": [1.5, None]}, "scheduled_at": None}
    for later in (None, now_ms() + 3_600_000):
        mine, its = (jobs.row(admin, **{**asked, "scheduled_at": later}) for _ in range(2))
        db.write(lambda c, row=its: jobs.transitions().submit(c, admin, row, 17))
        log = AuditLog(jobs.KEY)
        introduced(db, log, admin)
        prepared, shown = db.read(lambda c, row=mine, log=log: prepare_one(c, log, admin, row, 17))
        db.write(prepared.write)
        assert _written(db, mine["id"]) == _written(db, its["id"])
        assert [one.job_id for one in prepared.ready] == ([] if later else [mine["id"]])
        stored = jobs.job(db, mine["id"])
        assert {name: stored[name] for name in shown} == shown


def _written(db, job_id):
    """All rows of a new job, without what no two jobs share."""

    def unit(connection):
        job = dict(connection.execute(select(t.job).where(t.job.c.id == job_id)).mappings().one())
        trace = connection.execute(select(t.trace_event).where(t.trace_event.c.job_id == job_id)).mappings().all()
        outbox = connection.execute(select(t.outbox.c.created_at).where(t.outbox.c.job_id == job_id)).all()
        audit = connection.execute(select(t.audit_event).where(t.audit_event.c.object == f"job:{job_id}")).mappings()
        own = dict.fromkeys(("id", "job_id", "object", "at", "mac"))
        return [{**row, **own} for row in (job, *trace, *audit)], outbox

    return db.read(unit)
