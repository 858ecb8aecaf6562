"""``cloche dead-letter`` and the end of ``cloche job`` against a small real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

FIRST, SECOND = "01900000-0000-7000-8000-000000000001", "01900000-0000-7000-8000-000000000002"
LETTER: dict[str, Any] = {
    "id": FIRST,
    "type": "noop",
    "name": None,
    "reason": "timed_out",
    "attempts": [{}, {}],
    "finished_at": "2026-01-31T12:00:00.000Z",
    "error": {"message": "too\x1b[31m slow"},
}
BULK: dict[str, Any] = {
    "matched": 3,
    "done": 2,
    "remaining": 1,
    "dry_run": False,
    "ids": [FIRST, SECOND],
    "skipped": [],
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /dead-letters"] = Answer({"items": [LETTER], "next_cursor": None})
        fake.routes["POST /dead-letters/replay"] = Answer(BULK)
        fake.routes["DELETE /dead-letters"] = Answer(BULK)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_list_passes_its_filters_on(api: FakeApi, cli: Cli) -> None:
    ran = cli("dead-letter", "list", "--reason", "timed_out", "--since", "2026-01-01T00:00:00Z", "--label", "a=b")
    assert ran.code == 0
    assert FIRST in ran.out
    assert "\\x1b" in ran.out
    assert "\x1b" not in ran.out
    query = {"reason": "timed_out", "since": "2026-01-01T00:00:00Z", "label": "a=b", "limit": "50"}
    assert api.asked[-1].query == query
    assert cli("dead-letter", "list", "-o", "name").out == f"{FIRST}\n"


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ([FIRST, SECOND], {"ids": [FIRST, SECOND]}),
        (["--all"], {"filter": {}}),
        (["--all", "--limit", "5", "--dry-run"], {"filter": {}, "limit": 5, "dry_run": True}),
        (["--type", "noop", "--queue", "q"], {"filter": {"type": "noop", "queue": "q"}}),
    ],
)
@pytest.mark.parametrize(
    ("verb", "address"), [("replay", "POST /dead-letters/replay"), ("purge", "DELETE /dead-letters")]
)
def test_replay_and_purge_send_what_was_chosen(
    api: FakeApi, cli: Cli, verb: str, address: str, words: list[str], body: dict[str, Any]
) -> None:
    ran = cli("dead-letter", verb, *words)
    assert ran.code == 0, ran.err
    assert f"{api.asked[-1].method} {api.asked[-1].path}" == address
    assert api.asked[-1].json == body
    assert cli("dead-letter", verb, *words, "-o", "name").out == f"{FIRST}\n{SECOND}\n"


@pytest.mark.parametrize(
    "words", [[], [FIRST, "--all"], ["--all", "--reason", "timed_out"], [FIRST, "--type", "x"], [FIRST, "--limit", "3"]]
)
def test_a_choice_that_is_none_sends_nothing(api: FakeApi, cli: Cli, words: list[str]) -> None:
    assert cli("dead-letter", "purge", *words).code == 2
    assert api.asked == []


def test_what_was_left_is_said_and_fails(api: FakeApi, cli: Cli) -> None:
    api.routes["POST /dead-letters/replay"] = Answer({**BULK, "skipped": [{"id": SECOND, "detail": "is not there"}]})
    ran = cli("dead-letter", "replay", FIRST, SECOND)
    assert (ran.code, ran.err) == (1, f"left {SECOND}: is not there\n")


def test_delete_removes_each(api: FakeApi, cli: Cli) -> None:
    for job_id in (FIRST, SECOND):
        api.routes[f"DELETE /jobs/{job_id}"] = Answer(b"", 204)
    ran = cli("job", "delete", FIRST, SECOND)
    assert (ran.code, ran.out) == (0, "")
    assert [asked.path for asked in api.asked] == [f"/jobs/{FIRST}", f"/jobs/{SECOND}"]
    assert cli("job", "delete", "../users").code == 2


def test_submit_says_what_a_job_waits_for(api: FakeApi, cli: Cli) -> None:
    answer = {"id": FIRST, "type": "noop", "status": "blocked", "depends_on": [SECOND], "run": 1, "attempt": 0}
    api.routes["POST /jobs"] = Answer(answer, 202)
    words = ["--backoff", "linear", "--initial-delay", "2", "--max-delay", "1m", "--retry-on", "timed_out"]
    words += ["--schedule-at", "2030-01-01T00:00:00Z", "--expires-in", "60", "--depends-on", SECOND]
    words += ["--depends-on-condition", "all_resolved", "--on-upstream-failure", "cancel"]
    ran = cli("job", "submit", "noop", *words)
    assert ran.code == 0, ran.err
    assert SECOND in ran.out
    assert api.asked[-1].json == {
        "type": "noop",
        "retry": {"backoff": "linear", "initial_delay": 2, "max_delay": "1m", "retry_on": ["timed_out"]},
        "schedule_at": "2030-01-01T00:00:00Z",
        "expires_in": 60,
        "depends_on": [SECOND],
        "depends_on_condition": "all_resolved",
        "on_upstream_failure": "cancel",
    }


def test_retry_shows_the_new_run(api: FakeApi, cli: Cli) -> None:
    shown = {"id": FIRST, "type": "noop", "status": "pending", "attempt": 4, "run": 2}
    api.routes[f"POST /jobs/{FIRST}/retry"] = Answer(shown, 202)
    ran = cli("job", "retry", FIRST)
    assert ran.code == 0
    assert "4 (run 2)" in ran.out
