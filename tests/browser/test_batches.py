"""Batches in the dashboard: how far one is, live; canceled and retried as a whole."""

from __future__ import annotations

from playwright.sync_api import expect

from cloche.errors import PluginFailure


def submit(site, actor, count: int, name: str | None = "tiles", **more):
    bodies = [{"type": "echo", "payload": {"title": "x"}, "name": f"job {n}", **more} for n in range(count)]
    batch = site.services.batches.submit(actor, name, bodies)
    return batch["id"], [item["id"] for item in site.services.batches.jobs(actor, batch["id"], limit=100)["items"]]


def test_the_list_leads_to_a_batch_that_follows_its_jobs(visit, site, person):
    batch, (first, second, third) = submit(site, person, 3, "<b>tiles</b>")
    submit(site, site.person(), 1, "theirs")
    page = visit(person, "/ui/batches")
    expect(page.locator("tr[data-batch]")).to_have_count(1)
    page.get_by_role("link", name="<b>tiles</b>").click()
    expect(page.locator("[data-live=on]")).to_be_visible()
    page.evaluate("window.notReloaded = true")
    expect(page.locator("#how-far")).to_contain_text("0 of 3 have ended.")
    site.claim(first).succeed(person, {})
    expect(page.locator("#how-far")).to_contain_text("1 of 3 have ended.")
    expect(page.get_by_role("progressbar", name="Jobs that have ended")).to_have_attribute("value", "1")
    expect(page.locator("[data-count=completed]")).to_have_text("1")
    for job_id in (second, third):
        site.claim(job_id).succeed(person, {})
    expect(page.locator("#how-far")).to_contain_text("the last ended")
    assert page.evaluate("window.notReloaded")
    page.get_by_role("link", name="Completed").click()
    expect(page.locator("tr[data-job]")).to_have_count(3)
    page.get_by_role("link", name="job 0").click()
    page.get_by_role("link", name=f"…{batch[-8:]}").click()
    expect(page.get_by_role("heading", name="<b>tiles</b>")).to_be_visible()


def test_a_batch_is_canceled_after_a_question(visit, site, person):
    batch, ids = submit(site, person, 2)
    page = visit(person, f"/ui/batches/{batch}")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this batch").click()
    expect(page.locator("#said")).to_have_text("What was waiting is canceled; what runs is being stopped.")
    expect(page.locator("[data-count=canceled]")).to_have_text("2")
    expect(page.get_by_text("Cancel…")).to_have_count(0)
    page.reload()
    expect(page.locator("#said")).to_have_count(0)
    assert {site.services.jobs.get(person, one)["status"] for one in ids} == {"canceled"}


def test_what_failed_is_retried(visit, site, person):
    batch, (first, _) = submit(site, person, 2, None, retry={"max_retries": 0})
    site.claim(first).fail(PluginFailure("plugin_failed", "boom"))
    page = visit(person, f"/ui/batches/{batch}?status=failed")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    page.get_by_role("button", name="Retry what failed").click()
    expect(page.locator("#said")).to_contain_text("is in line again")
    expect(page.locator("[data-count=pending]")).to_have_text("2")
    assert site.services.jobs.get(person, first)["run"] == 2


def test_without_scripts_and_without_the_right_to_do_more_than_look(browser, site, person):
    batch, _ = submit(site, person, 2)
    viewer = site.person("viewer", person.tenant_id)
    with browser.new_context(base_url=site.url, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"/ui/batches/{batch}")
        page.get_by_label("User name").fill(viewer.username)
        page.get_by_label("Password").fill("a long enough password")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#how-far")).to_contain_text("0 of 2 have ended.")
        expect(page.locator("tr[data-job]")).to_have_count(2)
        expect(page.get_by_text("Cancel…")).to_have_count(0)
        assert page.goto("/ui/batches/nonsense").status == 404
        assert page.goto(f"/ui/batches/{batch}?status=nonsense").status == 422
