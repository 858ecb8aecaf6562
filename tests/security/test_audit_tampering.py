"""What docs/audit.md says can be seen is seen on both databases, and what it says cannot is not: the list and no more."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3

import pytest
from sqlalchemy import select

from cloche.audit.keys import PUBLIC_FILE, KeyRing, read_public_key
from cloche.audit.offline import Trust, verify_export, verify_store
from cloche.audit.verify import Verdict
from cloche.clock import uuid7
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.domain.events import Action
from cloche.domain.retries import PlatformBudget
from cloche.services.audit_prune import prune
from cloche.services.auditing import AuditService
from cloche.services.transitions import Transitions
from tests.support import jobs, stores
from tests.support.audit import ALICE, Platform, attacker

JOBS = 2
SIZE = 3 * JOBS + 1
DAY = 86_400_000


@pytest.fixture
def platform(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url).filled(3, JOBS)
    stores.add_tenant(platform.db)
    yield platform
    platform.db.close()


def _bad(platform: Platform, **given) -> str:
    """Why the trail is bad; empty where it is valid."""
    verdict = platform.verify() if not given else _against(platform, **given)
    return "" if verdict.first_bad is None else verdict.first_bad.why


def _against(platform: Platform, checkpoint: str) -> Verdict:
    keys = platform.keyring
    return verify_store(platform.url, Trust(keys.verifier, keys.hmac_keys()), checkpoint=checkpoint)


def _notes(platform: Platform) -> list[str]:
    query = select(tables.audit_batch.c.note).order_by(tables.audit_batch.c.number)
    return list(platform.db.read(lambda connection: connection.scalars(query).all()))


class TestSeen:
    def test_an_edit_before_sealing_by_the_hmac_and_the_sealer_stops_there(self, platform):
        platform.record(AuditEntry(ALICE, Action.FILE_DELETE, "file:x"))
        with attacker(platform) as connection:
            connection.execute("UPDATE audit_event SET object = 'file:y' WHERE object = 'file:x'")
        assert "HMAC" in _bad(platform)
        with pytest.raises(Exception, match="HMAC"):
            platform.sealer.run_once()
        assert len(_notes(platform)) == 3

    def test_an_event_of_somebody_without_the_key(self, platform):
        with attacker(platform) as connection:
            connection.execute(
                "INSERT INTO audit_event (id, at, tenant_id, actor, action, object, outcome, details, mac)"
                " VALUES ('forged', 1, 't', 'system', 'file:create', 'file:z', 'allowed', '{}', ?)",
                ("0" * 64,),
            )
        assert "HMAC" in _bad(platform)

    def test_an_event_put_back_with_an_older_mac(self, platform):
        """Replayed: every column is the platform's own, only the id is new."""
        with attacker(platform) as connection:
            connection.execute(
                "INSERT INTO audit_event (id, at, tenant_id, actor, action, object, outcome, details, mac)"
                " SELECT 'again', at, tenant_id, actor, action, object, outcome, details, mac FROM audit_event WHERE object = 'file:0'"
            )
        assert "HMAC" in _bad(platform)

    def test_a_job_s_event_deleted_before_sealing_by_the_gap_in_its_numbers(self, platform):
        name = platform.job()
        with attacker(platform) as connection:
            connection.execute("DELETE FROM audit_event WHERE object = ? AND object_seq = 2", (name,))
        assert "event 2 of" in _bad(platform)
        platform.sealer.run_once()
        assert "event 2 of" in _bad(platform)

    def test_everything_swapped_between_two_batches_by_the_roots(self, platform):
        """Leaves, hashes and events of two batches exchanged as wholes."""
        with attacker(platform) as connection:
            for seq in range(SIZE, 2 * SIZE):
                rows = {
                    place: connection.execute(
                        "SELECT event_id, hash FROM audit_leaf WHERE seq = ?", (place,)
                    ).fetchone()
                    for place in (seq, seq + SIZE)
                }
                connection.execute("UPDATE audit_leaf SET event_id = ? WHERE seq = ?", (f"x{seq}", seq))
                for place, other in ((seq + SIZE, seq), (seq, seq + SIZE)):
                    event_id, digest = rows[other]
                    connection.execute(
                        "UPDATE audit_leaf SET event_id = ?, hash = ? WHERE seq = ?", (event_id, digest, place)
                    )
        assert "leaves 7 to 13" in _bad(platform)

    def test_a_rewrite_with_another_key_by_the_pinned_one_even_when_it_announces_it(self, platform, tmp_path):
        """The forger signs everything anew, and begins with a note that 'announces' his key in the name of the first."""
        forger = KeyRing.load_or_create(tmp_path / "forger")
        own = type(forger.verifier)(platform.keyring.origin, forger.verifier.raw)
        with attacker(platform) as connection:
            for number, note in enumerate(_notes(platform)):
                body = note.partition("\n\n")[0] + "\n" + (f"key {own.text}\n" if number == 0 else "")
                connection.execute(
                    "UPDATE audit_batch SET note = ? WHERE number = ?", (forger.sign_note(body, own), number)
                )
        pinned = read_public_key(platform.keys / PUBLIC_FILE)
        bad = verify_store(platform.url, Trust(pinned)).first_bad
        assert bad is not None and bad.why.startswith("batch 0: not signed by the key")

    def test_a_changed_tree_node_gives_no_false_proof(self, platform):
        """Nobody believes the stored nodes: a proof that does not hold is not given away."""
        platform.record(*(AuditEntry(ALICE, Action.FILE_CREATE, f"file:many-{n}") for n in range(600)))
        platform.sealer.run_once()
        service = AuditService(platform.db, platform.keyring)
        assert service.proof(ALICE, "500")["seq"] == 500
        platform.db.write(lambda c: c.execute(tables.audit_node.update().values(hash="0" * 64)))
        with pytest.raises(Exception, match="does not lead to the signed root"):
            service.proof(ALICE, "500")
        platform.db.write(lambda c: c.execute(tables.audit_node.delete()))
        assert service.proof(ALICE, "500")["seq"] == 500  # without them it is made of the leaves
        assert _bad(platform) == ""


