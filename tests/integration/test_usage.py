"""`GET /usage`: sums by day, user and tenant, of whole days, within what the caller may see."""

from __future__ import annotations

import pytest

from cloche.clock import now_ms, to_rfc3339, uuid7
from cloche.domain.metering import Metered
from cloche.domain.quotas import DAY_MS, day_of
from cloche.services import usage_rows
from tests.support import stores
from tests.support.web import problem, running_site, where

ONE = Metered(
    attempts=1, cpu_ms=1_500, memory_mb_ms=1_024_000, bytes_in=10, bytes_out=20, bytes_stored=5, wall_ms=2_000
)


@pytest.fixture
def site(tmp_path, database_url):
    with running_site(tmp_path / "home", database=database_url) as made:
        yield made


@pytest.fixture(autouse=True)
def one_day(monkeypatch):
    """What is today to a test stays so, also where midnight passes meanwhile."""
    at = now_ms()
    monkeypatch.setattr(f"{__name__}.now_ms", lambda: at)


def day(back: int) -> str:
    """The day so many days ago, as the API writes it."""
    return str(to_rfc3339((day_of(now_ms()) - back) * DAY_MS))[:10]


def used(site, tenant: str, user: str, back: int = 0, times: int = 1) -> None:
    """Attempts that ended so many days ago, at noon."""
    at = (day_of(now_ms()) - back) * DAY_MS + DAY_MS // 2
    for _ in range(times):
        site.services.db.write(lambda c: usage_rows.add(c, tenant, user, uuid7(), ONE, at))


@pytest.fixture
def told(site):
    """Two users of our tenant on three days, and one of another tenant."""
    mine = site.services.access.default_tenant()
    ann = stores.add_actor(site.services.db, mine, "ann", "submitter").user_id
    bob = stores.add_actor(site.services.db, mine, "bob", "submitter").user_id
    other = stores.add_tenant(site.services.db, "other")
    eve = stores.add_actor(site.services.db, other, "eve", "admin")
    site.tokens["eve"] = site.services.access.create_token(eve, "test")["token"]
    used(site, mine, ann, back=0, times=2)
    used(site, mine, ann, back=1)
    used(site, mine, bob, back=1)
    used(site, mine, bob, back=40)  # before the 30 days that are shown unless asked
    used(site, other, eve.user_id, back=0, times=5)
    return mine, other


def asked(site, user: str = "admin", **query):
    answer = site.request("GET", "/usage", user, query_string=query)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_by_day(site, told):
    found = asked(site)
    assert (found["group"], found["complete"]) == ("day", True)
    assert [(item["day"], item["attempts"]) for item in found["items"]] == [(day(1), 2), (day(0), 2)]
    assert found["total"] == {
        "attempts": 4,
        "cpu_seconds": 6.0,
        "memory_gb_seconds": 4.0,
        "bytes_in": 40,
        "bytes_out": 80,
        "bytes_stored": 20,
        "wall_seconds": 8.0,
    }


def test_by_user(site, told):
    items = asked(site, group="user", since=day(60))["items"]
    assert {(item["user"], item["attempts"]) for item in items} == {("ann", 3), ("bob", 2)}
    assert {item["tenant_id"] for item in items} == {told[0]}


def test_of_every_tenant(site, told):
    items = asked(site, group="tenant", scope="platform")["items"]
    assert {(item["tenant"], item["attempts"]) for item in items} == {("default", 4), ("other", 5)}
    assert asked(site, scope="platform", since=day(0))["total"]["attempts"] == 7
    assert [item["attempts"] for item in asked(site, "eve", group="tenant")["items"]] == [5], (
        "a tenant's admin: one's own"
    )
    problem(site.request("GET", "/usage", "eve", query_string={"scope": "platform"}), 403)


def test_days_are_whole_and_until_is_the_one_after(site, told):
    assert asked(site, since=day(1), until=day(0))["total"]["attempts"] == 2
    assert asked(site, since=day(0))["total"]["attempts"] == 2
    assert asked(site, until=day(1), since=day(40))["total"]["attempts"] == 1
    assert asked(site, since=day(3), until=day(2))["items"] == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-02-30"}, "since"),
        ({"until": "1969-12-31"}, "until"),
        ({"since": "2026-01-01T00:00:00Z"}, "since"),
        ({"group": "job"}, "group"),
        ({"scope": "everything"}, "scope"),
        ({"since": "2026-02-02", "until": "2026-02-02"}, "/since"),
        ({"since": "2026-02-03", "until": "2026-02-02"}, "/since"),
        ({"since": "2024-01-01", "until": "2026-01-01"}, "/since"),
    ],
)
def test_what_are_no_days_is_refused(site, query, named):
    answer = site.request("GET", "/usage", query_string=query)
    assert named in where(problem(answer, answer.status_code)), answer.text
    assert answer.status_code in (400, 422)


def test_who_may_ask(site, told):
    site.add("vera", "viewer")
    problem(site.request("GET", "/usage", "vera"), 403)
    site.add("otto", "operator")
    assert asked(site, "otto")["total"]["attempts"] == 4


def test_a_user_who_is_gone_still_counts(site, told):
    found = site.request("GET", "/users", query_string={"limit": 100}).json["items"]
    ann = next(item["id"] for item in found if item["username"] == "ann")
    etag = site.request("GET", f"/users/{ann}").headers["ETag"]
    gone = site.request("DELETE", f"/users/{ann}", headers={"If-Match": etag})
    assert gone.status_code == 204, gone.text
    items = asked(site, group="user")["items"]
    assert {(item["user_id"] == ann, item["attempts"]) for item in items} == {(True, 3), (False, 1)}
