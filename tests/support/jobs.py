"""Jobs put straight into the database, for tests of what happens to them afterwards."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from cloche.audit.canonical import digest
from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain.jobs import Success
from cloche.domain.limits import Limits
from cloche.domain.retries import PlatformBudget
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.services import effects
from cloche.services.transitions import Transitions

KEY = b"k" * 32


def transitions() -> Transitions:
    return Transitions(AuditLog(KEY), PlatformBudget(failures=5, worker_deaths=3))


def row(actor, **changes: Any) -> dict[str, Any]:
    payload = changes.pop("payload", {"n": 1})
    return {
        "id": uuid7(),
        "tenant_id": actor.tenant_id,
        "name": None,
        "type": "text_stats",
        "version_spec": None,
        "plugin_version": "1.0.0",
        "plugin_digest": "d" * 64,
        "payload": payload,
        "payload_sha256": digest(payload),
        "queue": "default",
        "priority": 5,
        "labels": {},
        "inputs": [],
        "outputs": [],
        "limits": Limits().to_dict(),
        "retry": {"max_retries": 0, "backoff": "exponential", "initial_delay_ms": 1, "max_delay_ms": 10},
        "callback": None,
        "batch_id": None,
        "submitted_by": actor.user_id,
        **changes,
    }


def after(*upstreams: str, condition: str = "all_completed", on_failure: str = "cancel") -> dict[str, Any]:
    """Columns of a job that depends on these."""
    return {"depends_on": list(upstreams), "depends_on_condition": condition, "on_upstream_failure": on_failure}


def submit(db, broker, actor, **changes: Any) -> str:
    """An accepted job's id."""
    job = row(actor, **changes)
    effects.apply(broker, db.write(lambda c: transitions().submit(c, actor, job, now_ms())))
    return job["id"]


def claim(db, broker, job_ids, worker: str = "w1", lease_ms: int = 15_000):
    rows, done = db.write(lambda c: transitions().claim(c, job_ids, worker, now_ms(), lease_ms))
    effects.apply(broker, done)
    return rows


def succeed(db, broker, job_id: str, attempt: int = 1, worker: str = "w1", result: Any = None) -> None:
    outcome = Success(result={"ok": True} if result is None else result, usage={"cpu_ms": 12})
    done = db.write(lambda c: transitions().succeed(c, job_id, attempt, worker, outcome, now_ms()))
    effects.apply(broker, done)


def fail(db, broker, job_id: str, attempt: int = 1, worker: str = "w1", reason: Reason = Reason.PLUGIN_FAILED) -> None:
    failure = PluginFailure(reason, "boom")
    effects.apply(broker, db.write(lambda c: transitions().fail(c, job_id, attempt, worker, failure, now_ms())))


def cancel(db, broker, actor, job_id: str) -> None:
    effects.apply(broker, db.write(lambda c: transitions().cancel(c, actor, job_id, now_ms())))


def rerun(db, broker, actor, job_id: str) -> None:
    effects.apply(broker, db.write(lambda c: transitions().rerun(c, actor, job_id, now_ms())))


def job(db, job_id: str):
    return db.read(lambda c: c.execute(select(t.job).where(t.job.c.id == job_id)).mappings().one())


def audit_actions(db, job_id: str) -> list[str]:
    event = t.audit_event
    query = (
        select(event.c.object_seq, event.c.action).where(event.c.object == f"job:{job_id}").order_by(event.c.object_seq)
    )
    rows = db.read(lambda c: c.execute(query).all())
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1)), "numbered without gaps"
    return [action for _, action in rows]


def trace(db, job_id: str) -> list[str]:
    query = select(t.trace_event.c.event_type).where(t.trace_event.c.job_id == job_id).order_by(t.trace_event.c.id)
    return list(db.read(lambda c: c.execute(query).scalars().all()))
