"""One's own account: tenants, sessions, tokens, the password, and a new one by a code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import expect
from sqlalchemy import insert

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.services.actors import Origin
from tests.support import stores
from tests.support.browser import PASSWORD

NEW = "seven quiet otters by the weir"


def change(page, current: str, new: str, again: str | None = None) -> None:
    page.get_by_label("Current password").fill(current)
    page.get_by_label("New password", exact=True).fill(new)
    page.get_by_label("New password again").fill(new if again is None else again)
    page.get_by_role("button", name="Change it").click()


def test_a_token_is_made_shown_once_used_and_revoked(visit, site, person):
    page = visit(person, "/ui/account/tokens")
    page.get_by_role("link", name="New token").click()
    page.get_by_label("Name", exact=True).fill("<b>nightly</b>\u202e build")
    page.get_by_label("Only from these addresses").fill("127.0.0.0/8\nno address")
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#refused")).to_be_focused()
    expect(page.locator("#wrong-scopes")).to_have_text("Tick at least one.")
    page.get_by_label("job:read").check()
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#wrong-addresses")).to_contain_text("no address: Has to be an address or a network")
    expect(page.get_by_label("job:read")).to_be_checked()
    page.get_by_label("Only from these addresses").fill("127.0.0.0/8")
    page.get_by_role("button", name="Make the token").click()
    text = page.get_by_label("Copy it now").input_value()
    row = page.locator("#valid tbody tr")
    expect(row).to_contain_text("<b>nightly</b>U+202E build")
    expect(row).to_contain_text("127.0.0.0/8")
    assert site.services.access.authenticate_token(text, Origin("127.0.0.1")).permissions == {"job:read"}
    page.goto("/ui/account/tokens")
    assert text not in page.content()
    page.locator("#valid summary", has_text="Revoke…").click()
    page.get_by_role("button", name="Revoke this token").click()
    expect(page.locator("#said")).to_contain_text("The token is revoked")
    page.locator("#over summary").first.click()
    expect(page.locator("#over tbody tr")).to_contain_text("revoked")


def test_everything_but_handing_on_power_hides_the_boxes(visit, person):
    page = visit(person, "/ui/account/tokens/new")
    expect(page.get_by_label("job:submit")).to_be_visible()
    page.get_by_label("Everything you may do").check()
    expect(page.get_by_label("job:submit")).to_be_hidden()
    page.get_by_label("Name", exact=True).fill("laptop")
    page.get_by_label("Valid for").select_option("for ever")
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#valid tbody tr")).to_contain_text("but hand on power")


def test_sessions_are_listed_and_others_end(visit, site, person, browser):
    page = visit(person, "/ui/account/sessions")
    rows = page.locator("tr[data-session]")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("this one")
    others = [site.services.access.sign_in(person.username, PASSWORD, Origin("192.0.2.7")) for _ in range(3)]
    page.reload()
    rows.filter(has_text="192.0.2.7").first.get_by_role("button", name="End the session").click()
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="End all others").click()
    expect(page.locator("#said")).to_have_text("2 other sessions have ended.")
    expect(rows).to_have_count(1)
    assert [site.services.access.resume(one.secret, Origin()) for one in others] == [None] * 3


def test_a_password_is_changed_and_refusals_stand_beside_their_fields(visit, site, person):
    other = site.services.access.sign_in(person.username, PASSWORD, Origin())
    page = visit(person, "/ui/account")
    change(page, PASSWORD, NEW, NEW + "!")
    expect(page.locator("#wrong-again")).to_have_text("This is not what stands above.")
    change(page, "not the password", NEW)
    expect(page.locator("#wrong-current_password")).to_have_text("The current password does not fit.")
    change(page, PASSWORD, "passwordpassword")
    expect(page.locator("#wrong-new_password")).to_contain_text("tried first")
    expect(page.get_by_label("Current password")).to_have_value("")
    change(page, PASSWORD, NEW)
    expect(page.locator("#said")).to_contain_text("The password is changed.")
    assert site.services.access.resume(other.secret, Origin()) is None
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("User name").fill(person.username)
    page.get_by_label("Password").fill(NEW)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


def test_another_tenant_is_chosen_for_the_session(visit, site, person):
    site.submit(person, name="at home")
    there = stores.add_tenant(site.services.db, f"lab-{uuid7()}")
    role = {"user_id": person.user_id, "tenant_id": there, "role": "viewer"}
    site.services.db.write(lambda c: c.execute(insert(t.user_role), role))
    page = visit(person)
    expect(page.get_by_role("link", name="at home")).to_be_visible()
    page.get_by_role("link", name=person.username).click()
    page.locator(f"li[data-tenant='{there}']").get_by_role("button").click()
    expect(page.locator(f"li[data-tenant='{there}']")).to_contain_text("you are here")
    page.goto("/ui/jobs")
    expect(page.get_by_role("link", name="at home")).to_have_count(0)
    expect(page.get_by_role("link", name="Submit")).to_have_count(0)


class TestReset:
    @pytest.fixture
    def code(self, site, person):
        user = site.person("submitter", person.tenant_id)
        made = site.services.access.create_reset(person, user.user_id)
        return SimpleNamespace(user=user, text=made["code"])

    def test_a_link_leads_to_a_new_password_and_leaves_no_trace_in_the_address(self, visit, code):
        page = visit(None, f"/ui/password-reset#{code.text}")
        expect(page.get_by_label("Code")).to_have_value(code.text)
        assert "cloche_reset" not in page.url
        page.get_by_label("New password", exact=True).fill("passwordpassword")
        page.get_by_label("New password again").fill("passwordpassword")
        page.get_by_role("button", name="Set the password").click()
        expect(page.locator("#wrong-new_password")).to_contain_text("tried first")
        page.get_by_label("New password", exact=True).fill(NEW)
        page.get_by_label("New password again").fill(NEW)
        page.get_by_role("button", name="Set the password").click()
        expect(page.locator("#said")).to_have_text("The password is set. Sign in with it.")
        page.get_by_label("User name").fill(code.user.username)
        page.get_by_label("Password").fill(NEW)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()

    def test_a_code_that_is_worth_nothing_says_no_more(self, visit, code):
        page = visit(None, "/ui/password-reset")
        page.get_by_label("Code").fill(code.text[:-3] + "aaa")
        page.get_by_label("New password", exact=True).fill(NEW)
        page.get_by_label("New password again").fill(NEW)
        page.get_by_role("button", name="Set the password").click()
        expect(page.locator("#wrong-code")).to_contain_text("Ask an administrator for a new one.")
        expect(page.locator("main")).not_to_contain_text(code.user.username)
