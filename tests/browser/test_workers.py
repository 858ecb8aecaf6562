"""The page of workers: numbers that renew themselves, and a drain after a second look."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import expect

from cloche.clock import now_ms, uuid7
from cloche.db import tables as t

ADMIN = SimpleNamespace(username="admin")  # of the platform


@pytest.fixture
def worker(site):
    """A worker that is alive; gone at the end."""
    worker_id = uuid7()
    service, db = site.services.workers, site.services.db
    resources = {"cpu_count": 8, "load": 0.25, "memory_total": 16 << 30, "memory_free": 3 << 30}
    resources |= {"disk_total": 2 << 40, "disk_free": 1 << 40}
    service.register(worker_id, "<b>host</b>", 7, ["default"], 4, None, {"zone": "eu"})
    db.write(lambda c: service.beat(c, worker_id, "alive", None, now_ms() + 600_000, resources))
    yield worker_id
    db.write(lambda c: c.execute(t.worker.delete()))


def test_a_worker_is_drained_after_a_second_look_that_stays_open(visit, site, worker):
    page = visit(ADMIN, "/ui/workers")
    row = page.locator(f"tr[data-worker='{worker}']")
    expect(row).to_contain_text("<b>host</b>")
    expect(row).to_contain_text("zone=eu")
    expect(row).to_contain_text("3 GB of 16 GB memory")
    button = row.get_by_role("button", name="Drain this worker")
    expect(button).to_be_hidden()
    row.get_by_text("Drain…").click()
    expect(button).to_be_visible()
    with page.expect_response(lambda answer: answer.url.endswith("/ui/workers")):
        page.evaluate("document.body.dispatchEvent(new Event('cloche:poll'))")
    expect(button).to_be_visible()
    button.click()
    expect(row.locator(".tag").first).to_have_text("draining")
    expect(row.get_by_text("Drain…")).to_have_count(0)
    assert site.services.workers.list(site.person())[0]["drain_requested"]


def test_who_may_not_sees_the_worker_and_no_button(visit, site, person, worker):
    page = visit(person, "/ui/workers")
    expect(page.locator(f"tr[data-worker='{worker}']")).to_contain_text("alive")
    expect(page.get_by_text("Drain", exact=False)).to_have_count(0)


def test_numbers_renew_themselves(visit, site, person):
    page = visit(person, "/ui/workers")
    minute = page.locator("#statistics tr[data-window='1m'] td")
    expect(minute.nth(1)).to_have_text("0")
    site.claim(site.submit(person)["id"]).succeed(person, {})
    page.evaluate("document.body.dispatchEvent(new Event('cloche:poll'))")
    expect(minute.nth(1)).to_have_text("1")
    expect(minute.nth(3)).to_have_text("1")
