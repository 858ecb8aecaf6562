"""Stored files: upload, look, read, delete; each within its tenant."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, BinaryIO

from sqlalchemy import Connection, RowMapping, delete, func, insert, select

from cloche.clock import is_uuid7, to_rfc3339, uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.metering import Metered
from cloche.domain.permissions import Actor, Permission
from cloche.domain.quotas import NO_QUOTAS
from cloche.domain.states import TERMINAL, State
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem, Unavailable
from cloche.services import quota_rows, usage_rows
from cloche.services.quota_gate import QuotaGate
from cloche.staging.accept import DEFAULT_TYPE, media_type
from cloche.staging.artifacts import GRACE_S, ArtifactStore, Readable
from cloche.staging.paths import MAX_COMPONENT, unprintable

_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")


class FileService:
    """Shared by a process's threads."""

    def __init__(self, db: Database, store: ArtifactStore, audit: AuditLog, gate: QuotaGate | None = None) -> None:
        """``gate``: without it no quota is asked for; for processes that take no uploads."""
        self._db = db
        self._store = store
        self._audit = audit
        self._gate = gate or QuotaGate(db, NO_QUOTAS, None)

    def upload(
        self, actor: Actor, name: str, media_type: str | None, stream: Readable, limit: int | None
    ) -> dict[str, Any]:
        """Store all that ``stream`` gives, up to ``limit`` bytes, and return the file. On the disk when it returns.

        Raises:
            Invalid: the name cannot be a file's.
            TooLarge: more than ``limit`` bytes; nothing is kept.
            QuotaExceeded: more than the actor, or the tenant, may store; refused as soon as it is.
            Unavailable: the platform's disk or database does not take it.
        """
        name = _checked_name(name)
        quotas, room = self._gate.room(actor)
        within = min((bound for bound in (limit, room) if bound is not None), default=None)
        try:
            with self._gate.within(actor, quotas, room):
                stored = self._store.tenant(actor.tenant_id).put(stream, limit=within)
        except OSError as error:
            raise Unavailable(f"the file could not be stored ({error.strerror or error})") from error
        row: dict[str, Any] = {
            "id": uuid7(),
            "tenant_id": actor.tenant_id,
            "sha256": stored.sha256,
            "size": stored.size,
            "name": name,
            "media_type": _checked_type(media_type, name),
            "created_by": actor.user_id,
            "created_at": self._db.now_ms(),
            "job_id": None,
        }
        details = {key: row[key] for key in ("name", "size", "sha256", "media_type")}
        entry = AuditEntry(actor, Action.FILE_CREATE, f"file:{row['id']}", after=details, details=details)

        def unit(connection: Connection) -> None:
            connection.execute(insert(t.artifact), row)
            self._audit.record(connection, entry)
            kept = Metered(bytes_stored=stored.size)
            usage_rows.add(connection, actor.tenant_id, actor.user_id, row["id"], kept, row["created_at"])
            quota_rows.store(connection, quotas, actor.tenant_id, actor.user_id, stored.size)

        self._db.write(unit)
        return _shown(row)

    def get(self, actor: Actor, file_id: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: there is no such file in the actor's tenant.
        """
        return _shown(self._db.read(lambda connection: _found(connection, actor, file_id)))

    def open(self, actor: Actor, file_id: str) -> BinaryIO:
        """The content, for reading; the caller closes it.

        Raises:
            NotFound: there is no such file in the actor's tenant.
            Unavailable: its content is missing from the store.
        """
        row = self._db.read(lambda connection: _found(connection, actor, file_id))
        try:
            return self._store.tenant(actor.tenant_id).open(row["sha256"])
        except FileNotFoundError:
            raise Unavailable(f"the content of file {file_id} is missing from the artifact store") from None

    def delete(self, actor: Actor, file_id: str) -> None:
        """Remove a file: its row at once; its content too, when no other file of the tenant has the same.

        Raises:
            NotFound: there is no such file in the actor's tenant.
            Forbidden: somebody else's, and the actor is no administrator.
            Conflict: a job that has not ended names it as an input.
        """

        def unit(connection: Connection) -> str:
            row = _found(connection, actor, file_id)
            if row["created_by"] != actor.user_id and not actor.may(Permission.FILE_DELETE_ANY):
                raise Forbidden("the file belongs to somebody else")
            if job_id := _waiting_job(connection, actor.tenant_id, file_id):
                raise Conflict(f"job {job_id} has not ended and reads this file", code="file-in-use")
            mine = (t.artifact.c.id == file_id) & (t.artifact.c.tenant_id == actor.tenant_id)
            if connection.execute(delete(t.artifact).where(mine)).rowcount != 1:
                raise NotFound("there is no such file")  # somebody was faster, and it is counted off once
            quota_rows.dropped(connection, actor.tenant_id, row["created_by"], row["size"])
            details = {key: row[key] for key in ("name", "size", "sha256")}
            before = {**details, "media_type": row["media_type"]}
            entry = AuditEntry(actor, Action.FILE_DELETE, f"file:{file_id}", before=before, details=details)
            self._audit.record(connection, entry)
            return str(row["sha256"])

        self._drop(actor.tenant_id, self._db.write(unit))

    def sweep(self) -> int:
        """Remove content that no file has any more and that has lain for an hour. Returns how many. For the scheduler."""
        gone = 0
        for tenant_id in self._store.tenants():
            for sha256 in self._store.tenant(tenant_id).digests():
                if not self._wanted(tenant_id, sha256):
                    gone += self._drop(tenant_id, sha256)
        return gone

    def _drop(self, tenant_id: str, sha256: str) -> bool:
        # What is younger may be on its way into a row of its own: the sweep comes back for it.
        store = self._store.tenant(tenant_id)
        return store.remove(sha256, wanted=lambda: self._wanted(tenant_id, sha256), older_than_s=GRACE_S)

    def _wanted(self, tenant_id: str, sha256: str) -> bool:
        file = t.artifact.c
        query = select(func.count()).where(file.tenant_id == tenant_id, file.sha256 == sha256)
        return self._db.read(lambda connection: connection.execute(query).scalar_one()) > 0


def _found(connection: Connection, actor: Actor, file_id: str) -> RowMapping:
    row = None
    if is_uuid7(file_id):
        query = select(t.artifact).where(t.artifact.c.id == file_id, t.artifact.c.tenant_id == actor.tenant_id)
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound("there is no such file")
    return row


def _waiting_job(connection: Connection, tenant_id: str, file_id: str) -> str | None:
    job, alive = t.job, [state.value for state in State if state not in TERMINAL]
    source = f"artifact:{file_id}"
    query = select(job.c.id, job.c.inputs).where(job.c.tenant_id == tenant_id, job.c.state.in_(alive))
    for row in connection.execute(query):
        if any(entry["from"] == source for entry in row.inputs):
            return str(row.id)
    return None


def _shown(row: RowMapping | dict[str, Any]) -> dict[str, Any]:
    shown = {key: row[key] for key in ("id", "name", "size", "sha256", "media_type")}
    return {**shown, "created_at": to_rfc3339(row["created_at"])}


def _checked_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    fault = None
    if not name or name in {".", ".."} or "/" in name or "\\" in name or name.startswith("-"):
        fault = "a file's name is not empty, '.' or '..', does not begin with '-' and holds no '/' and no backslash"
    elif unprintable(name):
        fault = "a file's name holds no control characters"
    elif len(name.encode()) > MAX_COMPONENT:
        fault = f"a file's name has at most {MAX_COMPONENT} bytes"
    if fault:
        raise Invalid(fault, problems=[Problem("/name", fault)])
    return name


def _checked_type(given: str | None, name: str) -> str:
    """The media type as given, without parameters; by the name where none, or nothing telling, is given."""
    bare = (given or "").partition(";")[0].strip().lower()
    return bare if bare != DEFAULT_TYPE and _TYPE.fullmatch(bare) else media_type(name)
