"""Versions of plugins that are enabled, deprecated, disabled and yanked: over REST, in what is submitted, and in what had been before."""

from __future__ import annotations

import json
import threading

import pytest
from sqlalchemy import select

from cloche.clock import now_ms
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain.permissions import BUILTIN_ROLES, PLATFORM_PERMISSIONS, Permission
from cloche.domain.versions import MAX_REASON
from cloche.registry.catalog import Catalog
from cloche.services.plugins import PluginService
from tests.support import jobs
from tests.support.plugins import write_bundle
from tests.support.stores import until
from tests.support.web import problem, running_site, where

WHY = "it corrupts pictures"
VERSIONS = ("3.0.0-rc.1", "2.0.0", "1.5.0", "1.0.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("plugins")
    for version in VERSIONS:
        write_bundle(found, "sample", version)
    write_bundle(found, "other", "1.0.0")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url, folder):
    home = tmp_path_factory.mktemp("home")
    with running_site(home, folder, database=module_database_url) as running:
        for name, role in (("anna", "submitter"), ("olga", "operator"), ("adam", "admin")):
            running.add(name, role)
        yield running


@pytest.fixture(autouse=True)
def _enabled(site):
    yield
    for version in VERSIONS:
        put(site, version, "enabled")


def path(version, name="sample"):
    return f"/plugins/{name}/{version}"


def change(site, version, user="admin", match="*", **said):
    return site.request("PATCH", path(version), user, json=said, headers={"If-Match": match} if match else {})


def put(site, version, state, reason=None):
    answer = change(site, version, state=state, reason=reason)
    assert answer.status_code == 200, answer.text
    return answer


def submit(site, spec=None, **more):
    body = {"type": "sample", **({} if spec is None else {"version": spec}), **more}
    return site.request("POST", "/jobs", "anna", json=body)


def accepted(site, spec=None, **more):
    answer = submit(site, spec, **more)
    assert answer.status_code == 202, answer.text
    return answer.json


def refused(site, spec=None):
    body = problem(submit(site, spec), 422)
    assert where(body) == {"/version"}
    return body["errors"][0]["detail"]


def fail(site, job_id):
    services = site.services
    jobs.claim(services.db, services.broker, [job_id])
    jobs.fail(services.db, services.broker, job_id)
    return job_id


def failed(site, spec=None):
    """A job of that version which has run and failed for good."""
    return fail(site, accepted(site, spec, retry={"max_retries": 0})["id"])


def events(site, version):
    event = t.audit_event
    query = select(event).where(event.c.object == f"plugin:sample=={version}", event.c.action == "plugin:update")
    return site.services.db.read(lambda c: c.execute(query.order_by(event.c.id)).mappings().all())


def test_a_version_has_an_etag_that_every_change_moves(site):
    first = site.request("GET", path("2.0.0"), "anna")
    assert (first.status_code, first.json["state"], first.json["enabled"]) == (200, "enabled", True)
    tag = first.headers["ETag"]
    problem(change(site, "2.0.0", match=None, state="yanked"), 428)
    problem(change(site, "2.0.0", match='"v999"', state="yanked"), 412)
    problem(change(site, "2.0.0", match='"what"', state="yanked"), 412)
    yanked = change(site, "2.0.0", match=tag, state="yanked", reason=WHY)
    assert yanked.status_code == 200
    shown = yanked.json
    assert (shown["state"], shown["state_reason"], shown["enabled"]) == ("yanked", WHY, False)
    assert shown["disabled_reason"] == f"it is yanked ({WHY})"
    assert shown["state_changed_at"].endswith("Z")
    problem(change(site, "2.0.0", match=tag, state="enabled"), 412)
    again = site.request("GET", path("2.0.0"), "anna")
    assert again.headers["ETag"] == yanked.headers["ETag"] != tag
    assert again.json["state"] == "yanked"
    problem(site.request("GET", path("9.0.0")), 404)
    problem(site.request("GET", path("1.0.0", "none")), 404)


def test_what_is_no_state_and_no_reason_is_refused(site):
    for body in (
        {},
        {"state": "gone"},
        {"state": None},
        {"state": "yanked", "reason": "x" * (MAX_REASON + 1)},
        {"state": "yanked", "reason": ""},
        {"state": "yanked", "reason": "two\nlines"},
        {"state": "yanked", "until": "tomorrow"},
    ):
        problem(change(site, "1.0.0", **body), 422)
    assert put(site, "1.0.0", "yanked", "x" * MAX_REASON).json["state_reason"] == "x" * MAX_REASON


