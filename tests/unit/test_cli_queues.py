"""``cloche queue`` against a small real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

QUEUE: dict[str, Any] = {
    "id": "fast",
    "name": "fast",
    "worker_count": 2,
    "max_parallel_jobs": 8,
    "current_load": 3,
    "depth": {"pending": 5, "processing": 1, "failed": 0},
    "oldest_age_s": 1.5,
    "description": "in\x1b[31m a hurry",
    "built_in": False,
    "paused": True,
    "paused_scopes": ["platform", "tenant"],
    "max_concurrency": 4,
    "weight": 1,
    "version": "3.1.1a225956d2a",
    "created_at": "2026-01-31T12:00:00.000Z",
    "updated_at": "2026-01-31T12:00:00.000Z",
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /queues"] = Answer({"items": [QUEUE]})
        fake.routes["POST /queues"] = Answer(QUEUE, 201)
        fake.routes["GET /queues/fast"] = Answer(QUEUE)
        fake.routes["PATCH /queues/fast"] = Answer(QUEUE)
        fake.routes["DELETE /queues/fast"] = Answer(b"", 204)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_queues_are_listed_and_shown(cli: Cli) -> None:
    ran = cli("queue", "list")
    assert ran.code == 0
    assert "paused (platform, tenant)" in ran.out
    assert "\x1b" not in ran.out
    assert cli("queue", "list", "-o", "name").out == "fast\n"
    shown = cli("queue", "get", "fast").out
    assert "5 pending, 1 processing" in shown
    assert "2 with 8 slots" in shown


def test_a_queue_is_created(api: FakeApi, cli: Cli) -> None:
    assert cli("queue", "create", "fast", "--max-concurrency", "4", "--description", "x", "--paused").code == 0
    assert api.asked[-1].json == {"name": "fast", "description": "x", "max_concurrency": 4, "paused": True}


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["pause"], {"scope": "tenant", "paused": True}),
        (["pause", "--platform"], {"scope": "platform", "paused": True}),
        (["resume"], {"scope": "tenant", "paused": False}),
        (["resume", "--platform"], {"scope": "platform", "paused": False}),
        (["set", "--max-concurrency", "9"], {"scope": "platform", "max_concurrency": 9}),
        (["set", "--no-limit", "--description", ""], {"scope": "platform", "max_concurrency": None, "description": ""}),
        (["set", "--weight", "a=b=2", "--weight", "c=1"], {"scope": "platform", "weights": {"a=b": 2, "c": 1}}),
    ],
)
def test_changes_are_made_at_the_version_that_was_read(api: FakeApi, cli: Cli, words: list[str], body: Any) -> None:
    assert cli("queue", words[0], "fast", *words[1:]).code == 0
    assert (api.asked[-1].method, api.asked[-1].json) == ("PATCH", body)
    assert api.asked[-1].headers["if-match"] == '"v3.1.1a225956d2a"'


def test_a_queue_is_removed(api: FakeApi, cli: Cli) -> None:
    ran = cli("queue", "delete", "fast")
    assert (ran.code, ran.out, ran.err) == (0, "", "removed fast\n")
    assert (api.asked[-1].method, api.asked[-1].headers["if-match"]) == ("DELETE", '"v3.1.1a225956d2a"')


@pytest.mark.parametrize(
    "words",
    [
        ["set", "fast"],
        ["set", "fast", "--max-concurrency", "0"],
        ["set", "fast", "--max-concurrency", "2", "--no-limit"],
        ["set", "fast", "--weight", "a"],
        ["set", "fast", "--weight", "a=-1"],
        ["get", "../jobs"],
        ["pause", "a?b"],
        ["create", "fast", "--max-concurrency", "-1"],
    ],
)
def test_what_makes_no_sense_is_asked_of_nobody(api: FakeApi, cli: Cli, words: list[str]) -> None:
    assert cli("queue", *words).code == 2
    assert api.asked == []


def test_one_that_is_not_there_is_not_found(cli: Cli) -> None:
    assert cli("queue", "get", "nosuch").code == 5
