"""What an operator does to the trail leaves it verifiable; what an attacker does in its name is found: keys, retention, restores, people."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from cloche.audit.event import commitment
from cloche.audit.keys import HMAC_FILE, PRIVATE_FILE, PUBLIC_FILE, KeyRing, read_public_key
from cloche.audit.note import Checkpoint, note_hash
from cloche.audit.offline import Trust, verify_export, verify_store
from cloche.audit.prune import open_mark
from cloche.audit.verify import Verdict
from cloche.db import tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action
from cloche.errors import Conflict, EnvironmentProblem, NotFound
from cloche.services.audit_keeping import declare_restore, rotate_hmac_key, rotate_signing_key
from cloche.services.audit_prune import Pruned, prune
from cloche.services.auditing import AuditService
from cloche.services.sealer import Sealer
from tests.support import stores
from tests.support.audit import ALICE, Platform, attacker

JOBS = 2
SIZE = 3 * JOBS + 1  # leaves in a batch
DAY = 86_400_000


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    stores.add_tenant(platform.db)
    yield platform.filled(3, JOBS)
    platform.db.close()


def _notes(platform: Platform) -> list[str]:
    query = select(tables.audit_batch.c.note).order_by(tables.audit_batch.c.number)
    return list(platform.db.read(lambda connection: connection.scalars(query).all()))


def _ends(platform: Platform) -> list[tuple[int, int]]:
    """Each batch's number of leaves and time."""
    batch = tables.audit_batch.c
    query = select(batch.size, batch.at).order_by(batch.number)
    return [(row.size, row.at) for row in platform.db.read(lambda connection: connection.execute(query).all())]


def _pruned(platform: Platform, batches: int) -> Pruned:
    """Everything up to the end of that many batches."""
    before = _ends(platform)[batches - 1][1] + 1
    done = prune(platform.db, platform.keyring, before, least_ms=-DAY)
    platform.sealer.run_once()  # the act's own event
    return done


def _against(platform: Platform, note: str) -> Verdict:
    keys = platform.keyring
    return verify_store(platform.url, Trust(keys.verifier, keys.hmac_keys(), keys.held()), checkpoint=note)


def _outsider(platform: Platform, **given) -> Verdict:
    """With the first public key and nothing else."""
    return verify_store(platform.url, Trust(read_public_key(platform.keys / PUBLIC_FILE)), **given)


def _forged(platform: Platform, tmp_path, body: str) -> str:
    """Signed by somebody else's key of the same name."""
    stranger = KeyRing.load_or_create(tmp_path / "stranger")
    key = type(stranger.verifier)(platform.keyring.origin, stranger.verifier.raw)
    return stranger.sign_note(body, key)


