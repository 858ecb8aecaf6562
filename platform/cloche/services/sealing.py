"""What sensitive jobs hold, encrypted before it reaches the database: AES-256-GCM under a key of each job's own.

The platform's key is ``keys/sensitive.key``, a file, never in the database; the database knows its id alone, so that a key which was lost or
exchanged is noticed instead of silently replaced. Keys that were rotated out stay beside it as ``sensitive-<id>.key`` for as long as jobs
that were sealed with them shall be readable. Everything of one job is sealed with the key that its payload was sealed with.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, func, insert, select

from cloche.audit import canonical
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.domain.jobs import SEALED
from cloche.domain.permissions import Actor, system_actor
from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, PlatformFailure, Unavailable
from cloche.staging.vault import load_or_create_key, read_key

CURRENT = "sensitive.key"
RETIRED = "sensitive-*.key"
ADVICE = "restore it from a backup; where it is lost for good, `cloche key rotate` makes a new one for jobs to come"
_VERSION = b"\x01"
_ID = 8  # bytes
_NONCE = 12  # bytes; random, under a key that one job alone has


@dataclass(frozen=True, repr=False)
class JobKey:
    """One of the platform's keys. Printing it shows nothing of it."""

    id: bytes
    _master: bytes

    @classmethod
    def of(cls, master: bytes) -> JobKey:
        return cls(_derived(master, b"id")[:_ID], master)

    def cipher(self, tenant_id: str, job_id: str) -> AESGCM:
        """The cipher of one job: a sealed value copied to another job's row does not open there."""
        return AESGCM(_derived(self._master, b"job", tenant_id, job_id))

    def mac(self, *parts: str) -> str:
        """A keyed digest, 64 hex digits. A plain one of a value that can be guessed would give the value away."""
        body = b"".join(len(part := text.encode("utf-8")).to_bytes(8, "big") + part for text in parts)
        return hmac.new(_derived(self._master, b"mac"), body, hashlib.sha256).hexdigest()

    def __repr__(self) -> str:
        return f"JobKey({self.id.hex()})"


class JobSeal:
    """Seals and opens one job's values. ``field`` names the place: what lies elsewhere does not open."""

    def __init__(self, key: JobKey, tenant_id: str, job_id: str) -> None:
        self._key = key
        self._job = (tenant_id, job_id)
        self._cipher = key.cipher(tenant_id, job_id)

    def seal(self, field: str, value: Any) -> str:
        """Any JSON value as text that shows its length and nothing else."""
        nonce = secrets.token_bytes(_NONCE)
        plain = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        body = self._cipher.encrypt(nonce, plain, self._bound(field))
        return base64.b64encode(_VERSION + self._key.id + nonce + body).decode("ascii")

    def open(self, field: str, sealed: str) -> Any:
        """
        Raises:
            PlatformFailure: it was sealed for another place or with another key, or changed since (``key_unavailable``).
        """
        raw = _raw(sealed)
        nonce, body = raw[1 + _ID : 1 + _ID + _NONCE], raw[1 + _ID + _NONCE :]
        try:
            plain = self._cipher.decrypt(nonce, body, self._bound(field))
        except (InvalidTag, ValueError):
            message = f"the job's {field.partition('/')[0]} cannot be decrypted: it was changed in the database"
            raise PlatformFailure(Reason.KEY_UNAVAILABLE, message) from None
        return json.loads(plain.decode("utf-8", "surrogatepass"))

    def payload_mac(self, payload: Mapping[str, Any]) -> str:
        """What a sensitive job has in place of its payload's SHA-256. Equal payloads of two jobs do not show it."""
        return self._key.mac("payload", *self._job, canonical.text(payload))

    def _bound(self, field: str) -> bytes:
        return b"\0".join((b"cloche-job", *(part.encode() for part in (*self._job, field))))


