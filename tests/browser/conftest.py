"""A real Chromium that fails a test when a page logs an error, breaks the content policy or opens a dialog."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from cloche.domain.permissions import Actor
from tests.support.browser import PASSWORD, Site, running_site

# An HTTP error that a test provoked, and what htmx says of a stream that was refused or cut.
ALLOWED = re.compile(
    r"^error: (Failed to load resource: the server responded with a status of (4\d\d|503)|\[object Event\]$)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, object]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "no Chromium: apt-get install chromium"
    return {"executable_path": chromium, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}


@pytest.fixture(scope="session", autouse=True)
def patience() -> None:
    """How long ``expect`` looks for what it waits for; a page's default timeout does not say it."""
    expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def site(valkey_server) -> Iterator[Site]:
    with running_site(valkey_server.url) as running:
        yield running


@pytest.fixture
def browser_context_args(site: Site) -> dict[str, object]:
    return {"base_url": site.url, "locale": "en-GB", "viewport": {"width": 1280, "height": 900}}


@pytest.fixture
def complaints(context: BrowserContext) -> Iterator[list[str]]:
    """What pages complained of. A test that expects an HTTP error needs nothing; any other complaint fails it at its end."""
    found: list[str] = []

    def watch(page: Page) -> None:
        page.on(
            "console",
            lambda message: (
                found.append(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: found.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (found.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    context.on("page", watch)
    yield found
    assert [text for text in found if not ALLOWED.search(text)] == []


@pytest.fixture
def person(site: Site) -> Actor:
    """An administrator of a tenant of their own."""
    return site.person()


@pytest.fixture
def visit(context: BrowserContext, site: Site, complaints: list[str]) -> Callable[..., Page]:
    """``visit(actor, "/ui/jobs")``: a page with that person signed in; ``actor`` None is nobody."""

    def go(actor: Actor | None, path: str = "/ui/jobs") -> Page:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(path)
        if actor is not None:
            page.get_by_label("User name").fill(actor.username)
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(f"{site.url}{path}")
        return page

    return go
