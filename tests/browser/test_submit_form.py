"""Submitting from the browser: what is sent, what is refused where, and that nothing typed is lost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from playwright.sync_api import expect

from cloche.domain.permissions import PLATFORM_PERMISSIONS

CSV = {"name": "table.csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"}
TXT = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"some notes"}
SUBMIT = "/ui/submit?plugin=echo@1.0.0"


def send(page) -> None:
    page.get_by_role("button", name="Submit", exact=True).click()


def the_job(site, person):
    items = site.services.jobs.list(person, {})["items"]
    assert len(items) == 1
    return items[0]


def test_choose_a_plugin_fill_it_in_and_hand_over_files(visit, site, person):
    page = visit(person, "/ui/submit")
    page.get_by_label("Plugin").select_option("echo@1.0.0")
    page.get_by_role("button", name="Choose").click()
    payload = page.get_by_label("Payload")
    assert json.loads(payload.input_value()) == {"title": "", "width": 256}
    expect(page.get_by_text("integer, at least 1, at most 4096; usually 256")).to_be_visible()
    payload.fill('{"title": "Spring", "width": 64}')
    page.get_by_label("Name (optional)").fill("Two tables")
    page.get_by_label("Priority").select_option("9")
    page.get_by_label("Files", exact=True).set_input_files([CSV, TXT])
    send(page)
    expect(page.get_by_role("heading", name="Two tables")).to_be_visible()
    expect(page.locator("#job-side")).to_contain_text("table.csv")
    job = the_job(site, person)
    assert (job["payload"], job["priority"], job["name"]) == ({"title": "Spring", "width": 64}, 9, "Two tables")
    stored = [site.services.files.get(person, item["from"].removeprefix("artifact:")) for item in job["inputs"]]
    assert [file["sha256"] for file in stored] == [hashlib.sha256(file["buffer"]).hexdigest() for file in (CSV, TXT)]


def test_a_refused_payload_is_told_at_its_field_and_all_that_was_typed_is_kept(visit, site, person):
    page = visit(person, SUBMIT)
    typed = '{"title": "",\n  "width": 9000, "colour": "<b>"}'
    page.get_by_label("Payload").fill(typed)
    page.get_by_label("Name (optional)").fill("kept <i>name</i>")
    page.get_by_label("Priority").select_option("7")
    page.get_by_label("Files", exact=True).set_input_files(CSV)
    send(page)
    expect(page.get_by_role("alert")).to_be_focused()
    wrong = page.locator("#wrong-payload")
    expect(wrong).to_contain_text("/width:")
    expect(wrong).to_contain_text("/title:")
    expect(page.get_by_label("Payload")).to_have_value(typed)
    expect(page.get_by_label("Payload")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Name (optional)")).to_have_value("kept <i>name</i>")
    expect(page.get_by_label("Priority")).to_have_value("7")
    expect(page.get_by_label("table.csv")).to_be_checked()
    page.get_by_label("Payload").fill('{"title": "now right"}')
    send(page)
    expect(page.get_by_role("heading", name="kept <i>name</i>")).to_be_visible()
    assert [item["to"] for item in the_job(site, person)["inputs"]] == ["table.csv"]


def test_text_that_is_not_json_is_told_with_its_place(visit, site, person):
    page = visit(person, SUBMIT)
    page.get_by_label("Payload").fill('{"title": "x",\n "width" 3}')
    send(page)
    expect(page.locator("#wrong-payload")).to_contain_text(
        "This is not valid JSON: Expecting ':' delimiter at line 2, column 10."
    )
    assert site.services.jobs.list(person, {})["items"] == []


def test_files_and_remotes_that_do_not_fit_are_told_at_their_fields(visit, site, person):
    page = visit(person, SUBMIT)
    page.get_by_label("Payload").fill('{"title": "x"}')
    page.get_by_label("Files", exact=True).set_input_files(
        {"name": "page.html", "mimeType": "text/html", "buffer": b"<p>"}
    )
    page.get_by_text("Files from and to remotes").click()
    page.get_by_label("Inputs from remotes").fill("nowhere:folder/*.csv\n:local:/etc/passwd => p.txt")
    page.get_by_label("Outputs to remotes").fill("*.png => nowhere:thumbs")
    send(page)
    expect(page.locator("#wrong-files")).to_contain_text("'page.html' is not what echo accepts")
    expect(page.locator("#wrong-remote-inputs")).to_contain_text("nowhere")
    expect(page.locator("#wrong-outputs")).to_contain_text("nowhere")
    expect(page.get_by_label("Outputs to remotes")).to_have_value("*.png => nowhere:thumbs")
    page.get_by_label("Outputs to remotes").fill("*.png")
    send(page)
    expect(page.locator("#wrong-outputs")).to_contain_text("says not where to")
    assert site.services.jobs.list(person, {})["items"] == []


def test_a_file_above_the_limit_is_refused_in_words(visit, site, person):
    page = visit(person, SUBMIT)
    page.get_by_label("Payload").fill('{"title": "x"}')
    page.get_by_label("Files", exact=True).set_input_files({**CSV, "buffer": b"x" * ((1 << 20) + 10)})
    send(page)
    expect(page.locator("#wrong-files")).to_contain_text("table.csv:")
    expect(page.get_by_label("Payload")).to_have_value('{"title": "x"}')


def test_the_same_form_sent_twice_makes_one_job(visit, site, person):
    page = visit(person, SUBMIT)
    names = ("csrf_token", "plugin", "nonce")
    form = {name: page.locator(f"form[method=post] [name={name}]").last.input_value() for name in names}
    form |= {"payload": '{"title": "once"}', "priority": "5"}
    places = [page.request.post("/ui/submit", multipart=form, max_redirects=0).headers["location"] for _ in range(2)]
    assert places == [f"/ui/jobs/{the_job(site, person)['id']}"] * 2
    changed = page.request.post("/ui/submit", multipart=form | {"priority": "6"}, max_redirects=0)
    assert changed.headers["location"] != places[0]


def test_a_queue_is_offered_where_there_is_a_choice(visit, site, person):
    page = visit(person, SUBMIT)
    expect(page.get_by_label("Queue")).to_have_count(0)
    platform = replace(person, permissions=person.permissions | PLATFORM_PERMISSIONS)
    site.services.queues.create(platform, "nightly", None, None)
    try:
        page.reload()
        page.get_by_label("Payload").fill('{"title": "x"}')
        page.get_by_label("Queue").select_option("nightly")
        send(page)
        expect(page.get_by_text("no worker takes jobs from its queue now")).to_be_visible()
        job = the_job(site, person)
        assert job["queue"] == "nightly"
        site.services.jobs.cancel(person, job["id"])
    finally:
        site.services.queues.delete(platform, "nightly")


def test_who_may_only_look_is_offered_no_form(visit, site, person):
    viewer = site.person("viewer", person.tenant_id)
    page = visit(viewer)
    expect(page.get_by_text("Your account may look, not submit")).to_be_visible()
    expect(page.get_by_role("link", name="Submit")).to_have_count(0)
    page.goto(SUBMIT)
    expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
