"""The record and secrets by hand: sought through, verified, proved, exported; values that go in and never come out."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.support.audit import attacker


@pytest.fixture
def sealed(site, person):
    """Some events of the person's tenant, in the signed tree."""
    site.services.roles.create(person, "clerk", "", ["job:read"])
    site.services.access.create_token(person, "ci", ["job:read"])
    site.seal()


def test_the_trail_is_filtered_and_what_is_found_exported(visit, site, person, sealed):
    page = visit(person, "/ui/audit")
    rows = page.locator("tr[data-event]")
    page.get_by_label("What", exact=True).fill("role:create")
    page.get_by_label("Who", exact=True).fill(person.username)
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("role:clerk")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export what is found").click()
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert sum(line.get("event", {}).get("action") == "role:create" for line in lines) == 1
    assert not any(line.get("event", {}).get("action") == "token:create" for line in lines)
    page.get_by_label("Outcome").select_option("denied")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    page.get_by_role("link", name="All again").click()
    page.get_by_label("Until").fill("2020-01-01T00:00")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()


def test_one_event_shows_its_digests_and_gives_its_proof(visit, person, sealed):
    page = visit(person, "/ui/audit?action=role:create")
    page.locator("tr[data-event] a").first.click()
    expect(page.locator("#digests dd").nth(1)).to_have_text(re.compile("^[0-9a-f]{64}$"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download its proof").click()
    proof = json.loads(download.value.path().read_text())
    assert proof["event"]["object"] == "role:clerk"
    page.goto("/ui/audit/checkpoints")
    expect(page.locator("tr[data-batch]").first).to_be_visible()
    expect(page.get_by_label("Verify under this one")).to_have_value(re.compile("^cloche.audit/"))


def test_the_verdict_is_seen_and_said_whether_good_or_bad(visit, site, person, sealed):
    page = visit(person, "/ui/audit?actor=nobody")
    site.seal()
    page.get_by_role("button", name="Verify now").click()
    expect(page.locator("#verdict.verdict-good h2")).to_have_text("Valid")
    expect(page.get_by_label("Who", exact=True)).to_have_value("nobody")
    try:
        change(site, "role:other", "role:clerk")
        page.get_by_role("button", name="Verify now").click()
        expect(page.locator("#verdict.verdict-bad h2")).to_have_text("Tampered")
        expect(page.locator("#verdict")).to_contain_text("The first thing that is wrong: event number")
    finally:
        change(site, "role:clerk", "role:other")


def change(site, to: str, of: str) -> None:
    """As somebody does who holds the database's file."""
    with attacker(site.home / "cloche.db") as connection:
        connection.execute("UPDATE audit_event SET object = ? WHERE object = ?", (to, of))


def test_a_secret_goes_in_is_granted_and_never_comes_out(visit, site, person):
    page = visit(person, "/ui/secrets/new")
    page.get_by_label("Name", exact=True).fill("lower case")
    page.get_by_label("Value", exact=True).fill("hunter2 hunter2")
    page.get_by_role("button", name="Store it").click()
    expect(page.locator("#wrong-name")).to_be_visible()
    expect(page.get_by_label("Value", exact=True)).to_have_value("")
    page.get_by_label("Name", exact=True).fill("DB_PASSWORD")
    page.get_by_label("Value", exact=True).fill("hunter2 hunter2")
    page.get_by_role("button", name="Store it").click()
    expect(page.locator("#granted")).to_have_text("Nobody: no plugin gets it.")
    page.get_by_label("Grants").fill("echo ==1.0.0\nEcho *")
    page.get_by_role("button", name="Set the grants").click()
    expect(page.locator("#wrong-grants")).to_contain_text("Echo *: ")
    page.get_by_label("Grants").fill("echo ==1.0.0\nother *")
    page.get_by_role("button", name="Set the grants").click()
    expect(page.locator("#granted li")).to_have_count(2)
    assert "hunter2" not in page.content()
    site.services.secrets.put(person, "DB_PASSWORD", "theirs", None, 2)
    page.get_by_label("Value", exact=True).fill("mine, later")
    page.get_by_role("button", name="Replace it").click()
    expect(page.locator("#refused")).to_contain_text("Somebody else has changed this secret")
    page.get_by_label("Value", exact=True).fill("mine, later")
    page.get_by_role("button", name="Replace it").click()
    expect(page.locator("#said")).to_contain_text("The value is replaced.")
    page.locator("#delete-secret summary").click()
    page.get_by_role("button", name="Remove this secret").click()
    expect(page.get_by_role("heading", name="None")).to_be_visible()
