from __future__ import annotations

import hashlib
import json
import math
import threading

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from cloche.audit.event import Event, canonical_bytes, commitment, is_commitment, mac
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor, system_actor
from tests.support.audit import ALICE, TENANT, Platform


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    yield platform
    platform.db.close()


def _events(platform: Platform) -> list[Event]:
    query = select(tables.audit_event).order_by(tables.audit_event.c.id)
    return [Event._make(row) for row in platform.db.read(lambda connection: connection.execute(query).all())]


def _people(platform: Platform) -> dict[str, tuple[str, str, str]]:
    rows = platform.db.read(lambda connection: connection.execute(select(tables.audit_person)).all())
    return {row.commitment: (row.kind, row.value, row.salt) for row in rows}


def test_a_whole_entry(platform):
    platform.record(
        AuditEntry(
            ALICE,
            Action.REMOTE_UPDATE,
            "remote:box",
            Outcome.FAILED,
            "no answer",
            before={"a": 1},
            after=[2],
            details={"n": 1.0},
        )
    )
    (event,) = _events(platform)
    assert event.mac == mac(platform.keyring.hmac_key, canonical_bytes(event))
    assert (event.tenant_id, event.token_id, event.request_id) == (TENANT, "token-1", "request-1")
    assert (event.action, event.object, event.outcome, event.reason) == (
        "remote:update",
        "remote:box",
        "failed",
        "no answer",
    )
    assert event.before_sha256 == hashlib.sha256(b'{"a":1}').hexdigest()
    assert event.after_sha256 == hashlib.sha256(b"[2]").hexdigest()
    assert event.details == '{"n":1}'
    assert event.at == int(event.id.replace("-", "")[:12], 16)


def test_people_are_commitments_the_platform_s_parts_are_names(platform):
    platform.record(
        AuditEntry(ALICE, Action.JOB_SUBMIT, "job:1"),
        AuditEntry(system_actor(TENANT, "worker:1"), Action.JOB_START, "job:1"),
    )
    platform.record(AuditEntry(ALICE, Action.JOB_CANCEL, "job:1"))
    alice, worker, again = _events(platform)
    assert is_commitment(alice.actor) and alice.actor == again.actor
    assert (worker.actor, worker.ip) == ("worker:1", None)
    kind, value, salt = _people(platform)[alice.actor]
    assert (kind, value, commitment(salt, "alice")) == ("name", "alice", alice.actor)
    assert _people(platform)[alice.ip][:2] == ("ip", "203.0.113.9")


def test_a_person_called_system_is_not_the_platform(platform):
    platform.record(AuditEntry(Actor("user-9", "system", TENANT, frozenset()), Action.JOB_SUBMIT, "job:1"))
    assert is_commitment(_events(platform)[0].actor)


def test_a_part_cannot_be_named_like_a_commitment(platform):
    with pytest.raises(ValueError, match="plain name"):
        platform.record(AuditEntry(system_actor(TENANT, "a" * 64), Action.JOB_START, "job:1"))


def test_an_undone_transaction_leaves_no_person_that_later_events_would_miss(platform):
    def undone(connection):
        platform.log.record(connection, AuditEntry(ALICE, Action.JOB_SUBMIT, "job:1"))
        platform.log.record(connection, AuditEntry(ALICE, Action.JOB_SUBMIT, "job:2"))
        raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError):
        platform.db.write(undone)
    assert (_events(platform), _people(platform)) == ([], {})
    platform.record(AuditEntry(ALICE, Action.JOB_SUBMIT, "job:1"))
    platform.record(AuditEntry(ALICE, Action.JOB_SUBMIT, "job:2"))
    assert {event.actor for event in _events(platform)} | {event.ip for event in _events(platform)} == set(
        _people(platform)
    )


@pytest.mark.parametrize("details", [{"n": math.nan}, {"o": object()}, {1: "a"}])
def test_what_cannot_be_recorded_undoes_the_change(platform, details):
    def change(connection):
        connection.execute(tables.tenant.insert().values(id="t", name="t", created_at=1))
        platform.log.record(connection, AuditEntry(ALICE, Action.TENANT_CREATE, "tenant:t", details=details))

    with pytest.raises((TypeError, ValueError)):
        platform.db.write(change)
    assert platform.db.read(lambda connection: connection.scalar(select(func.count()).select_from(tables.tenant))) == 0


def test_a_number_used_twice_undoes_the_change(platform):
    platform.record(AuditEntry(ALICE, Action.JOB_SUBMIT, "job:1", object_seq=1))
    with pytest.raises(IntegrityError, match=r"append-only|uq_audit_event_object_object_seq"):
        platform.record(AuditEntry(ALICE, Action.JOB_CANCEL, "job:1", object_seq=1))
    assert len(_events(platform)) == 1


@pytest.mark.parametrize(("name", "number"), [("job:1", 0), ("file:1", 1)])
def test_only_a_job_s_events_are_numbered_from_one(platform, name, number):
    with pytest.raises(ValueError, match="object_seq"):
        platform.record(AuditEntry(ALICE, Action.JOB_SUBMIT, name, object_seq=number))


def test_secrets_are_masked(platform):
    details = {"password": "hunter2", "text": "Bearer abcdefghijk", "inner": {"api_key": "k"}}
    platform.record(AuditEntry(ALICE, Action.REMOTE_CREATE, "remote:a", details=details, reason="with cloche_pat_abc"))
    (event,) = _events(platform)
    assert not any(
        secret in event.details + str(event.reason) for secret in ("hunter2", "abcdefghijk", "cloche_pat_abc", '"k"')
    )
    assert json.loads(event.details)["inner"].keys() == {"api_key"}


def test_text_from_outside_is_cut_and_made_valid(platform):
    actor = Actor("u", "bob\ud800", TENANT, frozenset(), ip="x" * 90, request_id="é" * 90)
    platform.record(AuditEntry(actor, Action.ACCESS_DENY, "route:" + "a" * 400, reason="r\udcff" * 300))
    (event,) = _events(platform)
    assert (len(event.object), len(event.reason or ""), len(event.request_id or "")) == (255, 255, 64)
    assert _people(platform)[event.actor][1] == "bob\\ud800"
    assert event.mac == mac(platform.keyring.hmac_key, canonical_bytes(event))


def test_ids_keep_the_order_of_recording(platform):
    for number in range(40):
        platform.record(*(AuditEntry(ALICE, Action.FILE_CREATE, f"file:{number:02d}-{n}") for n in range(3)))
    names = [event.object for event in _events(platform)]
    assert names == sorted(names)


def test_processes_agree_on_a_person(platform):
    """Two writers with caches of their own, at the same time: one commitment."""
    other_db, start = Database(platform.url), threading.Barrier(2)
    writers = ((platform.db, platform.log), (other_db, AuditLog(platform.keyring.hmac_key)))

    def run(db, log, offset):
        start.wait()
        for number in range(20):
            entry = AuditEntry(
                Actor("u", f"user-{number}", TENANT, frozenset()), Action.JOB_SUBMIT, f"file:{offset}-{number}"
            )
            db.write(lambda connection, entry=entry: log.record(connection, entry))

    threads = [threading.Thread(target=run, args=(*writer, offset)) for offset, writer in enumerate(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other_db.close()
    assert len({event.actor for event in _events(platform)}) == len(_people(platform)) == 20


def test_a_key_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes"):
        AuditLog(b"short")
