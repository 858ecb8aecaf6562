"""The submit form as a body, and refusals beside their fields."""

from __future__ import annotations

import pytest

from cloche.errors import Problem
from cloche.web.dashboard import form


def test_a_form_becomes_the_body_that_the_api_takes():
    typed = form.Typed.read(
        {
            "payload": '{"width":\r\n 5}',
            "name": " spring ",
            "priority": "7",
            "queue": "nightly",
            "remote_inputs": "photos:2024/*.png\r\n\r\nphotos:a.csv => b.csv",
            "outputs": "*.png => photos:thumbs",
            "nonce": "n",
            "csrf_token": "ignored",
        }
    )
    assert form.body("thumbnail", "1.0.0", typed, ["f1"]) == {
        "type": "thumbnail",
        "version": "==1.0.0",
        "payload": {"width": 5},
        "priority": 7,
        "queue": "nightly",
        "name": "spring",
        "inputs": [
            {"from": "artifact:f1"},
            {"from": "photos:2024/*.png"},
            {"from": "photos:a.csv", "to": "b.csv"},
        ],
        "outputs": [{"match": "*.png", "to": "photos:thumbs"}],
    }


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"payload": "{"}, "payload"),
        ({"payload": '{"a": 1, "a": 2}'}, "payload"),
        ({"payload": '{"a": NaN}'}, "payload"),
        ({"payload": '"\ud800"'}, "payload"),
        ({"priority": "11"}, "priority"),
        ({"priority": "٣"}, "priority"),
        ({"outputs": "*.png"}, "outputs"),
        ({"outputs": "=> photos:x"}, "outputs"),
    ],
)
def test_what_cannot_be_read_is_told_at_its_field(changed, field):
    with pytest.raises(form.Refused) as refused:
        form.body("p", "1.0.0", form.Typed.read(changed), [])
    assert list(refused.value.problems) == [field]


def test_problems_land_at_the_field_they_are_about():
    problems = [
        Problem("/payload/width", "too wide"),
        Problem("/payload", "no object"),
        Problem("/inputs/0/from", "no such file"),
        Problem("/inputs/1/from", "no such remote"),
        Problem("/inputs", "needs one"),
        Problem("/outputs/0/to", "no such remote"),
        Problem("/version", "disabled"),
        Problem("/limits", "too much"),
    ]
    assert form.placed(problems, 1) == {
        "payload": ["/width: too wide", "no object"],
        "files": ["no such file", "needs one"],
        "remote_inputs": ["no such remote"],
        "outputs": ["no such remote"],
        "plugin": ["disabled"],
        "form": ["too much"],
    }


def test_the_same_form_has_the_same_key_and_a_changed_one_another():
    typed = form.Typed(nonce="n")
    body = form.body("p", "1.0.0", typed, [])
    assert form.key(typed, body) == form.key(typed, dict(body))
    assert form.key(typed, body) != form.key(typed, body | {"priority": 6})
    assert form.key(typed, body) != form.key(form.Typed(nonce="m"), body)