class TestKeys:
    def test_the_first_public_key_verifies_everything_after_a_rotation(self, platform):
        before = platform.keyring.verifier
        made = rotate_signing_key(platform.db, platform.keyring)
        assert made != before
        platform.filled(2, JOBS)
        again = rotate_signing_key(platform.db, platform.keyring)
        platform.filled(1, JOBS)
        assert platform.verify().exit_code == _outsider(platform).exit_code == 0
        assert [path.name for path in platform.keys.glob("audit-ed25519*.key")] == [
            f"audit-ed25519.{again.id.hex()}.key"
        ]
        assert KeyRing.load_or_create(platform.keys).verifier == before

    def test_the_old_private_key_is_gone_and_a_fresh_process_goes_on(self, platform):
        rotate_signing_key(platform.db, platform.keyring)
        assert not (platform.keys / PRIVATE_FILE).exists()
        fresh = Sealer(platform.db, KeyRing.load_or_create(platform.keys), "sealer-2")
        platform.job()
        assert fresh.run_once() == 3
        assert _outsider(platform).exit_code == 0

    def test_the_old_key_signs_nothing_any_more(self, platform, tmp_path):
        """Somebody kept a copy of it, and seals with it."""
        old = KeyRing.load_or_create(platform.keys)
        rotate_signing_key(platform.db, platform.keyring)
        platform.job()
        assert platform.sealer.run_once() == 3
        last = _notes(platform)[-1]
        _resign(platform, last, lambda body: old.sign_note(body))
        bad = _outsider(platform).first_bad
        assert bad is not None and "not signed by the key" in bad.why

    def test_an_announcement_by_somebody_else_is_found(self, platform, tmp_path):
        rotate_signing_key(platform.db, platform.keyring)
        announcing = _notes(platform)[-1]
        _resign(platform, announcing, lambda body: _forged(platform, tmp_path, body))
        bad = _outsider(platform).first_bad
        assert bad is not None and bad.why.startswith("batch 3")

    def test_an_announcement_taken_out_is_found(self, platform):
        rotate_signing_key(platform.db, platform.keyring)
        platform.filled(1, JOBS)
        with attacker(platform) as connection:
            connection.execute(
                "UPDATE audit_batch SET note = replace(note, 'key cloche', 'kex cloche') WHERE number = 3"
            )
        assert _outsider(platform).exit_code == 1

    def test_a_rotation_that_was_cut_off_is_done_again(self, platform, monkeypatch):
        """The new key is on the disk, and nothing announces it."""
        monkeypatch.setattr(Sealer, "announce", lambda *_: (_ for _ in ()).throw(RuntimeError("cut off")))
        with pytest.raises(RuntimeError):
            rotate_signing_key(platform.db, platform.keyring)
        monkeypatch.undo()
        fresh = KeyRing.load_or_create(platform.keys)
        platform.job()
        assert Sealer(platform.db, fresh, platform.sealer._owner).run_once() == 3
        rotate_signing_key(platform.db, fresh)
        assert len(list(platform.keys.glob("audit-ed25519*.key"))) == 1
        assert _outsider(platform).exit_code == 0

    def test_a_new_hmac_key_needs_no_restart_and_the_old_one_still_verifies(self, platform):
        platform.job()
        rotate_hmac_key(platform.db, platform.keyring)
        platform.job()
        assert platform.sealer.run_once() == 7
        verdict = platform.verify()
        assert (verdict.exit_code, verdict.hmac_checked) == (0, True)
        assert len(platform.keyring.hmac_keys()) == 2

    def test_a_process_takes_the_new_hmac_key_by_itself(self, platform, monkeypatch):
        monkeypatch.setattr("cloche.audit.keys._LOOK_S", 1e6)
        other = KeyRing.load_or_create(platform.keys)
        rotate_hmac_key(platform.db, platform.keyring)
        assert other.current_hmac_key() != platform.keyring.current_hmac_key()  # it looked a moment ago
        monkeypatch.setattr("cloche.audit.keys._LOOK_S", -1.0)
        assert other.current_hmac_key() == platform.keyring.current_hmac_key()

    def test_what_an_old_hmac_key_covers_is_sealed_for_a_day(self, platform):
        platform.job()
        rotate_hmac_key(platform.db, platform.keyring)
        (old,) = platform.keys.glob("audit-hmac.*.key")
        at = int(old.name.split(".")[1])
        old.rename(platform.keys / f"audit-hmac.{at - 2 * DAY}.key")
        with pytest.raises(Exception, match="HMAC"):
            platform.sealer.run_once()
        (platform.keys / f"audit-hmac.{at - 2 * DAY}.key").rename(old)
        assert platform.sealer.run_once() == 4
        assert platform.verify().exit_code == 0

    def test_a_lost_hmac_key_of_before_is_missed(self, platform):
        rotate_hmac_key(platform.db, platform.keyring)
        (old,) = platform.keys.glob("audit-hmac.*.key")
        old.unlink()
        assert platform.verify().exit_code == 1
        (platform.keys / HMAC_FILE).unlink()
        assert _outsider(platform).exit_code == 0

    def test_the_keys_and_the_export_tell_the_chain(self, platform, tmp_path):
        service = AuditService(platform.db, platform.keyring)
        made = rotate_signing_key(platform.db, platform.keyring)
        platform.filled(1, JOBS)
        first, second = service.keys(ALICE)
        assert (first["public_key"], first["first_batch"], first["last_batch"]) == (platform.keyring.public_key, 0, 3)
        assert (second["public_key"], second["first_batch"], second["last_batch"]) == (made.text, 4, None)
        assert made.text in second["announcement"]
        for name, filters in (("whole", None), ("some", {"action": "job:submit"})):
            path = tmp_path / name
            path.write_text("".join(service.export(ALICE, filters)))
            assert verify_export(path, public_key=platform.keys / PUBLIC_FILE).exit_code == 0

    def test_a_checkpoint_of_a_later_key_shows_that_its_announcement_was_cut_off(self, platform):
        rotate_signing_key(platform.db, platform.keyring)
        platform.filled(1, JOBS)
        kept = _notes(platform)[-1]
        _cut(platform, 3)
        bad = _against(platform, kept).first_bad
        assert bad is not None and "cut off" in bad.why
        bad = _outsider(platform, checkpoint=kept).first_bad  # who does not know the later key is warned all the same
        assert bad is not None and "does not belong" in bad.why


