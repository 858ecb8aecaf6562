"""Usage and quotas as forms send them."""

from __future__ import annotations

import pytest

from tests.support import people
from tests.support.web import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        chief = people.sign_in(running)
        for name, role in (("vera", "viewer"), ("otto", "auditor"), ("boss", "admin")):
            people.add(chief, name, role)
        yield running


def user_id(site, name):
    return site.request("GET", f"/users?username={name}").json["items"][0]["id"]


def tenant_id(site):
    return people.sign_in(site).got("/tenants")["items"][0]["id"]


def test_everybody_sees_their_own_and_who_may_the_tenants(site):
    shown = {}
    for name in ("vera", "otto", "admin"):
        page = site.browser(name)[0].get("/ui/usage?group=tenant").text
        shown[name] = ('id="mine"' in page, 'id="report"' in page, "Every tenant" in page)
    assert shown == {"vera": (True, False, False), "otto": (True, True, False), "admin": (True, True, True)}
    assert site.browser("otto")[0].get("/ui/usage?days=9999&group=nonsense").status_code == 200


def test_a_users_quota_is_set_within_the_tenants_and_never_ones_own(site):
    root, token = site.browser()
    path = f"/ui/tenants/{tenant_id(site)}/quota"
    assert 'name="jobs"' in root.get(path).text
    data = {"csrf_token": token, "version": "0", "jobs": "100", "storage_bytes": "1GB"}
    assert root.post(f"{path}/set", data=data).status_code == 303
    assert "at most 100" not in site.browser("vera")[0].get("/ui/usage").text
    assert "of 100" in site.browser("vera")[0].get("/ui/usage").text
    boss, token = site.browser("boss")
    path = f"/ui/users/{user_id(site, 'vera')}/quota"
    data = {"csrf_token": token, "version": "0", "jobs": "101"}
    answer = boss.post(f"{path}/set", data=data)
    assert (answer.status_code, 'id="wrong-jobs"' in answer.text) == (422, True)
    answer = boss.post(f"{path}/set", data={**data, "jobs": "lots", "storage_bytes": "5MB"})
    assert (answer.status_code, 'value="5MB"' in answer.text) == (422, True)
    assert boss.post(f"{path}/set", data={**data, "jobs": "10"}).headers["Location"] == path
    assert boss.post(f"{path}/set", data={**data, "jobs": "20"}).status_code == 409
    own = f"/ui/users/{user_id(site, 'boss')}/quota"
    assert boss.post(f"{own}/set", data=data).status_code == 403
    assert boss.post(f"{own}/set", data={**data, "version": "x"}).status_code == 422


def test_who_may_not_finds_no_form(site):
    client, token = site.browser("otto")
    of_user, of_tenant = f"/ui/users/{user_id(site, 'vera')}/quota", f"/ui/tenants/{tenant_id(site)}/quota"
    for path in (of_user, of_tenant):
        assert client.get(path).status_code == 403
        assert client.post(f"{path}/set", data={"csrf_token": token, "version": "0"}).status_code == 403
    boss, _ = site.browser("boss")
    assert boss.get(of_tenant).status_code == 403
    assert boss.get("/ui/users/0190aaaa-0000-7000-8000-000000000000/quota").status_code == 404
    root, _ = site.browser()
    assert root.get("/ui/tenants/0190aaaa-0000-7000-8000-000000000000/quota").status_code == 404
