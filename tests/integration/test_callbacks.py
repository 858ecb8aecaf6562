"""Callbacks from a job's end to the receiver: at least once, in order, fair, and again after whatever dies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager

import pytest
from sqlalchemy import Text, cast, func, insert, select, update

from cloche.clock import is_uuid7, now_ms, uuid7
from cloche.db import migrate
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database, check_home
from cloche.domain.callbacks import Outcome, parse_reach
from cloche.domain.jobs import Success
from cloche.domain.states import Reason
from cloche.errors import PluginFailure, Unavailable
from cloche.queueing.memory_broker import MemoryBroker
from cloche.services import callback_rows, callback_store
from cloche.services.callback_secrets import CallbackSecrets, CallbackVault
from cloche.services.callback_store import Receiver
from cloche.services.deliverer import Deliverer, Limits, Silent
from cloche.webhooks.client import Sender
from tests.support import jobs
from tests.support.queues import make_whole
from tests.support.receiver import answers, certificate, receiving
from tests.support.stores import add_actor, add_tenant, until
from tests.support.web import problem, running_site

LOCAL = parse_reach(True, ["127.0.0.1"])
ALL = ["completed", "failed", "canceled"]
DAY = 86_400_000


@pytest.fixture
def broker():
    made = MemoryBroker()
    make_whole(made)
    return made


@pytest.fixture
def secrets(db, tmp_path):
    return CallbackSecrets(db, AuditLog(jobs.KEY), CallbackVault.load_or_create(tmp_path / "callbacks.key"))


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


@contextmanager
def delivering(db, secrets, *, reach=LOCAL, timeout_s=5.0, owner="d1", ca_file=None, **limits):
    """A deliverer at work, as the scheduler has it."""
    deliverer = Deliverer(db, secrets, Sender(reach, timeout_s, ca_file), owner, Limits(**limits))
    stop = threading.Event()

    def work():
        while not stop.is_set():
            deliverer.run_once(stop)
            stop.wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield deliverer
    finally:
        stop.set()
        thread.join()
        assert deliverer.idle(20)


def ended(db, broker, actor, url, events=ALL, *, end="completed", **row):
    """The id of a job with this callback that has ended."""
    job_id = jobs.submit(db, broker, actor, callback={"url": url, "events": list(events)}, **row)
    finish(db, broker, actor, job_id, end)
    return job_id


def finish(db, broker, actor, job_id, end="completed"):
    moves = jobs.transitions()
    if end == "canceled":
        db.write(lambda c: moves.cancel(c, actor, job_id, now_ms()))
        return
    (row,) = jobs.claim(db, broker, [job_id])
    if end == "completed":
        db.write(lambda c: moves.succeed(c, job_id, row["attempt"], "w1", Success({"secret": "result"}), now_ms()))
    else:
        failure = PluginFailure(Reason.PLUGIN_FAILED, "a secret message")
        db.write(lambda c: moves.fail(c, job_id, row["attempt"], "w1", failure, now_ms()))


def deliveries(db, job_id):
    query = select(t.callback_delivery).where(t.callback_delivery.c.job_id == job_id)
    return db.read(lambda c: c.execute(query.order_by(t.callback_delivery.c.number)).mappings().all())


def settled(db, *job_ids, status="delivered"):
    def all_are():
        rows = [row for job_id in job_ids for row in deliveries(db, job_id)]
        return rows if rows and all(row["status"] == status for row in rows) else None

    return until(all_are, 60, f"deliveries are {status}")


def hurry(db):
    """Every failed delivery may be tried again now."""
    delivery = t.callback_delivery
    now = update(delivery).where(delivery.c.attempts > 0, delivery.c.claimed_by.is_(None)).values(next_try_at=0)
    db.write(lambda c: c.execute(now))


def signed_by(secret, got):
    stamp, message = got.headers["webhook-timestamp"], got.headers["webhook-id"]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, f"{message}.{stamp}.".encode() + got.body, hashlib.sha256)
    return "v1," + base64.b64encode(mac).decode() in got.headers["webhook-signature"].split(" ")


@pytest.mark.parametrize("end", ALL)
def test_each_end_is_told_once_and_signed(db, broker, admin, secrets, receiver, end):
    job_id = ended(db, broker, admin, receiver.url, end=end, payload={"private": "payload"}, name="private name")
    with delivering(db, secrets):
        (row,) = settled(db, job_id)
    (got,) = receiver.got
    event = got.event
    assert got.headers["content-type"].startswith("application/cloudevents+json")
    assert (event["specversion"], event["type"], event["subject"]) == ("1.0", f"cloche.job.{end}", job_id)
    assert event["id"] == got.headers["webhook-id"] == row["id"]
    assert (event["data"]["status"], event["data"]["number"], event["data"]["tenant_id"]) == (end, 1, admin.tenant_id)
    assert event["data"]["links"]["job"] == f"/api/v1/jobs/{job_id}"
    assert b"private" not in got.body
    assert b"secret" not in got.body
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 300
    assert signed_by(*secrets.signing(admin.tenant_id), got)
    assert (row["attempts"], row["last_status"], row["last_outcome"]) == (1, 204, "delivered")
    assert jobs.trace(db, job_id)[-1] == "callback_delivered"


def test_only_asked_for_ends_are_written_and_jobs_without_a_callback_write_none(db, broker, admin, receiver):
    other = ended(db, broker, admin, receiver.url, ["failed"])
    none = jobs.submit(db, broker, admin)
    finish(db, broker, admin, none)
    assert deliveries(db, other) == deliveries(db, none) == []


def test_an_end_that_was_rolled_back_is_not_told(db, broker, admin, receiver):
    job_id = jobs.submit(db, broker, admin, callback={"url": receiver.url, "events": ALL})

    def unit(connection):
        jobs.transitions().cancel(connection, admin, job_id, now_ms())
        raise Unavailable("the disk is full")

    with pytest.raises(Unavailable):
        db.write(unit)
    assert deliveries(db, job_id) == []


def test_a_running_job_that_is_canceled_or_lost_for_good_is_told_too(db, broker, admin, receiver):
    running = jobs.submit(db, broker, admin, callback={"url": receiver.url, "events": ALL})
    jobs.claim(db, broker, [running])
    moves = jobs.transitions()
    db.write(lambda c: moves.cancel(c, admin, running, now_ms()))
    assert deliveries(db, running) == []
    db.write(lambda c: moves.canceled(c, running, 1, "w1", now_ms(), None))
    assert [row["event"] for row in deliveries(db, running)] == ["canceled"]
    poison = jobs.submit(db, broker, admin, callback={"url": receiver.url, "events": ALL})
    for _ in range(3):
        rows = jobs.claim(db, broker, [poison])
        db.write(lambda c, rows=rows: moves.release(c, rows, Reason.LEASE_LAPSED, "test", now_ms()))
    assert [row["event"] for row in deliveries(db, poison)] == ["failed"]


@pytest.mark.parametrize("waits", ["pending", "scheduled", "blocked"])
def test_a_job_that_expires_is_told_too(db, broker, admin, receiver, waits):
    more = {
        "pending": {},
        "scheduled": {"scheduled_at": now_ms() + DAY},
        "blocked": jobs.after(jobs.submit(db, broker, admin)),
    }
    callback = {"url": receiver.url, "events": ALL}
    job_id = jobs.submit(db, broker, admin, callback=callback, expires_at=now_ms() - 1, **more[waits])
    db.write(lambda c: jobs.transitions().expire(c, now_ms(), 100))
    (row,) = deliveries(db, job_id)
    assert (row["event"], json.loads(row["body"])["data"]["reason"]) == ("canceled", "expired")


def test_a_job_that_is_canceled_as_it_is_accepted_is_told_too(db, broker, admin, receiver):
    upstream = jobs.submit(db, broker, admin)
    finish(db, broker, admin, upstream, "failed")
    callback = {"url": receiver.url, "events": ALL}
    (row,) = deliveries(db, jobs.submit(db, broker, admin, callback=callback, **jobs.after(upstream)))
    assert (row["event"], json.loads(row["body"])["data"]["reason"]) == ("canceled", "upstream_failed")


def test_those_canceled_with_a_job_they_wait_for_are_told_too(db, broker, admin, receiver):
    upstream = jobs.submit(db, broker, admin)
    waits = {"depends_on": [upstream], "depends_on_condition": "all_completed", "on_upstream_failure": "cancel"}
    job_id = jobs.submit(db, broker, admin, callback={"url": receiver.url, "events": ALL}, **waits)
    finish(db, broker, admin, upstream, "canceled")
    (row,) = deliveries(db, job_id)
    assert row["event"] == "canceled"


def test_a_job_that_is_retried_by_hand_tells_each_of_its_ends(db, broker, admin, receiver):
    job_id = ended(db, broker, admin, receiver.url, end="failed")
    db.write(lambda c: jobs.transitions().rerun(c, admin, job_id, now_ms()))
    finish(db, broker, admin, job_id)
    assert [(row["number"], row["event"]) for row in deliveries(db, job_id)] == [(1, "failed"), (2, "completed")]
    assert db.write(lambda c: jobs.transitions().purge(c, admin, [job_id], now_ms())) == [job_id]
    assert deliveries(db, job_id) == []


def test_errors_are_tried_again_until_it_is_delivered(db, broker, admin, secrets, receiver):
    receiver.behaviour = [answers(500), answers(503, Retry_After="120"), answers(302, Location="http://127.0.0.1/")]
    job_id = ended(db, broker, admin, receiver.url)
    seen = []
    with delivering(db, secrets):
        for count in (1, 2, 3):
            receiver.wait(count)
            row = until(
                lambda: (found := deliveries(db, job_id)[0])["claimed_by"] is None and found, 20, "it is settled"
            )
            seen.append((row["status"], row["attempts"], row["last_outcome"], row["last_status"]))
            assert row["next_try_at"] > now_ms() + (60_000 if count == 2 else 0)
            hurry(db)
        (row,) = settled(db, job_id)
    assert seen == [
        ("pending", 1, "http_error", 500),
        ("pending", 2, "http_error", 503),
        ("pending", 3, "redirected", 302),
    ]
    assert (row["attempts"], row["last_error"]) == (4, None)
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert len({got.body for got in receiver.got}) == 1


def test_after_a_day_it_is_given_up_which_shows(db, broker, admin, secrets, receiver):
    receiver.always = answers(500)
    job_id = ended(db, broker, admin, receiver.url)
    old = update(t.callback_delivery).values(created_at=now_ms() - DAY)
    db.write(lambda c: c.execute(old))
    with delivering(db, secrets):
        (row,) = settled(db, job_id, status="given_up")
    assert (row["attempts"], row["last_error"]) == (1, "the receiver answered 500")
    assert jobs.trace(db, job_id)[-1] == "callback_failed"
    pending, tries = db.read(callback_store.totals)
    assert (pending, tries["http_error"], tries["given_up"], tries["delivered"]) == (0, 1, 1, 0)


def test_the_last_try_comes_with_the_end_of_the_day(db, broker, admin, secrets, receiver):
    receiver.always = answers(500)
    job_id = ended(db, broker, admin, receiver.url)
    db.write(
        lambda c: c.execute(update(t.callback_delivery).values(attempts=12))
    )  # the next pause is half an hour or more
    with delivering(db, secrets, give_up_ms=90_000):
        row = until(lambda: (found := deliveries(db, job_id)[0])["last_outcome"] and found, 20, "it was tried")
    assert (row["status"], row["next_try_at"]) == ("pending", row["created_at"] + 90_000)


def test_410_ends_all_deliveries_of_the_job(db, broker, admin, secrets, receiver):
    receiver.always = answers(410)
    job_id = ended(db, broker, admin, receiver.url)
    again(db, job_id)
    with delivering(db, secrets):
        settled(db, job_id, status="gone")
    assert len(receiver.got) == 1
    again(db, job_id)
    assert len(deliveries(db, job_id)) == 2


def again(db, job_id):
    """The job has ended once more, as after a retry by hand."""
    db.write(lambda c: callback_rows.add(c, [jobs.job(db, job_id)], now_ms()))


def test_a_jobs_ends_arrive_in_order(db, broker, admin, secrets, receiver):
    receiver.behaviour = [answers(500)]
    job_id = ended(db, broker, admin, receiver.url)
    for _ in range(2):
        again(db, job_id)
    with delivering(db, secrets, per_receiver=8):
        receiver.wait(1)
        until(lambda: deliveries(db, job_id)[0]["last_outcome"], 20, "the first try is settled")
        time.sleep(0.2)  # a wrong order would show by now
        assert len(receiver.got) == 1
        hurry(db)
        settled(db, job_id)
    assert [got.event["data"]["number"] for got in receiver.got] == [1, 1, 2, 3]


def test_a_dead_receiver_holds_up_no_other(db, broker, admin, secrets, receiver):
    with receiving() as dead:
        dead.always = dead.hangs
        stuck = [ended(db, broker, admin, dead.url) for _ in range(12)]
        good = [ended(db, broker, admin, receiver.url) for _ in range(12)]
        with delivering(db, secrets, timeout_s=2.0, at_once=4, per_receiver=2):
            settled(db, *good)
            assert all(row["status"] == "pending" for job_id in stuck for row in deliveries(db, job_id))
            assert dead.connections <= 2 + 4
    assert len(receiver.got) == 12


@pytest.mark.parametrize("wait_ms", [0, DAY], ids=["due", "waiting"])
def test_a_tenants_thousands_of_dead_receivers_use_up_no_rounds(db, broker, admin, secrets, wait_ms):
    """The first round comes to another tenant's receiver behind all of them, whether something is due to those or not."""
    first = ended(db, broker, admin, "https://a.example/")
    (row,), job = deliveries(db, first), jobs.job(db, first)
    ids = [uuid7() for _ in range(600)]
    later = {**row, "next_try_at": now_ms() + wait_ms}
    many = [{**later, "id": uuid7(), "job_id": one, "receiver": f"a{n}.example:443"} for n, one in enumerate(ids)]
    db.write(
        lambda c: (
            c.execute(insert(t.job), [{**job, "id": one} for one in ids]),
            c.execute(update(t.callback_delivery).values(next_try_at=later["next_try_at"])),
            c.execute(insert(t.callback_delivery), many),
        )
    )
    other = add_actor(db, add_tenant(db, "other"), "otto")
    assert other.tenant_id > admin.tenant_id, "ids, and so turns, come in the order in which they were made"
    good = ended(db, broker, other, "https://good.example/")
    stop, posted = threading.Event(), []

    class Sender:
        """Ends the work with the first that it is given: what was chosen with that one is still sent."""

        def post(self, target, _headers, _body):
            posted.append(target.host)
            stop.set()
            return 204

    deliverer = Deliverer(db, secrets, Sender(), "d1", Limits(at_once=4))
    deliverer.run_once(stop)
    assert deliverer.idle(20)
    assert "good.example" in posted
    assert deliveries(db, good)[0]["status"] == "delivered"