def _resign(platform: Platform, note: str, sign) -> None:
    body = note.partition("\n\n")[0] + "\n"
    with attacker(platform) as connection:
        connection.execute("UPDATE audit_batch SET note = ? WHERE note = ?", (sign(body), note))


def _cut(platform: Platform, batches: int) -> None:
    """The database as it was when it had that many batches: a backup, restored."""
    size = _ends(platform)[batches - 1][0]
    with attacker(platform) as connection:
        connection.execute(
            "DELETE FROM audit_event WHERE id NOT IN (SELECT event_id FROM audit_leaf WHERE seq < ?)", (size,)
        )
        connection.execute("DELETE FROM audit_leaf WHERE seq >= ?", (size,))
        connection.execute("DELETE FROM audit_batch WHERE number >= ?", (batches,))
        connection.execute("DELETE FROM audit_node")
        connection.execute("DELETE FROM lease")


class TestRetention:
    def test_what_is_left_verifies_and_grows(self, platform):
        kept = _notes(platform)
        straddling = "job:01900000-0000-7000-8000-000000000001"
        platform.record(AuditEntry(ALICE, Action.JOB_SUBMIT, straddling, object_seq=1))
        platform.sealer.run_once()
        platform.record(AuditEntry(ALICE, Action.JOB_CANCEL, straddling, object_seq=2))
        platform.sealer.run_once()
        done = _pruned(platform, 4)
        assert (done.upto, done.events) == (3 * SIZE + 1, 3 * SIZE + 1)
        verdict = platform.verify()
        assert (verdict.exit_code, verdict.pruned, verdict.first_bad) == (0, 3 * SIZE + 1, None)
        platform.filled(2, JOBS)
        assert Sealer(platform.db, platform.keyring, platform.sealer._owner).run_once() == 0
        assert _pruned(platform, 2).upto > done.upto
        platform.job()
        fresh = Sealer(platform.db, platform.keyring, platform.sealer._owner)
        assert fresh.run_once() == 3
        verdict = _against(platform, kept[0])
        assert (verdict.exit_code, "older than what retention" in "".join(verdict.notes)) == (0, True)
        assert _outsider(platform).exit_code == 0

    def test_checkpoints_of_what_is_left_still_hold(self, platform):
        platform.filled(2, JOBS)
        notes = _notes(platform)
        _pruned(platform, 2)
        assert _against(platform, "".join(notes)).exit_code == 0
        forged = Checkpoint(platform.keyring.origin, 2 * SIZE, b"\1" * 32, 1, 1, "0" * 64)
        bad = _against(platform, platform.keyring.sign_note(forged.body())).first_bad
        assert bad is not None and "rewritten" in bad.why

    def test_the_act_is_recorded_and_people_whom_no_event_names_are_forgotten(self, platform):
        platform.record(AuditEntry(ALICE, Action.FILE_CREATE, "file:x"))
        platform.sealer.run_once()
        with attacker(platform) as connection:
            row = (commitment("00" * 16, "nobody"), "name", "nobody", "00" * 16)
            connection.execute("INSERT INTO audit_person VALUES (?, ?, ?, ?)", row)
        _pruned(platform, 2)
        items = platform.db.read(lambda c: c.scalars(select(tables.audit_event.c.action)).all())
        assert "audit:prune" in items
        people = platform.db.read(lambda c: set(c.scalars(select(tables.audit_person.c.value)).all()))
        assert people == {"alice", "203.0.113.9"}

    def test_what_was_cut_off_half_way_is_valid_and_finished_by_the_next_call(self, platform, monkeypatch):
        monkeypatch.setattr("cloche.services.audit_prune._CHUNK", 3)
        monkeypatch.setattr("cloche.services.audit_prune._tidy", lambda *_: None)
        _pruned(platform, 1)
        monkeypatch.setattr("cloche.services.audit_prune._delete", lambda *_: 0)
        _pruned(platform, 2)  # the mark alone
        assert platform.verify().exit_code == 0
        monkeypatch.undo()
        done = prune(platform.db, platform.keyring, 1, least_ms=0)
        assert (done.upto, done.events) == (2 * SIZE, SIZE)
        assert platform.verify().exit_code == 0

    def test_announcements_outlive_it(self, platform):
        rotate_signing_key(platform.db, platform.keyring)
        platform.filled(3, JOBS)
        _pruned(platform, 6)
        assert len(_notes(platform)) == 3  # the announcing one, the last of before, and that of the act itself
        assert _outsider(platform).exit_code == 0

    def test_too_far_is_refused(self, platform):
        now = platform.db.now_ms()
        with pytest.raises(EnvironmentProblem, match="too far"):
            prune(platform.db, platform.keyring, now - DAY + 60_000)
        assert prune(platform.db, platform.keyring, now - 2 * DAY) == Pruned(0, 0)
        assert _pruned(platform, 3).upto == 2 * SIZE  # the last batch stays

    def test_what_no_place_vouches_for_is_not_deleted(self, platform):
        row = {"name": "file", "place": "/x", "due_at": 0, "tries": 0, "number": 0}
        platform.db.write(lambda c: c.execute(tables.audit_sink.insert(), row))
        with pytest.raises(EnvironmentProblem, match="not vouched for"):
            _pruned(platform, 2)
        assert _pruned(platform, 1).upto == SIZE

    def test_a_trail_that_does_not_verify_is_not_pruned(self, platform):
        with attacker(platform) as connection:
            connection.execute(
                "UPDATE audit_event SET outcome = 'denied' WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = 1)"
            )
        with pytest.raises(EnvironmentProblem, match="does not verify"):
            _pruned(platform, 2)

    def test_the_triggers_let_go_of_nothing_behind_the_mark_and_of_no_mark(self, platform):
        _pruned(platform, 1)
        for statement in (
            f"DELETE FROM audit_leaf WHERE seq = {SIZE}",
            f"DELETE FROM audit_event WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = {SIZE})",
            "DELETE FROM audit_batch WHERE number = 1",
            "DELETE FROM audit_prune",
            "UPDATE audit_prune SET upto = 1",
            f"INSERT INTO audit_prune VALUES (1, {3 * SIZE + 1}, 1, 'x')",  # the last batch
            f"INSERT INTO audit_prune VALUES (1, {SIZE + 1}, 1, 'x')",  # in the middle of one
            f"INSERT INTO audit_prune VALUES (2, {2 * SIZE}, 1, 'x')",  # a gap
            f"INSERT INTO audit_prune VALUES (1, {SIZE}, 1, 'x')",  # no further
        ):
            with pytest.raises(Exception, match="append-only"):
                platform.db.write(lambda c, s=statement: c.exec_driver_sql(s))
        assert platform.verify().exit_code == 0

    @pytest.mark.parametrize(
        "what", ["too far", "no mark", "mark edited", "mark forged", "mark of the future", "old mark"]
    )
    def test_done_by_hand_it_is_found(self, platform, tmp_path, what):
        platform.filled(1, JOBS)
        _pruned(platform, 1)
        (note,) = platform.db.read(lambda c: c.scalars(select(tables.audit_prune.c.note)).all())
        mark = open_mark(note, platform.keyring.verifier)
        further = note.partition("\n\n")[0].replace(f"upto {SIZE}", f"upto {2 * SIZE}") + "\n"
        if what == "old mark":
            _pruned(platform, 1)
        with attacker(platform) as connection:
            if what in ("too far", "mark edited", "mark forged", "mark of the future", "old mark"):
                connection.execute(
                    "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_leaf WHERE seq < ?)", (2 * SIZE,)
                )
                connection.execute("DELETE FROM audit_leaf WHERE seq < ?", (2 * SIZE,))
                connection.execute("DELETE FROM audit_batch WHERE number < 2")
            if what == "no mark":
                connection.execute("DELETE FROM audit_prune")
            if what == "mark edited":
                connection.execute(
                    "UPDATE audit_prune SET upto = ?, note = ?", (2 * SIZE, further + note.partition("\n\n")[2])
                )
            if what in ("mark forged", "mark of the future"):
                signed = _forged(platform, tmp_path, further)
                number = 0 if what == "mark forged" else 1
                connection.execute("DELETE FROM audit_prune WHERE number = ?", (number,))
                connection.execute("INSERT INTO audit_prune VALUES (?, ?, ?, ?)", (number, 2 * SIZE, mark.at, signed))
            if what == "old mark":
                connection.execute("DELETE FROM audit_prune WHERE number = 1")
        bad = _outsider(platform).first_bad
        assert bad is not None
        assert "prune mark" in bad.why or "missing" in bad.why

    def test_an_export_and_a_proof_of_what_is_left_verify(self, platform, tmp_path):
        service = AuditService(platform.db, platform.keyring)
        platform.filled(1, JOBS)
        _pruned(platform, 2)
        for name, filters in (("whole", None), ("some", {"actor": "alice"})):
            path = tmp_path / name
            path.write_text("".join(service.export(ALICE, filters)))
            verdict = verify_export(path, public_key=platform.keys / PUBLIC_FILE)
            assert (verdict.exit_code, verdict.first_bad) == (0, None)
        with pytest.raises(NotFound):
            service.proof(ALICE, "3")
        assert service.proof(ALICE, str(2 * SIZE))["seq"] == 2 * SIZE


