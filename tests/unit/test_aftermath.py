"""What the supervisor does for a worker that died, also where sandboxd died with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cloche import config
from cloche.cli.up import aftermath as module
from cloche.cli.up.aftermath import Aftermath
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.queueing.broker import Rules
from cloche.queueing.redis_broker import RedisBroker
from cloche.services.workers import WorkerService
from tests.support import jobs
from tests.support.queues import make_whole, take


@pytest.fixture
def broker(valkey):
    made = RedisBroker(valkey.url)
    make_whole(made)
    yield made
    made.close()


@pytest.fixture
def supervised(db, broker, valkey, database_url, tmp_path, monkeypatch):
    """Worker ``w1`` is dead, with one job claimed and one taken; ``away`` tries find no sandboxd. Gives what became of it all."""
    monkeypatch.setattr(module, "_TRY_S", (0.0, 0.0))

    def died(actor, away):
        calls = []

        class Sandboxd:
            def __init__(self, *_):
                pass

            def owner_gone(self, owner):
                calls.append(owner)
                if len(calls) <= away:
                    raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, "sandboxd is away")

            def close(self):
                pass

        monkeypatch.setattr(module, "SandboxdBackend", Sandboxd)
        workers, said = WorkerService(db), []
        workers.register("w1", "host", 1, ["default"], 2)
        claimed, taken = jobs.submit(db, broker, actor), jobs.submit(db, broker, actor)
        broker.set_rules([Rules("default", 2, limit=2)])
        assert take(broker, "default", 2) == [claimed, taken]
        jobs.claim(db, broker, [claimed])
        settings = config.load(home=tmp_path / "home", database={"url": database_url}, redis={"url": valkey.url})
        with Aftermath(settings, SimpleNamespace(say=lambda text, **_: said.append(text))) as aftermath:
            aftermath.worker_gone("worker-1", "w1")
        (shown,) = workers.list(actor)
        states = [jobs.job(db, one)["state"] for one in (claimed, taken)]
        return SimpleNamespace(calls=calls, said=said, shown=shown, states=states, claimed=claimed, taken=taken)

    return died


def test_a_sandboxd_that_died_with_its_worker_is_waited_for(supervised, broker, admin):
    found = supervised(admin, away=2)
    assert found.calls == ["w1"] * 3
    assert found.said == ["worker-1: 1 of its jobs went back to the queue"]
    assert (found.states, found.shown["status"]) == (["pending", "pending"], "dead")
    assert set(take(broker, "default", 9)) == {found.claimed, found.taken}


def test_what_was_only_taken_is_back_whether_sandboxd_is_or_not(supervised, broker, admin):
    found = supervised(admin, away=9)
    assert found.calls == ["w1"] * 3
    assert found.said == ["worker-1: its jobs come back when their leases lapse (engine_unavailable: sandboxd is away)"]
    assert found.states == ["processing", "pending"], "nobody knows that its sandbox is dead"
    assert take(broker, "default", 9) == [found.taken]