def test_it_is_of_platform_administrators_alone(site):
    assert Permission.PLUGIN_MANAGE in PLATFORM_PERMISSIONS
    assert not any(Permission.PLUGIN_MANAGE in role for role in BUILTIN_ROLES.values())
    for user in ("anna", "olga", "adam"):
        problem(change(site, "1.0.0", user, state="yanked"), 403)
    assert site.request("GET", path("1.0.0"), "anna").json["state"] == "enabled"
    problem(change(site, "9.0.0", state="yanked"), 404)


def test_each_change_is_audited_with_what_was_and_what_is(site):
    before = len(events(site, "1.5.0"))
    put(site, "1.5.0", "deprecated", "use 2")
    put(site, "1.5.0", "yanked")
    first, second = events(site, "1.5.0")[before:]
    assert json.loads(first["details"]) == {"state": "deprecated", "reason": "use 2", "was": "enabled"}
    assert json.loads(second["details"]) == {"state": "yanked", "reason": None, "was": "deprecated"}
    assert first["after_sha256"] == second["before_sha256"]
    assert len({first["before_sha256"], first["after_sha256"], second["after_sha256"]}) == 3


@pytest.mark.parametrize("state", ["disabled", "yanked"])
def test_a_closed_version_is_passed_over_and_refused_by_name(site, state):
    put(site, "2.0.0", state, WHY)
    assert accepted(site)["version"] == "1.5.0"
    assert accepted(site, ">=1")["version"] == "1.5.0"
    told = refused(site, "2.0.0")
    assert told == f"sample 2.0.0 takes no new jobs: it is {state} ({WHY}); ask for one of: 3.0.0-rc.1, 1.5.0, 1.0.0"
    assert refused(site, "==2.*") == told
    batch = site.request("POST", "/jobs/batch", "anna", json={"jobs": [{"type": "sample", "version": "2.0.0"}]})
    assert where(problem(batch, 422)) == {"/jobs/0/version"}
    listed = {
        item["version"]: item for item in site.request("GET", "/plugins").json["items"] if item["name"] == "sample"
    }
    assert [version for version, item in listed.items() if item["default"]] == ["1.5.0"]
    assert site.request("GET", "/plugins/sample").json["version"] == "1.5.0"
    # A pre-release has to be asked for, even where nothing else is left.
    put(site, "1.5.0", "yanked")
    put(site, "1.0.0", "disabled")
    assert refused(site).endswith("ask for one of: 3.0.0-rc.1")
    assert refused(site, ">=1").endswith("ask for one of: 3.0.0-rc.1")
    assert accepted(site, "3.0.0-rc.1")["version"] == "3.0.0-rc.1"
    put(site, "3.0.0-rc.1", "yanked")
    assert refused(site).endswith("no other version of it does")
    assert site.request("POST", "/jobs", "anna", json={"type": "other"}).status_code == 202
    put(site, "2.0.0", "enabled")
    assert accepted(site)["version"] == "2.0.0"


def test_a_deprecated_version_takes_jobs_and_says_so(site):
    put(site, "2.0.0", "deprecated", "use 3")
    text = "sample 2.0.0: it is deprecated (use 3)"
    job = accepted(site)
    assert (job["version"], job["warnings"]) == ("2.0.0", [text])
    assert site.request("GET", f"/jobs/{job['id']}", "anna").json["warnings"] == [text]
    trace = site.request("GET", f"/trace/{job['id']}", "anna").json["items"]
    assert trace[0]["event_type"] == "accepted"
    assert trace[0]["details"]["warnings"] == [text]
    waiting = accepted(site, depends_on=[job["id"]])
    assert waiting["warnings"] == [text]
    several = [{"type": "sample"}, {"type": "sample"}, {"type": "sample", "version": "1.0.0"}]
    key = {"Idempotency-Key": f"deprecated-{job['id']}"}
    for _ in range(2):
        batch = site.request("POST", "/jobs/batch", "anna", json={"jobs": several}, headers=key)
        assert (batch.status_code, batch.json["warnings"]) == (202, [text])
    plain = accepted(site, "1.0.0")
    assert plain["warnings"] == []
    assert "warnings" not in site.request("GET", f"/trace/{plain['id']}", "anna").json["items"][0]["details"]


