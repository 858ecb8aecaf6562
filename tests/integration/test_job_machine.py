"""Jobs driven in random order against a model: real transitions on a real database, and a few plain rules to compare them with."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import delete, insert, select

from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.db.quota_tables import WHOLE
from cloche.domain.dependencies import Condition, OnFailure
from cloche.domain.jobs import Success
from cloche.domain.permissions import Actor
from cloche.domain.quotas import NO_QUOTAS, Kind, Whose
from cloche.domain.retries import PlatformBudget
from cloche.domain.states import Reason
from cloche.errors import Conflict, PlatformFailure, PluginFailure, QuotaExceeded, StaleAttempt
from cloche.queueing.broker import Ready
from cloche.services import quota_rows
from cloche.services.transitions import Transitions
from tests.support import jobs, stores

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of commits, of which none has to last
LEASE_MS = 15_000
DEATHS, FAILURES = 3, 5
MAX_RETRIES = 1
WAITING = {"scheduled", "blocked", "pending"}
ENDS = {"completed", "failed", "canceled"}


@cache
def _template() -> bytes:
    """A migrated, empty database file: every example begins with a copy."""
    with tempfile.TemporaryDirectory(prefix="cloche-machine-") as folder:
        return stores.sqlite_template(Path(folder)).read_bytes()


class Model:
    """What one job ought to be."""

    def __init__(
        self, upstreams: tuple[str, ...], condition: str, on_failure: str, ready_at: int, expires_at: int | None
    ) -> None:
        self.state = "pending"
        self.upstreams, self.condition, self.on_failure = upstreams, condition, on_failure
        self.told: dict[str, str] = {}
        self.ready_at, self.expires_at = ready_at, expires_at
        self.run, self.attempt, self.retries, self.failures, self.deaths = 1, 0, 0, 0, 0
        self.worker: str | None = None
        self.lease = 0
        self.begun = self.cancel_asked = False
        self.counted = False  # by the tenant's quota
        self.audits = 1


class JobMachine(RuleBasedStateMachine):
    """``now`` is the machine's own: transitions take the time as an argument."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="cloche-machine-", dir=_MEMORY)
        path = Path(self.folder.name) / "cloche.db"
        path.write_bytes(_template())
        self.db = Database(f"sqlite:///{path}")
        self.actor: Actor = stores.add_actor(self.db, stores.add_tenant(self.db), "alma")
        # No chance but hypothesis' own: a wait is always the longest it may be.
        self.life = Transitions(AuditLog(jobs.KEY), PlatformBudget(FAILURES, DEATHS), lambda low, high: high)
        self.now = 1_000_000
        self.limit: int | None = None  # of jobs in flight
        self.models: dict[str, Model] = {}
        self.purged: set[str] = set()
        self.attempts: list[tuple[str, int, str]] = []  # every attempt that ever was, with its worker
        self.announced: set[str] = set()  # ids that somebody was told are ready
        # So that every rule has something to act on: two jobs, and two that wait for them, each in its way.
        for condition in (None, None, Condition.ALL_COMPLETED, Condition.ALL_RESOLVED):
            upstreams = list(self.models)[:2] if condition else []
            self.add(upstreams, condition or Condition.ALL_COMPLETED, OnFailure.CANCEL.value, 0, None)

    def teardown(self) -> None:
        for model in getattr(self, "models", {}).values():
            event(f"{model.state}, {'first' if model.run == 1 else 'later'} run")
        if hasattr(self, "db"):
            self.db.close()
            self.folder.cleanup()

    # --- acts -------------------------------------------------------------------------------------------------------------

    def act(self, unit: Any) -> Any:
        done = self.db.write(unit)
        effects = done[1] if isinstance(done, tuple) else done
        for one in effects.ready:
            assert isinstance(one, Ready)
            self.announced.add(one.job_id)
        return done

    @rule(
        data=st.data(),
        condition=st.sampled_from([one.value for one in Condition]),
        on_failure=st.sampled_from([one.value for one in OnFailure]),
        delay=st.sampled_from([0, 0, 50]),
        expiry=st.sampled_from([None, None, 80]),
    )
    def submit(self, data: st.DataObject, condition: str, on_failure: str, delay: int, expiry: int | None) -> None:
        there = [one for one in self.models if one not in self.purged]
        upstreams = data.draw(st.lists(st.sampled_from(there), max_size=3, unique=True)) if there else []
        self.add(upstreams, condition, on_failure, delay, expiry)

    def add(self, upstreams: list[str], condition: str, on_failure: str, delay: int, expiry: int | None) -> None:
        expires_at = None if expiry is None else self.now + expiry
        more = jobs.after(*upstreams, condition=condition, on_failure=on_failure) if upstreams else {}
        row = jobs.row(
            self.actor,
            retry={"max_retries": MAX_RETRIES, "backoff": "fixed", "initial_delay_ms": 10, "max_delay_ms": 10},
            scheduled_at=self.now + delay if delay else None,
            expires_at=expires_at,
            **more,
        )

        def unit(connection: Any) -> Any:
            quotas = quota_rows.in_force(connection, NO_QUOTAS, self.actor.tenant_id, self.actor.user_id)
            counted = row | {"quota_counted": quotas.any(Kind.JOBS)}
            done = self.life.submit(connection, self.actor, counted, self.now)
            quota_rows.enter(connection, quotas, self.actor.tenant_id, self.actor.user_id, 1)
            return done

        room = self.room()
        try:
            self.act(unit)
        except QuotaExceeded:
            assert not room
            return
        assert room
        model = Model(tuple(upstreams), condition, on_failure, self.now + delay, expires_at)
        self.models[row["id"]] = model
        model.counted = self.limit is not None
        model.told = {one: self.models[one].state for one in upstreams if self.models[one].state in ENDS}
        self.decide(model, first=True)

    def one(self, data: st.DataObject) -> str:
        """Any job there ever was; the newest first, so that failures shrink to few jobs."""
        return data.draw(st.sampled_from(list(self.models)[::-1]))

    @rule(data=st.data(), worker=st.sampled_from(["w1", "w2"]))
    def claim(self, data: st.DataObject, worker: str) -> None:
        ids = data.draw(st.lists(st.sampled_from(list(self.models)), min_size=1, max_size=4, unique=True))
        self.claims(ids, worker)

    def claims(self, ids: list[str], worker: str) -> None:
        rows, _ = self.act(lambda c: self.life.claim(c, ids, worker, self.now, LEASE_MS))
        claimed = set()
        for job_id in ids:
            model = self.models[job_id]
            in_time = model.expires_at is None or model.begun or model.expires_at > self.now
            if job_id not in self.purged and model.state == "pending" and model.ready_at <= self.now and in_time:
                claimed.add(job_id)
                model.state, model.worker, model.begun = "processing", worker, True
                model.attempt += 1
                model.audits += 1
                model.lease = self.now + LEASE_MS
                self.attempts.append((job_id, model.attempt, worker))
        assert {row["id"] for row in rows} == claimed
        assert claimed <= self.announced, "only what was announced is in an index"

    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "platform", "canceled"]))
    def report(self, data: st.DataObject, how: str) -> None:
        """A worker reports on any attempt it ever had, however old."""
        if self.attempts:
            self.reports(*data.draw(st.sampled_from(self.attempts[::-1])), how)

    @rule(
        data=st.data(), hows=st.lists(st.sampled_from(["succeed", "fail", "fail", "platform"]), min_size=1, max_size=4)
    )
    def work(self, data: st.DataObject, hows: list[str]) -> None:
        """A worker at work: one job, tried until it ends or has to wait."""
        job_id = self.one(data)
        for how in hows:
            if job_id in self.purged or self.models[job_id].state != "pending":
                return
            self.claims([job_id], "w3")
            if self.models[job_id].state == "processing":
                self.reports(job_id, self.models[job_id].attempt, "w3", how)
            self.time_passes(10)

    def reports(self, job_id: str, number: int, worker: str, how: str) -> None:
        model = self.models[job_id]
        holds = (
            job_id not in self.purged
            and model.state == "processing"
            and (model.attempt, model.worker) == (number, worker)
        )
        units = {
            "succeed": lambda c: self.life.succeed(c, job_id, number, worker, Success({"n": number}), self.now),
            "fail": lambda c: self.life.fail(
                c, job_id, number, worker, PluginFailure(Reason.PLUGIN_FAILED, "x"), self.now
            ),
            "platform": lambda c: self.life.fail(
                c, job_id, number, worker, PlatformFailure(Reason.ENGINE_UNAVAILABLE, "x"), self.now
            ),
            "canceled": lambda c: self.life.canceled(c, job_id, number, worker, self.now, None),
        }
        try:
            self.act(units[how])
        except StaleAttempt:
            assert not holds
            return
        assert holds
        self.reported(model, how)

    def reported(self, model: Model, how: str) -> None:
        model.audits += 1
        model.worker = None
        if how == "succeed":
            self.end(model, "completed")
        elif how == "canceled" or model.cancel_asked:
            self.end(model, "canceled")
        elif how == "fail":
            if model.retries >= MAX_RETRIES:
                self.end(model, "failed")
            else:
                model.retries += 1
                model.state = "scheduled"
                model.ready_at = self.now + 10  # the longest wait: that is what this machine draws
        else:
            self.platform_failed(model, died=False)

    def platform_failed(self, model: Model, died: bool) -> None:
        model.failures += 1
        model.deaths += died
        if model.deaths >= DEATHS or model.failures >= FAILURES:
            self.end(model, "failed")
        elif model.failures == 1 or died:
            model.state, model.ready_at = "pending", self.now
        else:
            model.state, model.ready_at = "scheduled", self.now + 1_000 * 2 ** (model.failures - 2)

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def lapse(self, worker: str) -> None:
        """The worker dies; everything it holds is taken back."""
        query = select(t.job).where(t.job.c.lease_owner == worker, t.job.c.state == "processing")
        rows = [dict(row) for row in self.db.read(lambda c: c.execute(query).mappings().all())]
        held = {one for one, model in self.models.items() if model.state == "processing" and model.worker == worker}
        assert {row["id"] for row in rows} == held
        self.act(lambda c: self.life.release(c, rows, Reason.LEASE_LAPSED, "test", self.now))
        for row in rows:
            model = self.models[row["id"]]
            model.audits += 1
            model.worker = None
            if model.cancel_asked:
                self.end(model, "canceled")
            else:
                self.platform_failed(model, died=True)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = self.one(data)
        if job_id in self.purged:
            return
        model = self.models[job_id]
        try:
            self.act(lambda c: self.life.cancel(c, self.actor, job_id, self.now))
        except Conflict:
            assert model.state in ENDS
            return
        if model.state in WAITING:
            model.audits += 1
            self.end(model, "canceled")
        else:
            assert model.state == "processing"
            model.audits += not model.cancel_asked
            model.cancel_asked = True

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = self.one(data)
        if job_id in self.purged:
            return
        model = self.models[job_id]
        told = {}
        gone = False
        for one in model.upstreams:
            state = model.told.get(one) if one in self.purged else self.models[one].state
            gone = gone or state is None
            if state in ENDS:
                told[one] = state
        verdict = self.verdict(model, told)
        code = None
        room = self.room()
        try:
            self.act(lambda c: self.life.rerun(c, self.actor, job_id, self.now))
        except QuotaExceeded:
            assert model.state in ("failed", "canceled")
            assert not room
            return
        except Conflict as refused:
            code = refused.code
        if code is not None:
            stands = {"upstream-gone": gone, "upstream-failed": verdict == "canceled"}
            assert stands.get(code, model.state not in ("failed", "canceled")), code
            return
        assert model.state in ("failed", "canceled")
        assert not gone
        assert verdict != "canceled"
        assert room
        model.counted = self.limit is not None
        model.told = told
        model.state = verdict
        model.run += 1
        model.audits += 1
        model.ready_at, model.expires_at = self.now, None
        model.retries = model.failures = model.deaths = 0
        model.begun = model.cancel_asked = False

    @rule(limit=st.sampled_from([None, 0, 4, 6, 9]))
    def limits(self, limit: int | None) -> None:
        """An administrator sets how many jobs may be in flight, or that any number may."""
        row = {"tenant_id": self.actor.tenant_id, "user_id": WHOLE, "jobs": -1 if limit is None else limit}

        def unit(connection: Any) -> None:
            connection.execute(delete(t.quota).where(t.quota.c.tenant_id == self.actor.tenant_id))
            connection.execute(insert(t.quota), row | {"version": 1, "updated_by": self.actor.user_id, "updated_at": 0})

        self.db.write(unit)
        self.limit = limit

    @rule()
    def count(self) -> None:
        """The scheduler counts what was accepted before there was a limit, and adds up what has ended."""
        alive = [model for model in self.alive() if not model.counted]
        assert self.db.write(lambda c: quota_rows.count_live(c, self.actor.tenant_id, 1_000)) == len(alive)
        self.db.write(lambda c: quota_rows.fold(c, self.actor.tenant_id))
        for model in alive:
            model.counted = True

    @rule(by=st.sampled_from([0, 5, 60, 2_000]))
    def time_goes_by(self, by: int) -> None:
        self.time_passes(by)

    @rule(by=st.sampled_from([5, 60, 100]))
    def nobody_looks(self, by: int) -> None:
        """Time passes, and no sweeper comes."""
        self.now += by

    def time_passes(self, by: int) -> None:
        """The sweeper's rounds at a later time: expiry first, then what is due."""
        self.now += by
        self.act(lambda c: self.life.expire(c, self.now, 1_000))
        for model in self.models.values():
            late = model.expires_at is not None and model.expires_at <= self.now
            if model.state in WAITING and late and not model.begun:
                model.audits += 1
                model.state = "canceled"  # before anybody is told: one transaction
        for job_id, model in self.models.items():
            if model.state == "canceled" and job_id not in self.purged:
                self.tell(job_id)
        self.act(lambda c: self.life.due(c, self.now, 1_000))
        for model in self.models.values():
            if model.state == "scheduled" and model.ready_at <= self.now:
                model.state = "pending"

    @rule(data=st.data())
    def purge(self, data: st.DataObject) -> None:
        job_id = self.one(data)
        model = self.models[job_id]
        gone = self.db.write(lambda c: self.life.purge(c, self.actor, [job_id], self.now))
        assert (gone == [job_id]) is (model.state in ENDS and job_id not in self.purged)
        if gone:
            model.audits += 1
            self.purged.add(job_id)

    def alive(self) -> list[Model]:
        return [model for model in self.models.values() if model.state not in ENDS]

    def room(self) -> bool:
        return self.limit is None or sum(model.counted for model in self.alive()) < self.limit

    # --- the rules --------------------------------------------------------------------------------------------------------

    def verdict(self, model: Model, told: dict[str, str]) -> str:
        """``canceled``, ``blocked`` or ``pending``."""
        all_told = len(told) == len(model.upstreams)
        bad = any(state != "completed" for state in told.values())
        if bad and model.on_failure == "cancel" and (model.condition == "all_completed" or all_told):
            return "canceled"
        return "pending" if all_told else "blocked"

    def decide(self, model: Model, first: bool = False) -> bool:
        """What follows from what a blocked job has been told. True when it ends."""
        found = self.verdict(model, model.told)
        if found == "canceled":
            model.state = "canceled"
            model.audits += 1
            return True
        if found == "pending":
            later = model.ready_at > self.now
            model.state = "scheduled" if later else "pending"
            if not first and not later:
                model.ready_at = self.now
        else:
            model.state = "blocked"
        return False

    def end(self, model: Model, state: str) -> None:
        model.state = state
        self.tell(next(one for one, found in self.models.items() if found is model))

    def tell(self, ended: str) -> None:
        """Everybody who is blocked by it hears of it, and those blocked by them."""
        state = self.models[ended].state
        for job_id, model in self.models.items():
            if ended in model.upstreams and model.state == "blocked" and model.told.get(ended) != state:
                model.told[ended] = state
                if self.decide(model):
                    self.tell(job_id)

    # --- always -----------------------------------------------------------------------------------------------------------

    @invariant()
    def the_database_is_the_model(self) -> None:
        if not hasattr(self, "db"):
            return
        rows = {row["id"]: row for row in self.db.read(lambda c: c.execute(select(t.job)).mappings().all())}
        assert rows.keys() == self.models.keys() - self.purged
        for job_id, row in rows.items():
            model = self.models[job_id]
            found = (row["state"], row["run"], row["attempt"], row["audit_seq"], row["lease_owner"])
            assert found == (model.state, model.run, model.attempt, model.audits, model.worker), row["reason"]
            assert (row["finished_at"] is not None) is (model.state in ENDS)
            assert (row["result"] is not None) is (model.state == "completed")
            counters = (row["retries_used"], row["platform_failures"], row["worker_deaths"])
            assert counters == (model.retries, model.failures, model.deaths)

    @invariant()
    def every_attempt_has_one_row_and_every_audit_event_its_number(self) -> None:
        if not hasattr(self, "db"):
            return
        event, tried = t.audit_event.c, t.attempt.c
        numbers: dict[str, list[int]] = {f"job:{job_id}": [] for job_id in self.models}
        outcomes: dict[str, dict[int, str | None]] = {job_id: {} for job_id in self.models}

        def read(connection: Any) -> None:
            for row in connection.execute(select(event.object, event.object_seq).order_by(event.object_seq)):
                numbers[row.object].append(row.object_seq)
            for row in connection.execute(select(tried.job_id, tried.number, tried.outcome).order_by(tried.number)):
                outcomes[row.job_id][row.number] = row.outcome

        self.db.read(read)
        for job_id, model in self.models.items():
            assert numbers[f"job:{job_id}"] == list(range(1, model.audits + 1))
            rows = outcomes[job_id]
            if job_id in self.purged:
                assert rows == {}
                continue
            assert list(rows) == list(range(1, model.attempt + 1))
            running = [number for number, outcome in rows.items() if outcome is None]
            assert running == ([model.attempt] if model.state == "processing" else [])

    @invariant()
    def what_is_in_flight_is_counted_once(self) -> None:
        if not hasattr(self, "db"):
            return
        found = self.db.read(lambda c: quota_rows.used(c, self.actor.tenant_id, self.actor.user_id))
        expected = sum(model.counted for model in self.alive())
        assert (found[Whose.TENANT][0], found[Whose.USER][0]) == (expected, expected)

    @invariant()
    def nobody_waits_for_what_has_ended(self) -> None:
        for model in getattr(self, "models", {}).values():
            if model.state == "blocked":
                assert any(self.models[one].state not in ENDS for one in model.upstreams if one not in model.told)


JobMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
TestJobMachine = pytest.mark.timeout(300)(JobMachine.TestCase)
