"""Users, roles and tenants: made, given and taken by hand, with every refusal beside what it is about."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from cloche.clock import uuid7
from cloche.domain.permissions import Kind
from cloche.services.actors import Origin
from tests.support.browser import PASSWORD

NEW = "seven quiet otters by the weir"


@pytest.fixture
def name():
    return f"ada-{uuid7()[-6:]}"


def box(page, permission: str):
    return page.locator(f"input[name=permission][value='{permission}']")


def test_a_person_is_made_by_a_link_and_signs_in_with_the_password_they_set(visit, site, person, name, browser):
    page = visit(person, "/ui/users")
    page.get_by_role("link", name="New user").click()
    page.get_by_label("User name").fill("Ädä <script>")
    page.get_by_role("button", name="Make the user").click()
    expect(page.locator("#wrong-username")).to_contain_text("2 to 63")
    expect(page.get_by_label("User name")).to_have_value("Ädä <script>")
    page.get_by_label("User name").fill(name)
    page.get_by_role("button", name="Make the user").click()
    link = page.get_by_label("Copy it now").input_value()
    theirs = browser.new_page()
    theirs.goto(link)
    theirs.get_by_label("New password", exact=True).fill(NEW)
    theirs.get_by_label("New password again").fill(NEW)
    theirs.get_by_role("button", name="Set the password").click()
    expect(theirs.locator("#said")).to_contain_text("The password is set.")
    theirs.context.close()
    assert site.services.access.check_credentials(name, NEW, Origin()).roles == {"submitter"}
    page.goto("/ui/users")
    page.get_by_label("Name", exact=True).fill(name[:6].upper())
    page.get_by_role("button", name="Find").click()
    expect(page.locator("tr[data-user]")).to_have_count(1)


def test_what_somebody_could_do_and_why_follows_their_roles(visit, site, person, name):
    site.services.roles.create(person, "night-watch", "<b>At night</b>", ["job:read", "queue:pause"])
    made = site.services.users.create(person, name, PASSWORD, ["viewer"])
    page = visit(person, f"/ui/users/{made['id']}")
    expect(page.locator("li[data-permission='job:read']")).to_contain_text("viewer")
    expect(page.locator("li[data-permission='queue:pause']")).to_have_count(0)
    page.get_by_label("night-watch").check()
    expect(page.locator("#roles")).to_contain_text("<b>At night</b>")
    page.get_by_role("button", name="Set the roles").click()
    expect(page.locator("#said")).to_contain_text("The roles are set.")
    expect(page.locator("li[data-permission='queue:pause']")).to_contain_text("night-watch")
    expect(page.locator("li[data-permission='job:read'] .tag")).to_have_count(2)
    site.services.users.set_roles(person, made["id"], ["operator"])
    page.get_by_label("viewer").uncheck()
    page.get_by_role("button", name="Set the roles").click()
    expect(page.locator("#refused")).to_contain_text("Somebody else has changed this user")
    assert site.services.users.get(person, made["id"])["roles"] == ["operator"]


def test_disabling_ends_sessions_at_once_and_the_last_administrator_stays(visit, site, person, name):
    made = site.services.users.create(person, name, PASSWORD, ["submitter"])
    session = site.services.access.sign_in(name, PASSWORD, Origin())
    page = visit(person, f"/ui/users/{made['id']}")
    page.locator("#disable summary").click()
    page.get_by_role("button", name="Disable this account").click()
    expect(page.locator("#said")).to_contain_text("The account is disabled.")
    assert site.services.access.resume(session.secret, Origin()) is None
    page.goto(f"/ui/users/{person.user_id}")
    page.locator("#remove summary").click()
    page.get_by_role("button", name="Take them out").click()
    expect(page.locator("#wrong-form")).to_contain_text("last administrator")


def test_a_service_account_gets_a_token_and_loses_it(visit, site, person, name):
    made = site.services.users.create(person, name, None, ["submitter"], Kind.SERVICE)
    page = visit(person, f"/ui/users/{made['id']}")
    expect(page.get_by_text("Reset password")).to_have_count(0)
    page.locator("#tokens").get_by_role("link", name="New token").click()
    expect(box(page, "user:manage")).to_have_count(0)
    page.get_by_label("Name", exact=True).fill("ci")
    box(page, "job:read").check()
    page.get_by_role("button", name="Make the token").click()
    text = page.get_by_label("Copy it now").input_value()
    assert site.services.access.authenticate_token(text, Origin()).username == name
    page.locator("#tokens summary", has_text="Revoke…").click()
    page.get_by_role("button", name="Revoke this token").click()
    expect(page.locator("#tokens")).to_contain_text("None is valid.")


def test_a_role_is_made_changed_seen_in_the_matrix_and_removed(visit, site, person):
    page = visit(person, "/ui/roles")
    expect(page.locator("tr[data-permission='job:submit'] .yes")).to_have_count(4)
    page.get_by_role("link", name="viewer").click()
    expect(page.locator("#allows")).to_contain_text("job:read")
    page.get_by_role("link", name="New role like this").click()
    expect(box(page, "job:read")).to_be_checked()
    page.get_by_label("Name", exact=True).fill("adrnin")
    page.get_by_role("button", name="Make the role").click()
    expect(page.locator("#wrong-name")).to_contain_text("built-in role")
    expect(box(page, "job:read")).to_be_checked()
    page.get_by_label("Name", exact=True).fill("night-watch")
    box(page, "job:submit").check()
    page.get_by_role("button", name="Make the role").click()
    expect(page.locator("#who")).to_contain_text("Nobody.")
    site.services.roles.change(person, "night-watch", "theirs", ["job:read"])
    box(page, "job:cancel").check()
    page.get_by_role("button", name="Save the role").click()
    expect(page.locator("#refused")).to_contain_text("Somebody else has changed this role")
    expect(box(page, "job:cancel")).to_be_checked()
    page.get_by_role("button", name="Save the role").click()
    expect(page.locator("#said")).to_contain_text("The role is changed.")
    page.goto("/ui/roles")
    expect(page.locator("tr[data-permission='job:submit'] .yes")).to_have_count(5)
    page.goto("/ui/roles/night-watch")
    page.locator("#delete-role summary").click()
    page.get_by_role("button", name="Remove this role").click()
    expect(page.locator("#said")).to_contain_text("is removed")


def test_a_platform_administrator_makes_enters_suspends_empties_and_removes_a_tenant(visit, site):
    called = f"lab-{uuid7()}"
    root = type("Root", (), {"username": "admin"})
    page = visit(root, "/ui/tenants/new")
    page.get_by_label("Name", exact=True).fill(called)
    page.get_by_label("First administrator").fill("nobody-of-that-name")
    page.get_by_role("button", name="Make the tenant").click()
    expect(page.locator("#wrong-admin")).to_contain_text("There is no such user")
    page.get_by_label("First administrator").fill("")
    page.get_by_role("button", name="Make the tenant").click()
    expect(page.get_by_role("heading", name=called)).to_be_visible()
    address = page.url
    page.get_by_role("button", name="Go there").click()
    expect(page.locator(".who")).to_contain_text(called)
    page.locator(".who a").click()
    page.get_by_role("button", name=re.compile("Go to default")).click()
    page.goto(address)
    page.locator("#suspend summary").click()
    page.get_by_role("button", name="Suspend this tenant").click()
    page.get_by_label("Type the tenant's name").fill("default")
    page.get_by_role("button", name="Empty it").click()
    expect(page.locator("#wrong-confirm")).to_be_visible()
    page.get_by_label("Type the tenant's name").fill(called)
    page.get_by_role("button", name="Empty it").click()
    expect(page.locator("#emptied")).to_contain_text("Nothing is left.")
    page.locator("#delete-tenant summary").click()
    page.get_by_role("button", name="Remove this tenant").click()
    expect(page.locator("#said")).to_have_text("The tenant is removed.")
