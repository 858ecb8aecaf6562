"""Sign in and out, and where that leads."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.support.browser import PASSWORD


def fill(page, username: str, password: str) -> None:
    page.get_by_label("User name").fill(username)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def test_a_wrong_password_is_refused_in_words_and_the_name_is_kept(visit, person):
    page = visit(None, "/ui/sign-in")
    fill(page, person.username, "not the password")
    expect(page.get_by_role("alert")).to_contain_text("User name and password do not fit.")
    expect(page.get_by_label("User name")).to_have_value(person.username)
    expect(page.get_by_label("Password")).to_have_value("")
    fill(page, person.username, PASSWORD)
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


def test_signing_in_leads_to_the_page_that_was_asked_for_and_signing_out_closes_it(visit, site, person):
    job = site.submit(person, name="asked for")
    page = visit(person, f"/ui/jobs/{job['id']}")
    expect(page.get_by_role("heading", name="asked for")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/ui/sign-in")
    page.goto(f"/ui/jobs/{job['id']}")
    expect(page.get_by_label("Password")).to_be_visible()


@pytest.mark.parametrize(
    "target", ["//evil.example/ui/jobs", "https://evil.example/ui/", "/ui/\\evil", "/api/v1/me", "javascript:alert(1)"]
)
def test_signing_in_never_leads_to_another_place(visit, site, person, target):
    page = visit(None, "/ui/sign-in")
    page.goto(f"/ui/sign-in?next={target}")
    fill(page, person.username, PASSWORD)
    page.wait_for_url(f"{site.url}/ui/jobs")


def test_a_form_without_the_sessions_token_is_refused(visit, person):
    page = visit(person)
    page.locator("form[action$='sign-out'] input[name=csrf_token]").evaluate("field => { field.value = 'forged' }")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="This form has lapsed")).to_be_visible()
    page.goto("/ui/jobs")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


def test_a_page_that_does_not_exist_says_so(visit, person):
    page = visit(person)
    page.goto("/ui/jobs/0190aaaa-0000-7000-8000-000000000000")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    expect(page.get_by_role("link", name="Back to the jobs")).to_be_visible()


def test_somebody_elses_job_is_not_found(visit, site, person):
    hidden = site.submit(site.person(), name="another tenant's")
    page = visit(person)
    page.goto(f"/ui/jobs/{hidden['id']}")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
