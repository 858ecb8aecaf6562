"""The audit trail: verified as it is, then in a copy in which one event was changed."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from screen import DemoFailed, Screen
from stack import Cloche

_SEALED_S = 15.0


def verify(screen: Screen, cloche: Cloche) -> None:
    """``cloche audit verify`` finds nothing wrong."""
    done = cloche.cli("audit", "verify")
    screen.value("$ cloche audit verify", done.stdout or done.stderr)
    screen.check(done.returncode == 0, "valid: every event, hash and signature holds (exit 0)")


def tamper(screen: Screen, cloche: Cloche, copy: Path) -> None:
    """Turn one refusal into a permission, in a copy; verify has to name that very event."""
    seq = _edited_copy(cloche.home / "cloche.db", copy)
    screen.say(
        f"In a copy of the database, event {seq} (the viewer's refused submission) is changed from 'denied' to 'allowed',"
    )
    screen.say("by somebody who may do anything to the file: the trigger that forbids it is dropped first.")
    done = cloche.cli("audit", "verify", "--database", str(copy), "-o", "json")
    verdict = json.loads(done.stdout) if done.returncode in (0, 1, 2) and done.stdout else {}
    screen.value(
        "$ cloche audit verify --database copy.db -o json",
        {"status": verdict.get("status"), "first_bad": verdict.get("first_bad")},
    )
    screen.check(done.returncode == 1, "tampered (exit 1)")
    screen.check((verdict.get("first_bad") or {}).get("seq") == seq, f"and verify names sequence {seq}")


def _edited_copy(original: Path, copy: Path) -> int:
    """Copy the database, edit one sealed event there, and return its sequence number."""
    query = "SELECT l.seq, e.id FROM audit_event e JOIN audit_leaf l ON l.event_id = e.id WHERE e.outcome = 'denied' ORDER BY l.seq LIMIT 1"
    deadline = time.monotonic() + _SEALED_S
    with closing(sqlite3.connect(f"file:{original}?mode=ro", uri=True)) as source:
        while (found := source.execute(query).fetchone()) is None:
            if time.monotonic() > deadline:
                raise DemoFailed("the refusal is not in the sealed trail")
            time.sleep(0.1)
        with closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            triggers = target.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_event'"
            ).fetchall()
            for (name,) in triggers:
                target.execute(f'DROP TRIGGER "{name}"')
            target.execute("UPDATE audit_event SET outcome = 'allowed' WHERE id = ?", (found[1],))
            target.commit()
    return int(found[0])
