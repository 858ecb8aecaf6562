"""``cloche plugin`` against a small real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

PLUGIN: dict[str, Any] = {
    "name": "thumbnail",
    "version": "1.0.0",
    "digest": "ab" * 32,
    "enabled": False,
    "default": False,
    "disabled_reason": "it is yanked (it corrupts pictures)",
    "state": "yanked",
    "state_reason": "it corrupts\x1b[31m pictures",
    "state_changed_at": "2026-01-31T12:00:00.000Z",
    "revision": 3,
    "summary": "Scale.",
    "isolation": "container",
    "first_seen_at": "2026-01-30T12:00:00.000Z",
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /plugins/thumbnail/1.0.0"] = Answer(PLUGIN)
        fake.routes["PATCH /plugins/thumbnail/1.0.0"] = Answer(PLUGIN)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_one_version_is_shown(cli: Cli) -> None:
    ran = cli("plugin", "get", "thumbnail", "1.0.0")
    assert ran.code == 0
    lines = {line.split("  ")[0]: line for line in ran.out.splitlines()}
    assert lines["state"].endswith("yanked")
    assert "\x1b" not in ran.out


@pytest.mark.parametrize(
    ("command", "state"),
    [("enable", "enabled"), ("deprecate", "deprecated"), ("disable", "disabled"), ("yank", "yanked")],
)
def test_a_state_is_set_with_the_etag_that_was_read(api: FakeApi, cli: Cli, command: str, state: str) -> None:
    assert cli("plugin", command, "thumbnail", "1.0.0", "--reason", "why", "-o", "name").out == "thumbnail==1.0.0\n"
    sent = api.asked[-1]
    assert (sent.method, sent.headers["if-match"]) == ("PATCH", '"v3"')
    assert sent.json == {"state": state, "reason": "why"}


@pytest.mark.parametrize(("name", "version"), [("..", "1.0.0"), ("thumbnail", ".."), ("a/b", "1"), ("thumbnail", "")])
def test_what_is_no_version_reaches_no_address(api: FakeApi, cli: Cli, name: str, version: str) -> None:
    assert cli("plugin", "yank", name, version).code == 2
    assert not api.asked


def test_a_version_whose_files_changed_says_so(api: FakeApi, cli: Cli) -> None:
    api.routes["GET /plugins"] = Answer({"items": [PLUGIN, {**PLUGIN, "state": "enabled"}]})
    assert [line.split()[3:5] for line in cli("plugin", "list").out.splitlines()[1:]] == [
        ["yanked", "abababababab"],
        ["enabled,", "changed"],
    ]
