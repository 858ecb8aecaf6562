"""Every way of changing the trail that we know of, done to a real database, found and named."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloche.audit.keys import HMAC_FILE, PUBLIC_FILE, KeyRing
from cloche.clock import now_ms, uuid7
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action
from cloche.errors import EnvironmentProblem
from cloche.services import auditing
from cloche.services.auditing import verify_database
from tests.support.audit import ALICE, Platform, attacker, rewrite_with_another_key

BATCHES, JOBS = 3, 2
SIZE = 3 * JOBS + 1  # leaves in a batch
TOTAL = BATCHES * SIZE
OLD = now_ms() - 3_600_000


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A platform with three sealed batches, closed; each test works on a copy of its database."""
    platform = Platform(tmp_path_factory.mktemp("sealed")).filled(BATCHES, JOBS)
    platform.db.close()
    return platform


@pytest.fixture
def database(sealed, tmp_path):
    return sealed.copy(tmp_path / "copy.db")


def _event_at(connection: sqlite3.Connection, seq: int) -> str:
    return connection.execute("SELECT event_id FROM audit_leaf WHERE seq = ?", (seq,)).fetchone()[0]


def test_an_untouched_trail_is_valid(sealed, database):
    verdict = verify_database(database, keys=sealed.keys)
    assert (verdict.status.value, verdict.exit_code, verdict.first_bad, verdict.notes) == ("valid", 0, None, [])
    assert (verdict.events, verdict.leaves, verdict.batches, verdict.unsealed) == (TOTAL, TOTAL, BATCHES, 0)
    assert verdict.hmac_checked


def test_an_auditor_with_the_public_key_alone_can_tell(sealed, database):
    verdict = verify_database(database, public_key=sealed.keys / PUBLIC_FILE)
    assert (verdict.exit_code, verdict.hmac_checked) == (0, False)
    assert "HMAC key is not at hand" in verdict.notes[0]
    assert "signing keys are not at hand" in verdict.notes[-1]


def test_an_empty_trail_is_valid(tmp_path):
    platform = Platform(tmp_path / "home")
    assert verify_database(platform.path, keys=platform.keys).exit_code == 0
    platform.db.close()


@dataclass(frozen=True)
class Attack:
    """What is done, the first bad sequence number, a word of the reason, and whether the public key alone shows it."""

    do: Callable[[sqlite3.Connection], object]
    seq: int | None
    why: str


def _swap_leaves(connection: sqlite3.Connection) -> None:
    first, second = (
        connection.execute("SELECT event_id, hash FROM audit_leaf WHERE seq = ?", (seq,)).fetchone() for seq in (8, 10)
    )
    connection.execute("UPDATE audit_leaf SET event_id = 'x' WHERE seq = 8")
    connection.execute("UPDATE audit_leaf SET event_id = ?, hash = ? WHERE seq = 10", first)
    connection.execute("UPDATE audit_leaf SET event_id = ?, hash = ? WHERE seq = 8", second)


def _swap_batches(connection: sqlite3.Connection) -> None:
    for old, new in ((1, 99), (2, 1), (99, 2)):
        connection.execute("UPDATE audit_batch SET number = ? WHERE number = ?", (new, old))


def _swap_notes(connection: sqlite3.Connection) -> None:
    notes = dict(connection.execute("SELECT number, note FROM audit_batch"))
    connection.execute("UPDATE audit_batch SET note = ? WHERE number = 1", (notes[2],))
    connection.execute("UPDATE audit_batch SET note = ? WHERE number = 2", (notes[1],))


def _insert_sealed(connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO audit_event SELECT 'forged', at, tenant_id, actor, token_id, action, 'file:forged', NULL, outcome, ip, request_id,"
        " reason, before_sha256, after_sha256, details, mac FROM audit_event LIMIT 1"
    )
    connection.execute(f"UPDATE audit_leaf SET seq = -1 - seq WHERE seq >= {SIZE}")
    connection.execute("UPDATE audit_leaf SET seq = -seq WHERE seq < 0")
    connection.execute(f"INSERT INTO audit_leaf VALUES ({SIZE}, 'forged', '{'0' * 64}')")


def _cut_leaf_and_event(connection: sqlite3.Connection, seq: int) -> None:
    connection.execute("DELETE FROM audit_event WHERE id = ?", (_event_at(connection, seq),))
    connection.execute("DELETE FROM audit_leaf WHERE seq = ?", (seq,))


def _at(seq: int) -> str:
    return f"WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = {seq})"