def test_of_silent_receivers_those_heard_of_last_are_remembered():
    silent = Silent(most=3)
    names = [Receiver("tenant", f"host{n}.example") for n in range(5)]
    for name in names[:3]:
        silent.note(name, Outcome.TIMED_OUT)
    silent.note(names[0], Outcome.UNREACHABLE)
    silent.note(names[3], Outcome.TIMED_OUT)
    assert [name in silent for name in names] == [True, False, True, True, False]
    silent.note(names[0], Outcome.DELIVERED)
    silent.note(names[4], Outcome.DELIVERED)
    assert [name in silent for name in names] == [False, False, True, True, False]
    for number in range(1_000):
        silent.note(Receiver("tenant", f"other{number}.example"), Outcome.UNREACHABLE)
    assert len(silent) == 3


def test_one_tenant_takes_half_of_the_places_at_most(db, broker, admin, secrets, receiver):
    other = add_actor(db, add_tenant(db, "other"), "otto")
    with receiving() as first, receiving() as second:
        first.always, second.always = first.hangs, second.hangs
        for dead in (first, second):
            for _ in range(3):
                ended(db, broker, other, dead.url)
        with delivering(db, secrets, timeout_s=10, at_once=4, per_receiver=2):
            until(lambda: first.connections + second.connections == 2, 20, "both places of the tenant are taken")
            good = [ended(db, broker, admin, receiver.url) for _ in range(3)]
            settled(db, *good)
            assert first.connections + second.connections == 2
            first.closing.set()
            second.closing.set()


