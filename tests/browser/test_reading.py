"""For everybody: without JavaScript, by keyboard alone, on a narrow screen, in the dark; and the pages that only show."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from cloche.domain.events import Trace
from tests.support.browser import PASSWORD

PAGES = [
    "/ui/jobs",
    "/ui/submit?plugin=echo@1.0.0",
    "/ui/plugins",
    "/ui/plugins/echo/1.0.0",
    "/ui/workers",
    "/ui/audit",
]
PEOPLE = [
    "/ui/account",
    "/ui/account/sessions",
    "/ui/account/tokens",
    "/ui/account/tokens/new",
    "/ui/users",
    "/ui/users/new",
]
RECORD = [
    "/ui/roles",
    "/ui/roles/viewer",
    "/ui/roles/new",
    "/ui/secrets",
    "/ui/secrets/new",
    "/ui/usage",
    "/ui/audit/checkpoints",
]


@pytest.fixture
def finished(site, person):
    job = site.submit(person, name="a-name-without-a-place-to-break-" * 4)
    hand = site.claim(job["id"])
    hand.traced(Trace.STARTED)
    hand.write("a log line\n")
    hand.succeed(person, {"long": "x" * 300}, {"a-file-without-a-place-to-break-" * 5 + ".txt": b"text"})
    return job


class TestWithoutJavaScript:
    @pytest.fixture
    def browser_context_args(self, browser_context_args):
        return {**browser_context_args, "java_script_enabled": False}

    def test_everything_can_be_read_submitted_and_canceled(self, visit, site, person, finished):
        page = visit(person)
        page.get_by_role("link", name=finished["name"]).click()
        expect(page.locator("#reason")).to_contain_text("The plugin returned a result.")
        expect(page.locator("#log")).to_have_text("a log line\n")
        expect(page.locator("time").first).to_contain_text("UTC")
        expect(page.get_by_label("Follow")).to_be_hidden()
        page.goto("/ui/submit")
        page.get_by_label("Plugin").select_option("echo@1.0.0")
        page.get_by_role("button", name="Choose").click()
        page.get_by_label("Payload").fill('{"title": "plain"}')
        page.get_by_role("button", name="Submit", exact=True).click()
        expect(page.locator("#reason")).to_contain_text("Accepted and waiting in its queue")
        page.get_by_text("Cancel…").click()
        page.get_by_role("button", name="Cancel this job").click()
        expect(page.locator("#reason")).to_contain_text("Somebody canceled it.")


def test_by_keyboard_from_signing_in_to_canceling(visit, site, person):
    job = site.submit(person, name="by keyboard")
    page = visit(None, "/ui/jobs")
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.type(person.username)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.url}/ui/jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    link = page.get_by_role("link", name="by keyboard")
    tab_to(page, link)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/jobs/{job['id']}")
    tab_to(page, page.locator("#cancel summary"))
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#cancel-now")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#cancel-now")).to_be_hidden()
    expect(page.locator("#cancel summary")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#reason")).to_contain_text("Somebody canceled it.")


def tab_to(page, target) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError("the keyboard does not reach it")


def test_a_row_keeps_the_focus_when_the_list_renews_itself(visit, site, person):
    site.submit(person, name="focused")
    page = visit(person)
    expect(page.locator("[data-live=on]")).to_be_visible()
    page.get_by_role("link", name="focused").focus()
    site.submit(person, name="newer")
    expect(page.get_by_role("link", name="newer")).to_be_visible()
    expect(page.get_by_role("link", name="focused")).to_be_focused()


class TestNarrow:
    @pytest.fixture
    def browser_context_args(self, browser_context_args):
        return {**browser_context_args, "viewport": {"width": 390, "height": 844}, "has_touch": True}

    @pytest.mark.parametrize("pages", [PAGES, PEOPLE, RECORD], ids=["jobs", "people", "record"])
    def test_no_page_is_wider_than_the_screen(self, visit, site, person, finished, pages):
        page = visit(person)
        for path in [*pages, f"/ui/jobs/{finished['id']}"]:
            page.goto(path)
            expect(page.locator("h1")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


@pytest.mark.parametrize("pages", [PAGES, PEOPLE, RECORD], ids=["jobs", "people", "record"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(visit, site, person, finished, scheme, pages):
    page = visit(person)
    page.emulate_media(color_scheme=scheme)
    for path in [*pages, f"/ui/jobs/{finished['id']}"]:
        page.goto(path)
        for selector in (
            "h1",
            ".muted",
            ".chip",
            "td",
            "dt",
            "dd",
            "a",
            "button",
            "pre",
            "label",
            ".hint",
            ".tag",
            ".live",
            "summary",
        ):
            for element in page.locator(f"body {selector}:visible").all()[:6]:
                found = contrast(element)
                assert found >= 4.5, f"{path} {selector} {scheme}: {found:.2f} ({element.inner_text()[:30]!r})"


def contrast(element) -> float:
    """WCAG's ratio between the element's text and the first opaque background behind it."""
    text, behind = element.evaluate(
        """element => {
            const parts = text => text.match(/[\\d.]+/g).map(Number);
            let node = element, behind = "rgba(0, 0, 0, 0)";
            while (node && parts(behind)[3] === 0) { behind = getComputedStyle(node).backgroundColor; node = node.parentElement; }
            return [parts(getComputedStyle(element).color), parts(behind)];
        }"""
    )
    bright, dark = sorted((luminance(text), luminance(behind)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_plugins_show_their_parameters_and_lead_to_the_form(visit, person):
    page = visit(person, "/ui/plugins")
    page.locator(".card", has_text="echo").get_by_role("link", name="1.0.0").click()
    expect(page.get_by_role("heading", name="echo 1.0.0")).to_be_visible()
    expect(page.locator("dd", has_text="Longest side in pixels.")).to_be_visible()
    page.get_by_role("link", name="Submit a job").click()
    expect(page.get_by_label("Plugin")).to_have_value("echo@1.0.0")


def test_workers_and_queues(visit, site, person):
    site.submit(person)
    page = visit(person, "/ui/workers")
    expect(page.get_by_role("heading", name="No worker is running")).to_be_visible()
    page.get_by_role("table").get_by_role("link", name="1").click()
    expect(page.locator("tr[data-job]")).to_have_count(1)


def test_the_audit_trail_is_listed_and_verified(visit, site, person):
    site.submit(person)
    page = visit(person, "/ui/audit")
    expect(page.get_by_role("row").filter(has_text="job:submit")).to_contain_text(person.username)
    site.seal()
    page.get_by_role("button", name="Verify now").click()
    expect(page.locator("#verdict h2")).to_have_text("Valid")


def test_every_page_keeps_the_strict_policy_and_holds_nothing_inline(visit, site, person, finished):
    page = visit(person)
    for path in [
        "/ui/sign-in",
        "/ui/password-reset",
        *PAGES,
        *PEOPLE,
        *RECORD,
        f"/ui/jobs/{finished['id']}",
        "/ui/jobs/none",
    ]:
        answer = page.request.get(path)
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy, path
        assert "unsafe" not in policy, path
        text = answer.text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text), path
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), path
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", text), path
