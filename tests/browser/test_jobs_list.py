"""The list of jobs: it renews itself, with a stream and without one."""

from __future__ import annotations

from playwright.sync_api import expect

from cloche.errors import PluginFailure
from tests.support.stores import until


def row(page, name: str):
    return page.get_by_role("row").filter(has_text=name)


def test_an_empty_list_says_what_to_do_next(visit, person):
    page = visit(person)
    expect(page.get_by_role("heading", name="Nothing planted yet")).to_be_visible()
    page.get_by_role("link", name="Submit the first job").click()
    expect(page.get_by_role("heading", name="Submit a job")).to_be_visible()


def test_a_job_appears_and_its_state_follows_without_a_reload(visit, site, person):
    page = visit(person)
    expect(page.locator("[data-live=on]")).to_have_text("Live")
    page.evaluate("window.notReloaded = true")
    job = site.submit(person, name="watched")
    expect(row(page, "watched")).to_contain_text("Waiting")
    hand = site.claim(job["id"])
    expect(row(page, "watched")).to_contain_text("Running")
    hand.write("half\n", progress={"current": 1, "total": 2, "message": "one of two"})
    expect(row(page, "watched")).to_contain_text("one of two")
    expect(row(page, "watched").get_by_role("progressbar")).to_have_attribute("value", "1")
    hand.succeed(person, {"done": True})
    expect(row(page, "watched")).to_contain_text("Completed")
    assert page.evaluate("window.notReloaded")


def test_another_tenants_jobs_never_show(visit, site, person):
    page = visit(person)
    expect(page.locator("[data-live=on]")).to_be_visible()
    site.submit(site.person(), name="theirs")
    site.submit(person, name="mine")
    expect(row(page, "mine")).to_be_visible()
    expect(row(page, "theirs")).to_have_count(0)


def test_without_a_free_stream_the_list_looks_by_itself(visit, site, person):
    slots, held = site.app.extensions["cloche_slots"], []

    def all_held() -> bool:
        while (slot := slots.take()) is not None:
            held.append(slot)
        return len(held) == site.services.settings.server.max_waits

    until(all_held, 20, "the pages of former tests have let go of theirs")
    try:
        page = visit(person)
        expect(page.locator("[data-live=polling]")).to_have_text("Looking every 3 seconds")
        site.submit(person, name="found anyway")
        expect(row(page, "found anyway")).to_be_visible(timeout=10_000)
    finally:
        for slot in held:
            slot.release()
    expect(page.locator("[data-live=on]")).to_be_visible(timeout=20_000)


def test_while_redis_is_away_the_list_looks_by_itself_and_is_live_again_after(visit, site, person, valkey_server):
    page = visit(person)
    expect(page.locator("[data-live=on]")).to_be_visible()
    valkey_server.kill()
    try:
        expect(page.locator("[data-live=polling]")).to_be_visible(timeout=10_000)
        site.submit(person, name="meanwhile")
        expect(row(page, "meanwhile")).to_be_visible(timeout=10_000)
    finally:
        valkey_server.start()
    expect(page.locator("[data-live=on]")).to_be_visible(timeout=30_000)
    site.submit(person, name="afterwards")
    expect(row(page, "afterwards")).to_be_visible()


def test_filters_by_status_and_plugin(visit, site, person):
    failed = site.submit(person, name="broken", retry={"max_retries": 0})
    site.claim(failed["id"]).fail(PluginFailure("out_of_memory", "64 MB were not enough"))
    site.submit(person, name="in line")
    page = visit(person)
    expect(row(page, "broken")).to_contain_text("The plugin used more memory than its limit: 64 MB were not enough.")
    page.get_by_role("navigation", name="Filter by status").get_by_role("link", name="Failed").click()
    expect(row(page, "broken")).to_be_visible()
    expect(row(page, "in line")).to_have_count(0)
    page.get_by_label("Plugin").select_option("thumbnail")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="No such jobs")).to_be_visible()
    page.get_by_role("link", name="Show all jobs").click()
    expect(row(page, "in line")).to_be_visible()


def test_older_jobs_are_on_further_pages(visit, site, person):
    for number in range(53):
        site.submit(person, name=f"job {number:02d}")
    page = visit(person)
    expect(page.locator("tr[data-job]")).to_have_count(50)
    expect(row(page, "job 52")).to_be_visible()
    page.get_by_role("link", name="Older").click()
    expect(page.locator("tr[data-job]")).to_have_count(3)
    expect(row(page, "job 00")).to_be_visible()
    page.get_by_role("link", name="Newest").click()
    expect(row(page, "job 52")).to_be_visible()
