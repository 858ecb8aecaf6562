"""Routes have to say what they require, take and give."""

from __future__ import annotations

import pytest
from flask import Flask

from cloche.domain.permissions import Permission
from cloche.web.routing import PUBLIC, Body, RouteGroup, Shape, respond


class Out(Shape):
    n: int


class In(Body):
    n: int


def test_a_route_without_permission_is_refused_at_registration():
    group = RouteGroup("t")
    with pytest.raises(TypeError, match="declares no permission"):
        group.route("GET", "/x", summary="s", responses={200: Out})
    with pytest.raises(TypeError, match="declares no permission"):
        group.route("GET", "/x", permission="job:read", summary="s", responses={200: Out})
    assert group.routes == []


@pytest.mark.parametrize("missing", ["summary", "responses"])
def test_a_route_without_description_is_refused(missing):
    declared = {"permission": Permission.JOB_READ, "summary": "s", "responses": {200: Out}}
    del declared[missing]
    with pytest.raises(TypeError, match="summary and its responses"):
        RouteGroup("t").route("GET", "/x", **declared)


def test_templates_and_parameters():
    group = RouteGroup("t")
    group.route("GET", "/jobs/<job_id>/outputs/<path:path>", permission=PUBLIC, summary="s", responses={200: Out})(
        print
    )
    assert group.routes[0].template == "/jobs/{job_id}/outputs/{path}"
    assert group.routes[0].parameters == ["job_id", "path"]


@pytest.mark.parametrize(
    ("result", "status", "text"),
    [
        ({"n": 1}, 200, '{"n":1}\n'),
        (({"n": 1}, 201), 201, '{"n":1}\n'),
        (None, 204, ""),
        (({"n": 1}, 202, {"Location": "/x"}), 202, '{"n":1}\n'),
    ],
)
def test_a_handlers_value_as_response(result, status, text):
    with Flask("t").test_request_context():
        answer = respond(result)
        assert (answer.status_code, answer.get_data(as_text=True)) == (status, text)


def test_bodies_convert_nothing_silently():
    with pytest.raises(ValueError, match="int"):
        In.model_validate({"n": "1"})
    with pytest.raises(ValueError, match="extra"):
        In.model_validate({"n": 1, "m": 2})
