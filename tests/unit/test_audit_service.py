from __future__ import annotations

import pytest
from sqlalchemy import select

from cloche.clock import from_rfc3339, uuid7
from cloche.db import tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor
from cloche.errors import Invalid
from cloche.services.auditing import AuditService
from tests.support.audit import ALICE, Platform, attacker

BOB = Actor("user-bob", "bob", "tenant-2", frozenset(), ip="198.51.100.7")


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    yield platform
    platform.db.close()


@pytest.fixture
def service(platform):
    return AuditService(platform.db, platform.keyring)


def test_an_item_has_the_documented_shape(platform, service):
    platform.record(
        AuditEntry(ALICE, Action.REMOTE_CREATE, "remote:box", Outcome.FAILED, "no answer", details={"type": "webdav"})
    )
    platform.sealer.run_once()
    (item,) = service.list(ALICE, {})["items"]
    assert from_rfc3339(item.pop("at")) > 0
    assert len(item.pop("id")) == 36
    assert item == {
        "seq": 0, "actor": "alice", "action": "remote:create", "object": "remote:box", "outcome": "failed", "ip": "203.0.113.9",
        "request_id": "request-1", "token_id": "token-1", "reason": "no answer", "before_sha256": None,
        "after_sha256": None, "details": {"type": "webdav"},
    }  # fmt: skip


def test_what_is_not_sealed_yet_has_no_seq(platform, service):
    platform.job()
    assert [item["seq"] for item in service.list(ALICE, {})["items"]] == [None] * 3


def test_a_tenant_sees_its_own_alone(platform, service):
    platform.job(ALICE)
    platform.job(BOB)
    seen = service.list(BOB, {})["items"]
    assert len(seen) == 3
    assert {item["actor"] for item in seen} == {"bob", "worker:1"}
    assert service.list(BOB, {"actor": "alice"})["items"] == []


def test_pages_run_from_new_to_old_without_loss(platform, service):
    for number in range(7):
        platform.record(AuditEntry(ALICE, Action.FILE_CREATE, f"file:{number}"))
    cursor, names = None, []
    while True:
        page = service.list(ALICE, {}, cursor, 3)
        names += [item["object"] for item in page["items"]]
        platform.record(AuditEntry(ALICE, Action.FILE_DELETE, "file:0"))  # what comes in meanwhile moves no page
        if (cursor := page["next_cursor"]) is None:
            break
    assert names == [f"file:{number}" for number in range(6, -1, -1)]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"action": "job:start"}, 1),
        ({"outcome": "denied"}, 1),
        ({"actor": "alice"}, 2),
        ({"actor": "worker:1"}, 2),
        ({"actor": "nobody"}, 0),
        ({"object": "route:x"}, 1),
        ({"request_id": "request-1", "action": None}, 2),
        ({"token_id": "token-1", "outcome": "allowed"}, 1),
        ({"since": 0, "until": 1}, 0),
        ({"since": 0, "until": 4_000_000_000_000}, 4),
    ],
)
def test_filters(platform, service, filters, count):
    platform.job()
    platform.record(AuditEntry(ALICE, Action.ACCESS_DENY, "route:x", Outcome.DENIED))
    assert len(service.list(ALICE, filters)["items"]) == count


def test_since_and_until_meet_at_a_millisecond(platform, service):
    platform.job()
    at = from_rfc3339(service.list(ALICE, {"action": "job:submit"})["items"][0]["at"])
    assert service.list(ALICE, {"action": "job:submit", "since": at, "until": at + 1})["items"]
    assert not service.list(ALICE, {"action": "job:submit", "until": at})["items"]
    assert not service.list(ALICE, {"action": "job:submit", "since": at + 1})["items"]


def test_unknown_filters_and_cursors_are_refused(service):
    with pytest.raises(Invalid) as found:
        service.list(ALICE, {"colour": "red"})
    assert found.value.problems[0].pointer == "/colour"
    for call in (service.list, lambda actor, _filters, cursor: service.checkpoints(actor, cursor)):
        with pytest.raises(Invalid, match="cursor"):
            call(ALICE, {}, "x' OR 1=1")


def test_a_forgotten_person_leaves_the_chain_whole(platform, service):
    platform.filled(1)
    platform.db.write(lambda connection: connection.execute(tables.audit_person.delete()))
    assert service.verify(ALICE)["status"] == "valid"
    item = service.list(ALICE, {"action": "file:create"})["items"][0]
    assert item["actor"].startswith("forgotten:")


def test_verify_answers_as_a_document(platform, service):
    platform.filled(2)
    answer = service.verify(ALICE)
    assert (answer["status"], answer["exit_code"], answer["events"], answer["batches"], answer["first_bad"]) == (
        "valid",
        0,
        14,
        2,
        None,
    )
    with attacker(platform) as connection:
        connection.execute(
            "UPDATE audit_event SET outcome = 'denied' WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = 5)"
        )
    answer = service.verify(ALICE)
    assert (answer["status"], answer["exit_code"], answer["first_bad"]["seq"]) == ("tampered", 1, 5)


def test_a_page_shows_an_event_whose_details_were_spoilt(platform, service):
    platform.filled(1)
    with attacker(platform) as connection:
        connection.execute("UPDATE audit_event SET details = 'spoilt' WHERE action = 'file:create'")
    assert service.list(ALICE, {"action": "file:create"})["items"][0]["details"] == "spoilt"


def test_checkpoints_can_be_kept_elsewhere(platform, service, tmp_path):
    platform.filled(3)
    page = service.checkpoints(ALICE, limit=2)
    assert [item["number"] for item in page["items"]] == [2, 1]
    assert page["public_key"] == platform.keyring.public_key
    rest = service.checkpoints(ALICE, page["next_cursor"], 2)
    assert ([item["number"] for item in rest["items"]], rest["next_cursor"]) == ([0], None)


def test_an_export_is_itself_recorded_before_its_first_line(platform, service):
    lines = service.export(ALICE)
    assert service.list(ALICE, {})["items"][0]["action"] == "audit:export"
    assert '"audit:export"' in "".join(lines)


def test_backlog_counts(platform, service):
    assert service.backlog() == {"events": 0, "sealed": 0, "unsealed": 0, "last_sealed_at": None}
    platform.filled(1)
    platform.job()
    backlog = service.backlog()
    last = platform.db.read(lambda connection: connection.scalar(select(tables.audit_batch.c.at)))
    assert backlog == {"events": 10, "sealed": 7, "unsealed": 3, "last_sealed_at": last}


def test_ids_are_the_ones_cursors_take(platform, service):
    platform.job()
    assert service.list(ALICE, {}, uuid7())["items"]
