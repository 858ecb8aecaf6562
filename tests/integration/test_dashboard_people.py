"""Users, roles and tenants as forms send them: nobody gets further by a form than by the API."""

from __future__ import annotations

import pytest

from tests.support import people
from tests.support.web import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        chief = people.sign_in(running)
        chief.made("/roles", name="clerk", permissions=["user:read", "user:manage"])
        for name, role in (
            ("vera", "viewer"),
            ("otto", "auditor"),
            ("anna", "submitter"),
            ("boss", "admin"),
            ("carl", "clerk"),
        ):
            people.add(chief, name, role)
        yield running


def ids(site):
    return {item["username"]: item["id"] for item in site.request("GET", "/users").json["items"]}


def held(site, name):
    found = site.request("GET", f"/users?username={name}").json["items"]
    return found[0] if found else None


def form(site, name, token, **values):
    return {"csrf_token": token, "version": str(held(site, name)["version"]), **values}


def test_who_may_not_see_users_finds_no_page_and_no_way_there(site):
    client, token = site.browser("vera")
    assert "/ui/users" not in client.get("/ui/jobs").text
    anna = ids(site)["anna"]
    for path in ("/ui/users", f"/ui/users/{anna}", "/ui/roles", "/ui/tenants", "/ui/users/new"):
        assert client.get(path).status_code == 403, path
    for path in (f"/ui/users/{anna}/roles", f"/ui/users/{anna}/disable", "/ui/roles/new", "/ui/tenants/new"):
        assert client.post(path, data={"csrf_token": token, "version": "1"}).status_code == 403, path


def test_who_may_only_look_finds_no_button(site):
    client, token = site.browser("otto")
    anna = ids(site)["anna"]
    page = client.get(f"/ui/users/{anna}").text
    assert 'data-permission="job:submit"' in page
    for gone in ('id="roles-form"', 'id="disable"', 'id="tokens"', 'id="reset_user"'):
        assert gone not in page
    assert 'id="role-form"' not in client.get("/ui/roles/clerk").text
    assert client.post(f"/ui/users/{anna}/password-reset", data={"csrf_token": token}).status_code == 403


def test_nobody_gives_by_a_form_what_they_do_not_hold(site):
    client, token = site.browser("carl")
    anna = ids(site)["anna"]
    # With more than the clerk holds: not even their roles can be changed.
    answer = client.post(f"/ui/users/{anna}/roles", data=form(site, "anna", token, role=["clerk"]))
    assert answer.status_code == 403
    assert "This user may do what you may not" in answer.text
    answer = client.post(
        "/ui/users/new", data={"csrf_token": token, "kind": "person", "username": "new", "role": ["admin"]}
    )
    assert answer.status_code == 403
    assert 'id="wrong-roles"' in answer.text
    assert held(site, "new") is None
    own = client.post(f"/ui/users/{ids(site)['carl']}/roles", data=form(site, "carl", token, role=["clerk", "admin"]))
    assert own.status_code == 403
    assert held(site, "carl")["roles"] == ["clerk"]
    denied = site.request("GET", "/audit?action=access:deny&actor=carl").json["items"]
    assert {item["object"] for item in denied} == {"POST /ui/users/<user_id>/roles", "POST /ui/users/new"}


def test_a_form_says_no_more_than_its_fields(site):
    """What the API calls mass assignment: fields that are none of the form's change nothing."""
    client, token = site.browser("boss")
    anna = ids(site)["anna"]
    extra = {"platform_admin": "true", "tenant_id": "other", "disabled": "true", "username": "root"}
    answer = client.post(f"/ui/users/{anna}/roles", data=form(site, "anna", token, role=["submitter"], **extra))
    assert answer.status_code == 303
    after = held(site, "anna")
    assert (after["platform_admin"], after["disabled"], after["username"]) == (False, False, "anna")


