"""A real database with the migrated schema, its keys, and an attacker who may write to the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from cloche.audit.keys import KeyRing
from cloche.audit.offline import Trust, verify_store
from cloche.audit.verify import Verdict
from cloche.clock import uuid7
from cloche.db import migrate
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.audit_triggers import DROP_SQLITE
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, system_actor
from cloche.services.sealer import Sealer
from tests.support import postgres

TENANT = "tenant-1"
ALICE = Actor("user-alice", "alice", TENANT, frozenset(), token_id="token-1", ip="203.0.113.9", request_id="request-1")


class Platform:
    """What writes audit events: one home directory with database and keys."""

    def __init__(self, home: Path, url: str | None = None) -> None:
        """``url``: a database with the schema, else an SQLite file in ``home``."""
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.path = home / "cloche.db"
        self.keys = home / "keys"
        self.url = url or f"sqlite:///{self.path}"
        if url is None:
            migrate.upgrade(self.url)
        self.keyring = KeyRing.load_or_create(self.keys)
        self.db = Database(self.url)
        self.log = AuditLog(self.keyring.hmac_key)
        self.sealer = Sealer(self.db, self.keyring, "sealer-1")

    def record(self, *entries: AuditEntry) -> None:
        self.db.write(lambda connection: self.log.record(connection, *entries))

    def job(self, actor: Actor = ALICE) -> str:
        """A whole job's three events; returns its object."""
        name, worker = f"job:{uuid7()}", system_actor(actor.tenant_id, "worker:1")
        steps = ((actor, Action.JOB_SUBMIT), (worker, Action.JOB_START), (worker, Action.JOB_COMPLETE))
        self.record(*(AuditEntry(who, action, name, object_seq=n) for n, (who, action) in enumerate(steps, start=1)))
        return name

    def filled(self, batches: int = 3, jobs: int = 2) -> Platform:
        """``batches`` sealed batches of ``jobs`` jobs each, and one act that is no job's at the start of each batch."""
        for number in range(batches):
            self.record(AuditEntry(ALICE, Action.FILE_CREATE, f"file:{number}", details={"size": number}))
            for _ in range(jobs):
                self.job()
            assert self.sealer.run_once() == 3 * jobs + 1
        return self

    def verify(self) -> Verdict:
        """The verdict over the database as it is now, with all of the platform's keys."""
        keys = self.keyring
        return verify_store(self.url, Trust(keys.verifier, keys.hmac_keys(), keys.held()))

    def copy(self, target: Path) -> Path:
        """The database's file as it is now, complete in one file."""
        with sqlite3.connect(self.path) as source, sqlite3.connect(target) as copy:
            source.backup(copy)
        source.close()
        copy.close()
        return target


class _Session:
    """A PostgreSQL session that takes SQLite's placeholders."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Sequence[object] = ()) -> psycopg.Cursor:
        return self._connection.execute(statement.replace("?", "%s"), values or None)


@contextmanager
def attacker(target: Path | Platform) -> Iterator[sqlite3.Connection | _Session]:
    """Somebody with write access to the database, who knows SQL but holds no key: the triggers are no obstacle."""
    if isinstance(target, Platform) and target.db.kind == "postgresql":
        with postgres.connect(target.url) as session:
            session.execute("SET session_replication_role = replica")
            yield _Session(session)
        return
    path = Path(target.url.removeprefix("sqlite:///")) if isinstance(target, Platform) else target
    connection = sqlite3.connect(path)
    try:
        for statement in DROP_SQLITE:
            connection.execute(statement)
        yield connection
        connection.commit()
    finally:
        connection.close()


def rewrite_with_another_key(platform: Platform, home: Path) -> Path:
    """The same acts, written and sealed anew by somebody with keys of their own; returns the forged database."""
    forger = Platform(home)
    with sqlite3.connect(platform.path) as source:
        acts = source.execute("SELECT action, object, object_seq FROM audit_event ORDER BY rowid").fetchall()
    source.close()
    for action, name, number in acts:
        forger.record(AuditEntry(ALICE, Action(action), name, object_seq=number, details={"forged": True}))
    forger.sealer.run_once()
    forger.db.close()
    return forger.copy(home / "forged.db")
