"""``cloche egress-policy`` against a small real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloche import config
from cloche.cli.commands import doctor
from tests.support.cli import Cli
from tests.support.fake_api import Answer, FakeApi, serving

POLICY = {"allow": ["a.example:443"], "platform_allow": ["*:443"], "version": 3, "updated_at": None}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving() as fake:
        fake.routes["GET /egress-policy"] = Answer(POLICY)
        yield fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: FakeApi) -> Cli:
    return Cli(monkeypatch, capsys, api.url)


def test_get_shows_both_policies(cli: Cli) -> None:
    ran = cli("egress-policy", "get")
    assert ran.code == 0
    assert "a.example:443" in ran.out
    assert "*:443" in ran.out
    assert cli("egress-policy", "get", "-o", "name").out == "a.example:443\n"


def test_set_names_the_version_it_has_read(api: FakeApi, cli: Cli) -> None:
    api.routes["PUT /egress-policy"] = lambda asked: Answer({**POLICY, **asked.json, "version": 4})
    ran = cli("egress-policy", "set", "*.example.org:443", "b.example:1")
    assert ran.code == 0, ran.err
    assert api.asked[-1].json == {"allow": ["*.example.org:443", "b.example:1"]}
    assert api.asked[-1].headers["if-match"] == '"v3"'
    assert cli("egress-policy", "set").code == 0
    assert api.asked[-1].json == {"allow": []}


def test_a_refusal_is_shown_with_its_pointer(api: FakeApi, cli: Cli) -> None:
    body = {"detail": "not changed", "status": 422, "errors": [{"pointer": "/allow/0", "detail": "needs a port"}]}
    api.routes["PUT /egress-policy"] = Answer(body, 422)
    ran = cli("egress-policy", "set", "nonsense")
    assert ran.code == 1
    assert "/allow/0: needs a port" in ran.err


@pytest.mark.parametrize(
    ("settings", "status", "word"),
    [
        ({}, "ok", "no job reaches anything"),
        ({"allow": "*:443", "private": "10.0.0.1"}, "ok", "10.0.0.1/32"),
        ({"allow": "nonsense"}, "fail", "needs a port"),
    ],
)
def test_the_doctor_says_what_may_be_reached(settings: dict[str, str], status: str, word: str) -> None:
    check = doctor._egress(config.load(egress=settings))
    assert check.status == status
    assert word in check.detail
