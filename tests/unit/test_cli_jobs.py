"""`cloche job`: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.web.models import JobFilter, Page
from tests.support.cli import Cli
from tests.support.fake_api import Answer, Asked, FakeApi, serving

JOB_ID = "01920000-0000-7000-8000-000000000001"
FILE_ID = "01920000-0000-7000-8000-000000000002"


def job(status: str = "pending", **more: Any) -> dict[str, Any]:
    return {
        "id": JOB_ID,
        "name": None,
        "type": "text_stats",
        "status": status,
        "reason": "submitted",
        "reason_text": "accepted and waiting in its queue",
        "plugin": {"version": "2.0.0", "digest": "d" * 64, "image": None},
        "attempt": 1,
        "created_at": "2026-01-01T00:00:00.000Z",
        **more,
    }


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        yield fake


@pytest.fixture
def cli(api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_submit_sends_what_the_options_say_and_uploads_local_files(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    table = tmp_path / "table=1.csv"
    table.write_bytes(b"a,b\n1,2\n")
    api.routes["POST /files"] = lambda asked: Answer({"id": FILE_ID, "size": len(asked.body)}, 201)
    api.routes["POST /jobs"] = Answer(job(), 202)
    ran = cli(
        *(
            "job",
            "submit",
            "csv_profile",
            "--version",
            "~=1.2",
            "-p",
            "width=300",
            "-p",
            "title=a=b",
            "-p",
            'deep={"x": [1]}',
        ),
        *("-i", str(table), "-i", f"{table}=other.csv", "-i", "archive:tables/*.csv", "-i", f"artifact:{FILE_ID}=in/x"),
        *(
            "--output",
            "*.md",
            "--output",
            "*.png=archive:thumbs",
            "--queue",
            "fast",
            "--priority",
            "9",
            "--label",
            "team=a",
            "--timeout",
            "30s",
        ),
        *("--name", "profile", "--max-retries", "0", "--idempotency-key", "k1", "-o", "name"),
    )
    assert (ran.code, ran.out) == (0, f"{JOB_ID}\n")
    first, second, submitted = api.asked
    assert first.body == second.body == b"a,b\n1,2\n"
    assert first.query == {"name": "table=1.csv"}
    assert first.headers["content-type"] == "text/csv"
    assert first.headers["content-length"] == "8"
    assert submitted.headers["idempotency-key"] == "k1"
    assert submitted.headers["authorization"] == "Bearer cloche_pat_test"
    assert submitted.json == {
        "type": "csv_profile",
        "version": "~=1.2",
        "name": "profile",
        "queue": "fast",
        "priority": 9,
        "timeout": "30s",
        "payload": {"width": 300, "title": "a=b", "deep": {"x": [1]}},
        "labels": {"team": "a"},
        "retry": {"max_retries": 0},
        "inputs": [
            {"from": f"artifact:{FILE_ID}", "to": "table=1.csv"},
            {"from": f"artifact:{FILE_ID}", "to": "other.csv"},
            {"from": "archive:tables/*.csv"},
            {"from": f"artifact:{FILE_ID}", "to": "in/x"},
        ],
        "outputs": [{"match": "*.md"}, {"match": "*.png", "to": "archive:thumbs"}],
    }


def test_submit_without_options_sends_the_type_alone(api: FakeApi, cli: Cli) -> None:
    api.routes["POST /jobs"] = Answer(job(), 202)
    assert cli("job", "submit", "text_stats").code == 0
    assert api.asked[0].json == {"type": "text_stats"}
    assert "idempotency-key" not in api.asked[0].headers


def test_a_payload_file_comes_first_and_single_parameters_lie_over_it(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    path.write_text('{"width": 1, "height": 2}')
    api.routes["POST /jobs"] = Answer(job(), 202)
    assert cli("job", "submit", "x", "--payload", f"@{path}", "-p", "width=3").code == 0
    assert api.asked[0].json["payload"] == {"width": 3, "height": 2}


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "width"],
        ["--payload", "[1]"],
        ["--payload", "{"],
        ["--payload", "@/nonexistent"],
        ["-i", "/nonexistent.csv"],
        ["-i", ":local:/etc/passwd"],
        ["--label", "=x"],
        ["--priority", "10"],
    ],
)
def test_a_wrong_option_is_exit_2_and_nothing_is_sent(api: FakeApi, cli: Cli, words: list[str]) -> None:
    ran = cli("job", "submit", "x", *words)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err
    assert api.asked == []


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("canceled", 3)])
def test_run_waits_and_passes_the_verdict_through(api: FakeApi, cli: Cli, status: str, code: int) -> None:
    answers = iter([job("processing"), job(status, result={"words": 3})])
    api.routes["POST /jobs"] = Answer(job(), 202)
    api.routes[f"GET /jobs/{JOB_ID}"] = lambda _asked: Answer(next(answers))
    ran = cli("job", "run", "text_stats", "-o", "json")
    assert ran.code == code
    assert json.loads(ran.out)["status"] == status
    assert api.asked[1].query["wait"] == "25s"


def test_run_saves_outputs_that_lie_in_the_store(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    content = b"# report\n"
    sha256 = hashlib.sha256(content).hexdigest()
    api.routes["POST /jobs"] = Answer(job("completed"), 202)
    items = [
        {"path": "a/report.md", "size": 9, "sha256": sha256, "artifact_id": FILE_ID, "destination": None},
        {"path": "b.png", "size": 1, "sha256": "0" * 64, "artifact_id": None, "destination": "archive:thumbs/b.png"},
    ]
    api.routes[f"GET /jobs/{JOB_ID}/outputs"] = Answer({"items": items})
    api.routes[f"GET /files/{FILE_ID}/content"] = Answer(content)
    ran = cli("job", "run", "x", "--save", str(tmp_path / "out"))
    assert ran.code == 0
    assert (tmp_path / "out" / "a" / "report.md").read_bytes() == content
    assert "archive:thumbs/b.png" in ran.err


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a\x1b[2J"])
def test_no_output_is_saved_outside_the_folder(api: FakeApi, cli: Cli, tmp_path: Path, path: str) -> None:
    items = [{"path": path, "size": 1, "sha256": "0" * 64, "artifact_id": FILE_ID, "destination": None}]
    api.routes[f"GET /jobs/{JOB_ID}/outputs"] = Answer({"items": items})
    api.routes[f"GET /files/{FILE_ID}/content"] = Answer(b"x")
    ran = cli("job", "outputs", JOB_ID, "--save", str(tmp_path / "out"))
    assert ran.code == 1
    assert not list(tmp_path.rglob("evil"))
    assert "\x1b" not in ran.err + ran.out


def test_a_wait_that_times_out_is_exit_3(api: FakeApi, cli: Cli) -> None:
    api.routes[f"GET /jobs/{JOB_ID}"] = Answer(job("processing"))
    ran = cli("job", "wait", JOB_ID, "--timeout", "0.05s")
    assert ran.code == 3
    assert "still processing" in ran.err


def test_list_follows_cursors_up_to_the_limit(api: FakeApi, cli: Cli) -> None:
    def page(asked: Asked) -> Answer:
        start = int(asked.query.get("cursor", "0"))
        count = int(asked.query["limit"])
        items = [job(id=f"{start + n}") for n in range(count)]
        return Answer({"items": items, "next_cursor": str(start + count)})

    api.routes["GET /jobs"] = page
    ran = cli("job", "list", "--limit", "130", "--status", "failed", "-o", "name")
    assert ran.code == 0
    assert ran.out.split() == [str(n) for n in range(130)]
    assert [asked.query["limit"] for asked in api.asked] == ["100", "30"]
    assert api.asked[0].query["status"] == "failed"


def test_list_sends_every_filter_that_the_api_has(api: FakeApi, cli: Cli) -> None:
    api.routes["GET /jobs"] = Answer({"items": [], "next_cursor": None})
    asked = {
        "status": "failed",
        "type": "csv_profile",
        "version": "1.2.0",
        "queue": "fast",
        "priority": "0",
        "label": "team=a",
        "submitted_by": "anna",
        "since": "2026-01-01T00:00:00Z",
        "until": "2026-02-01T00:00:00Z",
    }
    assert asked.keys() == JobFilter.model_fields.keys() - Page.model_fields.keys()
    words = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert cli("job", "list", *words).code == 0
    assert api.asked[0].query == {**asked, "limit": "50"}
    assert cli("job", "list", "--priority", "10").code == cli("job", "list", "--priority", "-1").code == 2


def _attempt(number: int, run: int) -> dict[str, Any]:
    return {
        "number": number,
        "run": run,
        "worker": "w1",
        "phase": "running",
        "outcome": "failed",
        "reason": "plugin_failed",
        "error": {"message": f"no such column {number}\x1b[2J"},
        "usage": None,
        "started_at": "2026-01-01T00:00:00.000Z",
        "finished_at": "2026-01-01T00:00:01.500Z",
        "duration_ms": 1_500,
    }


def test_attempts_are_listed_page_after_page(api: FakeApi, cli: Cli) -> None:
    def page(asked: Asked) -> Answer:
        first = "cursor" not in asked.query
        return Answer({"items": [_attempt(1, 1) if first else _attempt(2, 2)], "next_cursor": "x" if first else None})

    api.routes[f"GET /jobs/{JOB_ID}/attempts"] = page
    head, first, second = cli("job", "attempts", JOB_ID).out.splitlines()
    assert head.split() == ["NO.", "RUN", "OUTCOME", "REASON", "STARTED", "SECONDS", "WORKER", "ERROR"]
    assert first.split()[:4] == ["1", "1", "failed", "plugin_failed"]
    assert (second.split()[:2], "1.500" in second, "column 2\\x1b[2J" in second) == (["2", "2"], True, True)
    assert cli("job", "attempts", JOB_ID, "-o", "name", "--limit", "1", "--reveal").out == "1\n"
    assert api.asked[-1].query == {"limit": "1", "reveal": "true"}
    assert json.loads(cli("job", "attempts", JOB_ID, "-o", "json").out)["items"][1] == _attempt(2, 2)


def test_the_trace_is_listed(api: FakeApi, cli: Cli) -> None:
    event = {
        "id": FILE_ID,
        "job_id": JOB_ID,
        "event_type": "claimed",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "attempt": 1,
        "details": {"waited_ms": 12, "worker": "w\x1b"},
    }
    api.routes[f"GET /trace/{JOB_ID}"] = Answer({"items": [event], "next_cursor": None})
    head, row = cli("job", "trace", JOB_ID).out.splitlines()
    assert head.split() == ["TIME", "ATTEMPT", "EVENT", "DETAILS"]
    assert row.split()[:3] == ["2026-01-01T00:00:00.000Z", "1", "claimed"]
    assert "waited_ms" in row
    assert "\x1b" not in row
    assert cli("job", "trace", JOB_ID, "-o", "name").out == "claimed\n"
    assert cli("job", "trace", "../users").code == 2


def test_a_table_off_a_terminal_is_not_folded_and_holds_no_escape(api: FakeApi, cli: Cli) -> None:
    name = "x" * 300 + "\x1b[31m"
    api.routes["GET /jobs"] = Answer({"items": [job(name=name)], "next_cursor": None})
    ran = cli("job", "list")
    head, row = ran.out.splitlines()
    assert head.split()[:3] == ["ID", "STATUS", "TYPE"]
    assert "x" * 300 + "\\x1b[31m" in row
    assert "\x1b" not in ran.out


def test_logs_are_printed_as_they_are_off_a_terminal(api: FakeApi, cli: Cli) -> None:
    api.routes[f"GET /jobs/{JOB_ID}/logs"] = Answer("line\n\x1b[31mred")
    ran = cli("job", "logs", JOB_ID, "--attempt", "2")
    assert ran.out == "line\n\x1b[31mred"
    assert api.asked[0].query == {"attempt": "2"}


def test_logs_on_a_terminal_have_their_control_characters_written_out(
    api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.routes[f"GET /jobs/{JOB_ID}/logs"] = Answer("line\n\x1b[31mred")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli("job", "logs", JOB_ID).out == "line\n\\x1b[31mred"


def test_cancel_and_get_print_the_job(api: FakeApi, cli: Cli) -> None:
    api.routes[f"POST /jobs/{JOB_ID}/cancel"] = Answer(job("canceled"), 202)
    api.routes[f"GET /jobs/{JOB_ID}"] = Answer(job("failed", error={"message": "no\x1b]0;x\x07"}))
    assert "canceled" in cli("job", "cancel", JOB_ID).out
    ran = cli("job", "get", JOB_ID)
    assert "\\x1b]0;x\\x07" in ran.out
    assert "text_stats 2.0.0" in ran.out
    assert cli("job", "get", JOB_ID, "-o", "yaml").out.startswith(f"id: {JOB_ID}\n")


@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 5), (409, 1), (422, 1), (503, 1)])
def test_an_error_answer_is_one_message_and_its_exit_code(api: FakeApi, cli: Cli, status: int, code: int) -> None:
    problem = {
        "title": "No",
        "detail": "Not\x1b like this.",
        "errors": [{"pointer": "/payload/width", "detail": "is too large"}],
        "request_id": "req-7",
    }
    api.routes["POST /jobs"] = Answer(problem, status, {"Content-Type": "application/problem+json"})
    ran = cli("job", "submit", "x")
    assert ran.code == code
    assert ran.out == ""
    assert "Not\\x1b like this." in ran.err
    assert "/payload/width: is too large" in ran.err
    assert "req-7" in ran.err


def test_an_error_that_is_no_problem_document(api: FakeApi, cli: Cli) -> None:
    api.routes["POST /jobs"] = Answer("<html>bad gateway</html>", 502)
    ran = cli("job", "submit", "x")
    assert ran.code == 1
    assert "502" in ran.err


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Cli(monkeypatch, capsys, "http://127.0.0.1:9")("job", "list")
    assert ran.code == 1
    assert "no answer from http://127.0.0.1:9" in ran.err


def test_an_id_cannot_lead_elsewhere(api: FakeApi, cli: Cli) -> None:
    assert cli("job", "get", "../users").code == 2
    assert api.asked == []


def test_a_callback_is_sent_and_its_deliveries_are_listed(api: FakeApi, cli: Cli) -> None:
    api.routes["POST /jobs"] = Answer(job(callback={"url": "https://a.example/hook?…", "events": ["failed"]}), 202)
    address = "https://a.example/hook?order=17"
    ran = cli(
        "job", "submit", "text_stats", "--callback", address, "--callback-on", "failed", "--callback-on", "failed"
    )
    assert api.asked[-1].json["callback"] == {"url": address, "events": ["failed"]}
    assert "https://a.example/hook?…" in ran.out
    cli("job", "submit", "text_stats", "--callback", address)
    assert api.asked[-1].json["callback"] == {"url": address}
    assert cli("job", "submit", "text_stats", "--callback-on", "failed").code == 2
    delivery = {
        "id": JOB_ID,
        "event": "failed",
        "receiver": "a.example:443",
        "status": "pending",
        "attempts": 3,
        "last_attempt_at": "2026-01-01T00:00:00.000Z",
        "last_outcome": "http_error",
        "last_error": "the receiver answered 500\x1b[2J",
        "next_try_at": "2026-01-01T00:01:00.000Z",
    }
    api.routes[f"GET /jobs/{JOB_ID}/callbacks"] = Answer({"items": [delivery]})
    shown = cli("job", "callbacks", JOB_ID).out
    assert "a.example:443" in shown
    assert "answered 500\\x1b[2J" in shown
    other = {**delivery, "id": FILE_ID, "job_id": FILE_ID}
    api.routes["GET /callbacks"] = Answer({"items": [{**delivery, "job_id": JOB_ID}, other], "next_cursor": None})
    head, first, second = cli("callback", "list", "--status", "pending", "--limit", "7").out.splitlines()
    assert api.asked[-1].query == {"status": "pending", "limit": "7"}
    assert (head.split()[:2], first.split()[0], second.split()[0]) == (["JOB", "EVENT"], JOB_ID, FILE_ID)
    assert cli("callback", "list", "-o", "name").out.split() == [JOB_ID, FILE_ID]
    assert cli("callback", "list", "--status", "lost").code == 2


def test_the_callback_secret(api: FakeApi, cli: Cli) -> None:
    secret = {"secret": "whsec_abc", "version": 2, "created_at": "2026-01-01T00:00:00.000Z", "previous_until": None}
    api.routes["GET /callback-secret"] = Answer(secret)
    api.routes["POST /callback-secret/renew"] = Answer(secret)
    assert cli("callback-secret", "get", "-o", "name").out.strip() == "whsec_abc"
    assert "version" in cli("callback-secret", "renew").out
