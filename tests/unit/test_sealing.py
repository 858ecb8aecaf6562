"""What sensitive jobs hold at rest: sealed to one job and one place, under a key that is noticed when it is not the right one."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from cloche.audit.canonical import digest
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.jobs import SEALED
from cloche.domain.permissions import Actor
from cloche.domain.states import REASON_TEXT, Reason
from cloche.errors import EnvironmentProblem, PlatformFailure, PluginFailure, Unavailable
from cloche.services import masking, sealing
from cloche.services.sealing import CURRENT, JobVault
from tests.support import jobs, stores

CANARY = "canary-7f3a ü \ud800"
ANNA = Actor("anna-id", "anna", "t", frozenset())
PAYLOAD = {"pass": CANARY, "n": 1.5, "none": None}


@pytest.fixture
def db(database_url: str):
    database = Database(database_url)
    stores.add_tenant(database)
    yield database
    database.close()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def stored(vault: JobVault, tenant: str = "t", job: str = "j") -> dict[str, str]:
    return {SEALED: vault.seal_for(tenant, job).seal("payload", PAYLOAD)}


def test_round_trip_hides_everything(db, keys: Path) -> None:
    vault = JobVault(keys, db)
    payload = stored(vault)
    assert "canary" not in payload[SEALED]
    assert stored(vault) != payload
    seal, opened = JobVault(keys, db).seal_of("t", "j", payload)  # as another process does
    assert opened == PAYLOAD
    for value in (None, "", 0, [1, {"a": CANARY}], CANARY):
        assert seal.open("result", seal.seal("result", value)) == value
    assert stat.S_IMODE((keys / CURRENT).stat().st_mode) == 0o600
    master = (keys / CURRENT).read_bytes()
    assert master.hex() not in repr(vault._current)
    assert db.read(sealing.newest_id) not in master.hex()


@pytest.mark.parametrize(("tenant", "job"), [("other", "j"), ("t", "k"), ("t\0j", ""), ("", "t\0j")])
def test_a_payload_moved_to_another_job_does_not_open(db, keys: Path, tenant: str, job: str) -> None:
    vault = JobVault(keys, db)
    with pytest.raises(PlatformFailure) as raised:
        vault.seal_of(tenant, job, stored(vault))
    assert raised.value.reason == Reason.KEY_UNAVAILABLE


def test_a_value_moved_to_another_place_does_not_open(db, keys: Path) -> None:
    seal = JobVault(keys, db).seal_for("t", "j")
    with pytest.raises(PlatformFailure, match="changed"):
        seal.open("log/1/2", seal.seal("log/1/1", CANARY))


@pytest.mark.parametrize(
    "damage",
    [lambda s: s[:-4], lambda s: "AA" + s[2:], lambda _: "", lambda _: "é!", lambda s: s[:60] + "AAAA" + s[64:]],
)
def test_a_changed_payload_does_not_open(db, keys: Path, damage) -> None:
    vault = JobVault(keys, db)
    with pytest.raises(PlatformFailure):
        vault.seal_of("t", "j", {SEALED: damage(stored(vault)[SEALED])})
    with pytest.raises(PlatformFailure):
        vault.seal_of("t", "j", {})


def test_processes_that_start_at_once_agree_on_the_key(db, keys: Path) -> None:
    vaults = [JobVault(keys, db) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        payloads = list(pool.map(stored, vaults))
    assert all(vault.seal_of("t", "j", payload)[1] == PAYLOAD for vault in vaults for payload in payloads)
    assert [path.name for path in keys.iterdir()] == [CURRENT]
    assert len(db.read(lambda c: c.execute(select(t.sealing_key)).all())) == 1


def test_a_lost_key_is_never_replaced_by_itself(db, keys: Path) -> None:
    payload = stored(JobVault(keys, db))
    kept = (keys / CURRENT).read_bytes()
    (keys / CURRENT).unlink()
    vault = JobVault(keys, db)
    with pytest.raises(Unavailable, match=r"is missing: restore it from a backup.*cloche key rotate"):
        vault.seal_for("t", "k")
    with pytest.raises(PlatformFailure, match=r"was encrypted with key [0-9a-f]{16}, which is not in") as raised:
        vault.seal_of("t", "j", payload)
    assert raised.value.reason == Reason.KEY_UNAVAILABLE
    assert not (keys / CURRENT).exists()
    (keys / CURRENT).write_bytes(kept)
    (keys / CURRENT).chmod(0o600)
    assert vault.seal_of("t", "j", payload)[1] == PAYLOAD  # without a restart
    assert vault.seal_for("t", "k")


@pytest.mark.parametrize("lost", [lambda path: path.unlink(), lambda path: path.write_bytes(os.urandom(32))])
def test_a_process_that_has_read_it_notices_as_well(db, keys: Path, lost) -> None:
    """What it sealed from then on could not be read after its end."""
    vault = JobVault(keys, db)
    payload = stored(vault)
    kept = (keys / CURRENT).read_bytes()
    lost(keys / CURRENT)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"is missing|the database knows"):
            vault.seal_for("t", "k")
        with pytest.raises(Unavailable):
            vault.request_digests(ANNA, "k", {"sensitive": True})
    (keys / CURRENT).write_bytes(kept)
    (keys / CURRENT).chmod(0o600)
    assert vault.seal_for("t", "k")
    assert vault.seal_of("t", "j", payload)[1] == PAYLOAD


def test_another_key_is_noticed(db, keys: Path) -> None:
    payload = stored(JobVault(keys, db))
    (keys / CURRENT).write_bytes(os.urandom(32))
    vault = JobVault(keys, db)
    with pytest.raises(Unavailable, match="the database knows"):
        vault.seal_for("t", "k")
    with pytest.raises(PlatformFailure, match="which is not in"):
        vault.seal_of("t", "j", payload)


@pytest.mark.parametrize(("mode", "content"), [(0o640, b"k" * 32), (0o600, b"short")])
def test_a_key_that_is_damaged_or_open_to_others_is_refused(db, keys: Path, mode: int, content: bytes) -> None:
    payload = stored(JobVault(keys, db))
    (keys / CURRENT).write_bytes(content)
    (keys / CURRENT).chmod(mode)
    vault = JobVault(keys, db)
    with pytest.raises(Unavailable, match=r"chmod 600|damaged"):
        vault.seal_for("t", "k")
    with pytest.raises(PlatformFailure, match=r"chmod 600|damaged"):
        vault.seal_of("t", "j", payload)
    with pytest.raises(EnvironmentProblem):
        sealing.key_files(keys)


def test_rotation_keeps_what_was_sealed_readable(db, keys: Path) -> None:
    running = JobVault(keys, db)
    payload, before = stored(running), db.read(sealing.newest_id)
    body = {"type": "x", "sensitive": True}
    digests = running.request_digests(ANNA, "k", body)
    after = sealing.rotate(keys, db, AuditLog(b"k" * 32))
    assert after != before
    assert [key_id for key_id, _ in sealing.key_files(keys)] == [after, before]
    vault = JobVault(keys, db)
    assert vault.seal_of("t", "j", payload)[1] == PAYLOAD
    fresh = stored(vault)
    assert running.seal_of("t", "j", fresh)[1] == PAYLOAD  # a process that started before finds the new key
    assert set(digests) < set(
        vault.request_digests(ANNA, "k", body)
    )  # so that an idempotency key holds over the change
    assert vault.request_digests(ANNA, "k", body)[0] not in digests
    seal, _ = vault.seal_of("t", "j", payload)
    assert seal.seal("result", 1)[:12] == payload[SEALED][:12]  # all of a job under the key of its payload
    (keys / f"sensitive-{before}.key").unlink()
    with pytest.raises(PlatformFailure, match=f"key {before}"):
        JobVault(keys, db).seal_of("t", "j", payload)
    event = db.read(
        lambda c: c.execute(select(t.audit_event).where(t.audit_event.c.action == "key:rotate")).mappings().one()
    )
    assert (event["object"], before in event["details"], after in event["details"]) == ("key:sensitive", True, True)


def test_a_lost_key_is_given_up_by_a_rotation(db, keys: Path) -> None:
    stored(JobVault(keys, db))
    (keys / CURRENT).unlink()
    sealing.rotate(keys, db, AuditLog(b"k" * 32))
    assert JobVault(keys, db).seal_for("t", "k")


def test_keyed_digests_tell_nothing_to_who_can_guess(db, keys: Path) -> None:
    vault = JobVault(keys, db)
    one, same, other = vault.seal_for("t", "j"), vault.seal_for("t", "j"), vault.seal_for("t", "k")
    assert one.payload_mac({"a": 1}) == same.payload_mac({"a": 1.0})
    assert one.payload_mac({"a": 1}) != other.payload_mac({"a": 1})  # equal payloads of two jobs do not show
    assert one.payload_mac({"a": 1}) != one.payload_mac({"a": 2})
    plain, keyed = (
        {"type": "x", "payload": {"pin": "1234"}},
        {"type": "x", "payload": {"pin": "1234"}, "sensitive": True},
    )
    assert vault.request_digests(ANNA, "k", plain) == (digest(plain),)
    for body in (keyed, {"name": None, "jobs": [plain, keyed]}):
        found = vault.request_digests(ANNA, "k", body)
        assert found == vault.request_digests(ANNA, "k", body)
        assert digest(body) not in found
        assert found != vault.request_digests(ANNA, "l", body)
        assert found != vault.request_digests(replace(ANNA, user_id="bert"), "k", body)


def test_a_sensitive_job_is_not_stored_in_clear(db) -> None:
    with pytest.raises(ValueError, match="sealed before it is stored"):
        db.write(lambda c: jobs.transitions().submit(c, ANNA, jobs.row(ANNA, sensitive=True), 1))


def test_a_failure_keeps_its_reason_and_its_numbers_in_clear(db, keys: Path) -> None:
    seal = JobVault(keys, db).seal_for("t", "j")
    details: dict[str, object] = {"traceback": CANARY, "limit": 5, "used": 6, "said": CANARY}
    kept = masking.sealed_failure(seal, 2, PluginFailure(Reason.OUT_OF_MEMORY, CANARY, details))
    assert isinstance(kept, PluginFailure)
    assert (kept.reason, kept.message) == ("out_of_memory", REASON_TEXT[Reason.OUT_OF_MEMORY])
    assert {name: kept.details[name] for name in ("limit", "used")} == {"limit": 5, "used": 6}
    assert "canary" not in str(kept.details)
    error = {"reason": "out_of_memory", "message": kept.message, "attempt": 2, "details": kept.details}
    assert masking.masked_error(error) == {**error, "details": {"limit": 5, "used": 6}}
    opened = masking.opened_error(error, seal)
    assert opened is not None
    assert (opened["message"], opened["details"]) == (CANARY, details)


def test_words_that_cannot_be_sealed_are_dropped_and_the_platforms_own_stay() -> None:
    lost = masking.sealed_failure(None, 1, PlatformFailure(Reason.REMOTE_UNAVAILABLE, CANARY, {"path": CANARY}))
    assert (lost.message, lost.details) == (REASON_TEXT[Reason.REMOTE_UNAVAILABLE], {})
    ours = PlatformFailure(Reason.KEY_UNAVAILABLE, "its payload was encrypted with key 00, which is not here")
    assert masking.sealed_failure(None, 1, ours) is ours
