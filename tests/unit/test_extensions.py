"""The operator's extensions: only those that are named; each usage record is told at least once."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from cloche.clock import now_ms
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.jobs import Success
from cloche.domain.retries import PlatformBudget
from cloche.errors import SettingsError, Unavailable
from cloche.hookspecs import GROUP, Hooks, hookimpl
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services import extensions
from cloche.services.transitions import Transitions
from cloche.services.usage_feed import UsageFeed
from tests.support import jobs, stores


@pytest.fixture
def package(monkeypatch):
    """An installed package that keeps what it is told."""
    module = types.ModuleType("billing_of_a_test")
    module.told, module.fails = [], []

    @hookimpl
    def usage_recorded(records):
        if module.fails:
            raise module.fails.pop()
        module.told += records

    module.usage_recorded = usage_recorded
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def points(*names, value="billing_of_a_test"):
    return [EntryPoint(name, value, GROUP) for name in names]


def test_only_what_is_named_is_loaded(package):
    assert extensions.load([], points("billing")).get_plugins() == set()
    assert extensions.load(["billing"], points("billing", "other")).get_plugins() == {package}


def test_what_cannot_be_loaded_is_said(package):
    with pytest.raises(SettingsError, match="no extension 'x' is installed; there are: billing"):
        extensions.load(["x"], points("billing"))
    with pytest.raises(SettingsError, match="cannot be loaded"):
        extensions.load(["gone"], points("gone", value="no_such_module_here"))
    package.usage_recorded_twice = hookimpl(lambda records: None)
    with pytest.raises(SettingsError, match="usage_recorded_twice"):
        extensions.load(["billing"], points("billing"))


def test_every_hook_is_documented(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "quotas.md").read_text("utf-8")
    hooks = [name for name in vars(Hooks) if not name.startswith("_")]
    assert hooks == ["usage_recorded"]
    assert all(f"`{name}`" in text and getattr(Hooks, name).__doc__ for name in hooks)


def test_each_record_is_told_at_least_once(package, database_url):
    db, broker = Database(database_url), MemoryBroker()
    try:
        actor = stores.add_actor(db, stores.add_tenant(db), "ann")
        life = Transitions(AuditLog(jobs.KEY), PlatformBudget(5, 3), feed=True)
        feed = UsageFeed(db, extensions.load(["billing"], points("billing")))
        ids = [jobs.submit(db, broker, actor) for _ in range(3)]
        for one in ids:
            jobs.claim(db, broker, [one])
            used = Success({}, usage={"cpu_ms": 1500, "memory_limit": 1 << 30, "ran_ms": 2000, "bytes_in": 7})
            db.write(lambda c, one=one, used=used: life.succeed(c, one, 1, "w1", used, now_ms()))
        package.fails.append(ValueError("the bank is closed"))
        with pytest.raises(Unavailable, match="the bank is closed"):
            feed.run_once(2)
        assert package.told == []
        assert [feed.run_once(2) for _ in range(3)] == [2, 1, 0]
        assert [record["job_id"] for record in package.told] == ids
        first = package.told[0]
        assert (first["tenant_id"], first["user_id"], first["attempt"]) == (actor.tenant_id, actor.user_id, 1)
        assert (first["cpu_seconds"], first["memory_gb_seconds"], first["bytes_in"]) == (1.5, 2.0, 7)
        jobs.submit(db, broker, actor)
        jobs.cancel(db, broker, actor, jobs.submit(db, broker, actor))
        assert feed.run_once(9) == 0, "what never ran has used nothing"
    finally:
        db.close()


def test_without_extensions_nothing_is_kept_for_them(package, database_url):
    db, broker = Database(database_url), MemoryBroker()
    try:
        actor = stores.add_actor(db, stores.add_tenant(db), "ann")
        one = jobs.submit(db, broker, actor)
        jobs.claim(db, broker, [one])
        jobs.succeed(db, broker, one)
        assert UsageFeed(db, extensions.load(["billing"], points("billing"))).run_once(9) == 0
    finally:
        db.close()
