"""Jobs of one batch that depend on each other: accepted together or not at all, upstreams first, and told of each other's ends."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from cloche.db import tables as t
from cloche.domain.dependencies import MAX_BATCH_UPSTREAMS, MAX_UPSTREAMS
from cloche.services.batches import MAX_WAITING
from tests.support import jobs
from tests.support.plugins import write_bundle
from tests.support.web import problem, running_site, where

NO_SUCH = "01920000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def site(tmp_path_factory, module_database_url):
    folder = tmp_path_factory.mktemp("plugins")
    write_bundle(folder, "plain")
    limits = {"max_batch": 20_000_000}
    with running_site(tmp_path_factory.mktemp("home"), folder, database=module_database_url, **limits) as running:
        running.add("anna", "submitter")
        yield running


def named(ref: str | None = None, *upstreams: object, **more: object) -> dict[str, object]:
    """A job with this ref, after those: ids as text, refs as `{"ref": …}`."""
    body: dict[str, object] = {"type": "plain", **more}
    if ref is not None:
        body["ref"] = ref
    if upstreams:
        body["depends_on"] = list(upstreams)
    return body


def of(ref: object) -> dict[str, object]:
    return {"ref": ref}


def post(site, *bodies, **options):
    return site.request("POST", "/jobs/batch", "anna", json={"jobs": list(bodies)}, **options)


def accepted(site, *bodies):
    answer = post(site, *bodies)
    assert answer.status_code == 202, answer.text
    return answer.json


def job(site, job_id):
    return site.request("GET", f"/jobs/{job_id}", "anna").json


def refused(site, *bodies):
    """The pointers of the problem; nothing was stored."""
    tables = (t.batch, t.job, t.job_dependency, t.trace_event, t.outbox, t.audit_event)
    count = [select(func.count()).select_from(table) for table in tables]
    before = site.services.db.read(lambda c: [c.scalar(query) for query in count])
    found = problem(post(site, *bodies), 422)
    assert site.services.db.read(lambda c: [c.scalar(query) for query in count]) == before
    return found


def complete(site, job_id):
    """Claim and finish it as a worker does."""
    db, broker = site.services.db, site.services.broker
    jobs.claim(db, broker, [job_id])
    jobs.succeed(db, broker, job_id, attempt=jobs.job(db, job_id)["attempt"])


def test_jobs_name_earlier_and_later_ones_of_their_batch(site):
    batch = accepted(
        site,
        named("last", of("left"), of("right")),
        named("left", of("first")),
        named("right", of("first")),
        named("first"),
    )
    assert set(batch["refs"]) == {"first", "left", "right", "last"}
    ids = batch["refs"]
    assert job(site, ids["last"])["depends_on"] == [ids["left"], ids["right"]]
    assert [job(site, ids[ref])["status"] for ref in ("first", "left", "right", "last")] == ["pending"] + [
        "blocked"
    ] * 3
    listed = site.request("GET", f"/batches/{batch['id']}/jobs", "anna").json["items"]
    assert [item["id"] for item in listed] == [ids["first"], ids["left"], ids["right"], ids["last"]]
    complete(site, ids["first"])
    assert [job(site, ids[ref])["status"] for ref in ("left", "right", "last")] == ["pending", "pending", "blocked"]
    complete(site, ids["left"])
    assert job(site, ids["last"])["status"] == "blocked"
    complete(site, ids["right"])
    assert job(site, ids["last"])["status"] == "pending"
    complete(site, ids["last"])
    assert site.request("GET", f"/batches/{batch['id']}", "anna").json["jobs"]["completed"] == 4
    assert jobs.trace(site.services.db, ids["last"])[:2] == ["accepted", "dependencies_met"]


def test_refs_beside_ids_conditions_and_times(site):
    upstream = site.request("POST", "/jobs", "anna", json=named()).json["id"]
    batch = accepted(
        site,
        named("a"),
        named("b", upstream, of("a"), depends_on_condition="all_resolved"),
        named(None, of("a"), schedule_at="2027-01-01T00:00:00Z"),
    )
    b = job(site, batch["refs"]["b"])
    assert (b["depends_on"], b["depends_on_condition"]) == ([upstream, batch["refs"]["a"]], "all_resolved")
    complete(site, batch["refs"]["a"])
    counts = site.request("GET", f"/batches/{batch['id']}", "anna").json["jobs"]
    assert (counts["completed"], counts["scheduled"], counts["blocked"]) == (1, 1, 1)
    site.request("POST", f"/jobs/{upstream}/cancel", "anna")
    assert job(site, batch["refs"]["b"])["status"] == "pending"


def test_an_upstream_that_has_failed_already_cancels_all_that_wait_behind_it(site):
    gone = site.request("POST", "/jobs", "anna", json=named()).json["id"]
    site.request("POST", f"/jobs/{gone}/cancel", "anna")
    batch = accepted(site, named("c", of("b")), named("b", of("a")), named("a", gone), named("free"))
    shown = {ref: job(site, batch["refs"][ref]) for ref in "abc"}
    assert [shown[ref]["status"] for ref in "abc"] == ["canceled"] * 3
    assert {shown[ref]["reason"] for ref in "abc"} == {"upstream_failed"}
    assert job(site, batch["refs"]["free"])["status"] == "pending"


def test_canceling_goes_down_the_batch_and_all_can_be_retried(site):
    batch = accepted(site, named("a"), named("b", of("a")), named("c", of("b")))
    site.request("POST", f"/jobs/{batch['refs']['a']}/cancel", "anna")
    assert [job(site, batch["refs"][ref])["status"] for ref in "abc"] == ["canceled"] * 3
    for ref in "abc":  # upstreams first
        assert site.request("POST", f"/jobs/{batch['refs'][ref]}/retry", "anna").status_code == 202
    assert [job(site, batch["refs"][ref])["status"] for ref in "abc"] == ["pending", "blocked", "blocked"]


def test_retrying_a_batch_brings_back_what_a_failure_has_canceled(site):
    batch = accepted(
        site,
        named("c", of("b")),
        named("b", of("a")),
        named("a", retry={"max_retries": 0}),
        named("other"),
        named("wanted", of("other")),
    )
    ids = batch["refs"]
    jobs.claim(site.services.db, site.services.broker, [ids["a"]])
    jobs.fail(site.services.db, site.services.broker, ids["a"])
    site.request("POST", f"/jobs/{ids['other']}/cancel", "anna")
    assert [job(site, ids[ref])["status"] for ref in "abc"] == ["failed", "canceled", "canceled"]
    answer = site.request("POST", f"/batches/{batch['id']}/retry", "anna")
    assert (answer.status_code, answer.json["jobs"]["pending"], answer.json["jobs"]["blocked"]) == (202, 1, 2)
    assert [job(site, ids[ref])["status"] for ref in ("other", "wanted")] == ["canceled"] * 2  # somebody wanted that
    for ref in "abc":
        complete(site, ids[ref])
    assert site.request("GET", f"/batches/{batch['id']}", "anna").json["jobs"]["completed"] == 3


def test_what_is_wrong_is_told_with_pointers_and_nothing_is_stored(site):
    assert where(refused(site, named("a"), named(None, of("b"), of("a")))) == {"/jobs/1/depends_on/0/ref"}
    assert where(refused(site, named("a"), named("b"), named("a"))) == {"/jobs/2/ref"}
    assert where(refused(site, named("a", of("a")))) == {"/jobs/0/depends_on/0"}
    assert where(refused(site, named("a"), named("b", of("a"), of("a")))) == {"/jobs/1/depends_on/1"}
    mixed = refused(
        site, named("a"), named("b", NO_SUCH, of("a")), {"type": "none", "ref": "c", "depends_on": [of("b")]}
    )
    assert where(mixed) >= {"/jobs/1/depends_on/0"}
    wrong = refused(site, named("up", payload=None), named("down", of("up"), labels={"": "x"}))
    assert where(wrong) == {"/jobs/1/labels"}


def test_circles_are_refused(site):
    found = refused(
        site, named("x"), named("a", of("x"), of("c")), named("b", of("a")), named("c", of("b")), named("d", of("c"))
    )
    assert where(found) == {"/jobs/1/depends_on/1", "/jobs/2/depends_on/0", "/jobs/3/depends_on/0"}
    assert {one["detail"] for one in found["errors"]} == {"these jobs wait for each other: a → c → b → a"}
    ring = [named(f"r{n}", of(f"r{(n + 1) % 500}")) for n in range(500)]
    found = refused(site, *ring)
    assert len(found["errors"]) == 100
    assert "r9 → … → r0" in found["errors"][0]["detail"]


@pytest.mark.parametrize("ref", ["", "x" * 65, "a b", "ä", "a/b", 7, None, ["a"], {"ref": "a"}, "a\n"])
def test_a_ref_is_a_short_word(site, ref):
    assert where(refused(site, named("a"), named(None, of(ref)))) == {"/jobs/1/depends_on/0"}
    if ref is not None:
        assert where(refused(site, {"type": "plain", "ref": ref})) == {"/jobs/0/ref"}
    assert where(refused(site, named("a"), named(None, {"ref": "a", "more": 1}))) == {"/jobs/1/depends_on/0"}


def test_how_many_there_may_be(site):
    upstreams = [named(f"u{n}") for n in range(MAX_UPSTREAMS + 1)]
    refs = [of(f"u{n}") for n in range(MAX_UPSTREAMS + 1)]
    assert where(refused(site, *upstreams, named("d", *refs))) == {f"/jobs/{len(upstreams)}/depends_on"}
    chain = [named("j0")] + [named(f"j{n}", of(f"j{n - 1}")) for n in range(1, MAX_WAITING + 2)]
    assert where(refused(site, *chain)) == {"/jobs"}
    many = [named(None, *refs[:MAX_UPSTREAMS]) for _ in range(MAX_BATCH_UPSTREAMS // MAX_UPSTREAMS)]
    over = refused(site, *upstreams, *many, named(None, refs[0]))
    assert where(over) == {"/jobs"}
    assert str(MAX_BATCH_UPSTREAMS) in over["errors"][0]["detail"]
    batch = accepted(site, *upstreams, *many)  # as many as there may be
    assert site.request("GET", f"/batches/{batch['id']}", "anna").json["jobs"]["blocked"] == len(many)
    assert len(batch["refs"]) == len(upstreams)


def test_alone_a_job_has_no_refs(site):
    for body, pointer in ((named("a"), "/ref"), (named(None, of("a")), "/depends_on/0")):
        assert where(problem(site.request("POST", "/jobs", "anna", json=body), 422)) == {pointer}


def test_the_same_key_gives_the_same_refs(site):
    key = {"Idempotency-Key": "refs"}
    bodies = (named("b", of("a")), named("a"))
    first = post(site, *bodies, headers=key).json
    assert post(site, *bodies, headers=key).json == first
    assert set(first["refs"]) == {"a", "b"}
    problem(post(site, named("a", of("b")), named("b"), headers=key), 422, "key-reused")
