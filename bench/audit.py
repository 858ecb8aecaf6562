"""`./run bench audit`: recording, sealing beside the running system, verifying, proofs and exports, on SQLite and on PostgreSQL.

What is recorded are jobs' events, three for each, in transactions on the disk. The producer beside the sealer records as many a second as it
is told, through the same store and log as the platform.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from bench import page
from bench.figures import Row, figures
from cloche.audit.keys import KeyRing
from cloche.audit.offline import verify_export, verify_file
from cloche.clock import uuid7
from cloche.db import migrate
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, system_actor
from cloche.services.auditing import AuditService, Trust, verify_store
from cloche.services.sealer import Sealer
from tests.support import postgres

WANTED = 2_000  # events a second beside the running system
_ALICE = Actor("user-1", "alice", "tenant-1", frozenset(), ip="203.0.113.9", request_id="request-1")
_WORKER = system_actor("tenant-1", "worker:1")
_JOBS_PER_COMMIT = 50
_VERIFY = "verify the database"
_BESIDE = f"sealing beside {WANTED:,} events/s"
_MARKS = {_VERIFY: "≥ 50,000 /s", _BESIDE: "keeps up"}


@dataclass
class Run:
    """What was measured, by database, and the machine's load before and at the end."""

    databases: dict[str, list[Row]] = field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)

    def kept(self, name: str, row: Row) -> Row:
        self.databases.setdefault(name, []).append(row)
        return row | {"what": f"{name}: {row['what']}"}


def rows(run: Run, events: int) -> Iterator[Row]:
    """``events`` are recorded, sealed and verified; then the sealer keeps up for as long as it takes to record them again."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="cloche-bench-") as folder:
        url = f"sqlite:///{Path(folder) / 'cloche.db'}"
        migrate.upgrade(url)
        for row in _measured(url, Path(folder), events):
            yield run.kept("SQLite", row)
    run.load = (before, os.getloadavg()[0])
    try:
        postgres.binaries()
    except AssertionError as missing:
        yield {"what": "PostgreSQL", "not measured": str(missing)}
        return
    with (
        tempfile.TemporaryDirectory(prefix="cloche-bench-") as folder,
        postgres.running_postgres() as server,
        server.database() as url,
    ):
        for row in _measured(url, Path(folder), events):
            yield run.kept("PostgreSQL", row)
    run.load = (before, os.getloadavg()[0])


def table(run: Run) -> str:
    """Markdown, with the marks."""
    lines = [page.machine(run.load), "", "| what | mark | SQLite | PostgreSQL |", "| --- | --- | --- | --- |"]
    for row in run.databases["SQLite"]:
        what = row["what"]
        others = [one for one in run.databases.get("PostgreSQL", []) if one["what"] == what]
        cells = [_cell(one) for one in (row, *others)] + ["–"] * (1 - len(others))
        lines.append(f"| {what} | {_MARKS.get(what, '')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if "per_s" in row:
        judged = "" if row["what"] != _VERIFY else (" ✓" if row["per_s"] >= 50_000 else ", **missed**")
        return f"{row['per_s']:,} /s{judged}"
    if "behind_s" in row:
        good = row["recorded_per_s"] >= 0.95 * WANTED and row["behind_s"] <= 1.5
        return f"{row['recorded_per_s']:,} /s, {row['behind_s']} s behind{' ✓' if good else ', **missed**'}"
    if "median_ms" in row:
        return f"{row['median_ms']} ms, {row['p95_ms']} ms"
    return f"{row['MiB']} MiB"


def _measured(url: str, home: Path, events: int) -> Iterator[Row]:
    keyring, db = KeyRing.load_or_create(home / "keys"), Database(url)
    log, sealer, service = AuditLog(keyring.hmac_key), Sealer(db, keyring, "bench"), AuditService(db, keyring)
    trust = Trust(keyring.verifier, keyring.hmac_keys())
    try:
        yield _row("record, 3 a job, 50 jobs a commit", events, lambda: _record(db, log, events))
        yield _row("seal a backlog", events, lambda: _seal(sealer))
        yield _row(_VERIFY, events, lambda: _check(verify_store(url, trust).exit_code))
        yield _beside(db, log, sealer, service, events)
        _check(verify_store(url, trust).exit_code)
        yield figures("a proof: median, p95", _proofs(service, events))
        path = home / "export.ndjson"
        with path.open("w") as file:
            yield _row("export", 2 * events, lambda: file.writelines(service.export(_ALICE)))
        public = home / "keys" / "audit-ed25519.pub"
        yield _row("verify the export", 2 * events, lambda: _check(verify_export(path, public_key=public).exit_code))
        with path.open("w") as file:
            sought = {"action": Action.JOB_SUBMIT.value}
            count = 2 * events // 3
            yield _row("export of a third, with proofs", count, lambda: file.writelines(service.export(_ALICE, sought)))
        if db.kind == "sqlite":
            _seal(sealer)
            yield {"what": "peak memory of verifying", "MiB": _memory(home / "cloche.db", home / "keys")}
    finally:
        db.close()


def _row(what: str, count: int, act: Callable[[], object]) -> Row:
    began = time.perf_counter()
    act()
    return {"what": what, "per_s": round(count / (time.perf_counter() - began))}


def _record(db: Database, log: AuditLog, events: int, pace: float = 0.0) -> None:
    """``pace``: events a second; 0 for as fast as it goes."""
    began = time.perf_counter()
    for done in range(0, events, 3 * _JOBS_PER_COMMIT):
        if pace and (ahead := began + done / pace - time.perf_counter()) > 0:
            time.sleep(ahead)
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


def _seal(sealer: Sealer) -> None:
    while sealer.run_once():
        pass


def _beside(db: Database, log: AuditLog, sealer: Sealer, service: AuditService, events: int) -> Row:
    """The producer at its pace in one thread, the sealer at the scheduler's in another: what was recorded a second, and how far the sealer
    was behind at the end, in seconds of the producer."""
    done = threading.Event()

    def seal() -> None:
        while not done.is_set():
            sealer.run_once()
            done.wait(0.5)

    thread = threading.Thread(target=seal)
    thread.start()
    began = time.perf_counter()
    _record(db, log, events, WANTED)
    recorded = events / (time.perf_counter() - began)
    behind = service.backlog()["unsealed"]
    done.set()
    thread.join()
    _seal(sealer)
    return {
        "what": _BESIDE,
        "recorded_per_s": round(recorded),
        "unsealed_at_the_end": behind,
        "behind_s": round(behind / WANTED, 2),
    }


def _proofs(service: AuditService, events: int) -> list[float]:
    taken = []
    for seq in range(0, 2 * events, max(1, events // 50)):
        began = time.perf_counter()
        service.proof(_ALICE, str(seq))
        taken.append(time.perf_counter() - began)
    return taken


def _check(exit_code: int) -> None:
    if exit_code:
        raise SystemExit(f"the trail did not verify: exit code {exit_code}")


def _memory(path: Path, keys: Path) -> int:
    """Peak memory, in MiB, of a process that does nothing but verify."""
    command = [sys.executable, "-m", "bench.audit", str(path), str(keys)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    ring = KeyRing.load_or_create(Path(sys.argv[2]))
    _check(verify_file(Path(sys.argv[1]), Trust(ring.verifier, ring.hmac_keys())).exit_code)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
