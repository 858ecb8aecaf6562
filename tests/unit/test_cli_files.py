"""`cloche file`, `plugin` and `token`."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

FILE_ID = "01920000-0000-7000-8000-000000000002"
CONTENT = b"a,b\n1,2\n"
STORED = {
    "id": FILE_ID,
    "name": "t.csv",
    "size": 8,
    "media_type": "text/csv",
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["POST /files"] = Answer(STORED, 201)
        fake.routes[f"GET /files/{FILE_ID}"] = Answer(STORED)
        fake.routes[f"GET /files/{FILE_ID}/content"] = Answer(CONTENT)
        yield fake


@pytest.fixture
def cli(api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_put_prints_what_was_stored(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(CONTENT)
    assert cli("file", "put", str(path), "-o", "name").out == f"{FILE_ID}\n"
    assert cli("file", "put", str(path)).out.splitlines()[0].split() == ["ID", "NAME", "SIZE", "TYPE", "SHA-256"]
    assert api.asked[0].body == CONTENT


def test_put_of_an_empty_file_still_says_its_length(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert cli("file", "put", str(tmp_path / "empty")).code == 0
    assert api.asked[0].headers["content-length"] == "0"


def test_put_of_a_missing_file_is_exit_2(cli: Cli) -> None:
    assert cli("file", "put", "/nonexistent").code == 2


def test_get_writes_the_file_under_its_own_name(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("file", "get", FILE_ID).code == 0
    assert (tmp_path / "t.csv").read_bytes() == CONTENT
    again = cli("file", "get", FILE_ID)
    assert again.code == 1
    assert "exists already" in again.err
    assert cli("file", "get", FILE_ID, "--to", "t.csv").code == 0


def test_get_to_stdout(api: FakeApi) -> None:
    command = [sys.executable, "-m", "cloche", "file", "get", FILE_ID, "--to", "-", "--url", api.url]
    assert subprocess.run(command, capture_output=True, check=True).stdout == CONTENT


def test_a_download_that_is_not_what_was_stored_is_not_kept(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    api.routes[f"GET /files/{FILE_ID}/content"] = Answer(b"something else")
    ran = cli("file", "get", FILE_ID, "--to", str(tmp_path / "t.csv"))
    assert ran.code == 1
    assert "SHA-256" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/tmp/cloche-evil", "a\x1bb", ""])
def test_a_stored_name_cannot_lead_out_of_the_folder(
    api: FakeApi, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    api.routes[f"GET /files/{FILE_ID}"] = Answer({**STORED, "name": name})
    cli("file", "get", FILE_ID)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert not Path("/tmp/cloche-evil").exists()


def test_someone_elses_file_is_exit_5(cli: Cli) -> None:
    assert cli("file", "get", "01920000-0000-7000-8000-00000000000f").code == 5


def test_plugin_list(api: FakeApi, cli: Cli) -> None:
    row = {
        "name": "thumbnail",
        "version": "1.0.0",
        "digest": "ab" * 32,
        "enabled": True,
        "state": "enabled",
        "default": True,
        "summary": "Scale.",
    }
    api.routes["GET /plugins"] = Answer({"items": [row]})
    assert cli("plugin", "list", "-o", "name").out == "thumbnail==1.0.0\n"
    assert cli("plugin", "list").out.splitlines()[1].split() == [
        "thumbnail",
        "1.0.0",
        "yes",
        "enabled",
        "abababababab",
        "Scale.",
    ]


def test_token_create_signs_in_with_the_password_from_stdin(
    api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.routes["POST /tokens"] = Answer({"id": "t1", "token": "cloche_pat_x", "expires_at": None}, 201)
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    ran = cli(
        "token",
        "create",
        "ci",
        "--user",
        "ann",
        "--password-stdin",
        "--scope",
        "job:read",
        "--expires-in",
        "30d",
        "-o",
        "name",
    )
    assert (ran.code, ran.out) == (0, "cloche_pat_x\n")
    asked = api.asked[0]
    assert asked.json == {"name": "ci", "scopes": ["job:read"], "expires_in": "30d"}
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"ann:correct horse").decode()


def test_token_create_never_prompts_off_a_terminal(api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    ran = cli("token", "create", "ci", "--user", "ann")
    assert ran.code == 2
    assert "--password-stdin" in ran.err
    assert api.asked == []