class JobVault:
    """Shared by a process's threads. Reads its keys when they are first needed, and again after a failure: a key that was restored is
    taken without a restart. Only ``seal_for`` makes a key, on a platform that never had one."""

    def __init__(self, folder: Path, db: Database) -> None:
        self._folder = folder
        self._db = db
        self._lock = threading.Lock()
        self._keys: dict[bytes, JobKey] = {}
        self._current: JobKey | None = None
        self._current_seen: tuple[int, ...] | None = None  # its file, when it was last read

    def seal_for(self, tenant_id: str, job_id: str) -> JobSeal:
        """For a job that is being accepted.

        Raises:
            Unavailable: the platform's key is missing, damaged, or not the one its database knows; says what to do.
        """
        return JobSeal(self._own(), tenant_id, job_id)

    def seal_of(self, tenant_id: str, job_id: str, payload: Mapping[str, Any]) -> tuple[JobSeal, dict[str, Any]]:
        """For a job that was accepted: its seal, and its payload in clear. ``payload``: as its row holds it.

        Raises:
            PlatformFailure: ``key_unavailable``: the key is not here, or the payload was changed.
        """
        sealed = payload.get(SEALED)
        raw = _raw(sealed) if isinstance(sealed, str) else b""
        key = self._find(raw[1 : 1 + _ID]) if raw[:1] == _VERSION else None
        if key is None:
            wanted = raw[1 : 1 + _ID].hex() or "?"
            message = f"its payload was encrypted with key {wanted}, which is not in {self._folder}: {ADVICE}"
            raise PlatformFailure(Reason.KEY_UNAVAILABLE, message)
        seal = JobSeal(key, tenant_id, job_id)
        return seal, dict(seal.open("payload", str(sealed)))

    def request_digests(self, actor: Actor, key: str, body: Mapping[str, Any]) -> tuple[str, ...]:
        """What stands for a request's body beside its ``Idempotency-Key``: first what is to be stored, then what may have been.

        A plain digest; keyed where the body, or one of its ``jobs``, is sensitive.

        Raises:
            Unavailable: see ``seal_for``.
        """
        asked = [body, *(job for job in body.get("jobs") or () if isinstance(job, Mapping))]
        if not any(job.get("sensitive") is True for job in asked):
            return (canonical.digest(dict(body)),)
        own, parts = self._own(), (actor.tenant_id, actor.user_id, key, canonical.text(dict(body)))
        return tuple(each.mac("body", *parts) for each in (own, *(old for old in self._keys.values() if old != own)))

    def _own(self) -> JobKey:
        """The key to seal with: nothing is sealed with one that this process has read and that is no longer on the disk."""
        with self._lock:
            found = seen(self._folder / CURRENT)
            if self._current is None or found != self._current_seen:
                try:
                    self._keys = _all_keys(self._folder)
                    if self._current is None or self._current.id not in self._keys:
                        self._current = None
                        self._current = self._checked()
                        self._keys = _all_keys(self._folder)
                    self._current_seen = seen(self._folder / CURRENT)
                except (EnvironmentProblem, OSError) as error:
                    raise Unavailable(f"sensitive jobs cannot be taken: {error}", retry_after=60) from None
            return self._current

    def _checked(self) -> JobKey:
        """The current key, if it is the one that the database knows, or the first one."""
        path = self._folder / CURRENT
        known = self._db.read(newest_id)
        if known is None:
            load_or_create_key(path)
        try:
            key = JobKey.of(read_key(path))
        except FileNotFoundError:
            raise EnvironmentProblem(
                f"{path}, the key {known} that they are encrypted with, is missing: {ADVICE}"
            ) from None
        if known is None:
            self._db.write(lambda connection: register(connection, key))
            known = self._db.read(newest_id)
        if known != key.id.hex():
            raise EnvironmentProblem(f"{path} is key {key.id.hex()}, and the database knows {known}: {ADVICE}")
        return key

    def _find(self, key_id: bytes) -> JobKey | None:
        with self._lock:
            if key_id not in self._keys:
                try:
                    self._keys = _all_keys(self._folder)
                except (EnvironmentProblem, OSError) as error:
                    message = f"the key of sensitive jobs cannot be read: {error}"
                    raise PlatformFailure(Reason.KEY_UNAVAILABLE, message) from None
            return self._keys.get(key_id)


def newest_id(connection: Connection) -> str | None:
    """The id of the key that jobs are sealed with, as far as the database knows."""
    key = t.sealing_key
    return connection.execute(select(key.c.id).order_by(key.c.number.desc()).limit(1)).scalar()


def register(connection: Connection, key: JobKey) -> bool:
    """Note that this is the platform's first key; False where another process was first."""
    if newest_id(connection) is not None:
        return False
    connection.execute(insert(t.sealing_key), {"number": 1, "id": key.id.hex(), "created_at": now_ms(connection)})
    return True


def key_files(folder: Path, current: str = CURRENT, others: str = RETIRED) -> list[tuple[str, Path]]:
    """Id and file of each key that is here, the current one first.

    Raises:
        EnvironmentProblem: one is damaged, not ours, or readable by others.
    """
    paths = [path for path in (folder / current, *sorted(folder.glob(others))) if path.exists()]
    return [(JobKey.of(read_key(path)).id.hex(), path) for path in paths]


def rotate(folder: Path, db: Database, audit: AuditLog) -> str:
    """Make a new current key and return its id; the one before, if it is here, is kept under its id. The change is audited.

    The new key is on the disk before the database knows it: whatever ends this half way is put right by doing it again.

    Raises:
        EnvironmentProblem: a key is damaged, not ours, or readable by others.
    """
    current = folder / CURRENT
    before: str | None = None
    if current.exists():
        before = JobKey.of(read_key(current)).id.hex()
        os.rename(current, folder / f"sensitive-{before}.key")
    made = JobKey.of(load_or_create_key(current)).id.hex()

    def unit(connection: Connection) -> None:
        number = connection.execute(select(func.max(t.sealing_key.c.number))).scalar() or 0
        row = {"number": number + 1, "id": made, "created_at": now_ms(connection)}
        connection.execute(insert(t.sealing_key), row)
        tenants = connection.execute(select(t.tenant.c.id).order_by(t.tenant.c.created_at).limit(1)).scalars().all()
        details = {"before": before, "after": made}
        for tenant_id in tenants:  # the first tenant's trail has what concerns the platform
            actor = system_actor(tenant_id, "operator")
            entry = AuditEntry(actor, Action.KEY_ROTATE, "key:sensitive", before=before, after=made, details=details)
            audit.record(connection, entry)

    db.write(unit)
    return made


def _all_keys(folder: Path) -> dict[bytes, JobKey]:
    return {key.id: key for key in (JobKey.of(read_key(path)) for _, path in key_files(folder))}


def seen(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None when there is none, or none to be seen."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _derived(master: bytes, purpose: bytes, *names: str) -> bytes:
    """A key for one purpose: 32 bytes, by HKDF-SHA256 (RFC 5869)."""
    info = b"\0".join((b"cloche-sensitive", purpose, *(name.encode() for name in names)))
    return HKDF(SHA256(), 32, salt=None, info=info).derive(master)


def _raw(sealed: str) -> bytes:
    try:
        return base64.b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        return b""
