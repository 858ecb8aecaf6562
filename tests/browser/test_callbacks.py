"""What callbacks have told: of one job, and of all of them."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect
from sqlalchemy import update

from cloche.clock import now_ms
from cloche.db import tables as t

HOSTILE = "<script>window.hurt = 1</script>\x1b[31m"


@pytest.fixture
def told(site, person):
    """Two jobs that have ended: of one nobody has been told yet, of the other a receiver did not want to know."""
    ids = []
    for host in ("waits.example", "failed.example"):
        job = site.submit(person, name=host, callback={"url": f"https://{host}/hook?key=squirrel"})
        site.claim(job["id"]).succeed(person, {})
        ids.append(job["id"])
    delivery = t.callback_delivery
    failed = {"status": "given_up", "attempts": 7, "last_status": 500, "last_outcome": "refused", "last_error": HOSTILE}
    failed |= {"last_attempt_at": now_ms(), "ended_at": now_ms()}
    site.services.db.write(lambda c: c.execute(update(delivery).where(delivery.c.job_id == ids[1]).values(failed)))
    return ids


def test_deliveries_of_all_jobs_by_state(visit, site, person, told):
    page = visit(person, "/ui/callbacks")
    expect(page.locator("tr[data-delivery]")).to_have_count(2)
    row = page.get_by_role("row").filter(has_text="failed.example:443")
    for text in ("given up", "7", "HTTP 500", "<script>window.hurt = 1</script>"):
        expect(row).to_contain_text(text)
    assert page.evaluate("window.hurt") is None
    assert "squirrel" not in page.content()
    page.get_by_role("link", name="To be told").click()
    expect(page.locator("tr[data-delivery]")).to_have_count(1)
    expect(page.locator("tr[data-delivery]")).to_contain_text("next try")
    page.get_by_role("link", name="Delivered").click()
    expect(page.get_by_role("heading", name="None of this kind")).to_be_visible()
    assert page.goto("/ui/callbacks?status=nonsense").status == 422


def test_a_jobs_own_stand_on_its_page(visit, site, person, told):
    page = visit(person, f"/ui/jobs/{told[1]}")
    expect(page.locator("#callbacks")).to_contain_text("failed.example:443")
    expect(page.locator("#callbacks")).to_contain_text("given up")
    plain = site.submit(person)
    page.goto(f"/ui/jobs/{plain['id']}")
    expect(page.locator("#reason")).to_be_visible()
    expect(page.locator("#callbacks")).to_have_count(0)


def test_another_tenant_sees_nothing_of_them(visit, site, told):
    page = visit(site.person(), "/ui/callbacks")
    expect(page.get_by_role("heading", name="Nothing to tell")).to_be_visible()