ATTACKS = {
    "edit details": Attack(
        lambda c: c.execute(f"""UPDATE audit_event SET details = '{{"n":2}}' {_at(9)}"""), 9, "changed"
    ),
    "edit outcome": Attack(lambda c: c.execute(f"UPDATE audit_event SET outcome = 'denied' {_at(9)}"), 9, "changed"),
    "edit time": Attack(lambda c: c.execute(f"UPDATE audit_event SET at = at + 1 {_at(9)}"), 9, "changed"),
    "edit mac": Attack(lambda c: c.execute(f"UPDATE audit_event SET mac = '{'0' * 64}' {_at(9)}"), 9, "changed"),
    "edit to bytes": Attack(lambda c: c.execute(f"UPDATE audit_event SET details = x'ff' {_at(9)}"), 9, "type"),
    "edit to broken text": Attack(
        lambda c: c.execute(f"UPDATE audit_event SET reason = CAST(x'ff' AS TEXT) {_at(9)}"), 9, "read"
    ),
    "edit time to text": Attack(lambda c: c.execute(f"UPDATE audit_event SET at = 'noon' {_at(9)}"), 9, "type"),
    "edit leaf": Attack(
        lambda c: c.execute(f"UPDATE audit_leaf SET hash = '{'0' * 64}' WHERE seq = 9"), 9, "not the one"
    ),
    "delete event": Attack(lambda c: c.execute(f"DELETE FROM audit_event {_at(9)}"), 9, "event is missing"),
    "delete event and leaf": Attack(lambda c: _cut_leaf_and_event(c, 9), 9, "leaf is missing"),
    "delete the last leaf": Attack(lambda c: _cut_leaf_and_event(c, TOTAL - 1), TOTAL - 1, "leaves are missing"),
    "delete a batch": Attack(
        lambda c: c.execute("DELETE FROM audit_batch WHERE number = 1"), SIZE, "batch 1 is missing"
    ),
    "delete the last batch": Attack(
        lambda c: c.execute("DELETE FROM audit_batch WHERE number = 2"), 2 * SIZE, "no signed batch"
    ),
    "edit a batch": Attack(
        lambda c: c.execute("UPDATE audit_batch SET at = at + 1 WHERE number = 1"), SIZE, "signed note says"
    ),
    "swap leaves": Attack(_swap_leaves, SIZE, "leaves 7 to 13"),
    "swap batches": Attack(_swap_batches, SIZE, "batch 1"),
    "swap notes": Attack(_swap_notes, SIZE, "batch 1"),
    "insert among the sealed": Attack(_insert_sealed, SIZE, "changed"),
    "rename a person": Attack(
        lambda c: c.execute("UPDATE audit_person SET value = 'mallory' WHERE kind = 'name'"), None, "name behind"
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_found_and_named(sealed, database, name):
    attack = ATTACKS[name]
    with attacker(database) as connection:
        event_id = None if attack.seq is None or attack.seq >= TOTAL else _event_at(connection, attack.seq)
        attack.do(connection)
    verdict = verify_database(database, keys=sealed.keys)
    assert (verdict.status.value, verdict.exit_code) == ("tampered", 1)
    assert verdict.first_bad is not None
    assert verdict.first_bad.seq == attack.seq
    assert attack.why in verdict.first_bad.why
    if name.startswith("edit ") and name not in ("edit a batch", "edit to broken text"):
        assert verdict.first_bad.event_id == event_id
    # an auditor without the HMAC key sees it as well
    blind = verify_database(database, public_key=sealed.keys / PUBLIC_FILE)
    assert blind.exit_code == 1
    assert blind.first_bad is not None and blind.first_bad.seq == attack.seq


def test_the_first_of_two_is_named(sealed, database):
    with attacker(database) as connection:
        for seq in (12, 3):
            connection.execute(f"UPDATE audit_event SET reason = 'x' {_at(seq)}")
    verdict = verify_database(database, keys=sealed.keys)
    assert verdict.first_bad is not None and verdict.first_bad.seq == 3


def test_an_event_edited_with_its_leaf_is_found_by_either_key(sealed, database):
    """The leaf recomputed over the edited event: the HMAC names the event, without its key the signed root names the batch."""
    from cloche.audit.event import Event, canonical_bytes, leaf_bytes
    from cloche.audit.merkle import leaf_hash

    with attacker(database) as connection:
        connection.execute(f"UPDATE audit_event SET reason = 'x' {_at(9)}")
        event = Event._make(connection.execute(f"SELECT * FROM audit_event {_at(9)}").fetchone())
        forged = leaf_hash(leaf_bytes(canonical_bytes(event), event.mac)).hex()
        connection.execute("UPDATE audit_leaf SET hash = ? WHERE seq = 9", (forged,))
    first = verify_database(database, keys=sealed.keys).first_bad
    assert first is not None and first.seq == 9
    blind = verify_database(database, public_key=sealed.keys / PUBLIC_FILE).first_bad
    assert blind is not None and (blind.seq, blind.why) == (SIZE, "leaves 7 to 13 are not all those batch 1 signed")


class TestBeforeSealing:
    @pytest.fixture
    def platform(self, tmp_path):
        platform = Platform(tmp_path / "home").filled(1)
        yield platform
        platform.db.close()

    def test_a_young_tail_is_a_note(self, platform):
        platform.job()
        verdict = verify_database(platform.path, keys=platform.keys)
        assert (verdict.exit_code, verdict.unsealed, verdict.notes) == (0, 3, ["3 events are not sealed yet"])

    def test_an_old_tail_is_incomplete(self, platform, monkeypatch):
        platform.job()
        later = now_ms() + 11_000
        monkeypatch.setattr(auditing.clock, "now_ms", lambda: later)
        verdict = verify_database(platform.path, keys=platform.keys)
        assert (verdict.status.value, verdict.exit_code) == ("incomplete", 2)
        assert "not sealed" in verdict.notes[-1]

    def test_an_edit_shows_by_its_hmac(self, platform):
        name = platform.job()
        with attacker(platform.path) as connection:
            (event_id,) = connection.execute(
                "SELECT id FROM audit_event WHERE object = ? AND object_seq = 2", (name,)
            ).fetchone()
            connection.execute("UPDATE audit_event SET actor = 'worker:2' WHERE id = ?", (event_id,))
        bad = verify_database(platform.path, keys=platform.keys).first_bad
        assert bad is not None and (bad.seq, bad.event_id) == (None, event_id)

    def test_an_insert_shows_by_its_hmac(self, platform):
        with attacker(platform.path) as connection:
            connection.execute(
                "INSERT INTO audit_event (id, at, tenant_id, actor, action, object, outcome, details, mac)"
                " VALUES (?, ?, 't', 'system', 'job:submit', 'file:x', 'allowed', '{}', ?)",
                (uuid7(), now_ms(), "0" * 64),
            )
        assert verify_database(platform.path, keys=platform.keys).exit_code == 1

    @pytest.mark.parametrize("number", [1, 2])
    def test_a_job_s_missing_event_shows_by_its_number(self, platform, number):
        name = platform.job()
        with attacker(platform.path) as connection:
            connection.execute("DELETE FROM audit_event WHERE object = ? AND object_seq = ?", (name, number))
        bad = verify_database(platform.path, keys=platform.keys).first_bad
        assert bad is not None and f"event {number} of {name} is missing" in bad.why

    def test_a_job_s_missing_last_event_shows_by_the_job_s_own_count(self, platform):
        name = platform.job()
        columns = {
            "id": name.removeprefix("job:"), "tenant_id": "t", "type": "x", "plugin_version": "1", "plugin_digest": "d", "payload": "{}",
            "payload_sha256": "d", "queue": "default", "priority": 5, "labels": "{}", "inputs": "[]", "outputs": "[]", "limits": "{}",
            "retry": "{}", "state": "completed", "reason": "succeeded", "attempt": 1, "retries_used": 0, "platform_failures": 0,
            "worker_deaths": 0, "ready_at": 1, "submitted_by": "u", "created_at": 1, "audit_seq": 3,
        }  # fmt: skip
        with attacker(platform.path) as connection:
            connection.execute(
                f"INSERT INTO job ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                tuple(columns.values()),
            )
        assert verify_database(platform.path, keys=platform.keys).exit_code == 0
        with attacker(platform.path) as connection:
            connection.execute("DELETE FROM audit_event WHERE object = ? AND object_seq = 3", (name,))
        bad = verify_database(platform.path, keys=platform.keys).first_bad
        assert bad is not None and bad.why == f"event 3 of {name} is missing (the job counts 3)"


def test_cutting_the_tail_cleanly_shows_against_a_checkpoint_kept_elsewhere(sealed, database, tmp_path):
    """Whole batches removed leave a trail that is consistent in itself: only something outside the database can tell."""
    with attacker(database) as connection:
        (note,) = connection.execute("SELECT note FROM audit_batch WHERE number = 2").fetchone()
        connection.execute(
            f"DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_leaf WHERE seq >= {2 * SIZE})"
        )
        connection.execute(f"DELETE FROM audit_leaf WHERE seq >= {2 * SIZE}")
        connection.execute("DELETE FROM audit_batch WHERE number = 2")
    assert verify_database(database, keys=sealed.keys).exit_code == 0  # what docs/audit.md says cannot be seen
    kept = tmp_path / "checkpoint"
    kept.write_text(note)
    bad = verify_database(database, keys=sealed.keys, checkpoint=kept).first_bad
    assert bad is not None and bad.seq == 2 * SIZE
    assert "cut off" in bad.why


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_trail_that_extends_the_checkpoint_is_valid(sealed, database, tmp_path, number):
    kept = tmp_path / "checkpoint"
    with sqlite3.connect(database) as connection:
        kept.write_text(connection.execute("SELECT note FROM audit_batch WHERE number = ?", (number,)).fetchone()[0])
    connection.close()
    assert verify_database(database, keys=sealed.keys, checkpoint=kept).exit_code == 0


def test_a_rewritten_trail_shows_against_the_pinned_key(sealed, tmp_path):
    forged = rewrite_with_another_key(sealed, tmp_path / "forger")
    assert verify_database(forged, keys=tmp_path / "forger" / "keys").exit_code == 0  # consistent in itself
    bad = verify_database(forged, public_key=sealed.keys / PUBLIC_FILE).first_bad
    assert bad is not None and bad.seq == 0
    assert "not signed by the key" in bad.why


def test_a_trail_rewritten_with_the_stolen_keys_shows_against_a_checkpoint(sealed, database, tmp_path):
    """The same keys, other acts: every signature holds, the root at the checkpoint does not."""
    import shutil

    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(sealed.keys, home / "keys")
    forger = Platform(home).filled(BATCHES, JOBS)
    forger.db.close()
    kept = tmp_path / "checkpoint"
    with sqlite3.connect(database) as connection:
        kept.write_text(connection.execute("SELECT note FROM audit_batch WHERE number = 1").fetchone()[0])
    connection.close()
    assert verify_database(forger.path, keys=forger.keys).exit_code == 0
    bad = verify_database(forger.path, keys=forger.keys, checkpoint=kept).first_bad
    assert bad is not None and "rewritten" in bad.why


def test_a_checkpoint_of_another_key_is_not_accepted(sealed, database, tmp_path):
    other = Platform(tmp_path / "other").filled(1)
    kept = tmp_path / "checkpoint"
    kept.write_text(other.keyring.sign_note("x\n"))
    other.db.close()
    bad = verify_database(database, keys=sealed.keys, checkpoint=kept).first_bad
    assert bad is not None and "does not belong" in bad.why


def test_a_damaged_file_is_not_valid(sealed, database):
    content = bytearray(database.read_bytes())
    start = content.index(b"job:submit") & ~4095
    content[start + 8 : start + 200] = b"\xff" * 192
    database.write_bytes(content)
    assert verify_database(database, keys=sealed.keys).exit_code == 1


class TestFiles:
    def test_reading_changes_nothing_and_leaves_no_file_behind(self, sealed, database):
        before = database.read_bytes()
        folder = database.parent
        assert verify_database(database, keys=sealed.keys).exit_code == 0
        assert database.read_bytes() == before
        assert [path.name for path in folder.iterdir()] == [database.name]

    def test_a_live_database_can_be_verified(self, tmp_path):
        platform = Platform(tmp_path / "home").filled(1)
        platform.job()
        assert verify_database(platform.path, keys=platform.keys).events == SIZE + 3
        platform.record(AuditEntry(ALICE, Action.FILE_DELETE, "file:1"))
        platform.db.close()

    @pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
    def test_what_is_no_database_is_explained(self, sealed, tmp_path: Path, content):
        path = tmp_path / "x.db"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EnvironmentProblem, match=r"no database|not a Cloche database"):
            verify_database(path, keys=sealed.keys)

    def test_without_any_public_key_there_is_nothing_to_verify_with(self, database, tmp_path):
        with pytest.raises(EnvironmentProblem, match="no public key"):
            verify_database(database)
        with pytest.raises(EnvironmentProblem, match="cannot use the public key"):
            verify_database(database, keys=tmp_path / "nowhere")

    def test_a_missing_checkpoint_is_explained(self, sealed, database, tmp_path):
        with pytest.raises(EnvironmentProblem, match="cannot read the checkpoint"):
            verify_database(database, keys=sealed.keys, checkpoint=tmp_path / "none")

    def test_another_platform_s_hmac_key_is_not_used(self, sealed, database, tmp_path):
        """`--public-key` of the trail, on a machine with a platform of its own."""
        KeyRing.load_or_create(tmp_path / "own")
        verdict = verify_database(database, keys=tmp_path / "own", public_key=sealed.keys / PUBLIC_FILE)
        assert (verdict.exit_code, verdict.hmac_checked) == (0, False)
        assert verify_database(database, keys=sealed.keys, public_key=sealed.keys / PUBLIC_FILE).hmac_checked

    def test_a_key_others_can_read_is_refused(self, sealed, database, tmp_path):
        import shutil

        keys = tmp_path / "keys"
        shutil.copytree(sealed.keys, keys)
        (keys / HMAC_FILE).chmod(0o644)
        with pytest.raises(EnvironmentProblem, match="open to other users"):
            verify_database(database, keys=keys)
