"""How fast the audit trail is: recording, sealing, verifying, exporting; with the memory that a verification takes.

python bench/audit.py [EVENTS]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from cloche.audit.keys import KeyRing
from cloche.clock import uuid7
from cloche.db import migrate
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, system_actor
from cloche.services.auditing import AuditService, verify_database, verify_export
from cloche.services.sealer import Sealer

_ALICE = Actor("user-1", "alice", "tenant-1", frozenset(), ip="203.0.113.9", request_id="request-1")
_WORKER = system_actor("tenant-1", "worker:1")
_JOBS_PER_COMMIT = 50


def _timed(what: str, events: int, act: Callable[[], object]) -> None:
    start = time.perf_counter()
    act()
    print(f"{what:<34}{events / (time.perf_counter() - start):>12,.0f} events/s", flush=True)


def _record(db: Database, log: AuditLog, events: int) -> None:
    for _ in range(0, events, 3 * _JOBS_PER_COMMIT):
        entries = []
        for _ in range(_JOBS_PER_COMMIT):
            name = f"job:{uuid7()}"
            details = {"type": "thumbnail", "version": "1.0.0", "payload_sha256": "0" * 64}
            entries.append(AuditEntry(_ALICE, Action.JOB_SUBMIT, name, object_seq=1, details=details))
            entries.append(AuditEntry(_WORKER, Action.JOB_START, name, object_seq=2, details={"attempt": 1}))
            entries.append(AuditEntry(_WORKER, Action.JOB_COMPLETE, name, object_seq=3, details={"attempt": 1}))
        db.write(partial(_insert, log, entries))


def _insert(log: AuditLog, entries: list[AuditEntry], connection: Connection) -> None:
    log.record(connection, *entries)


def _restart(db: Database, log: AuditLog, keyring: KeyRing) -> None:
    _record(db, log, 1)
    Sealer(db, keyring, "bench").run_once()


def _seal(sealer: Sealer) -> None:
    while sealer.run_once():
        pass


def _check(exit_code: int) -> None:
    if exit_code:
        raise SystemExit(f"the trail did not verify: exit code {exit_code}")


def _memory(path: Path, keys: Path) -> str:
    """Peak memory of a process that does nothing but verify."""
    command = [sys.executable, __file__, "--verify", str(path), str(keys)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(events: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        url = f"sqlite:///{home / 'cloche.db'}"
        migrate.upgrade(url)
        keyring, db = KeyRing.load_or_create(home / "keys"), Database(url)
        log, sealer, service = AuditLog(keyring.hmac_key), Sealer(db, keyring, "bench"), AuditService(db, keyring)
        _timed("record (3 a job, 50 jobs a commit)", events, lambda: _record(db, log, events))
        _timed("seal", events, lambda: _seal(sealer))
        _timed(
            "a restarted sealer's first pass",
            events,
            lambda: _restart(db, log, keyring),
        )
        _timed(
            "verify the database",
            events,
            lambda: _check(verify_database(home / "cloche.db", keys=home / "keys").exit_code),
        )
        export = home / "export.ndjson"
        with export.open("w") as file:
            _timed("export", events, lambda: file.writelines(service.export(_ALICE)))
        _timed("verify the export", events, lambda: _check(verify_export(export, keys=home / "keys").exit_code))
        _seal(sealer)  # the export's own event, which by now may be older than a tail may be
        db.close()
        print(f"peak memory of verifying            {_memory(home / 'cloche.db', home / 'keys')}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--verify"]:
        _check(verify_database(Path(sys.argv[2]), keys=Path(sys.argv[3])).exit_code)
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
