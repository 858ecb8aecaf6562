"""``cloche secret`` against a small real server: a value comes from stdin or a file, and is printed by nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

GRANTS = [
    {"plugin": "mailer", "versions": "==1.0.0", "granted_at": "2026-01-02T03:04:05.678Z"},
    {"plugin": "mailer", "versions": ">=2", "granted_at": "2026-01-02T03:04:05.678Z"},
]
SECRET = {
    "id": "x",
    "name": "MAIL_KEY",
    "description": "of the mail service",
    "value_version": 2,
    "masked": True,
    "grants": GRANTS,
    "version": 7,
    "created_by": "admin",
    "created_at": "2026-01-02T03:04:05.678Z",
    "updated_by": None,
    "updated_at": "2026-01-02T03:04:05.678Z",
    "last_used_at": None,
}
MISSING = Answer({"detail": "there is no such secret", "status": 404}, 404)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /secrets/MAIL_KEY"] = Answer(SECRET)
        fake.routes["GET /secrets"] = Answer({"items": [SECRET]})
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def typed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "words", "value"),
    [
        (b"s3cr3t-value\n", (), "s3cr3t-value"),
        (b"s3cr3t-value\r\n", (), "s3cr3t-value"),
        (b"two\nlines\n\n", (), "two\nlines\n"),
        (b"s3cr3t-value\n", ("--keep-newline",), "s3cr3t-value\n"),
    ],
)
def test_set_creates_what_is_not_there(
    api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch, data: bytes, words: tuple[str, ...], value: str
) -> None:
    api.routes["GET /secrets/MAIL_KEY"] = MISSING
    api.routes["POST /secrets"] = Answer(SECRET, 201)
    typed(monkeypatch, data)
    ran = cli("secret", "set", "MAIL_KEY", "--description", "of mail", *words)
    assert ran.code == 0, ran.err
    assert api.asked[-1].json == {"name": "MAIL_KEY", "value": value, "description": "of mail"}
    assert "s3cr3t" not in ran.out + ran.err


def test_set_gives_another_value_to_what_is_there(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    api.routes["PUT /secrets/MAIL_KEY"] = Answer(SECRET)
    (tmp_path / "value").write_text("s3cr3t-value\n")
    ran = cli("secret", "set", "MAIL_KEY", "--file", str(tmp_path / "value"))
    assert ran.code == 0, ran.err
    assert api.asked[-1].json == {"value": "s3cr3t-value"}
    assert api.asked[-1].headers["if-match"] == '"v7"'
    assert "s3cr3t" not in ran.out + ran.err


def test_what_cannot_be_a_value_is_said_before_anything_is_sent(api: FakeApi, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    ran = cli("secret", "set", "MAIL_KEY", "--file", str(tmp_path / "binary"))
    assert (ran.code, "base64" in ran.err) == (2, True)
    assert cli("secret", "set", "MAIL_KEY", "--file", str(tmp_path / "none")).code == 2
    assert api.asked == []


def test_get_and_list_show_what_is_known(cli: Cli) -> None:
    ran = cli("secret", "get", "MAIL_KEY")
    for text in ("version 2", "mailer ==1.0.0", "mailer >=2", "by admin", "by ?", "never"):
        assert text in ran.out
    assert "mailer ==1.0.0, mailer >=2" in cli("secret", "list").out
    assert cli("secret", "list", "-o", "name").out == "MAIL_KEY\n"


def test_grants_are_added_to_those_that_are_there_and_taken_from_them(api: FakeApi, cli: Cli) -> None:
    api.routes["PUT /secrets/MAIL_KEY/grants"] = Answer(SECRET)

    def asked(*words: str) -> list[tuple[str, str]]:
        assert cli("secret", *words).code == 0
        assert api.asked[-1].headers["if-match"] == '"v7"'
        return [(one["plugin"], one["versions"]) for one in api.asked[-1].json["grants"]]

    first, second = ("mailer", "==1.0.0"), ("mailer", ">=2")
    assert asked("grant", "MAIL_KEY", "other", "*") == [first, second, ("other", "*")]
    assert asked("revoke", "MAIL_KEY", "mailer", ">=2") == [first]
    assert asked("revoke", "MAIL_KEY", "mailer") == []
    ran = cli("secret", "revoke", "MAIL_KEY", "stranger")
    assert (ran.code, "not granted to stranger" in ran.err) == (5, True)


def test_delete_names_the_version_it_has_read(api: FakeApi, cli: Cli) -> None:
    api.routes["DELETE /secrets/MAIL_KEY"] = Answer({})
    assert cli("secret", "delete", "MAIL_KEY").code == 0
    assert api.asked[-1].headers["if-match"] == '"v7"'