class TestRestore:
    def test_an_old_backup_is_found_until_the_restore_is_declared(self, platform):
        platform.filled(2, JOBS)
        notes = _notes(platform)
        _cut(platform, 2)
        assert platform.verify().exit_code == 0  # what docs/audit.md says cannot be seen
        bad = _against(platform, notes[4]).first_bad
        assert bad is not None and "cut off" in bad.why
        lost = declare_restore(platform.db, platform.keyring, "".join(notes))
        assert (lost.first, lost.last) == (2 * SIZE, 5 * SIZE - 1)
        assert platform.verify().exit_code == 0
        for kept in (notes[2], notes[3], notes[4]):
            verdict = _against(platform, kept)
            assert (verdict.status.value, verdict.exit_code, verdict.first_bad) == ("gap", 3, None)
            assert verdict.gaps[0]["from"] == 2 * SIZE
        assert _against(platform, notes[1]).exit_code == 0
        assert _against(platform, "".join(notes)).exit_code == 3
        platform.filled(4, JOBS)  # larger than the lost trail was
        assert _against(platform, notes[4]).exit_code == _against(platform, notes[3]).exit_code == 3
        assert _against(platform, _notes(platform)[-1]).exit_code == 0

    def test_what_was_sealed_between_the_restore_and_its_declaration_is_no_part_of_the_gap(self, platform):
        platform.filled(1, JOBS)
        notes = _notes(platform)
        _cut(platform, 2)
        Sealer(platform.db, platform.keyring, platform.sealer._owner)
        platform.sealer = Sealer(platform.db, platform.keyring, "sealer-3")
        platform.filled(1, 1)
        lost = declare_restore(platform.db, platform.keyring, notes[3])
        assert lost.first == 2 * SIZE
        assert _against(platform, notes[3]).exit_code == 3

    def test_a_checkpoint_that_the_declaration_does_not_cover_is_still_an_accusation(self, platform):
        platform.filled(2, JOBS)
        notes = _notes(platform)
        _cut(platform, 2)
        declare_restore(platform.db, platform.keyring, notes[3])
        bad = _against(platform, notes[4]).first_bad  # newer than the one that was declared
        assert bad is not None
        other = Checkpoint(platform.keyring.origin, 4 * SIZE, b"\2" * 32, 3, 1, "0" * 64)
        bad = _against(platform, platform.keyring.sign_note(other.body())).first_bad
        assert bad is not None

    def test_a_declaration_by_somebody_else_is_found(self, platform, tmp_path):
        platform.filled(1, JOBS)
        notes = _notes(platform)
        _cut(platform, 2)
        declare_restore(platform.db, platform.keyring, notes[3])
        _resign(platform, _notes(platform)[-1], lambda body: _forged(platform, tmp_path, body))
        assert _against(platform, notes[3]).exit_code == 1

    def test_nothing_is_declared_that_was_not_lost(self, platform):
        notes = _notes(platform)
        with pytest.raises(EnvironmentProblem, match="holds this checkpoint"):
            declare_restore(platform.db, platform.keyring, notes[2])
        old = Checkpoint(platform.keyring.origin, SIZE, b"\1" * 32, 0, platform.db.now_ms(), "0" * 64)
        with pytest.raises(EnvironmentProblem, match="no restored backup"):
            declare_restore(platform.db, platform.keyring, platform.keyring.sign_note(old.body()))
        with pytest.raises(Exception, match="does not belong"):
            declare_restore(platform.db, platform.keyring, "x")

    def test_it_is_recorded(self, platform):
        platform.filled(1, JOBS)
        notes = _notes(platform)
        _cut(platform, 3)
        declare_restore(platform.db, platform.keyring, notes[3])
        query = select(tables.audit_event.c.details).where(tables.audit_event.c.action == "audit:restore")
        (details,) = platform.db.read(lambda c: c.scalars(query).all())
        assert note_hash(notes[3]) in details