def test_two_deliverers_send_each_once(db, broker, admin, secrets, receiver):
    done = [ended(db, broker, admin, receiver.url) for _ in range(40)]
    with delivering(db, secrets, owner="d1", per_receiver=4), delivering(db, secrets, owner="d2", per_receiver=4):
        settled(db, *done)
    assert len(receiver.got) == 40
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 40


KILLED = """
import sys, threading
from pathlib import Path
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.callbacks import parse_reach
from cloche.services.callback_secrets import CallbackSecrets, CallbackVault
from cloche.services.deliverer import Deliverer, Limits
from cloche.webhooks.client import Sender

db = Database(sys.argv[1])
secrets = CallbackSecrets(db, AuditLog(b"k" * 32), CallbackVault.load_or_create(Path(sys.argv[2])))
sender = Sender(parse_reach(True, ["127.0.0.1"]), 60)
Deliverer(db, secrets, sender, "killed", Limits(claim_ms=int(sys.argv[3]))).run_once(threading.Event())
"""


def test_what_a_killed_process_was_sending_is_sent_again(db, broker, admin, secrets, receiver, tmp_path):
    receiver.behaviour = [receiver.hangs]
    job_id = ended(db, broker, admin, receiver.url)
    arguments = [getattr(db, "url", None) or f"sqlite:///{db.path}", str(tmp_path / "callbacks.key"), "1500"]
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], env=os.environ)
    try:
        receiver.wait(1, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert deliveries(db, job_id)[0]["claimed_by"] == "killed"
    with delivering(db, secrets):
        (row,) = settled(db, job_id)
    assert (row["attempts"], len(receiver.got)) == (2, 2)
    assert receiver.got[0].body == receiver.got[1].body


def test_an_answer_that_comes_after_the_claim_counts_for_nothing(db, broker, admin, secrets, receiver):
    job_id = ended(db, broker, admin, receiver.url)
    (row,) = db.write(lambda c: callback_store.claim(c, [deliveries(db, job_id)[0]["id"]], "slow", 1 << 50, 1 << 51))
    with delivering(db, secrets):
        db.write(lambda c: c.execute(update(t.callback_delivery).values(claimed_until=0)))
        settled(db, job_id)
    result = callback_store.Result(callback_store.Outcome.HTTP_ERROR, 500, "late", now_ms())
    assert not db.write(lambda c: callback_store.settle(c, row, "slow", result, now_ms()))
    assert deliveries(db, job_id)[0]["status"] == "delivered"


def test_https_with_an_authority_of_the_operators(db, broker, admin, secrets, tmp_path):
    context, authority = certificate(tmp_path)
    with receiving(context) as receiver:
        job_id = ended(db, broker, admin, receiver.url)
        with delivering(db, secrets):
            row = until(lambda: (found := deliveries(db, job_id)[0])["last_outcome"] and found, 20, "it was tried")
            assert (row["status"], row["last_outcome"]) == ("pending", "tls_failed")
        hurry(db)
        with delivering(db, secrets, ca_file=authority):
            settled(db, job_id)


def test_a_private_address_gets_nothing(db, broker, admin, secrets, receiver):
    job_id = ended(db, broker, admin, receiver.url)
    with delivering(db, secrets, reach=parse_reach(True, [])):
        row = until(lambda: (found := deliveries(db, job_id)[0])["last_outcome"] and found, 20, "it was tried")
    assert (row["status"], row["last_outcome"], receiver.connections) == ("pending", "address_refused", 0)


def test_a_renewed_secret_signs_beside_the_one_before(db, broker, admin, secrets, receiver):
    first = secrets.read(admin)["secret"]
    made = secrets.renew(admin)
    assert made["secret"] != first
    assert made["version"] == 2
    job_id = ended(db, broker, admin, receiver.url)
    with delivering(db, secrets):
        settled(db, job_id)
    (got,) = receiver.got
    assert signed_by(first, got)
    assert signed_by(made["secret"], got)
    assert secrets.signing(admin.tenant_id) == [made["secret"], first]
    db.write(lambda c: c.execute(update(t.callback_secret).values(previous_until=now_ms() - 1)))
    assert secrets.signing(admin.tenant_id) == [made["secret"]]


def test_the_secret_is_sealed_for_its_tenant_and_with_its_key(db, admin, secrets, tmp_path):
    text = secrets.read(admin)["secret"]
    row = db.read(lambda c: c.execute(select(t.callback_secret)).mappings().one())
    assert text.encode() not in row["sealed"]
    other = add_tenant(db, "other")
    db.write(lambda c: c.execute(insert(t.callback_secret), {**row, "tenant_id": other}))
    with pytest.raises(Unavailable, match=r"callbacks\.key"):
        secrets.signing(other)
    elsewhere = CallbackSecrets(db, AuditLog(jobs.KEY), CallbackVault.load_or_create(tmp_path / "another.key"))
    with pytest.raises(Unavailable, match=r"callbacks\.key"):
        elsewhere.signing(admin.tenant_id)


def test_the_scheduler_delivers_and_stops_in_order(home, valkey, receiver):
    check_home(home)
    url = f"sqlite:///{home / 'cloche.db'}"
    migrate.upgrade(url)
    db = Database(url)
    actor = add_actor(db, add_tenant(db), "alma")
    ended(db, MemoryBroker(), actor, receiver.url)
    settings = {
        "HOME": str(home),
        "REDIS_URL": valkey.url,
        "CALLBACKS_PRIVATE": "127.0.0.1",
        "DATABASE_URL": url,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cloche", "scheduler"],
        cwd=home,
        env=kept | {f"CLOCHE_{name}": value for name, value in settings.items()},
        stdin=subprocess.DEVNULL,
    )
    try:
        (got,) = receiver.wait(1, 60)
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0
    vault = CallbackVault.load_or_create(home / "keys" / "callbacks.key")
    assert signed_by(*CallbackSecrets(db, AuditLog(jobs.KEY), vault).signing(actor.tenant_id), got)
    db.close()


# --- over REST ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as running:
        running.add("anna", "submitter")
        running.add("vera", "viewer")
        yield running


def asked(site, **callback):
    upload = site.upload(user="anna")
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}], "callback": callback}
    return site.request("POST", "/jobs", "anna", json=body)


