"""A job's page: what it says, live, whatever a plugin writes."""

from __future__ import annotations

import base64
import hashlib

from playwright.sync_api import expect

from cloche.domain.events import Trace
from cloche.errors import PlatformFailure, PluginFailure

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGNQm50PRwNFAwAAAAD//wMAsWEgAZ2o9HsAAAAASUVORK5CYII="
)
HOSTILE = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    '"><svg onload=window.hurt=1>',
    "{{ 7 * 7 }} ${7*7}",
    "</pre></section><h1>not ours</h1>",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "photo\u202egnp.exe",
]


def open_job(visit, actor, job_id: str):
    return visit(actor, f"/ui/jobs/{job_id}")


def test_a_jobs_whole_life_on_one_page_without_a_reload(visit, site, person):
    job = site.submit(person, name="from start to end")
    page = open_job(visit, person, job["id"])
    expect(page.locator("[data-live=on]")).to_be_visible()
    page.evaluate("window.notReloaded = true")
    expect(page.locator("#reason")).to_contain_text(
        "Accepted and waiting in its queue; no worker takes jobs from its queue now."
    )
    expect(page.locator("#log")).to_have_text("Nothing yet.")

    hand = site.claim(job["id"])
    expect(page.locator("#reason")).to_contain_text("Running")
    hand.traced(Trace.STARTED)
    hand.write("first line\n")
    expect(page.locator("#log")).to_have_text("first line\n")
    hand.write("second line\n", stream="stderr", progress={"current": 3, "total": 4, "message": "three of four"})
    expect(page.locator("#log .stderr")).to_have_text("second line\n")
    expect(page.get_by_text("3 of 4 · three of four")).to_be_visible()
    hand.write("last line\n")
    hand.succeed(person, {"answer": 42}, {"report.txt": b"made by the job"})

    expect(page.locator("#reason")).to_contain_text("The plugin returned a result.")
    expect(page.locator("pre.result")).to_have_text('{\n  "answer": 42\n}')
    expect(page.locator("#log")).to_have_text("first line\nsecond line\nlast line\n")
    expect(page.locator("#log [hx-get]")).to_have_count(0)
    expect(page.locator("#job-main")).to_contain_text(hashlib.sha256(b"made by the job").hexdigest())
    expect(page.locator("#job-flow")).to_contain_text("Waited in its queue")
    expect(page.locator("#job-flow")).to_contain_text("Completed")
    expect(page.get_by_text("Cancel…")).to_have_count(0)
    assert page.evaluate("window.notReloaded")


def test_an_output_can_be_downloaded_and_its_bytes_are_the_jobs(visit, site, person):
    job = site.submit(person)
    site.claim(job["id"]).succeed(person, {}, {"report.txt": b"made by the job"})
    page = open_job(visit, person, job["id"])
    with page.expect_download() as started:
        page.get_by_role("link", name="Download report.txt").click()
    assert started.value.path().read_bytes() == b"made by the job"


def test_pictures_are_previewed_and_nothing_else_is(visit, site, person):
    job = site.submit(person)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>window.hurt = 1</script></svg>'
    site.claim(job["id"]).succeed(person, {}, {"small.png": PNG, "drawing.svg": svg, "page.html": b"<h1>x</h1>"})
    page = open_job(visit, person, job["id"])
    expect(page.locator("#job-main figure img")).to_have_count(1)
    picture = page.get_by_alt_text("Preview of small.png")
    picture.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#job-main figure img').naturalWidth === 8")


