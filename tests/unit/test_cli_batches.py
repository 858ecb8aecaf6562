"""`cloche batch`: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

BATCH_ID = "01920000-0000-7000-8000-000000000009"
JOB_ID = "01920000-0000-7000-8000-000000000008"
STATES = ("scheduled", "blocked", "pending", "processing", "completed", "failed", "canceled")


def batch(status: str = "running", **jobs: int) -> dict[str, Any]:
    states = dict.fromkeys(STATES, 0) | jobs
    return {
        "id": BATCH_ID,
        "name": "tiles",
        "count": 4,
        "submitted_by": "anna",
        "tenant": "default",
        "created_at": "2026-01-01T00:00:00.000Z",
        "status": status,
        "jobs": states,
        "purged": 0,
        "done": 0.5,
        "started_at": None,
        "finished_at": None,
    }


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        yield fake


@pytest.fixture
def cli(api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


@pytest.mark.parametrize(
    "text",
    ['{"type": "a"}\n\n{"type": "b"}\n', '[{"type": "a"}, {"type": "b"}]', '{"jobs": [{"type": "a"}, {"type": "b"}]}'],
)
def test_submit_reads_jobs_in_three_forms(api: FakeApi, cli: Cli, tmp_path: Path, text: str) -> None:
    (tmp_path / "jobs").write_text(text)
    api.routes["POST /jobs/batch"] = Answer({key: batch()[key] for key in ("id", "name", "count", "created_at")}, 202)
    ran = cli("batch", "submit", str(tmp_path / "jobs"), "--name", "tiles", "--idempotency-key", "k", "-o", "name")
    assert (ran.code, ran.out.strip()) == (0, BATCH_ID)
    (asked,) = api.asked
    assert asked.json == {"name": "tiles", "jobs": [{"type": "a"}, {"type": "b"}]}
    assert asked.headers["idempotency-key"] == "k"


def test_submit_sends_refs_as_they_are_and_shows_whose_they_became(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    lines = ['{"type": "a", "ref": "first"}', '{"type": "b", "depends_on": [{"ref": "first"}]}']
    (tmp_path / "jobs").write_text("\n".join(lines))
    made = {key: batch()[key] for key in ("id", "name", "count", "created_at")} | {"refs": {"first": JOB_ID}}
    api.routes["POST /jobs/batch"] = Answer(made, 202)
    shown = cli("batch", "submit", str(tmp_path / "jobs")).out
    assert api.asked[0].json == {"jobs": [json.loads(line) for line in lines]}
    assert f"first {JOB_ID}" in " ".join(shown.split())
    assert json.loads(cli("batch", "submit", str(tmp_path / "jobs"), "-o", "json").out)["refs"] == {"first": JOB_ID}


def test_submit_names_the_line_that_is_no_job(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text('{"type": "a"}\n{"type": b}\n')
    ran = cli("batch", "submit", str(tmp_path / "jobs"))
    assert (ran.code, api.asked) == (2, [])
    assert "line 2" in ran.err


def test_get_shows_how_far_it_is(api: FakeApi, cli: Cli) -> None:
    api.routes[f"GET /batches/{BATCH_ID}"] = Answer(batch(completed=2, pending=2))
    shown = cli("batch", "get", BATCH_ID).out
    assert "running: 50.0 % of 4 have ended" in shown
    assert "2 pending, 2 completed" in shown
    assert json.loads(cli("batch", "get", BATCH_ID, "-o", "json").out)["jobs"]["completed"] == 2


@pytest.mark.parametrize(
    ("jobs", "code"), [({"completed": 4}, 0), ({"completed": 3, "failed": 1}, 1), ({"completed": 3, "canceled": 1}, 3)]
)
def test_wait_ends_with_the_worst_of_its_jobs(api: FakeApi, cli: Cli, jobs: dict[str, int], code: int) -> None:
    answers = [batch("waiting", pending=4), batch("ended", **jobs)]
    api.routes[f"GET /batches/{BATCH_ID}"] = lambda _: Answer(answers.pop(0))
    assert cli("batch", "wait", BATCH_ID).code == code


def test_wait_stops_in_time(api: FakeApi, cli: Cli) -> None:
    api.routes[f"GET /batches/{BATCH_ID}"] = Answer(batch())
    ran = cli("batch", "wait", BATCH_ID, "--timeout", "0")
    assert ran.code == 3
    assert "it goes on" in ran.err


def test_lists_follow_pages_and_cancel_posts(api: FakeApi, cli: Cli) -> None:
    def page(asked: Any) -> Answer:
        return Answer({"items": [batch()], "next_cursor": None if "cursor" in asked.query else "c"})

    api.routes["GET /batches"] = page
    assert cli("batch", "list", "-o", "name").out.split() == [BATCH_ID, BATCH_ID]
    api.routes[f"POST /batches/{BATCH_ID}/cancel"] = Answer(batch("ended", canceled=4), 202)
    assert "4 canceled" in cli("batch", "cancel", BATCH_ID).out
    api.routes[f"GET /batches/{BATCH_ID}/jobs"] = Answer({"items": [], "next_cursor": None})
    assert cli("batch", "jobs", BATCH_ID, "--status", "failed").code == 0
    assert api.asked[-1].query == {"status": "failed", "limit": "50"}


def test_retry_says_which_jobs_were_left_and_why(api: FakeApi, cli: Cli) -> None:
    told = {"retried": 1, "skipped_count": 102, "skipped": [{"id": "a", "detail": "no room\x1b[2J"}] * 100}
    api.routes[f"POST /batches/{BATCH_ID}/retry"] = lambda _: Answer({**batch(pending=1), **told}, 202)
    ran = cli("batch", "retry", BATCH_ID)
    assert (ran.code, "left a: no room\\x1b[2J" in ran.err, "left 2 more" in ran.err) == (1, True, True)
    told |= {"skipped_count": 0, "skipped": []}
    ran = cli("batch", "retry", BATCH_ID)
    assert (ran.code, ran.err) == (0, "")
