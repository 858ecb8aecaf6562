"""One's own account as forms send it: nobody reaches another's, and nothing secret travels where it would stay."""

from __future__ import annotations

import pytest

from tests.support.web import PASSWORD, running_site

NEW = "seven quiet otters by the weir"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        for name, role in (("vera", "viewer"), ("anna", "submitter"), ("paul", "submitter")):
            running.add(name, role)
        yield running


def test_what_is_anothers_is_not_there(site):
    anna, token = site.browser("anna")
    paul, _ = site.browser("paul")
    site.token("paul")
    [session] = [item["id"] for item in paul.get("/api/v1/sessions").json["items"]]
    [token_id] = [item["id"] for item in paul.get("/api/v1/tokens").json["items"]]
    form = {"csrf_token": token}
    assert anna.post(f"/ui/account/sessions/{session}/end", data=form).status_code == 303
    assert anna.post(f"/ui/account/tokens/{token_id}/revoke", data=form).status_code == 303
    assert paul.get("/ui/account/sessions").status_code == 200
    assert paul.get("/api/v1/tokens").json["items"][0]["revoked_at"] is None


def test_no_form_passes_without_the_sessions_token(site):
    client, _ = site.browser("anna")
    for path in (
        "/ui/account/password",
        "/ui/account/tenant",
        "/ui/account/sessions/end-others",
        "/ui/account/tokens/new",
        "/ui/password-reset",
    ):
        assert client.post(path, data={"name": "x"}).status_code == 403, path


def test_a_scope_one_does_not_hold_is_refused_beside_the_boxes(site):
    client, token = site.browser("vera")
    data = {"csrf_token": token, "name": "more", "reach": "these", "permission": ["job:read", "role:manage"]}
    answer = client.post("/ui/account/tokens/new", data=data)
    assert answer.status_code == 403
    assert 'id="wrong-scopes"' in answer.text
    assert "You do not hold &#39;role:manage&#39; yourself." in answer.text
    assert client.post("/ui/account/tokens/new", data=data | {"permission": "nonsense"}).status_code == 422


def test_a_new_tokens_text_is_in_the_answer_alone(site):
    client, token = site.browser("vera")
    data = {"csrf_token": token, "name": "one", "reach": "all", "expires_in": "7d"}
    answer = client.post("/ui/account/tokens/new", data=data)
    assert answer.headers["Cache-Control"] == "no-store"
    text = answer.text.partition('id="token" value="')[2].partition('"')[0]
    assert text.startswith("cloche_pat_")
    assert "Set-Cookie" not in answer.headers
    assert text not in client.get("/ui/account/tokens").text
    assert site.client().get("/api/v1/me", headers={"Authorization": f"Bearer {text}"}).json["username"] == "vera"


def test_a_tenant_that_is_none_of_ones_own_cannot_be_chosen(site):
    client, token = site.browser("anna")
    for name in ("elsewhere", "", "x" * 1_000, "\x00"):
        assert client.post("/ui/account/tenant", data={"csrf_token": token, "tenant": name}).status_code == 303
        assert "That tenant is none of yours." in client.get("/ui/account").text


def test_a_program_chooses_no_tenant_and_changes_no_password(site):
    headers = site.headers("anna")
    assert site.client().post("/ui/account/tenant", data={"tenant": "default"}, headers=headers).status_code == 403
    data = {"current_password": PASSWORD, "new_password": NEW, "again": NEW}
    assert site.client().post("/ui/account/password", data=data, headers=headers).status_code == 403


def test_choosing_a_tenant_is_recorded_there(site):
    client, token = site.browser("anna")
    assert client.post("/ui/account/tenant", data={"csrf_token": token, "tenant": "default"}).status_code == 303
    [event] = site.request("GET", "/audit?action=session:enter").json["items"]
    assert (event["actor"], event["outcome"]) == ("anna", "allowed")


def test_no_page_repeats_a_password(site):
    client, token = site.browser("vera")
    data = {"csrf_token": token, "current_password": "wrong but secret", "new_password": NEW, "again": NEW}
    answer = client.post("/ui/account/password", data=data)
    assert answer.status_code == 401
    assert "The current password does not fit." in answer.text
    assert "wrong but secret" not in answer.text
    assert NEW not in answer.text


def test_whoever_fails_too_often_is_told_when_to_try_again(site):
    client = site.client()
    client.get("/ui/sign-in")
    for _ in range(11):
        page = client.get("/ui/sign-in").text
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        answer = client.post("/ui/sign-in", data={"csrf_token": token, "username": "paul", "password": "wrong"})
    assert answer.status_code == 429
    assert "Too many sign-ins have failed, for this name or from this address. Try again in a minute." in answer.text
    assert int(answer.headers["Retry-After"]) <= 60