def test_a_job_shows_its_callback_without_the_query_and_lists_deliveries(site):
    answer = asked(site, url="https://a.example:8443/hook?key=zyx", events=["failed", "canceled", "failed"])
    assert answer.status_code == 202, answer.text
    job = answer.json
    assert job["callback"] == {"url": "https://a.example:8443/hook?…", "events": ["failed", "canceled"]}
    path = f"/jobs/{job['id']}/callbacks"
    assert site.request("GET", path, "vera").json == {"items": []}
    site.request("POST", f"/jobs/{job['id']}/cancel", "anna")
    (item,) = site.request("GET", path, "vera").json["items"]
    assert (item["event"], item["receiver"], item["status"], item["attempts"]) == (
        "canceled",
        "a.example:8443",
        "pending",
        0,
    )
    assert item["next_try_at"] is not None
    problem(site.request("GET", f"/jobs/{uuid7()}/callbacks"), 404)
    (event, *_) = site.request("GET", f"/audit?object=job:{job['id']}&action=job:submit").json["items"]
    assert event["details"]["callback"] == "https://a.example:8443"
    assert "zyx" not in site.request("GET", f"/audit?object=job:{job['id']}").text


def test_those_of_all_jobs_are_listed_newest_first(site):
    jobs_made = [asked(site, url=f"https://{name}.example/").json["id"] for name in ("one", "two", "three")]
    for job_id in jobs_made:
        site.request("POST", f"/jobs/{job_id}/cancel", "anna")
    first = site.request("GET", "/callbacks?limit=2", "vera").json
    assert [item["job_id"] for item in first["items"]] == jobs_made[:0:-1]
    assert (
        first["items"][0]
        == {"job_id": jobs_made[2]} | site.request("GET", f"/jobs/{jobs_made[2]}/callbacks").json["items"][0]
    )
    then = site.request("GET", f"/callbacks?limit=2&cursor={first['next_cursor']}&status=pending").json["items"]
    assert then[0]["job_id"] == jobs_made[0]
    assert site.request("GET", "/callbacks?status=delivered").json["items"] == []
    problem(site.request("GET", "/callbacks?status=lost"), 422)
    problem(site.request("GET", "/callbacks?cursor=x"), 422)