class TestForgetting:
    def test_a_person_is_forgotten_and_the_chain_stays_whole(self, platform):
        service = AuditService(platform.db, platform.keyring)
        done = service.forget(ALICE, "name", "alice")
        service.forget(ALICE, "ip", "203.0.113.9")
        platform.sealer.run_once()
        assert platform.verify().exit_code == 0
        items = service.list(ALICE, {"action": "file:create"})["items"]
        assert {item["actor"][:10] for item in items} == {"forgotten:"}
        known = platform.db.read(lambda c: set(c.scalars(select(tables.audit_person.c.value)).all()))
        assert known <= {"alice", "203.0.113.9"}  # whoever acts is known: here the one who forgot himself
        query = select(tables.audit_event.c.object).where(tables.audit_event.c.action == "audit:forget")
        assert f"person:{done['commitment']}" in platform.db.read(lambda c: c.scalars(query).all())

    def test_whoever_can_still_sign_in_is_not(self, platform):
        service = AuditService(platform.db, platform.keyring)
        tenant = platform.db.read(lambda c: c.scalar(select(tables.tenant.c.id)))
        actor = stores.add_actor(platform.db, tenant, "alice")
        with pytest.raises(Conflict, match="disable"):
            service.forget(ALICE, "name", "alice")
        platform.db.write(
            lambda c: c.execute(tables.user.update().where(tables.user.c.id == actor.user_id).values(disabled=True))
        )
        service.forget(ALICE, "name", "alice")

    def test_whoever_was_never_there_is_not_found(self, platform):
        service = AuditService(platform.db, platform.keyring)
        with pytest.raises(NotFound):
            service.forget(ALICE, "name", "mallory")

    def test_they_get_another_commitment_when_they_come_again(self, platform, monkeypatch):
        service = AuditService(platform.db, platform.keyring)
        before = service.forget(ALICE, "name", "alice")["commitment"]
        monkeypatch.setattr(platform.log, "_lapse", 0.0)
        platform.record(AuditEntry(ALICE, Action.FILE_CREATE, "file:again"))
        query = select(tables.audit_person.c.commitment).where(tables.audit_person.c.value == "alice")
        assert platform.db.read(lambda c: c.scalar(query)) not in (None, before)
