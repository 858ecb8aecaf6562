"""The pages of plugins: everybody sees a version's state, platform administrators change it."""

from __future__ import annotations

import pytest

from tests.support.plugins import write_bundle
from tests.support.web import running_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    for version in ("1.0.0", "2.0.0"):
        write_bundle(folder, "sample", version)
    with running_site(tmp_path_factory.mktemp("home"), folder) as running:
        running.add("anna", "submitter")
        running.add("adam", "admin")
        yield running


@pytest.fixture(autouse=True)
def _enabled(site):
    yield
    assert send(site, "enabled").status_code == 303


def shown(site):
    return site.request("GET", "/plugins/sample/2.0.0").json


def send(site, state, user="admin", **more):
    client, token = site.browser(user)
    form = {"csrf_token": token, "version": shown(site)["revision"], "state": state, "reason": "", **more}
    return client.post("/ui/plugins/sample/2.0.0/state", data=form)


def page(site, path="/ui/plugins/sample/2.0.0", user="anna"):
    answer = site.browser(user)[0].get(path)
    assert answer.status_code == 200
    return answer.text


def test_buttons_are_for_whoever_may(site):
    for user in ("anna", "adam"):
        assert "state-form" not in page(site, user=user)
        assert send(site, "yanked", user).status_code == 403
    mine = page(site, user="admin")
    assert [state for state in ("enabled", "deprecated", "disabled", "yanked") if f'id="make-{state}"' in mine] == [
        "deprecated",
        "disabled",
        "yanked",
    ]
    assert shown(site)["state"] == "enabled"


def test_a_version_is_yanked_and_everybody_sees_why(site):
    answer = send(site, "yanked", reason="<b>it corrupts</b>")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/plugins/sample/2.0.0")
    found = page(site)
    assert "No new jobs: it is yanked (&lt;b&gt;it corrupts&lt;/b&gt;)." in found
    assert "Submit a job</a>" not in found
    assert '<span class="tag tag-bad">yanked</span>' in page(site, "/ui/plugins")
    submit = page(site, "/ui/submit")
    assert "sample@1.0.0" in submit
    assert "sample@2.0.0" not in submit


def test_a_deprecated_version_is_offered_with_its_reason_and_its_jobs_say_so(site):
    assert send(site, "deprecated", reason="use 3").status_code == 303
    assert "This version is deprecated: use 3." in page(site)
    assert "This version is deprecated: use 3." in page(site, "/ui/submit?plugin=sample@2.0.0")
    job = site.request("POST", "/jobs", "anna", json={"type": "sample"}).json
    assert "sample 2.0.0: it is deprecated (use 3)" in page(site, f"/ui/jobs/{job['id']}")


def test_what_somebody_else_changed_and_what_is_wrong_is_said_on_the_page(site):
    stale = shown(site)["revision"]
    assert send(site, "deprecated").status_code == 303
    late = send(site, "yanked", version=stale)
    assert late.status_code in (409, 412)
    assert "Somebody else has changed this version" in late.text
    for wrong in ({"reason": "x" * 301}, {"state": "gone"}, {"version": "x"}):
        assert send(site, **{"state": "yanked", **wrong}).status_code == 422
    assert shown(site)["state"] == "deprecated"
    client, token = site.browser()
    missing = client.post("/ui/plugins/sample/9.0.0/state", data={"csrf_token": token, "version": 1, "state": "yanked"})
    assert missing.status_code == 404