def test_a_page_looks_at_so_many_and_at_ones_own_alone(db, broker, admin, receiver, monkeypatch):
    monkeypatch.setattr(callback_store, "_LOOKED_AT", 3)
    other = add_actor(db, add_tenant(db, "other"), "otto")
    mine = [ended(db, broker, admin, receiver.url) for _ in range(2)]
    theirs = [ended(db, broker, other, receiver.url) for _ in range(5)]
    mine.append(ended(db, broker, admin, receiver.url))
    pages, before = [], None
    while True:
        rows, before = db.read(lambda c, before=before: callback_store.newest(c, admin.tenant_id, None, before, 10))
        pages.append([row["job_id"] for row in rows])
        if before is None:
            break
    assert pages == [[mine[2]], [], mine[1::-1]]
    assert not set(theirs) & {one for page in pages for one in page}
    one, before = db.read(lambda c: callback_store.newest(c, other.tenant_id, "pending", None, 1))
    assert [row["job_id"] for row in one] == [theirs[4]]
    two, _ = db.read(lambda c: callback_store.newest(c, other.tenant_id, "pending", before, 1))
    assert [row["job_id"] for row in two] == [theirs[3]]


def test_the_end_of_a_page_tells_nothing_of_others(db, broker, admin, receiver, monkeypatch):
    """Where a page stops looking is most often a delivery of somebody else."""
    monkeypatch.setattr(callback_store, "_LOOKED_AT", 3)
    other = add_actor(db, add_tenant(db, "other"), "otto")
    mine = ended(db, broker, admin, receiver.url)
    for _ in range(4):
        ended(db, broker, other, receiver.url)
    ids = db.read(lambda c: c.scalars(select(t.callback_delivery.c.id).order_by(t.callback_delivery.c.id)).all())
    rows, before = db.read(lambda c: callback_store.newest(c, admin.tenant_id, None, None, 10))
    assert rows == []
    assert before == f"{ids[2][:13]}-7000-8000-000000000000"  # of its millisecond the very first, which nobody has
    assert is_uuid7(before)  # or it would be no cursor
    rows, _ = db.read(lambda c: callback_store.newest(c, admin.tenant_id, None, before, 10))
    assert [row["job_id"] for row in rows] == [mine]


