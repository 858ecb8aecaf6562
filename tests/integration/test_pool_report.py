"""What a worker tells of its host's pools, and what it tells the pools of disabled versions."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, select, update

from cloche.db import tables as t
from cloche.errors import PlatformFailure
from cloche.services.workers import WorkerService
from cloche.worker.pools import PoolReport
from tests.support.stores import until
from tests.support.web import running_site

NUMBERS = dict.fromkeys(
    ("warm", "filling", "busy", "hits", "cold_starts", "evictions", "expired", "lost", "failures", "memory"), 1
)


class Pools:
    """sandboxd's side: the pools there are, and which were retired."""

    def __init__(self, *bundles: str) -> None:
        self.items = [{"bundle": bundle, "last_error": None, **NUMBERS} for bundle in bundles]
        self.retired: list[str] = []
        self.failure: PlatformFailure | None = None

    def pools(self) -> list[dict[str, Any]]:
        if self.failure is not None:
            raise self.failure
        return list(self.items)

    def retire(self, bundle: str) -> int:
        self.retired.append(bundle)
        self.items = [item for item in self.items if item["bundle"] != bundle]
        return 1


@pytest.fixture
def versions(db) -> dict[str, str]:
    """Digest by version of a plugin that is known and enabled."""
    found = {"1.0.0": "a" * 64, "2.0.0": "b" * 64}
    rows = [
        {"name": "noop", "version": version, "digest": digest, "manifest": {}, "first_seen_at": 1}
        for version, digest in found.items()
    ]
    db.write(lambda c: c.execute(insert(t.plugin_version), rows))
    WorkerService(db).register("w1", "host", 1, ["default"], 2)
    return found


def put(db, version: str, state: str) -> None:
    mine = t.plugin_version.c.version == version
    db.write(lambda c: c.execute(update(t.plugin_version).where(mine).values(state=state)))


def told(db) -> Any:
    return db.read(lambda c: c.execute(select(t.worker.c.pools)).scalar_one())


def test_operators_see_versions_and_numbers(db, versions) -> None:
    PoolReport(db, Pools(versions["1.0.0"], "f" * 64), "w1", 60).once()
    assert told(db) == [{"plugin": "noop", "version": "1.0.0", "last_error": None, **NUMBERS}]
    assert WorkerService(db).pools() == {"host": told(db)}


@pytest.mark.parametrize("state", ["disabled", "yanked"])
def test_a_closed_version_is_retired_and_asked_for_no_more(db, versions, state: str) -> None:
    pools = Pools(*versions.values())
    report = PoolReport(db, pools, "w1", 60)
    report.once()
    assert pools.retired == []
    put(db, "2.0.0", state)
    report.once()
    assert pools.retired == [versions["2.0.0"]]
    assert report.retired(versions["2.0.0"])
    assert not report.retired(versions["1.0.0"])
    report.once()
    assert pools.retired == [versions["2.0.0"]], "there is nothing left to retire"
    assert report.retired(versions["2.0.0"]), "although it has no pool any more"
    put(db, "2.0.0", "enabled")
    report.once()
    assert not report.retired(versions["2.0.0"])


def test_a_version_that_was_closed_before_it_had_a_pool_gets_none(db, versions) -> None:
    """A worker that starts afterwards, or one that never had a job of it."""
    put(db, "1.0.0", "yanked")
    report = PoolReport(db, Pools(), "w1", 60)
    report.once()
    assert report.retired(versions["1.0.0"])
    assert not report.retired(versions["2.0.0"])


def test_a_deprecated_version_keeps_what_waits(db, versions) -> None:
    put(db, "1.0.0", "deprecated")
    pools = Pools(versions["1.0.0"])
    report = PoolReport(db, pools, "w1", 60)
    report.once()
    assert (pools.retired, report.retired(versions["1.0.0"])) == ([], False)


def test_a_sandboxd_that_is_away_ends_nothing(db, versions) -> None:
    pools = Pools(versions["1.0.0"])
    pools.failure = PlatformFailure("engine_unavailable", "away")
    report = PoolReport(db, pools, "w1", 0.01)
    report.start()
    try:
        pools.failure = None
        until(lambda: told(db), 10, "it is told when it is back")
    finally:
        report.close()


def test_the_pools_of_a_host_over_rest_and_on_the_page(tmp_path) -> None:
    pool = {"plugin": "noop", "version": "1.0.0", "last_error": "its setup raised an error", **NUMBERS}
    with running_site(tmp_path) as site:
        for worker in ("w1", "w2"):
            site.services.workers.register(worker, "host-1", 1, ["default"], 2)
        site.services.db.write(lambda c: c.execute(update(t.worker).values(pools=[pool])))
        site.add("olga", "operator")
        items = site.request("GET", "/workers", "olga").json["items"]
        assert [item["pools"] for item in items] == [[pool], [pool]]
        client, _ = site.browser("olga")
        page = client.get("/ui/workers").text
        assert page.count("its setup raised an error") == 1, "once for a host"
        site.services.workers.leave("w1", "stopped")
        site.services.workers.leave("w2", "stopped")
        assert [item["pools"] for item in site.request("GET", "/workers", "olga").json["items"]] == [[], []]
        assert site.services.workers.pools() == {}
