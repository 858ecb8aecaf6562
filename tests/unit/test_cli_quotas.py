"""``cloche quota`` and ``cloche usage`` against a small real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

LIMITS: dict[str, Any] = {
    "jobs": 10,
    "submissions_per_minute": None,
    "storage_bytes": "unlimited",
    "cpu_seconds_per_day": None,
}
HOLDS = LIMITS | {"submissions_per_minute": 600, "cpu_seconds_per_day": "unlimited"}
QUOTA = {"limits": LIMITS, "effective": HOLDS, "version": 3, "updated_at": None}
FREE: dict[str, Any] = {"limit": "unlimited", "used": 0.0, "resets_at": None}
MINE: dict[str, Any] = dict.fromkeys(LIMITS, FREE)
NUMBERS = {
    "attempts": 12,
    "cpu_seconds": 34.56,
    "memory_gb_seconds": 7.0,
    "bytes_in": 2048,
    "bytes_out": 0,
    "bytes_stored": 1,
    "wall_seconds": 99.9,
}
USAGE = {
    "since": "2026-01-01",
    "until": "2026-01-03",
    "group": "day",
    "items": [{"day": "2026-01-01", **NUMBERS}],
    "total": NUMBERS,
    "complete": True,
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        for path in ("/tenants/t-1/quotas", "/users/u-1/quotas"):
            fake.routes[f"GET {path}"] = fake.routes[f"PUT {path}"] = Answer(QUOTA)
        fake.routes["DELETE /users/u-1/quotas"] = Answer("", 204)
        fake.routes["GET /usage"] = Answer(USAGE)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (("--jobs", "5"), {"jobs": 5}),
        (("--jobs", "0"), {"jobs": 0}),
        (("--jobs", "default", "--cpu", "unlimited"), {"jobs": None, "cpu_seconds_per_day": "unlimited"}),
        (("--storage", "2GB"), {"storage_bytes": 2 << 30}),
        (("--storage", "1000", "--submissions", "60"), {"storage_bytes": 1000, "submissions_per_minute": 60}),
    ],
)
@pytest.mark.parametrize("whose", [("tenant", "t-1"), ("user", "u-1")])
def test_what_is_not_named_stays(
    api: FakeApi, cli: Cli, whose: tuple[str, str], words: tuple[str, ...], changed: dict[str, Any]
) -> None:
    ran = cli("quota", "set", f"--{whose[0]}", whose[1], *words)
    assert ran.code == 0, ran.err
    assert [(asked.method, asked.path) for asked in api.asked] == [
        (method, f"/{whose[0]}s/{whose[1]}/quotas") for method in ("GET", "PUT")
    ]
    assert api.asked[-1].json == LIMITS | changed
    assert api.asked[-1].headers["if-match"] == '"v3"'


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "--tenant", "t-1"), "name a limit"),
        (("set", "--jobs", "1"), "either --tenant or --user"),
        (("set", "--tenant", "t-1", "--user", "u-1", "--jobs", "1"), "either --tenant or --user"),
        (("set", "--tenant", "t-1", "--jobs", "many"), "--jobs: write a number, `unlimited` or `default`"),
        (("set", "--tenant", "t-1", "--jobs", "1.5"), "--jobs: write a number"),
        (("set", "--tenant", "t-1", "--storage", "2 elephants"), "--storage: write a number"),
        (("get", "--tenant", ".."), "that is no id"),
        (("get",), "either --tenant or --user"),
        (("clear",), "--user"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_sent(
    api: FakeApi, cli: Cli, words: tuple[str, ...], says: str
) -> None:
    ran = cli("quota", *words)
    assert (ran.code, api.asked) == (2, [])
    assert says in ran.err


def test_an_id_is_one_part_of_the_path(api: FakeApi, cli: Cli) -> None:
    cli("quota", "get", "--user", "../tenants/t-1")
    assert [asked.path for asked in api.asked] == ["/users/..%2Ftenants%2Ft-1/quotas"]


def test_somebody_elses_change_in_between_is_told(api: FakeApi, cli: Cli) -> None:
    api.routes["PUT /tenants/t-1/quotas"] = Answer({"detail": "it was changed meanwhile", "status": 412}, 412)
    ran = cli("quota", "set", "--tenant", "t-1", "--jobs", "1")
    assert ran.code != 0
    assert "changed meanwhile" in ran.err


def test_get_says_what_was_set_and_what_is_as_by_default(cli: Cli) -> None:
    lines = cli("quota", "get", "--tenant", "t-1").out.splitlines()
    assert any("jobs that have not ended" in line and line.rstrip().endswith("10") for line in lines)
    assert any("within a minute" in line and line.rstrip().endswith("600 (default)") for line in lines)


def test_clear_names_the_version_it_removes(api: FakeApi, cli: Cli) -> None:
    ran = cli("quota", "clear", "--user", "u-1")
    assert ran.code == 0, ran.err
    assert (api.asked[-1].method, api.asked[-1].headers["if-match"]) == ("DELETE", '"v3"')


def test_mine_says_what_is_used_of_what_and_until_when(api: FakeApi, cli: Cli) -> None:
    spent = {"limit": 60, "used": 12.5, "resets_at": "2026-01-02T00:00:00.000Z"}
    unknown = {"limit": 600, "used": None, "resets_at": None}
    user = MINE | {"cpu_seconds_per_day": spent, "submissions_per_minute": unknown}
    api.routes["GET /usage/limits"] = Answer({"tenant": MINE, "user": user})
    lines = cli("quota", "mine").out.splitlines()
    (cpu,) = [line for line in lines if "user: CPU-seconds" in line]
    assert cpu.endswith("12.5 of 60 until 2026-01-02T00:00:00.000Z")
    (pace,) = [line for line in lines if "user: jobs submitted" in line]
    assert pace.endswith(" 600")


def test_usage_adds_up(api: FakeApi, cli: Cli) -> None:
    ran = cli("usage", "--since", "2026-01-01", "--until", "2026-01-03")
    assert ran.code == 0, ran.err
    assert api.asked[-1].query == {"since": "2026-01-01", "until": "2026-01-03", "group": "day"}
    heading, row, total = (line.split() for line in ran.out.splitlines()[:3])
    assert heading[:2] == ["DAY", "ATTEMPTS"]
    assert row[:3] == ["2026-01-01", "12", "34.6"]
    assert total[:3] == ["total", "12", "34.6"]


def test_usage_of_every_tenant_by_user_tells_that_there_is_more(api: FakeApi, cli: Cli) -> None:
    gone = {"tenant_id": "t-1", "tenant": "acme", "user_id": "u-1", "user": None}
    api.routes["GET /usage"] = Answer(USAGE | {"group": "user", "items": [gone | NUMBERS], "complete": False})
    ran = cli("usage", "--group", "user", "--platform")
    assert api.asked[-1].query == {"group": "user", "scope": "platform"}
    assert ran.out.splitlines()[1].split()[:3] == ["acme", "u-1", "12"]
    assert "ask for fewer days" in ran.err
