"""``cloche token``, ``session`` and ``password`` against a small real server."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

TOKEN: dict[str, Any] = {
    "id": "01900000-0000-7000-8000-000000000001",
    "name": "ci",
    "scopes": ["job:read", "job:submit"],
    "addresses": ["192.0.2.0/24"],
    "created_at": "2026-01-31T12:00:00.000Z",
    "expires_at": None,
    "last_used_at": None,
    "revoked_at": None,
}
SESSION: dict[str, Any] = {
    "id": "01900000-0000-7000-8000-000000000002",
    "current": False,
    "created_at": "2026-01-31T12:00:00.000Z",
    "last_seen_at": "2026-01-31T12:05:00.000Z",
    "expires_at": "2026-02-07T12:00:00.000Z",
    "ip": "192.0.2.7",
    "user_agent": "a browser\x1b[31m",
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /tokens"] = Answer({"items": [TOKEN, TOKEN | {"revoked_at": "2026-01-31T12:00:00.000Z"}]})
        fake.routes["POST /tokens"] = Answer(TOKEN | {"token": "cloche_pat_x"}, 201)
        fake.routes[f"DELETE /tokens/{TOKEN['id']}"] = Answer(b"", 204)
        fake.routes["GET /sessions"] = Answer({"items": [SESSION]})
        fake.routes["DELETE /sessions"] = Answer({"ended": 3})
        fake.routes[f"DELETE /sessions/{SESSION['id']}"] = Answer(b"", 204)
        fake.routes["PUT /me/password"] = Answer({"username": "anna"})
        fake.routes["POST /users/u1/password-reset"] = Answer(
            {"code": "cloche_reset_x_y", "user_id": "u1", "expires_at": "2026-01-31T13:00:00.000Z"}, 201
        )
        fake.routes["POST /password-resets"] = Answer(b"", 204)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_tokens_are_listed_and_revoked(cli: Cli, api: FakeApi) -> None:
    ran = cli("token", "list")
    assert ran.code == 0, ran.err
    assert "job:read job:submit" in ran.out
    assert "valid" in ran.out
    assert "revoked" in ran.out
    assert cli("token", "list", "-o", "name").out.split() == [TOKEN["id"]] * 2
    assert cli("token", "revoke", TOKEN["id"]).code == 0
    assert cli("token", "revoke", "../session").code != 0
    assert [seen.path for seen in api.asked if seen.method == "DELETE"][-1].endswith("/tokens/..%2Fsession")


def test_a_token_is_made_for_addresses(cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "a password of mine")
    ran = cli(
        *("token", "create", "ci", "--user", "anna", "--password-stdin", "--scope", "job:read"),
        *("--address", "192.0.2.0/24", "--address", "2001:db8::/32", "-o", "name"),
    )
    assert ran.out.strip() == "cloche_pat_x"
    assert api.asked[-1].json == {"name": "ci", "scopes": ["job:read"], "addresses": ["192.0.2.0/24", "2001:db8::/32"]}


def test_sessions_are_listed_and_ended(cli: Cli) -> None:
    ran = cli("session", "list")
    assert "192.0.2.7" in ran.out
    assert "\x1b" not in ran.out
    assert "3 ended" in cli("session", "revoke", "--all").err
    assert cli("session", "revoke", SESSION["id"]).code == 0
    assert cli("session", "revoke").code == 2
    assert cli("session", "revoke", SESSION["id"], "--all").code == 2


def test_a_password_is_changed_by_who_knows_the_old_one(
    cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "the old one of mine", "the new one of mine")
    ran = cli("password", "change", "--user", "anna", "--password-stdin", "--revoke-tokens")
    assert ran.code == 0, ran.err
    seen = api.asked[-1]
    assert seen.json == {
        "current_password": "the old one of mine",
        "new_password": "the new one of mine",
        "revoke_tokens": True,
    }
    assert seen.headers["authorization"] == "Basic " + base64.b64encode(b"anna:the old one of mine").decode()
    assert "one of mine" not in ran.out + ran.err
    typed(monkeypatch, "the old one of mine")
    assert cli("password", "change", "--user", "anna", "--password-stdin").code == 2
    typed(monkeypatch)
    assert cli("password", "change", "--user", "anna").code == 2  # no terminal, no prompt


def test_a_reset_is_made_and_used(cli: Cli, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("password", "reset", "u1", "-o", "name").out.strip() == "cloche_reset_x_y"
    typed(monkeypatch, "cloche_reset_x_y", "the new one of mine")
    ran = cli("password", "use-reset", "--password-stdin")
    assert ran.code == 0, ran.err
    assert "authorization" not in api.asked[-1].headers
    assert api.asked[-1].json == {
        "code": "cloche_reset_x_y",
        "new_password": "the new one of mine",
        "revoke_tokens": False,
    }
