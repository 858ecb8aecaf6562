"""Workers as operators see them, and draining them: the service and its address, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import select, update

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.domain.permissions import BUILTIN_ROLES, Permission
from cloche.errors import EnvironmentProblem
from cloche.services import statistics
from cloche.services import workers as workers_module
from cloche.services.workers import STALE_MS, WorkerService
from tests.support import jobs, stores
from tests.support.web import problem, running_site

RESOURCES = {
    "cpu_count": 8,
    "load": 0.5,
    "memory_total": 16 << 30,
    "memory_free": 8 << 30,
    "disk_total": 1 << 40,
    "disk_free": 1 << 39,
}


@pytest.fixture
def workers(db):
    return WorkerService(db)


@pytest.fixture
def site(tmp_path, database_url):
    with running_site(tmp_path / "home", database=database_url) as running:
        running.add("olga", "operator", "admin")
        running.add("vera", "viewer")
        yield running


def registered(site, **changes):
    worker_id = uuid7()
    site.services.workers.register(worker_id, "host-1", 7, ["default"], 2, None, {"zone": "eu"})
    if changes:
        set_(site, worker_id, **changes)
    return worker_id


def set_(site, worker_id, **changes):
    site.services.db.write(lambda c: c.execute(update(t.worker).where(t.worker.c.id == worker_id).values(changes)))


def beat(service, db, worker_id, status="alive", resources=None):
    return db.write(lambda c: service.beat(c, worker_id, status, None, now_ms(), resources))


def drained(site):
    query = select(t.audit_event.c.object).where(t.audit_event.c.action == "worker:drain")
    return site.services.db.read(lambda c: c.execute(query).scalars().all())


def test_a_worker_says_what_it_is_and_what_its_host_has_left(workers, db, admin, valkey):
    worker_id = uuid7()
    workers.register(worker_id, "host-1", 7, ["default"], 4, "starting", {"zone": "eu", "gpu": ""})
    (shown,) = workers.list(admin)
    assert (shown["labels"], shown["resources"], shown["free"]) == ({"zone": "eu", "gpu": ""}, None, 4)
    assert beat(workers, db, worker_id, resources=RESOURCES) is False
    beat(workers, db, worker_id)  # which had nothing new to say
    job = jobs.row(admin)
    db.write(lambda c: jobs.transitions().submit(c, admin, job, now_ms()))
    db.write(lambda c: jobs.transitions().claim(c, [job["id"]], worker_id, now_ms(), 15_000))
    (shown,) = workers.list(admin)
    assert (shown["resources"], shown["slots"], shown["busy"], shown["free"]) == (RESOURCES, 4, 1, 3)
    assert shown["current_job_ids"] == [job["id"]]
    stranger = stores.add_actor(db, stores.add_tenant(db, "other"), "otto")
    (shown,) = workers.list(stranger)
    assert (shown["busy"], shown["current_job_ids"]) == (1, [])
    workers.leave(worker_id, "stopped")
    (shown,) = workers.list(admin)
    assert (shown["status"], shown["status_reason"], shown["free"]) == ("dead", "stopped", 0)


def test_no_worker_that_lives_is_pushed_off_the_list_by_those_that_die(workers, db, admin, valkey, monkeypatch):
    monkeypatch.setattr(workers_module, "_SHOWN", 3)
    monkeypatch.setattr(statistics, "_MOST_WORKERS", 3)
    made = {name: uuid7() for name in ("lives", "drains", "silent", "dead 1", "dead 2", "dead 3")}
    for n, (name, worker_id) in enumerate(made.items()):
        workers.register(worker_id, "host-1", 7, ["default"], 2)
        changes = {"started_at": now_ms() - 60_000 + n}
        if name == "silent":
            changes["last_heartbeat_at"] = now_ms() - STALE_MS - 1_000
        db.write(
            lambda c, one=worker_id, new=changes: c.execute(update(t.worker).where(t.worker.c.id == one).values(new))
        )
    beat(workers, db, made["drains"], "draining")
    for n in (1, 2, 3):
        workers.leave(made[f"dead {n}"], "its process died")
    expected = [made["drains"], made["lives"], made["dead 3"]]
    assert [one["id"] for one in workers.list(admin)] == expected
    counted = statistics.StatisticsService(db).workers(admin, 60_000)
    assert [one["id"] for one in counted["workers"]] == expected
    assert counted["count"] == {"alive": 1, "draining": 1, "dead": 1}


def test_an_id_is_one_workers(workers):
    worker_id = uuid7()
    workers.register(worker_id, "host-1", 7, ["default"], 2)
    workers.register(worker_id, "host-1", 7, ["default"], 2)  # its own try, repeated after a lost answer
    for host, pid in (("host-1", 8), ("host-2", 7)):
        with pytest.raises(EnvironmentProblem, match="an id is used once"):
            workers.register(worker_id, host, pid, ["default"], 2)
    workers.leave(worker_id, "stopped")
    with pytest.raises(EnvironmentProblem, match="an id is used once"):
        workers.register(worker_id, "host-1", 8, ["default"], 2)


def test_one_that_nobody_knows_any_more_is_told_so(workers, db):
    assert beat(workers, db, uuid7()) is None


def test_a_worker_is_drained_on_record(site):
    worker_id = registered(site)
    assert site.services.workers.drain_requested(worker_id) is False
    answer = site.request("POST", f"/workers/{worker_id}/drain")
    assert answer.status_code == 202, answer.text
    assert answer.json["id"] == worker_id
    assert (answer.json["status"], answer.json["drain_requested"], answer.json["free"]) == ("draining", True, 0)
    assert beat(site.services.workers, site.services.db, worker_id) is True
    (shown,) = site.request("GET", "/workers", "vera").json["items"]
    assert (shown["status"], shown["drain_requested"]) == ("draining", True), (
        "also while the worker has not heard of it"
    )
    again = site.request("POST", f"/workers/{worker_id}/drain")
    assert (again.status_code, again.json["status"]) == (202, "draining")
    assert drained(site) == [f"worker:{worker_id}"], "asking again is no second act"
    assert site.services.workers.summary()["count"] == 0, "a draining worker takes no jobs"
    site.services.workers.leave(worker_id, "its process died")
    assert site.services.workers.drain_requested(worker_id) is True, "also once it is dead"
    assert site.services.workers.drain_requested(uuid7()) is False


def test_there_is_nothing_to_drain_of_a_dead_worker_or_of_none(site):
    dead, silent = registered(site, status="dead"), registered(site, last_heartbeat_at=now_ms() - STALE_MS - 1_000)
    for worker_id in (dead, silent):
        problem(site.request("POST", f"/workers/{worker_id}/drain"), 409, "worker-dead")
    for worker_id in (uuid7(), "x", "a" * 300, uuid7().upper()):
        problem(site.request("POST", f"/workers/{worker_id}/drain"), 404)
    assert drained(site) == []


def test_who_may_not_drains_nothing(site):
    worker_id = registered(site)
    for user in ("vera", "olga"):
        problem(site.request("POST", f"/workers/{worker_id}/drain", user), 403)
    problem(site.request("POST", f"/workers/{worker_id}/drain", json={"now": True}), 422)
    token = site.token("admin", scopes=["worker:read"])
    answer = site.client().post(f"/api/v1/workers/{worker_id}/drain", headers={"Authorization": f"Bearer {token}"})
    problem(answer, 403)
    assert beat(site.services.workers, site.services.db, worker_id) is False


def test_no_role_gives_what_concerns_every_tenant(site):
    for role, allowed in BUILTIN_ROLES.items():
        assert Permission.WORKER_DRAIN not in allowed, role
    assert "worker:drain" in site.request("GET", "/me").json["permissions"]
    assert "worker:drain" not in site.request("GET", "/me", "olga").json["permissions"]
    headers = {"Authorization": f"Bearer {site.token('admin', scopes=['worker:drain'])}"}
    answer = site.client().post(f"/api/v1/workers/{registered(site)}/drain", headers=headers)
    assert answer.status_code == 202, "a token that names it has it"