def test_a_tenants_administrator_has_no_way_to_the_platform(site):
    client, token = site.browser("boss")
    anna = ids(site)["anna"]
    page = client.get(f"/ui/users/{anna}").text
    assert 'id="appoint"' not in page
    assert 'id="remove-everywhere"' not in page
    assert client.post(f"/ui/users/{anna}/appoint", data=form(site, "anna", token)).status_code == 403
    everywhere = form(site, "anna", token, **{"from": "everywhere"})
    assert client.post(f"/ui/users/{anna}/remove", data=everywhere).status_code == 403
    assert client.get("/ui/users?scope=platform").status_code == 200
    assert "Every tenant" not in client.get("/ui/users?scope=platform").text
    assert client.get("/ui/tenants").status_code == 403


def test_users_are_found_by_what_their_names_begin_with(site):
    client, _ = site.browser("boss")
    found = client.get("/ui/users?prefix=A").text
    assert "anna" in found
    assert "vera" not in found
    assert "Nobody of that name" in client.get("/ui/users?prefix=%25").text
    assert "Nobody of that name" in client.get("/ui/users?prefix=a_na").text
    assert "vera" not in client.get("/ui/users?prefix=v&kind=service").text
    assert client.get("/ui/users?prefix=%E2%80%AE%00&role=%3Cscript%3E").status_code == 200
    answer = site.request("GET", "/users?prefix=an")
    assert [item["username"] for item in answer.json["items"]] == ["anna"]


def test_who_and_what_is_not_there_is_404(site):
    client, token = site.browser("boss")
    nobody = "0190aaaa-0000-7000-8000-000000000000"
    for path in (f"/ui/users/{nobody}", "/ui/users/x", "/ui/roles/nosuch", "/ui/roles/new?from=nosuch"):
        assert client.get(path).status_code == 404, path
    for act in ("roles", "disable", "remove", "password-reset", "tokens/new"):
        data = {"csrf_token": token, "version": "1", "role": "viewer", "reach": "all", "name": "x"}
        assert client.post(f"/ui/users/{nobody}/{act}", data=data).status_code == 404, act
    assert client.post("/ui/roles/nosuch/delete", data={"csrf_token": token, "version": "1"}).status_code == 404


def test_a_form_without_its_version_is_none_of_ours(site):
    client, token = site.browser("boss")
    anna = ids(site)["anna"]
    for version in ("", "x", "-1", "9" * 12):
        data = {"csrf_token": token, "version": version, "role": "viewer"}
        assert client.post(f"/ui/users/{anna}/roles", data=data).status_code == 422, version
        assert client.post("/ui/roles/clerk/change", data=data).status_code == 422, version


def test_a_built_in_role_is_not_changed_by_a_form(site):
    client, token = site.browser("boss")
    data = {"csrf_token": token, "version": "1", "permission": ["job:read"]}
    answer = client.post("/ui/roles/viewer/change", data=data)
    assert answer.status_code == 409
    assert "built in and stays as it is" in answer.text
    platform = {"csrf_token": token, "name": "more", "permission": ["platform:manage"]}
    answer = client.post("/ui/roles/new", data=platform)
    assert answer.status_code == 422
    assert "no role can give it" in answer.text


def test_many_roles_are_shown_some_at_a_time_and_all_can_be_given(site):
    chief = people.sign_in(site)
    for number in range(120):
        chief.made("/roles", name=f"role-{number:03}", summary="<i>x</i>\u202e", permissions=["job:read"])
    client, token = site.browser("boss")
    page = client.get("/ui/roles").text
    assert page.count('scope="col"') == 13
    assert "More →" in page
    assert client.get("/ui/roles?name=ROLE-119").headers["Location"] == "/ui/roles/role-119"
    anna = ids(site)["anna"]
    page = client.get(f"/ui/users/{anna}").text
    assert 'id="others"' in page
    assert "&lt;i&gt;x&lt;/i&gt;" in page
    data = form(site, "anna", token, role=["submitter"], others="role-119\r\n\r\nrole-118\r\n")
    assert client.post(f"/ui/users/{anna}/roles", data=data).status_code == 303
    assert held(site, "anna")["roles"] == ["role-118", "role-119", "submitter"]
    assert "role-118\nrole-119" in client.get(f"/ui/users/{anna}").text
