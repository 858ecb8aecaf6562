"""`cloche job … --sensitive`, `--reveal`, and `cloche key`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.services.sealing import CURRENT
from tests.support import stores
from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving
from tests.support.stack import environment

JOB_ID = "01920000-0000-7000-8000-000000000001"


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        yield fake


@pytest.fixture
def cli(api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def job(status: str = "completed", masked: bool = True, **more: Any) -> dict[str, Any]:
    return {"id": JOB_ID, "type": "x", "status": status, "sensitive": True, "masked": masked, "result": None, **more}


def test_submit_says_that_it_is_sensitive_and_what_is_not_shown(api: FakeApi, cli: Cli) -> None:
    api.routes["POST /jobs"] = Answer(job("pending"), 202)
    ran = cli("job", "submit", "x", "--sensitive")
    assert (ran.code, api.asked[0].json) == (0, {"type": "x", "sensitive": True})
    assert "--reveal shows it" in ran.out
    assert cli("job", "submit", "x").code == 0
    assert api.asked[1].json == {"type": "x"}


def test_run_reads_what_it_holds_once_at_its_end(api: FakeApi, cli: Cli) -> None:
    api.routes["POST /jobs"] = Answer(job("pending"), 202)
    answers = iter([job("processing"), job(), job(masked=False, result={"a": 1})])
    api.routes[f"GET /jobs/{JOB_ID}"] = lambda _asked: Answer(next(answers))
    ran = cli("job", "run", "x", "--sensitive", "--reveal", "-o", "json")
    assert (ran.code, json.loads(ran.out)["result"]) == (0, {"a": 1})
    assert [asked.query.get("reveal") for asked in api.asked] == [None, None, None, "true"]


@pytest.mark.parametrize("words", [("get", JOB_ID), ("logs", JOB_ID)])
def test_it_is_read_when_asked_for_alone(api: FakeApi, cli: Cli, words: tuple[str, ...]) -> None:
    api.routes[f"GET /jobs/{JOB_ID}"] = Answer(job(masked=False))
    api.routes[f"GET /jobs/{JOB_ID}/logs"] = Answer(b"x\n")
    assert cli("job", *words).code == 0
    assert cli("job", *words, "--reveal").code == 0
    assert [asked.query.get("reveal") for asked in api.asked] == [None, "true"]


def test_keys_are_listed_and_rotated(tmp_path: Path) -> None:
    stores.migrated(tmp_path).close()

    def key(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cloche", "key", *words]
        return subprocess.run(
            command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, cwd=tmp_path
        )

    assert key("list").stdout == ""
    first, second = key("rotate"), key("rotate")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    ids = [line.split()[0] for line in key("list").stdout.splitlines()]
    assert (ids[0] in second.stderr, ids[1] in first.stderr, len(set(ids))) == (True, True, 2)
    names = {path.name for path in (tmp_path / "keys").glob("sensitive*")}
    assert names == {CURRENT, f"sensitive-{ids[1]}.key"}
    (tmp_path / "keys" / CURRENT).chmod(0o644)
    refused = key("rotate")
    assert (refused.returncode, "chmod 600" in refused.stderr) == (1, True)
