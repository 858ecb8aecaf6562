"""Secrets from their rows to a worker's frames: granted or not, recorded first, masked in all that comes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update

from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.domain.egress import Endpoint
from cloche.domain.states import Reason
from cloche.errors import StaleAttempt, Unavailable
from cloche.isolation.egress import EgressConnection, EgressReport
from cloche.isolation.scripted import Script, error, result
from cloche.redact import MASK
from cloche.registry.manifest import parse
from cloche.services import secret_rotation
from cloche.services.secret_delivery import SecretDelivery
from cloche.services.secret_rotation import rotate
from cloche.services.secret_vault import SecretVault
from cloche.worker.secrets import JobSecrets
from cloche_guest.protocol import LOG_TRUNCATED, MAX_TRACEBACK
from tests.support import jobs
from tests.support.plugins import manifest_text, write_bundle
from tests.support.scripted_worker import scripted_worker
from tests.support.sensitive import database_files, leaking_cells, leaks
from tests.support.stores import until
from tests.support.web import running_site

CANARY = "canary-5ec4e7-ü"
NEEDS = '[requires]\nsecrets = ["API_KEY", "OTHER"]\n'
SAYS = (
    {"type": "log", "stream": "stdout", "text": f"my key is {CANARY}\nand in parts: {CANARY[:8]}"},
    {"type": "log", "stream": "stdout", "text": f"{CANARY[8:]}!\n"},
    {"type": "progress", "current": 1, "total": 3, "message": f"at {CANARY}"},
    {"type": "log", "stream": "stderr", "text": base64.b64encode(f"user:{CANARY}".encode()).decode()},
)


@pytest.fixture
def site(tmp_path, database_url):
    write_bundle(tmp_path / "plugins", "needy", more=NEEDS)
    with running_site(tmp_path / "home", tmp_path / "plugins", database=database_url) as running:
        running.add("anna", "submitter")
        for name, value in (("API_KEY", CANARY), ("OTHER", "short")):
            assert running.request("POST", "/secrets", json={"name": name, "value": value}).status_code == 201
            grant(running, name, "==1.0.0")
        yield running


def grant(site, name, *versions):
    body = {"grants": [{"plugin": "needy", "versions": each} for each in versions]}
    answer = site.request("PUT", f"/secrets/{name}/grants", json=body, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text


def vault(site, given=()):
    return SecretVault(site.services.settings.home / "keys", site.services.db, given)


def secrets_of(site, worker="w0"):
    manifest = parse(manifest_text("needy", more=NEEDS))
    delivery = SecretDelivery(site.services.db, jobs.transitions(), vault(site), worker)
    return JobSecrets(lambda _job: manifest, delivery)


def submit(site, **body):
    asked = {"type": "needy", "retry": {"max_retries": 0}, **body}
    answer = site.request("POST", "/jobs", "anna", json=asked)
    assert answer.status_code == 202, answer.text
    return answer.json["id"]


def ended(site, job_id):
    def look():
        found = site.request("GET", f"/jobs/{job_id}").json
        return found if found["status"] in ("completed", "failed") else None

    return until(look, 60, "the job ends")


def run(site, tmp_path, script, *, sensitive=False, **tools):
    """One job over the script: what is known of it, and what its sandbox was sent."""
    job_id = submit(site, **({"sensitive": True} if sensitive else {}))
    with scripted_worker(site.services, tmp_path, script, secrets=secrets_of(site), **tools) as backend:
        job = ended(site, job_id)
    return SimpleNamespace(job=job, id=job_id, sandbox=backend.sandboxes[-1], sent=backend.sandboxes[-1].channel.sent)


def audited(site, job_id, action):
    event = t.audit_event
    query = select(event.c.details).where(event.c.object == f"job:{job_id}", event.c.action == action)
    return [json.loads(text) for text in site.services.db.read(lambda c: c.execute(query).scalars().all())]


def test_a_job_gets_what_it_names_and_says_none_of_it(site, tmp_path, database_url):
    ran = run(site, tmp_path, Script(running=(*SAYS, result({"key": CANARY, CANARY: [CANARY]}))))
    assert ran.sandbox.spec.secrets is True
    frames = [frame for frame in ran.sent if frame["type"] == "secret"]
    assert frames == [
        {"type": "secret", "name": "API_KEY", "value": CANARY},
        {"type": "secret", "name": "OTHER", "value": "short"},
    ]
    assert [frame["type"] for frame in ran.sent] == ["secret", "secret", "job"]
    assert CANARY not in json.dumps(ran.sent[-1])
    assert ran.job["result"] == {"key": MASK, MASK: [MASK]}
    assert ran.job["progress"]["message"] == f"at {MASK}"
    log = site.request("GET", f"/jobs/{ran.id}/logs").text
    assert f"my key is {MASK}\nand in parts: {MASK}!" in log
    assert leaks(CANARY, tmp_path / "home", *database_files(database_url)) == []
    assert leaking_cells(CANARY, database_url) == []


def test_each_delivery_is_recorded_by_name(site, tmp_path):
    ran = run(site, tmp_path, Script(running=(result(1),)))
    (details,) = audited(site, ran.id, "secret:deliver")
    assert details["names"] == ["API_KEY v1", "OTHER v1"]
    assert (details["plugin"], details["attempt"]) == ("needy==1.0.0", 1)
    assert jobs.audit_actions(site.services.db, ran.id) == ["job:submit", "job:start", "secret:deliver", "job:complete"]
    assert all(item["last_used_at"] for item in site.request("GET", "/secrets").json["items"])
    trace = site.request("GET", f"/trace/{ran.id}").json["items"]
    assert [item["details"] for item in trace if item["event_type"] == "started"] == [{"secrets": ["API_KEY", "OTHER"]}]


def test_errors_and_their_tracebacks_are_masked(site, tmp_path, database_url):
    ran = run(site, tmp_path, Script(running=(error(Reason.PLUGIN_FAILED, f"no {CANARY}"),)))
    assert ran.job["error"]["message"] == f"no {MASK}"
    assert CANARY not in json.dumps(ran.job, ensure_ascii=False)
    assert leaking_cells(CANARY, database_url) == []


def test_a_traceback_is_masked_before_it_is_cut(site, tmp_path):
    frame = {**error(Reason.PLUGIN_FAILED, "m"), "traceback": CANARY + "x" * (8_192 - 10)}
    ran = run(site, tmp_path, Script(running=(frame,)))
    assert len(ran.job["error"]["details"]["traceback"]) <= 8_192
    assert CANARY[-8:] not in ran.job["error"]["details"]["traceback"]


def test_what_the_guest_cut_in_two_is_masked(site, tmp_path):
    """Of a log the end, of a traceback the beginning, where most of a secret may be left."""
    log = {"type": "log", "stream": "stdout", "text": f"begins {CANARY[:-1]}{LOG_TRUNCATED}"}
    trace = (CANARY[1:] + "." + CANARY * 6_000)[:MAX_TRACEBACK]
    frame = {**error(Reason.PLUGIN_FAILED, "m"), "traceback": trace}
    ran = run(site, tmp_path, Script(running=(log, frame)))
    shown = site.request("GET", f"/jobs/{ran.id}/logs").text
    assert f"begins {MASK}{LOG_TRUNCATED}" in shown
    assert CANARY[1:7] not in ran.job["error"]["details"]["traceback"]
    assert CANARY[-6:] not in ran.job["error"]["details"]["traceback"]


def test_what_the_output_ends_with_is_kept_and_masked(site, tmp_path):
    tail = {"type": "log", "stream": "stdout", "text": f"begins {CANARY[:9]}"}
    ran = run(site, tmp_path, Script(running=(tail, result(1))))
    assert site.request("GET", f"/jobs/{ran.id}/logs").text.rstrip().endswith(f"begins {MASK}")


def test_hosts_that_it_asked_for_are_masked(site, tmp_path, database_url):
    one = EgressConnection(f"{CANARY}.example", 443, None, "not_allowed", 0, 0, 1, 1)
    nameless = EgressConnection(None, None, None, "malformed", 0, 0, 1, 1)
    report = EgressReport((one, nameless), 2, 0, 0, {"not_allowed": 1, "malformed": 1})
    run(
        site, tmp_path, Script(running=(result(1),), egress=report), outbound=lambda _job: (Endpoint("a.example", 443),)
    )
    assert leaking_cells(CANARY, database_url) == []


def test_a_sensitive_job_is_masked_before_it_is_sealed(site, tmp_path):
    ran = run(site, tmp_path, Script(running=(*SAYS, result({"key": CANARY}))), sensitive=True)
    shown = site.request("GET", f"/jobs/{ran.id}", query_string={"reveal": "true"})
    assert shown.json["result"] == {"key": MASK}
    assert CANARY not in site.request("GET", f"/jobs/{ran.id}/logs", query_string={"reveal": "true"}).text


@pytest.mark.parametrize("how", ["revoked", "removed", "other version"])
def test_what_is_no_longer_granted_fails_the_job_by_name(site, tmp_path, how):
    job_id = submit(site)
    if how == "removed":
        site.request("DELETE", "/secrets/API_KEY", headers={"If-Match": "*"})
    else:
        grant(site, "API_KEY", *(["==1.0.1"] if how == "other version" else []))
    with scripted_worker(site.services, tmp_path, Script(running=(result(1),)), secrets=secrets_of(site)) as backend:
        job = ended(site, job_id)
    assert (job["status"], job["reason"]) == ("failed", "secret_denied")
    assert "API_KEY" in job["error"]["message"]
    assert "administrator" in job["error"]["message"]
    assert [frame["type"] for frame in backend.sandboxes[0].channel.sent] == []
    assert audited(site, job_id, "secret:deliver") == []


def test_a_key_that_is_away_is_the_platforms_matter(site, tmp_path):
    job_id = submit(site)
    keys = site.services.settings.home / "keys"
    (keys / "secrets.key").rename(keys / "aside")
    with scripted_worker(site.services, tmp_path, Script(running=(result(1),)), secrets=secrets_of(site)):

        def failed():
            tried = site.request("GET", f"/jobs/{job_id}/attempts").json["items"]
            return next((one["error"] for one in tried if one["error"]), None)

        found = until(failed, 60, "an attempt fails")
    assert found["reason"] == "key_unavailable"
    assert "API_KEY" in found["message"]
    assert str(keys) in found["message"]
    assert site.request("GET", f"/jobs/{job_id}").json["status"] != "failed"


def test_an_attempt_that_was_taken_away_gets_nothing(site):
    job_id = submit(site)
    db = site.services.db
    jobs.claim(db, site.services.broker, [job_id], "w0")
    row = jobs.job(db, job_id)
    claimed = SimpleNamespace(
        id=job_id, attempt=1, tenant_id=row["tenant_id"], plugin_digest=row["plugin_digest"], type="needy"
    )
    with pytest.raises(StaleAttempt):
        secrets_of(site, "w1").deliver(claimed)
    assert audited(site, job_id, "secret:deliver") == []
    assert secrets_of(site, "w0").deliver(claimed) == {"API_KEY": CANARY, "OTHER": "short"}


@pytest.mark.parametrize("change", ["tenant_id", "name", "value_version", "id"])
def test_a_sealed_value_opens_in_its_own_place_alone(site, change):
    db = site.services.db
    row = dict(db.read(lambda c: c.execute(select(t.secret).where(t.secret.c.name == "API_KEY")).mappings().one()))
    other = {"tenant_id": "0" * 36, "name": "OTHER", "value_version": 2, "id": "1" * 36}[change]
    at = {**row, change: other}
    place = secret_rotation.Place(at["tenant_id"], at["name"], at["id"], at["value_version"])
    with pytest.raises(Exception, match="key_unavailable"):
        vault(site).open(place, row["sealed"], row["key_id"])


def rows(site):
    query = select(t.secret.c.name, t.secret.c.key_id, t.secret.c.version).order_by(t.secret.c.name)
    return site.services.db.read(lambda c: c.execute(query).all())


def rotated(site, given=()):
    audit = AuditLog(site.services.keyring.hmac_key)
    return rotate(vault(site, given), site.services.db, audit)


def test_rotation_encrypts_all_anew_under_a_running_process(site, tmp_path):
    before = rows(site)
    done = rotated(site)
    assert (done.encrypted, done.lost, done.before) == (2, [], before[0].key_id)
    assert {row.key_id for row in rows(site)} == {done.key_id} != {done.before}
    assert [row.version for row in rows(site)] == [
        row.version for row in before
    ]  # an ETag that somebody holds stays good
    answer = site.request("POST", "/secrets", json={"name": "THIRD", "value": "another value"})  # the same web process
    assert answer.status_code == 201
    assert {row.key_id for row in rows(site)} == {done.key_id}
    (site.services.settings.home / "keys" / f"secrets-{done.before}.key").unlink()
    ran = run(site, tmp_path, Script(running=(result(1),)))
    assert ran.sent[0]["value"] == CANARY


def test_a_rotation_that_was_cut_goes_on_and_makes_no_further_key(site, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(secret_rotation, "_pass", lambda *_: (_ for _ in ()).throw(Unavailable("the database is away")))
        with pytest.raises(Unavailable):
            rotated(site)
    keys = site.services.settings.home / "keys"
    assert len(list(keys.glob("secrets*.key"))) == 2
    done = rotated(site)
    assert (done.before, done.encrypted) == (None, 2)
    assert len(list(keys.glob("secrets*.key"))) == 2
    assert rotated(site).before is not None


def test_keys_of_the_settings_take_turns(site):
    old, new = b"o" * 32, b"n" * 32
    first = rotated(site, [old])
    assert (first.before, first.encrypted) == (None, 2)
    second = rotated(site, [new, old])
    assert second.encrypted == 2
    assert second.key_id != first.key_id


def test_a_second_look_with_the_current_key_as_a_setting_finds_what_another_host_stored_and_makes_no_key(site):
    keys = site.services.settings.home / "keys"
    before = (keys / "secrets.key").read_bytes()
    done = rotated(site)
    current = (keys / "secrets.key").read_bytes()
    another_host = SecretVault(keys, site.services.db, [before])
    row = site.services.db.read(
        lambda c: c.execute(select(t.secret).where(t.secret.c.name == "API_KEY")).mappings().one()
    )
    place = secret_rotation.Place(row["tenant_id"], row["name"], row["id"], row["value_version"])
    sealed, key_id = another_host.seal(place, "stored meanwhile")
    here = t.secret.c.id == row["id"]
    site.services.db.write(lambda c: c.execute(update(t.secret).where(here).values(sealed=sealed, key_id=key_id)))
    files = sorted(keys.glob("secrets*.key"))
    again = rotated(site, [current])
    assert (again.key_id, again.before, again.encrypted) == (done.key_id, None, 1)
    assert {one.key_id for one in rows(site)} == {done.key_id}
    assert sorted(keys.glob("secrets*.key")) == files
    assert (keys / "secrets.key").read_bytes() == current


def test_a_key_that_is_lost_for_good_is_replaced_and_its_secrets_named(site):
    keys = site.services.settings.home / "keys"
    (keys / "secrets.key").unlink()
    done = rotated(site)
    assert done.encrypted == 0
    assert [place.partition("/")[2] for place in done.lost] == ["API_KEY", "OTHER"]
    answer = site.request("PUT", "/secrets/API_KEY", json={"value": "set again"}, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("key_id", ["no hex digits", "abc", "ü", ""])
def test_a_key_that_cannot_be_is_unknown_and_stops_nobody_elses_rotation(site, key_id):
    here = t.secret.c.name == "API_KEY"
    site.services.db.write(lambda c: c.execute(update(t.secret).where(here).values(key_id=key_id)))
    done = rotated(site)
    assert (done.encrypted, [place.partition("/")[2] for place in done.lost]) == (1, ["API_KEY"])


def test_a_value_that_is_set_while_its_row_is_encrypted_anew_stays(site, monkeypatch):
    real = secret_rotation._anew

    def late(vault_, row, done):
        made = real(vault_, row, done)
        if row["name"] == "API_KEY" and row["value_version"] == 1:
            assert site.request("PUT", "/secrets/API_KEY", json={"value": "newer"}, headers={"If-Match": "*"}).json
        return made

    monkeypatch.setattr(secret_rotation, "_anew", late)
    done = rotated(site)
    assert {row.key_id for row in rows(site)} == {done.key_id}
    row = site.services.db.read(
        lambda c: c.execute(select(t.secret).where(t.secret.c.name == "API_KEY")).mappings().one()
    )
    place = secret_rotation.Place(row["tenant_id"], row["name"], row["id"], 2)
    assert vault(site).open(place, row["sealed"], row["key_id"]) == "newer"


def test_the_key_is_a_file_of_its_own_that_nobody_else_reads(site):
    path = Path(site.services.settings.home / "keys" / "secrets.key")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 32
