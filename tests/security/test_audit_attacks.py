"""Further attacks on the trail by somebody who may write to the database, or who stole a key that was replaced: each found and named."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from cloche.audit import export
from cloche.audit.event import Event, canonical_bytes, leaf_bytes
from cloche.audit.keys import PUBLIC_FILE, KeyRing, read_public_key
from cloche.audit.merkle import Frontier, leaf_hash
from cloche.audit.note import BadNote, note_hash, open_note
from cloche.audit.offline import Trust, verify_export, verify_store
from cloche.audit.proof import verify_proof
from cloche.audit.prune import Mark
from cloche.audit.verify import Verdict
from cloche.clock import uuid7
from cloche.db import tables
from cloche.errors import EnvironmentProblem, Unavailable
from cloche.services.audit_keeping import rotate_signing_key
from cloche.services.audit_prune import prune
from cloche.services.auditing import AuditService
from cloche.services.checkpoint_sinks import Sealed, file_sink
from cloche.services.sealer import Sealer
from tests.support import stores
from tests.support.audit import ALICE, TENANT, Platform, attacker

JOBS = 2
SIZE = 3 * JOBS + 1  # leaves in a batch
DAY = 86_400_000


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    stores.add_tenant(platform.db)
    yield platform.filled(4, JOBS)
    platform.db.close()


def _outsider(platform: Platform, **given) -> Verdict:
    """With the first public key and nothing else."""
    return verify_store(platform.url, Trust(read_public_key(platform.keys / PUBLIC_FILE)), **given)


def _batches(platform: Platform):
    batch = tables.audit_batch
    return platform.db.read(lambda c: c.execute(select(batch).order_by(batch.c.number)).all())


def _prune(platform: Platform, batches: int) -> None:
    prune(platform.db, platform.keyring, _batches(platform)[batches - 1].at + 1, least_ms=-DAY)
    platform.sealer.run_once()


def _forge(connection, seq: int) -> str:
    """An event nobody did, shown as sealed under a number that the check of the tree does not come to."""
    event_id = uuid7()
    connection.execute(
        "INSERT INTO audit_event (id, at, tenant_id, actor, action, object, outcome, details, mac)"
        " VALUES (?, ?, ?, 'system', 'role:create', 'role:x', 'allowed', '{}', ?)",
        (event_id, int(event_id[:8] + event_id[9:13], 16), TENANT, "0" * 64),
    )
    connection.execute("INSERT INTO audit_leaf (seq, event_id, hash) VALUES (?, ?, ?)", (seq, event_id, "0" * 64))
    return event_id


class TestLeavesThatNoTreeHas:
    def test_a_forged_event_below_the_first_number_is_found(self, platform):
        with attacker(platform) as connection:
            event_id = _forge(connection, -1)
        bad = platform.verify().first_bad
        assert bad is not None and (bad.event_id, "HMAC" in bad.why) == (event_id, True)

    def test_without_the_hmac_key_the_trail_is_not_valid_either(self, platform, monkeypatch):
        with attacker(platform) as connection:
            _forge(connection, -1)
        monkeypatch.setattr("cloche.audit.verify.GRACE_MS", -DAY)
        assert _outsider(platform).exit_code == 2

    def test_a_forged_event_before_the_prune_mark_is_found(self, platform):
        _prune(platform, 2)
        assert (platform.verify().exit_code, _outsider(platform).exit_code) == (0, 0)
        with attacker(platform) as connection:
            event_id = _forge(connection, 5)
        bad = platform.verify().first_bad
        assert bad is not None and (bad.seq, bad.event_id, "HMAC" in bad.why) == (5, event_id, True)
        outsider = _outsider(platform)
        assert (outsider.exit_code, "prune again" in outsider.notes[-1]) == (2, True)

    def test_a_batch_of_a_number_below_the_first_one_is_found(self, platform):
        _prune(platform, 2)
        with attacker(platform) as connection:
            connection.execute(
                "INSERT INTO audit_batch SELECT -5, size, root, previous, at, note FROM audit_batch WHERE number = 3"
            )
        bad = platform.verify().first_bad
        assert bad is not None and "signed note says" in bad.why


class TestAMarkByAKeyThatWasReplaced:
    def test_it_prunes_nothing_that_a_later_key_signed(self, platform):
        stolen = KeyRing.load_or_create(platform.keys)
        rotate_signing_key(platform.db, platform.keyring)  # batch 4
        platform.filled(2, JOBS)
        found = _batches(platform)[5]
        leaf = tables.audit_leaf
        hashes = platform.db.read(
            lambda c: c.scalars(select(leaf.c.hash).where(leaf.c.seq < found.size).order_by(leaf.c.seq)).all()
        )
        frontier = Frontier()
        for digest in hashes:
            frontier.append(bytes.fromhex(digest))
        mark = Mark(stolen.origin, 0, found.size, 6, note_hash(found.note), found.at, 1, tuple(frontier.nodes))
        with attacker(platform) as connection:
            connection.execute(
                "INSERT INTO audit_prune VALUES (?, ?, ?, ?)", (0, mark.upto, mark.at, stolen.sign_note(mark.body()))
            )
            connection.execute(
                "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_leaf WHERE seq < ?)", (mark.upto,)
            )
            connection.execute("DELETE FROM audit_leaf WHERE seq < ?", (mark.upto,))
            connection.execute("DELETE FROM audit_batch WHERE number < 6 AND number <> 4")
        bad = _outsider(platform).first_bad
        assert bad is not None and "not in force any more" in bad.why

    def test_one_that_was_made_in_its_time_holds_after_the_rotation(self, platform):
        _prune(platform, 2)
        rotate_signing_key(platform.db, platform.keyring)
        platform.filled(1, JOBS)
        assert _outsider(platform).exit_code == 0
        _prune(platform, 2)
        assert _outsider(platform).exit_code == 0


class TestAKeyThatWasReplacedBeginsAnotherHistory:
    """Stolen before it was replaced, with the HMAC key; the thief may write to the database."""

    @pytest.fixture
    def rewritten(self, platform, tmp_path):
        shutil.copytree(platform.keys, tmp_path / "stolen")
        stolen = KeyRing.load_or_create(tmp_path / "stolen")
        rotate_signing_key(platform.db, platform.keyring)  # batch 4
        platform.filled(2, JOBS)
        assert platform.verify().exit_code == 0
        kept = _batches(platform)[-1].note
        first = _batches(platform)[3].size
        with attacker(platform) as connection:
            gone = "SELECT event_id FROM audit_leaf WHERE seq >= ?"
            connection.execute(f"DELETE FROM audit_event WHERE id IN ({gone})", (first,))
            connection.execute("DELETE FROM audit_leaf WHERE seq >= ?", (first,))
            connection.execute("DELETE FROM audit_batch WHERE number > 3")
        rotate_signing_key(platform.db, stolen)
        return platform, kept

    def test_the_platforms_own_keys_say_so(self, rewritten):
        platform, _ = rewritten
        keys = platform.keyring
        verdict = verify_store(platform.url, Trust(keys.verifier, keys.hmac_keys(), keys.held()))
        assert (verdict.exit_code, verdict.first_bad.why[:27]) == (1, "batch 4 announces the key c")
        assert "which the platform does not have" in verdict.first_bad.why
        told = AuditService(platform.db, keys).verify(ALICE)
        assert told["first_bad"]["why"] == verdict.first_bad.why
        with pytest.raises(EnvironmentProblem, match="the platform does not have"):
            prune(platform.db, keys, _batches(platform)[1].at + 1, least_ms=-DAY)

    def test_so_they_do_where_the_thief_announces_nothing_and_signs_on_with_the_first_key(self, platform, tmp_path):
        shutil.copytree(platform.keys, tmp_path / "stolen")
        stolen = KeyRing.load_or_create(tmp_path / "stolen")
        rotate_signing_key(platform.db, platform.keyring)  # batch 4
        platform.filled(1, JOBS)
        with attacker(platform) as connection:
            first = _batches(platform)[3].size
            gone = "SELECT event_id FROM audit_leaf WHERE seq >= ?"
            connection.execute(f"DELETE FROM audit_event WHERE id IN ({gone})", (first,))
            connection.execute("DELETE FROM audit_leaf WHERE seq >= ?", (first,))
            connection.execute("DELETE FROM audit_batch WHERE number > 3")
        platform.job()
        Sealer(platform.db, stolen, "sealer-1").run_once()
        verdict = platform.verify()
        assert (verdict.exit_code, verdict.first_bad.why[:38]) == (1, "the trail ends under the first key, cl")
        assert "-1" not in verdict.first_bad.why

    def test_far_away_a_checkpoint_does(self, rewritten):
        platform, kept = rewritten
        assert _outsider(platform).exit_code == 0, "that is what docs/audit.md says of it"
        assert _outsider(platform, checkpoint=kept).exit_code == 1


class TestExports:
    """The platform signs them without verifying everything first: what the database no longer holds has to show in them."""

    @pytest.fixture
    def exported(self, platform, tmp_path):
        def make(filters=None) -> Verdict:
            path = tmp_path / "export"
            path.write_text("".join(AuditService(platform.db, platform.keyring).export(ALICE, filters)))
            return verify_export(path, public_key=platform.keys / PUBLIC_FILE)

        return make

    @pytest.mark.parametrize(
        "done",
        [
            "DELETE FROM audit_event WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = 7)",
            "UPDATE audit_event SET tenant_id = 'another' WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = 7)",
        ],
    )
    def test_an_event_taken_away_or_given_to_another_tenant(self, platform, exported, done):
        assert exported().exit_code == 0
        with attacker(platform) as connection:
            connection.execute(done)
        bad = exported().first_bad
        assert bad is not None and (bad.seq, bad.why) == (7, "the event is missing")

    def test_one_given_to_another_tenant_with_its_leaf(self, platform, exported):
        with attacker(platform) as connection:
            here = "WHERE id = (SELECT event_id FROM audit_leaf WHERE seq = 7)"
            connection.execute(f"UPDATE audit_event SET tenant_id = 'another' {here}")
            row = connection.execute(f"SELECT {', '.join(Event._fields)} FROM audit_event {here}").fetchone()
            event = Event._make(row)
            leaf = leaf_hash(leaf_bytes(canonical_bytes(event), event.mac)).hex()
            connection.execute("UPDATE audit_leaf SET hash = ? WHERE seq = 7", (leaf,))
        bad = exported().first_bad
        assert bad is not None and bad.why == f"leaves {SIZE} to {2 * SIZE - 1} are not all those batch 1 signed"

    def test_other_tenants_stay_hidden_and_valid(self, platform, exported, tmp_path):
        platform.job(ALICE.__class__("user-bob", "bob", "tenant-2", frozenset()))
        platform.sealer.run_once()
        assert exported().exit_code == 0
        assert "tenant-2" not in (tmp_path / "export").read_text()

    def test_a_filtered_one_is_not_silently_taken_for_compared(self, platform, exported, tmp_path):
        exported({"action": "job:submit"})
        kept = tmp_path / "kept"
        kept.write_text(_batches(platform)[-1].note)
        with pytest.raises(EnvironmentProblem, match="whole export"):
            verify_export(tmp_path / "export", public_key=platform.keys / PUBLIC_FILE, checkpoint=kept)


def test_whoever_verifies_again_and_again_takes_one_processor(platform, monkeypatch):
    service = AuditService(platform.db, platform.keyring)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_, **__):
        begun.set()
        assert go_on.wait(30)
        return Verdict()

    monkeypatch.setattr("cloche.services.auditing.verify_store", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.verify, ALICE)
        assert begun.wait(30)
        with pytest.raises(Unavailable, match="already"):
            service.verify(ALICE)
        go_on.set()
        assert first.result()["exit_code"] == service.verify(ALICE)["exit_code"] == 0


class TestHostileFiles:
    def test_text_that_is_no_unicode_is_a_bad_note(self, platform):
        key = platform.keyring.verifier
        signature = platform.keyring.sign_note("x\n").partition("\n\n")[2]
        with pytest.raises(BadNote, match="Unicode"):
            open_note("\ud800\n\n" + signature, key)
        proof = AuditService(platform.db, platform.keyring).proof(ALICE, "3")
        for name in ("note", "announcements"):
            torn = json.loads(json.dumps(proof))
            torn[name] = "\ud800\n\n" + signature if name == "note" else ["\ud800\n\n" + signature]
            assert verify_proof(torn, key).exit_code == 1

    def test_an_export_with_such_an_end_line(self, platform, tmp_path):
        path = tmp_path / "export"
        lines = list(AuditService(platform.db, platform.keyring).export(ALICE))
        signature = platform.keyring.sign_note("x\n").partition("\n\n")[2]
        path.write_text("".join(lines[:-1]) + json.dumps({"end": "\ud800\n\n" + signature}) + "\n")
        assert export.ExportTrail(path).truncated is False
        assert verify_export(path, public_key=platform.keys / PUBLIC_FILE).exit_code == 1

    def test_a_proof_of_another_tree_or_another_place(self, platform, tmp_path):
        service, key = AuditService(platform.db, platform.keyring), platform.keyring.verifier
        proof = service.proof(ALICE, "3")
        assert verify_proof(proof, key).exit_code == 0
        other = Platform(tmp_path / "other").filled(4, JOBS)
        stranger = AuditService(other.db, other.keyring).proof(ALICE, "3")
        other.db.close()
        older = _batches(platform)[1].note
        for change in (
            {"note": stranger["note"]},
            {"event": stranger["event"], "leaf": stranger["leaf"], "path": stranger["path"]},
            {"seq": 4},
            {"seq": -1},
            {"seq": 1 << 70},
            {"seq": True},
            {"note": older},
            {"path": proof["path"][:-1]},
            {"path": [*proof["path"], "00" * 32]},
            {"path": ["zz"]},
            {"path": [[]]},
        ):
            assert verify_proof(proof | change, key).exit_code == 1, change
        assert verify_proof(stranger, key).exit_code == 1


def test_a_checkpoint_torn_within_a_character_leaves_the_one_before_it_whole(platform, tmp_path):
    path = tmp_path / "checkpoints"
    notes = [row.note for row in _batches(platform)]
    sink = file_sink(path)
    sink.send([Sealed(0, notes[0])])
    torn = notes[1].encode()
    for end in range(torn.index("—".encode()), torn.index("—".encode()) + 4):
        path.write_bytes(notes[0].encode() + torn[:end])
        sink.send([Sealed(1, notes[1])])
        assert path.read_text() == notes[0] + notes[1]
