"""What pages of people say: permissions by resource, refusals by field, browsers in two words."""

from __future__ import annotations

import pytest

from cloche.domain.permissions import Permission
from cloche.errors import Conflict, Invalid, Problem
from cloche.web.dashboard.agents import device
from cloche.web.dashboard.fields import beside
from cloche.web.dashboard.permission_words import grouped
from cloche.web.dashboard.token_forms import TypedToken, by_life


def test_every_permission_is_in_one_group_with_its_sentence():
    names = [one.name for group in grouped() for one in group.items]
    assert sorted(names) == sorted(permission.value for permission in Permission)
    assert all(one.summary.endswith(".") for group in grouped() for one in group.items)


def test_only_what_was_asked_for_is_shown():
    [group] = grouped(["job:read", "job:nonsense"])
    assert (group.title, [one.name for one in group.items]) == ("Jobs", ["job:read"])


def test_a_refusal_stands_beside_its_field():
    problems = [Problem("/name", "is required"), Problem("/addresses/1", "has to be one"), Problem("/other", "no")]
    refused = Invalid("It does not fit.", problems=problems)
    found = beside(refused, ("name", "addresses"), about={"addresses": ["a", "<b>"]})
    assert found == {"name": ["Is required."], "addresses": ["<b>: Has to be one."], "form": ["No."]}


def test_a_refusal_without_pointers_stands_by_its_code_or_above():
    refused = Conflict("Taken.", code="name-taken")
    assert beside(refused, ("name",)) == {"form": ["Taken."]}
    assert beside(refused, ("name",), codes={"name-taken": "name"}) == {"name": ["Taken."]}


def test_a_token_form_is_the_apis_body():
    form = {"name": " ci ", "expires_in": "", "reach": "these", "addresses": "192.0.2.1\r\n\r\n 192.0.2.2 "}
    typed = TypedToken.read(form, ["job:read"])
    assert typed.body() == {"name": "ci", "scopes": ["job:read"], "addresses": ["192.0.2.1", "192.0.2.2"]}
    assert TypedToken.read({**form, "reach": "all"}, []).body().get("scopes") is None
    assert TypedToken.read(form, []).fault()


def test_tokens_that_have_ended_stand_apart():
    token = {"revoked_at": None, "expires_at": None}
    expired = {**token, "expires_at": "2020-01-01T00:00:00.000Z"}
    revoked = {**token, "revoked_at": "2020-01-01T00:00:00.000Z"}
    valid, over = by_life([token, expired, revoked], 1_800_000_000_000)
    assert [item["ended"] for item in (*valid, *over)] == [None, "expired", "revoked"]


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/126.0 Safari/537.36 Edg/126.0", "Edge on Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) Version/17.5 Safari/604.1", "Safari on an iPhone"),
        ("curl/8.5.0", "curl"),
        (None, "Something"),
        ("<script>", "Something"),
    ],
)
def test_a_browser_in_two_words(agent, words):
    assert device(agent) == words