def test_a_batchs_jobs_have_callbacks_of_their_own(site):
    upload = site.upload(user="anna")
    job = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
    bodies = [{**job, "callback": {"url": f"https://{name}.example/"}} for name in "ab"] + [job]
    batch = site.request("POST", "/jobs/batch", "anna", json={"jobs": bodies}).json
    site.request("POST", f"/batches/{batch['id']}/cancel", "anna")
    query = select(t.callback_delivery.c.receiver).join(t.job).where(t.job.c.batch_id == batch["id"])
    found = site.services.db.read(lambda c: c.scalars(query.order_by(t.callback_delivery.c.receiver)).all())
    assert found == ["a.example:443", "b.example:443"]
    bad = {"jobs": [job, {**job, "callback": {"url": "http://10.0.0.1/"}}]}
    body = problem(site.request("POST", "/jobs/batch", "anna", json=bad), 422)
    assert [item["pointer"] for item in body["errors"]] == ["/jobs/1/callback/url"]


def test_jobs_without_a_callback_hold_no_json_null(site):
    upload = site.upload(user="anna")
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
    site.request("POST", "/jobs", "anna", json=body)
    site.request("POST", "/jobs/batch", "anna", json={"jobs": [body]})
    nulls = select(func.count()).where(cast(t.job.c.callback, Text) == "null")
    assert site.services.db.read(lambda c: c.scalar(nulls)) == 0


