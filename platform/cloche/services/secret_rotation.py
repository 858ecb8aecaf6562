"""A new key for tenants' secrets: every stored value is encrypted anew, while the platform runs.

The key before stays readable, so a process that has not noticed goes on, and a value that it writes meanwhile is found by the next pass. What
ends a rotation half way is put right by running it again: it goes on where it stopped, and makes no further key.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update

from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import system_actor
from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.services.sealing import JobKey
from cloche.services.secret_vault import CURRENT, NEXT, Place, SecretVault
from cloche.staging.vault import load_or_create_key, read_key

_BATCH = 50
_PASSES = 5  # over all rows: each finds what was written with another key during the one before


@dataclass
class Rotation:
    """``before`` None: a rotation that was cut short was finished, or the key is one of the settings. ``lost``: ``tenant/name`` of each value
    that its key is not here for; it stays as it is."""

    key_id: str
    before: str | None
    encrypted: int = 0
    lost: list[str] = field(default_factory=list)


def rotate(vault: SecretVault, db: Database, audit: AuditLog) -> Rotation:
    """
    Raises:
        EnvironmentProblem: a key is damaged, missing or not ours, or another rotation is running.
    """
    with _alone(vault.folder):
        before: str | None = None
        if not vault.has_given and _finished(vault, db):
            before = _promote(vault.folder)
        current = vault.keys().current
        done = Rotation(current.id.hex(), before)
        db.write(lambda connection: _record(connection, audit, {"before": before, "after": done.key_id}))
        for _ in range(_PASSES):
            if not _pass(vault, db, done):
                break
        done.lost = sorted(set(done.lost))
        details = {"after": done.key_id, "encrypted": done.encrypted, "lost": len(done.lost)}
        db.write(lambda connection: _record(connection, audit, details))
    return done


def _finished(vault: SecretVault, db: Database) -> bool:
    """Whether everything that can be read is under the current key, or there is none."""
    if not (vault.folder / CURRENT).exists():
        return True
    keys = vault.keys()
    others = [key.id.hex() for key in keys.all.values() if key != keys.current]
    left = select(t.secret.c.id).where(t.secret.c.key_id.in_(others)).limit(1)
    return db.read(lambda connection: connection.execute(left).first()) is None


def _promote(folder: Path) -> str | None:
    """The next key takes the current one's place, which is kept under its id. The id of the one before, if there was one."""
    current, following = folder / CURRENT, folder / NEXT
    load_or_create_key(following)
    before: str | None = None
    if current.exists():
        before = JobKey.of(read_key(current)).id.hex()
        kept = folder / f"secrets-{before}.key"
        if not kept.exists():
            os.link(current, kept)
    os.replace(following, current)  # at no moment is there no current key, nor one that is nowhere
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return before


def _pass(vault: SecretVault, db: Database, done: Rotation) -> int:
    """Encrypt anew what is not under the current key; how many values that were."""
    key_id, last, changed = done.key_id, "", 0
    query = select(t.secret).where(t.secret.c.key_id != key_id).order_by(t.secret.c.id).limit(_BATCH)
    while rows := db.read(lambda c: c.execute(query.where(t.secret.c.id > last)).mappings().all()):  # noqa: B023
        sealed = [pair for row in rows if (pair := _anew(vault, dict(row), done)) is not None]
        changed += db.write(lambda connection: sum(_replace(connection, *pair) for pair in sealed))  # noqa: B023
        last = rows[-1]["id"]
    done.encrypted += changed
    return changed


def _anew(
    vault: SecretVault, row: Mapping[str, Any], done: Rotation
) -> tuple[Mapping[str, Any], tuple[str, str]] | None:
    place = Place(row["tenant_id"], row["name"], row["id"], row["value_version"])
    try:
        return row, vault.seal(place, vault.open(place, row["sealed"], row["key_id"]))
    except PlatformFailure:
        done.lost.append(f"{row['tenant_id']}/{row['name']}")
        return None


def _replace(connection: Connection, row: Mapping[str, Any], made: tuple[str, str]) -> int:
    """Unless somebody has set another value meanwhile. Not a change of the secret: its version stays."""
    same = (t.secret.c.id == row["id"]) & (t.secret.c.sealed == row["sealed"])
    return connection.execute(update(t.secret).where(same).values(sealed=made[0], key_id=made[1])).rowcount


def _record(connection: Connection, audit: AuditLog, details: Mapping[str, Any]) -> None:
    first = select(t.tenant.c.id).order_by(t.tenant.c.created_at).limit(1)  # its trail has what concerns the platform
    for tenant_id in connection.execute(first).scalars().all():
        actor = system_actor(tenant_id, "operator")
        ids = (details["before"], details["after"]) if "before" in details else (None, None)
        entry = AuditEntry(actor, Action.KEY_ROTATE, "key:secrets", before=ids[0], after=ids[1], details=details)
        audit.record(connection, entry)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / ".secrets.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EnvironmentProblem("another rotation of the secrets' key is running") from None
        yield
    finally:
        os.close(descriptor)