@pytest.mark.parametrize("state", ["disabled", "yanked"])
def test_jobs_that_were_accepted_run_and_retry_by_themselves(site, state):
    services = site.services
    job = accepted(site, "2.0.0", retry={"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"})
    put(site, "2.0.0", state)
    [row] = jobs.claim(services.db, services.broker, [job["id"]])
    jobs.fail(services.db, services.broker, job["id"])
    shown = site.request("GET", f"/jobs/{job['id']}", "anna").json
    assert shown["status"] in ("scheduled", "pending"), shown
    [row] = until_claimed(site, job["id"])
    jobs.succeed(services.db, services.broker, job["id"], attempt=row["attempt"])
    assert site.request("GET", f"/jobs/{job['id']}", "anna").json["status"] == "completed"


def until_claimed(site, job_id):
    """The next attempt; its wait is a millisecond or so."""
    found = []

    def claimed():
        site.services.db.write(lambda c: jobs.transitions().due(c, now_ms(), 100))
        found.extend(jobs.claim(site.services.db, site.services.broker, [job_id]))
        return found

    until(claimed, 30, "the next attempt is due")
    return found


def test_of_a_yanked_version_jobs_are_retried_by_hand_and_of_a_disabled_one_not(site):
    first, second = failed(site, "2.0.0"), failed(site, "2.0.0")
    member = {"type": "sample", "version": "2.0.0", "retry": {"max_retries": 0}}
    batch = site.request("POST", "/jobs/batch", "anna", json={"jobs": [member]}).json
    [item] = site.request("GET", f"/batches/{batch['id']}/jobs", "anna").json["items"]
    fail(site, item["id"])
    put(site, "2.0.0", "disabled", WHY)
    body = problem(site.request("POST", f"/jobs/{first}/retry", "anna"), 409, "version-disabled")
    assert WHY in body["detail"]
    replayed = site.request("POST", "/dead-letters/replay", "olga", json={"ids": [first]}).json
    assert (replayed["done"], [skipped["id"] for skipped in replayed["skipped"]]) == (0, [first])
    problem(site.request("POST", f"/batches/{batch['id']}/retry", "anna"), 409, "version-disabled")
    assert site.request("GET", f"/jobs/{first}", "anna").json["status"] == "failed"
    put(site, "2.0.0", "yanked")
    for answer in (
        site.request("POST", f"/jobs/{first}/retry", "anna"),
        site.request("POST", f"/batches/{batch['id']}/retry", "anna"),
    ):
        assert answer.status_code in (200, 202), answer.text
    replayed = site.request("POST", "/dead-letters/replay", "olga", json={"ids": [second]}).json
    assert replayed["done"] == 1


def test_of_two_changes_at_once_one_is_told_to_read_again(site):
    tag = site.request("GET", path("1.0.0")).headers["ETag"]
    before = len(events(site, "1.0.0"))
    start, answers = threading.Barrier(2), []

    def send(state):
        start.wait(30)
        answers.append((change(site, "1.0.0", match=tag, state=state).status_code, state))

    threads = [threading.Thread(target=send, args=(state,)) for state in ("yanked", "disabled")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200, 412]
    [won] = [state for status, state in answers if status == 200]
    assert site.request("GET", path("1.0.0")).json["state"] == won
    assert len(events(site, "1.0.0")) == before + 1


def test_a_state_outlives_the_process_and_acts_in_every_other(site, folder):
    put(site, "2.0.0", "yanked", WHY)
    services = site.services
    other = PluginService(services.db, Catalog([folder]), AuditLog(b"k" * 32))
    other.sync(services.access.default_tenant())
    resolved = services.db.read(lambda c: other.resolve(c, "sample", None))
    assert resolved[0].manifest.version == "1.5.0"
    assert site.request("GET", path("2.0.0")).json["state_reason"] == WHY
    put(site, "2.0.0", "enabled")
    # Without another sync: nothing of it is remembered.
    assert services.db.read(lambda c: other.resolve(c, "sample", None))[0].manifest.version == "2.0.0"