def test_the_secret_over_rest(site):
    problem(site.request("GET", "/callback-secret", "anna"), 403)
    problem(site.request("POST", "/callback-secret/renew", "vera"), 403)
    answer = site.request("GET", "/callback-secret")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["secret"].startswith("whsec_")
    assert site.request("GET", "/callback-secret").json == answer.json
    renewed = site.request("POST", "/callback-secret/renew").json
    assert renewed["secret"] != answer.json["secret"]
    assert renewed["previous_until"] is not None
    actions = [item["action"] for item in site.request("GET", "/audit?object=callback_secret").json["items"]]
    assert actions == ["callback_secret:renew", "callback_secret:read", "callback_secret:read"]
    assert renewed["secret"] not in site.request("GET", "/audit?object=callback_secret").text


def test_a_platform_without_callbacks_takes_none(tmp_path):
    with running_site(tmp_path / "home", callbacks={"enabled": False}) as site:
        site.add("anna", "submitter")
        body = problem(asked(site, url="https://a.example/"), 422)
        assert [item["pointer"] for item in body["errors"]] == ["/callback"]


def test_the_operator_may_allow_a_receiver_inside(tmp_path):
    with running_site(tmp_path / "home", callbacks={"private": "127.0.0.1 hooks.internal:8443"}) as site:
        site.add("anna", "submitter")
        assert asked(site, url="http://127.0.0.1:9000/").status_code == 202
        problem(asked(site, url="http://127.0.0.2:9000/"), 422)
