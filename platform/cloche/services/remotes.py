"""Remotes of a tenant: created, changed and tested by its administrators; secrets go in and never come out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloche.clock import to_rfc3339, uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.errors import Conflict, EnvironmentProblem, Invalid, NotFound, PlatformFailure, Problem, Unavailable
from cloche.redact import MASK
from cloche.staging.paths import check_remote_name
from cloche.staging.rclone import Fault, RcloneDaemon, RemoteFault
from cloche.staging.remotes import RemoteConfig, moved, to_fs, validate
from cloche.staging.vault import OptionVault

_TEST_S = 20.0
_TESTS = 2  # at once in a process
_MAX_REMOTES = 1_000  # of one tenant
_PLAIN = {
    Fault.MISSING: "the server answers, but has no such folder or bucket",
    Fault.REFUSED: "the server refused",
    Fault.UNREACHABLE: "the server could not be used",
}


class RemoteService:
    """Shared by a process's threads. The daemon starts with the first test, or the worker's first transfer."""

    def __init__(self, db: Database, audit: AuditLog, vault: OptionVault, rclone: RcloneDaemon) -> None:
        self._db = db
        self._audit = audit
        self._vault = vault
        self._rclone = rclone
        self._tests = threading.BoundedSemaphore(_TESTS)

    def create(self, actor: Actor, name: str, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            Invalid: the name, the type or an option is wrong, with pointers.
            Conflict: the tenant has a remote of that name, or too many.
        """
        check_remote_name(name, pointer="/name")
        given = {key: value for key, value in options.items() if value is not None}
        config = validate(kind, given, allow_addresses=self._rclone.allow_addresses)
        _refuse_masks(config)
        now = self._db.now_ms()
        row = {
            "id": uuid7(),
            "tenant_id": actor.tenant_id,
            "name": name,
            "type": kind,
            "options_encrypted": self._vault.seal(actor.tenant_id, name, config.options),
            "version": 1,
            "created_by": actor.user_id,
            "created_at": now,
            "updated_at": now,
        }

        def unit(connection: Connection) -> None:
            # One at a time in a tenant, or two could both find room for the last one.
            connection.execute(select(t.tenant.c.id).where(t.tenant.c.id == actor.tenant_id).with_for_update())
            if len(connection.execute(select(t.remote.c.id).where(_of(actor))).all()) >= _MAX_REMOTES:
                raise Conflict(f"a tenant has at most {_MAX_REMOTES} remotes")
            try:
                connection.execute(insert(t.remote), row)
            except IntegrityError:
                raise Conflict(f"there is a remote '{name}' already", code="remote-exists") from None
            self._record(connection, actor, Action.REMOTE_CREATE, name, after=_Said(row, config))

        self._db.write(unit)
        return _shown(row, config)

    def list(self, actor: Actor) -> list[dict[str, Any]]:
        """The tenant's remotes by name, secrets masked."""
        query = select(t.remote).where(_of(actor)).order_by(t.remote.c.name)
        rows = self._db.read(lambda connection: connection.execute(query).mappings().all())
        return [_shown(row, self._opened(row)) for row in rows]

    def get(self, actor: Actor, name: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: the tenant has no such remote.
        """
        row = self._db.read(lambda connection: _found(connection, actor.tenant_id, name))
        return _shown(row, self._opened(row))

    def update(self, actor: Actor, name: str, options: Mapping[str, Any], version: int) -> dict[str, Any]:
        """Change the options that are given; None removes one, the rest stays as it is.

        Where the change sends the remote's credentials to another server, they have to be given again: a stored secret could
        otherwise be had by pointing its remote at a server of one's own.

        Raises:
            NotFound: the tenant has no such remote.
            Conflict: it is no longer at ``version``.
            Invalid: an option is wrong, with pointers.
        """
        row = self._db.read(lambda connection: _found(connection, actor.tenant_id, name))
        before = self._opened(row)
        merged = {**before.options, **options}
        merged = {key: value for key, value in merged.items() if value is not None}
        after = validate(row["type"], merged, allow_addresses=self._rclone.allow_addresses)
        _refuse_masks(after)
        if moved(after.type, before.options, after.options) and (kept := after.secrets() - set(options)):
            raise _again(kept)
        values = {
            "options_encrypted": self._vault.seal(actor.tenant_id, name, after.options),
            "version": version + 1,
            "updated_at": self._db.now_ms(),
        }

        def unit(connection: Connection) -> RowMapping:
            here = _of(actor) & (t.remote.c.id == row["id"]) & (t.remote.c.version == version)
            # What was merged is what was read, so that has to be the version named too.
            statement = update(t.remote).where(here, t.remote.c.version == row["version"]).values(values)
            changed = connection.execute(statement.returning(t.remote)).mappings().one_or_none()
            if changed is None:
                raise Conflict("the remote has changed since; read it again", code="remote-changed")
            said = _Said(dict(row), before), _Said(dict(changed), after)
            self._record(connection, actor, Action.REMOTE_UPDATE, name, before=said[0], after=said[1])
            return changed

        return _shown(self._db.write(unit), after)

    def delete(self, actor: Actor, name: str, version: int) -> None:
        """Remove a remote and its credentials. Jobs that still name it fail with ``input_unavailable`` or ``output_rejected``.

        Raises:
            NotFound: the tenant has no such remote.
            Conflict: it is no longer at ``version``.
        """

        def unit(connection: Connection) -> None:
            row = _found(connection, actor.tenant_id, name)
            if row["version"] != version:
                raise Conflict("the remote has changed since; read it again", code="remote-changed")
            here = _of(actor) & (t.remote.c.id == row["id"]) & (t.remote.c.version == version)
            if connection.execute(delete(t.remote).where(here)).rowcount != 1:  # changed since the statement before
                raise Conflict("the remote has changed since; read it again", code="remote-changed")
            self._record(connection, actor, Action.REMOTE_DELETE, name, before=_Said(dict(row), self._readable(row)))

        self._db.write(unit)

    def test(self, actor: Actor, name: str) -> dict[str, Any]:
        """Try to list the remote's root: ``{"ok", "detail"}``. Ends within 20 s.

        Raises:
            NotFound: the tenant has no such remote.
            Unavailable: other tests are running, or rclone itself does not.
        """
        config = self.config_for(actor.tenant_id, name)
        if not self._tests.acquire(timeout=_TEST_S):
            raise Unavailable("other remotes are being tested; try again")
        try:
            self._rclone.start()
            fs = to_fs(config, self._rclone.obscure, proxy=self._rclone.proxy)
            options = {"noModTime": True, "noMimeType": True}
            listed = self._rclone.call("operations/list", timeout_s=_TEST_S, fs=fs, remote="", opt=options)["list"]
        except RemoteFault as fault:
            return {"ok": False, "detail": f"{_PLAIN[fault.fault]}: {fault.message}"}
        except (PlatformFailure, EnvironmentProblem) as error:
            raise Unavailable(f"rclone does not run: {error}") from error
        finally:
            self._tests.release()
        return {"ok": True, "detail": f"the root lists {len(listed)} entries"}

    def config_for(self, tenant_id: str, name: str) -> RemoteConfig:
        """A remote with its secrets, for a transfer.

        Raises:
            NotFound: the tenant has no such remote.
            PlatformFailure: it cannot be decrypted (``platform_failed``).
        """
        row = self._db.read(lambda connection: _found(connection, tenant_id, name))
        options = self._vault.open(tenant_id, name, row["options_encrypted"])
        return RemoteConfig(row["type"], options)

    def _opened(self, row: RowMapping) -> RemoteConfig:
        try:
            options = self._vault.open(row["tenant_id"], row["name"], row["options_encrypted"])
        except PlatformFailure as failure:
            raise Unavailable(failure.message) from failure
        return RemoteConfig(row["type"], options)

    def _record(
        self,
        connection: Connection,
        actor: Actor,
        action: Action,
        name: str,
        *,
        before: _Said | None = None,
        after: _Said | None = None,
    ) -> None:
        details: dict[str, Any] = {}
        if after is not None:
            old, new = before.options if before else {}, after.options
            changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
            details = {"type": after.row["type"], "changed": changed}
        digested = [None if said is None else said.digested() for said in (before, after)]
        entry = AuditEntry(
            actor=actor, action=action, object=f"remote:{name}", before=digested[0], after=digested[1], details=details
        )
        self._audit.record(connection, entry)

    def _readable(self, row: RowMapping) -> RemoteConfig | None:
        """None where the key is not the one it was sealed with: a remote that nobody can use any more can be removed all the same."""
        try:
            return self._opened(row)
        except Unavailable:
            return None


@dataclass(frozen=True)
class _Said:
    """A remote as it was at one version. ``config`` None: nobody can read its options."""

    row: Mapping[str, Any]
    config: RemoteConfig | None

    @property
    def options(self) -> Mapping[str, str]:
        return {} if self.config is None else self.config.options

    def digested(self) -> dict[str, Any]:
        """What the record's digest is over: secrets are masked, as a digest of a short password would give it away. The version tells apart
        two that differ in a secret alone."""
        masked = None if self.config is None else self.config.masked()
        return {"type": self.row["type"], "version": self.row["version"], "options": masked}


def _of(actor: Actor) -> Any:
    return t.remote.c.tenant_id == actor.tenant_id


def _found(connection: Connection, tenant_id: str, name: str) -> RowMapping:
    query = select(t.remote).where(t.remote.c.tenant_id == tenant_id, t.remote.c.name == name)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound("there is no such remote")
    return row


def _refuse_masks(config: RemoteConfig) -> None:
    """A client that sends back what GET showed must not store the mask as the password."""
    problems = [
        Problem(f"/options/{name}", "is the mask that stands for the secret; leave it out to keep the one stored")
        for name in sorted(config.secrets())
        if config.options[name] == MASK
    ]
    if problems:
        raise Invalid("the remote was not saved", problems=problems)


def _again(names: set[str]) -> Invalid:
    detail = "has to be given again, because the change sends it to another server"
    return Invalid("the remote was not saved", problems=[Problem(f"/options/{name}", detail) for name in sorted(names)])


def _shown(row: RowMapping | Mapping[str, Any], config: RemoteConfig) -> dict[str, Any]:
    shown = {key: row[key] for key in ("id", "name", "type", "version")}
    times = {key: to_rfc3339(row[key]) for key in ("created_at", "updated_at")}
    return {**shown, "options": config.masked(), **times}