class TestNotSeen:
    """Each a line of "Not seen" in docs/audit.md. What begins to be seen here has to be taken out of that list.

    A checkpoint older than the newest mark is in test_audit_keeping.py. A changed program cannot be tried.
    """

    def test_an_event_that_is_no_job_s_deleted_before_sealing(self, platform):
        platform.record(AuditEntry(ALICE, Action.FILE_DELETE, "file:x"))
        with attacker(platform) as connection:
            connection.execute("DELETE FROM audit_event WHERE object = 'file:x'")
        assert _bad(platform) == ""

    def test_a_clean_cut_of_the_newest_batches_without_a_checkpoint_elsewhere(self, platform):
        newest = _notes(platform)[-1]
        with attacker(platform) as connection:
            connection.execute(
                "DELETE FROM audit_event WHERE id IN (SELECT event_id FROM audit_leaf WHERE seq >= ?)", (2 * SIZE,)
            )
            connection.execute("DELETE FROM audit_leaf WHERE seq >= ?", (2 * SIZE,))
            connection.execute("DELETE FROM audit_batch WHERE number = 2")
        assert _bad(platform) == ""
        assert "cut off" in _bad(platform, checkpoint=newest)

    def test_a_rewrite_with_the_platform_s_own_keys_without_a_checkpoint_elsewhere(self, platform, tmp_path):
        newest = _notes(platform)[-1]
        shutil.copytree(platform.keys, tmp_path / "thief" / "keys")
        forger = Platform(tmp_path / "thief").filled(3, JOBS)
        assert _bad(forger) == ""
        assert "rewritten" in _bad(forger, checkpoint=newest)
        forger.db.close()

    def test_a_deleted_row_of_the_people(self, platform):
        with attacker(platform) as connection:
            connection.execute("DELETE FROM audit_person WHERE value = 'alice'")
        assert _bad(platform) == ""

    def test_a_job_s_last_event_deleted_before_sealing_with_its_row_changed(self, platform):
        home = {"id": ALICE.tenant_id, "name": "home", "created_at": 1}
        platform.db.write(lambda c: c.execute(tables.tenant.insert(), home))
        row, transitions = jobs.row(ALICE), Transitions(platform.log, PlatformBudget(failures=5, worker_deaths=3))
        platform.db.write(lambda c: transitions.submit(c, ALICE, row, platform.db.now_ms()))
        name = f"job:{row['id']}"
        platform.record(AuditEntry(ALICE, Action.JOB_CANCEL, name, object_seq=2))
        counted = tables.job.update().where(tables.job.c.id == row["id"]).values(audit_seq=2)
        platform.db.write(lambda c: c.execute(counted).rowcount)
        assert _bad(platform) == ""
        with attacker(platform) as connection:
            connection.execute("DELETE FROM audit_event WHERE object = ? AND object_seq = 2", (name,))
        assert "event 2 of" in _bad(platform)
        with attacker(platform) as connection:
            connection.execute("UPDATE job SET audit_seq = 1 WHERE id = ?", (row["id"],))
        assert _bad(platform) == ""
        platform.sealer.run_once()
        assert _bad(platform) == ""

    @pytest.mark.parametrize("pruned", [False, True])
    def test_the_first_event_after_the_mark_of_a_job_that_was_there_before_it(self, platform, pruned):
        """Without a mark between them, the gap in the job's numbers shows."""
        name = f"job:{uuid7()}"

        def step(number: int, action: Action) -> None:
            platform.record(AuditEntry(ALICE, action, name, object_seq=number))

        step(1, Action.JOB_SUBMIT)
        platform.sealer.run_once()
        platform.filled(1, JOBS)  # the last batch stays whatever is pruned
        if pruned:
            prune(platform.db, platform.keyring, platform.db.now_ms() + 1, least_ms=-DAY)
            platform.sealer.run_once()
        step(2, Action.JOB_START)
        step(3, Action.JOB_COMPLETE)
        assert _bad(platform) == ""
        with attacker(platform) as connection:
            connection.execute("DELETE FROM audit_event WHERE object = ? AND object_seq = 2", (name,))
        assert ("event 2 of" in _bad(platform), _bad(platform) == "") == (not pruned, pruned)

    def test_an_event_made_up_with_the_hmac_key(self, platform, tmp_path):
        shutil.copytree(platform.keys, tmp_path / "stolen")
        thief = AuditLog(KeyRing.load_or_create(tmp_path / "stolen").hmac_key)
        invented = AuditEntry(ALICE, Action.ROLE_CREATE, "role:nobody-did-this")
        platform.db.write(lambda connection: thief.record(connection, invented))
        assert _bad(platform) == ""
        assert platform.sealer.run_once() == 1
        assert _bad(platform) == ""

    @pytest.mark.parametrize(
        "done",
        [
            "DELETE FROM audit_event WHERE object = 'file:1'",
            "UPDATE audit_event SET action = 'file:delete' WHERE object = 'file:1'",
        ],
    )
    def test_rows_that_a_filtered_export_should_have_found(self, platform, tmp_path, done):
        """The whole export shows it, and so does the database itself."""
        service, key = AuditService(platform.db, platform.keyring), platform.keys / PUBLIC_FILE

        def exported(filters=None) -> Verdict:
            path = tmp_path / "export"
            path.write_text("".join(service.export(ALICE, filters)))
            return verify_export(path, public_key=key)

        assert exported({"action": Action.FILE_CREATE.value}).events == 3
        with attacker(platform) as connection:
            connection.execute(done)
        found = exported({"action": Action.FILE_CREATE.value})
        assert (found.exit_code, found.events) == (0, 2)
        assert (exported().exit_code, _bad(platform) != "") == (1, True)

    def test_rows_that_whoever_holds_the_signing_key_leaves_out_of_a_filtered_export(self, platform, tmp_path):
        service, path = AuditService(platform.db, platform.keyring), tmp_path / "export"
        lines = list(service.export(ALICE, {"action": Action.FILE_CREATE.value}))
        left = [line for line in lines[:-1] if '"object":"file:1"' not in line]
        assert len(left) == len(lines) - 2
        hashed = hashlib.sha256("".join(left).encode()).hexdigest()
        end = json.loads(lines[-1])["end"].partition("\n\n")[0] + "\n"
        was = hashlib.sha256("".join(lines[:-1]).encode()).hexdigest()
        assert end.count(was) == 1
        for ending in (lines[-1], json.dumps({"end": platform.keyring.sign_note(end.replace(was, hashed))}) + "\n"):
            path.write_text("".join(left) + ending)
            verdict = verify_export(path, public_key=platform.keys / PUBLIC_FILE)
            assert verdict.exit_code == (1 if ending == lines[-1] else 0)

    def test_which_leaf_of_a_batch_was_exchanged_without_the_hmac_key(self, platform):
        """The batch's range is named; with the HMAC key the event itself."""
        with attacker(platform) as connection:
            (event_id,) = connection.execute("SELECT event_id FROM audit_leaf WHERE seq = 9").fetchone()
            connection.execute("UPDATE audit_event SET outcome = 'denied' WHERE id = ?", (event_id,))
            connection.execute("UPDATE audit_leaf SET hash = ? WHERE seq = 9", (_leaf_of(connection, event_id),))
        blind = verify_store(platform.url, Trust(platform.keyring.verifier)).first_bad
        assert blind is not None and (blind.seq, "leaves 7 to 13" in blind.why) == (7, True)
        seen = platform.verify().first_bad
        assert seen is not None and seen.seq == 9


def _leaf_of(connection: sqlite3.Connection, event_id: str) -> str:
    """The hash that a thief of nothing but the format computes."""
    from cloche.audit.event import Event, canonical_bytes, leaf_bytes
    from cloche.audit.merkle import leaf_hash

    columns = ", ".join(Event._fields)
    row = connection.execute(f"SELECT {columns} FROM audit_event WHERE id = ?", (event_id,)).fetchone()
    event = Event._make(row)
    return leaf_hash(leaf_bytes(canonical_bytes(event), event.mac)).hex()
