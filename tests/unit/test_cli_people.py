"""``cloche user``, ``role``, ``tenant`` and ``token create`` against a small real server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

USER = "01900000-0000-7000-8000-000000000001"
TENANT = "01900000-0000-7000-8000-000000000002"
TOKEN = "01900000-0000-7000-8000-000000000003"
ANNA: dict[str, Any] = {
    "id": USER,
    "username": "anna",
    "kind": "person",
    "roles": ["submitter", "viewer"],
    "tenants": ["default"],
    "platform_admin": True,
    "disabled": True,
    "version": 3,
    "created_at": "2026-01-31T12:00:00.000Z",
}
NIGHT: dict[str, Any] = {
    "name": "night",
    "builtin": False,
    "summary": "at \x1b[31m night",
    "permissions": ["job:cancel_any", "job:read"],
    "users": 2,
    "version": 5,
    "created_at": None,
    "updated_at": None,
}
ACME: dict[str, Any] = {
    "id": TENANT,
    "name": "acme",
    "suspended": True,
    "users": 4,
    "version": 7,
    "created_at": "2026-01-31T12:00:00.000Z",
}
HELD = {"name": "job:read", "summary": "See jobs.", "platform": False, "granted": True, "roles": ["viewer"]}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        user, tenant = f"/users/{USER}", f"/tenants/{TENANT}"
        fake.routes["GET /users"] = Answer({"items": [ANNA], "next_cursor": None})
        fake.routes["POST /users"] = Answer(ANNA, 201)
        for method in ("GET", "PATCH"):
            fake.routes[f"{method} {user}"] = Answer(ANNA)
        fake.routes[f"DELETE {user}"] = Answer(b"", 204)
        fake.routes[f"PUT {user}/roles"] = Answer(ANNA)
        for method in ("PUT", "DELETE"):
            fake.routes[f"{method} {user}/platform-admin"] = Answer(ANNA)
        fake.routes[f"GET {user}/permissions"] = Answer(
            ANNA | {"items": [HELD, HELD | {"name": "x", "granted": False}]}
        )
        fake.routes[f"POST {user}/tokens"] = Answer({"id": TOKEN, "token": "cloche_pat_x"}, 201)
        fake.routes["POST /tokens"] = Answer({"id": TOKEN, "token": "cloche_pat_x"}, 201)
        fake.routes[f"DELETE {user}/tokens/{TOKEN}"] = Answer(b"", 204)
        fake.routes["GET /roles"] = Answer({"items": [NIGHT], "next_cursor": None})
        fake.routes["POST /roles"] = Answer(NIGHT, 201)
        for method in ("GET", "PUT"):
            fake.routes[f"{method} /roles/night"] = Answer(NIGHT)
        fake.routes["DELETE /roles/night"] = Answer(b"", 204)
        fake.routes["GET /tenants"] = Answer({"items": [ACME], "next_cursor": None})
        fake.routes["POST /tenants"] = Answer(ACME, 201)
        for method in ("GET", "PATCH"):
            fake.routes[f"{method} {tenant}"] = Answer(ACME)
        fake.routes[f"DELETE {tenant}"] = Answer(b"", 204)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_users_are_listed_and_shown(api: FakeApi, cli: Cli) -> None:
    ran = cli("user", "list", "--role", "viewer", "--everywhere")
    assert (ran.code, "disabled, platform administrator" in ran.out) == (0, True)
    assert api.asked[-1].query == {"role": "viewer", "scope": "platform", "limit": "100"}
    assert cli("user", "list", "-o", "name").out == "anna\n"
    assert "submitter, viewer" in cli("user", "get", "anna").out
    assert api.asked[-1].query == {"username": "anna"}
    assert cli("user", "get", USER).code == 0
    assert api.asked[-1].path.endswith(f"/users/{USER}")
    shown = cli("user", "permissions", "anna")
    assert "job:read" in shown.out
    assert "\nx " not in shown.out
    assert "is disabled" in shown.err


def test_nobody_of_that_name_is_not_found(api: FakeApi, cli: Cli) -> None:
    api.routes["GET /users"] = Answer({"items": [], "next_cursor": None})
    api.routes["GET /tenants"] = Answer({"items": [], "next_cursor": None})
    assert cli("user", "get", "nobody").code == 5
    assert cli("tenant", "get", "nobody").code == 5


def test_a_user_is_created(api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a long password\nmore\n"))
    assert cli("user", "create", "anna", "--role", "viewer", "--password-stdin").code == 0
    assert api.asked[-1].json == {
        "username": "anna",
        "roles": ["viewer"],
        "kind": "person",
        "password": "a long password",
    }
    assert cli("user", "create", "ci", "--role", "viewer", "--service").code == 0
    assert api.asked[-1].json == {"username": "ci", "roles": ["viewer"], "kind": "service"}
    assert cli("user", "create", "anna").code == 2


def test_changes_of_users_name_the_version_that_was_read(api: FakeApi, cli: Cli) -> None:
    for words, method, path, body in (
        (("roles", "anna", "viewer", "auditor"), "PUT", f"/users/{USER}/roles", {"roles": ["viewer", "auditor"]}),
        (("disable", "anna"), "PATCH", f"/users/{USER}", {"disabled": True}),
        (("enable", "anna"), "PATCH", f"/users/{USER}", {"disabled": False}),
        (("delete", "anna"), "DELETE", f"/users/{USER}", None),
        (("appoint", "anna"), "PUT", f"/users/{USER}/platform-admin", None),
        (("dismiss", "anna"), "DELETE", f"/users/{USER}/platform-admin", None),
    ):
        for flag in ((), ("--everywhere",)):
            assert cli("user", *words, *flag).code == 0, words
            asked = api.asked[-1]
            assert (asked.method, asked.path) == (method, path)
            assert asked.headers["if-match"] == '"v3"'
            assert asked.query == ({"scope": "platform"} if flag else {})
            assert body is None or asked.json == body


def test_tokens_of_a_user(api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("user", "revoke-token", "anna", TOKEN).code == 0
    assert cli("user", "revoke-token", "anna", "../x").code == 2
    words = ("token", "create", "ci", "--user", "ada", "--password-stdin", "-o", "name")
    for more, path in ((("--for", USER, "--tenant", "acme"), f"/users/{USER}/tokens"), ((), "/tokens")):
        monkeypatch.setattr("sys.stdin", io.StringIO("a long password\n"))
        assert cli(*words, *more).out == "cloche_pat_x\n"
        assert api.asked[-1].path == path
        assert api.asked[-1].headers.get("x-cloche-tenant") == ("acme" if more else None)
    assert cli(*words, "--for", "../x").code == 2


def test_roles(api: FakeApi, cli: Cli) -> None:
    assert "\x1b" not in cli("role", "list").out
    assert "job:cancel_any" in cli("role", "get", "Night").out
    assert cli("role", "create", "night", "-p", "job:read", "--permission", "job:cancel_any").code == 0
    assert api.asked[-1].json == {"name": "night", "summary": "", "permissions": ["job:read", "job:cancel_any"]}
    assert cli("role", "create", "night").code == 2
    assert cli("role", "set", "night", "--add", "queue:read", "--remove", "job:cancel_any").code == 0
    assert api.asked[-1].json["permissions"] == ["job:read", "queue:read"]
    assert api.asked[-1].headers["if-match"] == '"v5"'
    assert cli("role", "set", "night", "-p", "queue:read", "--summary", "s").code == 0
    assert api.asked[-1].json == {"summary": "s", "permissions": ["queue:read"]}
    assert cli("role", "set", "night").code == 2
    assert cli("role", "set", "night", "-p", "x", "--add", "y").code == 2
    assert cli("role", "delete", "night").code == 0
    assert api.asked[-1].headers["if-match"] == '"v5"'
    for name in ("../users", "a/b", "", "-x", "ä"):
        assert cli("role", "get", "--", name).code == 2, name


def test_tenants(api: FakeApi, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "suspended" in cli("tenant", "list").out
    assert cli("tenant", "create", "acme", "--admin", "anna").code == 0
    assert api.asked[-1].json == {"name": "acme", "admin": "anna"}
    for word, suspended in (("suspend", True), ("resume", False)):
        assert cli("tenant", word, "acme").code == 0
        assert api.asked[-1].json == {"suspended": suspended}
        assert api.asked[-1].headers["if-match"] == '"v7"'
    assert cli("tenant", "empty", "acme").code == 2
    answers = iter([(1, False), (0, True)])

    def emptied(_asked: Any) -> Answer:
        left, done = next(answers)
        return Answer({"removed": {"jobs": 1, "files": 0}, "left": {"jobs": left, "files": 0}, "done": done})

    api.routes[f"POST /tenants/{TENANT}/empty"] = emptied
    monkeypatch.setattr("cloche.cli.commands.tenants._AGAIN_S", 0)
    ran = cli("tenant", "empty", "acme", "--yes")
    assert (ran.code, "left: 1 jobs" in ran.err, "acme is empty" in ran.err) == (0, True, True)
    assert api.asked[-1].json == {"confirm": "acme"}
    assert cli("tenant", "delete", "acme").code == 0