def test_nothing_hostile_in_names_logs_results_or_files_does_anything(visit, site, person):
    name = "".join(text for text in HOSTILE if text.isprintable())[:190]
    job = site.submit(person, name=name, payload={"title": HOSTILE[0]}, labels={"a": "b"})
    hand = site.claim(job["id"])
    hand.write("\n".join(HOSTILE) + "\r\nrewritten\rover\n")
    hand.traced(
        Trace.STAGED_IN, files=[{"path": HOSTILE[1], "size": 1, "sha256": "0" * 64, "source": HOSTILE[2]}], count=1
    )
    page = open_job(visit, person, job["id"])
    expect(page.locator("#log")).to_contain_text(HOSTILE[0])
    hand.write(HOSTILE[1], stream="stderr", progress={"current": 1, "total": None, "message": HOSTILE[1]})
    expect(page.locator("#log .stderr")).to_have_text(HOSTILE[1])
    files = {f"{text.replace('/', '_')}.png": PNG for text in HOSTILE}
    hand.succeed(person, {"html": HOSTILE, "deep": {"x": HOSTILE[2]}}, files)
    expect(page.locator("pre.result")).to_contain_text(HOSTILE[1])
    expect(page.locator("#job-main figure img")).to_have_count(len(files))
    expect(page.locator("#log .ctl").first).to_have_text("ESC")
    expect(page.locator("#job-main .path .ctl", has_text="U+202E")).to_have_count(1)
    expect(page.get_by_role("heading", name="not ours", exact=True)).to_have_count(0)
    page.goto("/ui/jobs")
    expect(page.locator("tr[data-job]")).to_have_count(1)
    assert page.evaluate("window.hurt") is None
    assert page.locator("main script, main svg[onload], main img[onerror]").count() == 0


def test_a_failure_says_why_with_its_traceback(visit, site, person):
    job = site.submit(person, retry={"max_retries": 0})
    details = {"traceback": "Traceback (most recent call last):\n  ValueError: <b>bold</b>"}
    site.claim(job["id"]).fail(PluginFailure("plugin_failed", "ValueError: no such column", details))
    page = open_job(visit, person, job["id"])
    expect(page.locator("#reason")).to_contain_text("The plugin raised an error: ValueError: no such column.")
    page.get_by_text("Traceback", exact=True).click()
    expect(page.locator("#traceback pre")).to_contain_text("<b>bold</b>")


def test_attempts_are_listed_once_there_are_several(visit, site, person):
    job = site.submit(person)
    first = site.claim(job["id"])
    first.write("from the first\n")
    first.fail(PlatformFailure("lease_lapsed", "its worker is gone"))
    second = site.claim(job["id"])
    second.write("from the second\n")
    page = open_job(visit, person, job["id"])
    expect(page.get_by_role("heading", name="Attempts")).to_be_visible()
    expect(page.locator("#job-flow table")).to_contain_text("Its worker stopped answering.")
    expect(page.locator("#log .attempt")).to_have_text("Attempt 2")
    second.write("and more\n")
    expect(page.locator("#log")).to_contain_text("and more")
    expect(page.locator("#log .attempt")).to_have_count(1)


def test_a_waiting_job_is_canceled_after_a_second_look(visit, site, person):
    job = site.submit(person)
    page = open_job(visit, person, job["id"])
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.locator("#reason")).to_contain_text("Somebody canceled it.")
    assert site.services.jobs.get(person, job["id"])["status"] == "canceled"


def test_the_question_stays_open_while_the_page_renews_itself(visit, site, person):
    job = site.submit(person)
    hand = site.claim(job["id"])
    page = open_job(visit, person, job["id"])
    expect(page.locator("[data-live=on]")).to_be_visible()
    page.get_by_text("Cancel…").click()
    hand.write("x\n", progress={"current": 1, "total": 9, "message": "renewed"})
    expect(page.get_by_text("1 of 9 · renewed")).to_be_visible()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.get_by_text("Cancel asked for; its worker is stopping it.")).to_be_visible()
    assert site.services.jobs.get(person, job["id"])["cancel_requested"]


def test_who_may_not_cancel_is_not_asked(visit, site, person):
    job = site.submit(person)
    page = open_job(visit, site.person("viewer", person.tenant_id), job["id"])
    expect(page.locator("#reason")).to_be_visible()
    expect(page.get_by_text("Cancel…")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/ui/sign-in")
    other = open_job(visit, person, job["id"])
    expect(other.get_by_text("Cancel…")).to_be_visible()


def test_a_long_log_is_shown_from_near_its_end(visit, site, person):
    job = site.submit(person)
    hand = site.claim(job["id"])
    hand.write(*[f"line {number}\n" for number in range(1, 2_101)])
    page = open_job(visit, person, job["id"])
    expect(page.locator("#log")).to_contain_text("the beginning is left out here")
    expect(page.locator("#log")).to_contain_text("line 2100")
    assert "line 99\n" not in page.locator("#log").inner_text()
