"""The secret that a tenant's callbacks are signed with: made when it is first needed, kept sealed, renewed with a time for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, Unit
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.errors import PlatformFailure, Unavailable
from cloche.staging.vault import OptionVault
from cloche.webhooks.signature import new_secret

OVERLAP_MS = 24 * 3_600_000  # for so long both the old and the new secret sign
_NAME, _OBJECT = "callbacks", "callback_secret"


class CallbackVault(OptionVault):
    PURPOSE = b"cloche-callback"
    WHAT = "the secret of {name} cannot be decrypted: keys/callbacks.key is not the key it was saved with"


class CallbackSecrets:
    """Shared by a process's threads."""

    def __init__(self, db: Database, audit: AuditLog, vault: CallbackVault) -> None:
        self._db = db
        self._audit = audit
        self._vault = vault

    def read(self, actor: Actor) -> dict[str, Any]:
        """The tenant's secret in its text form, with when the one before it stops signing. That it was read is recorded.

        Raises:
            Unavailable: the key file is not the one it was sealed with.
        """

        def unit(connection: Connection) -> Mapping[str, Any]:
            row = self._found(connection, actor.tenant_id)
            self._audit.record(connection, AuditEntry(actor, Action.CALLBACK_SECRET_READ, _OBJECT))
            return row

        return self._shown(self._written(unit))

    def renew(self, actor: Actor) -> dict[str, Any]:
        """A new secret. The one it replaces signs beside it for 24 hours; an even older one no longer."""

        def unit(connection: Connection) -> Mapping[str, Any]:
            before, now = self._found(connection, actor.tenant_id), self._db.now_ms()
            row = {
                "sealed": self._sealed(actor.tenant_id),
                "previous": before["sealed"],
                "previous_until": now + OVERLAP_MS,
                "version": before["version"] + 1,
                "created_at": now,
            }
            connection.execute(update(t.callback_secret).where(_mine(actor.tenant_id)).values(row))
            was, now_is = ({"version": each["version"]} for each in (before, row))
            entry = AuditEntry(actor, Action.CALLBACK_SECRET_RENEW, _OBJECT, before=was, after=now_is, details=now_is)
            self._audit.record(connection, entry)
            return {**row, "tenant_id": actor.tenant_id}

        return self._shown(self._written(unit))

    def signing(self, tenant_id: str) -> list[str]:
        """The secrets to sign with now: the tenant's own first, then the one it has just replaced.

        Raises:
            Unavailable: the database does not answer, or the key file is not the one they were sealed with.
        """
        row = self._db.read(lambda c: c.execute(_query(tenant_id)).mappings().one_or_none())
        kept = dict(row) if row is not None else self._written(lambda connection: self._found(connection, tenant_id))
        sealed = [kept["sealed"]]
        if kept["previous"] is not None and kept["previous_until"] > self._db.now_ms():
            sealed.append(kept["previous"])
        return [self._opened(tenant_id, part) for part in sealed]

    def _written(self, unit: Unit[Mapping[str, Any]]) -> Mapping[str, Any]:
        try:
            return self._db.write(unit)
        except (
            IntegrityError
        ):  # where writers do not wait for each other: somebody has just made the tenant's first secret
            return self._db.write(unit)

    def _found(self, connection: Connection, tenant_id: str) -> dict[str, Any]:
        row = connection.execute(_query(tenant_id).with_for_update()).mappings().one_or_none()
        if row is not None:
            return dict(row)
        made = {
            "tenant_id": tenant_id,
            "sealed": self._sealed(tenant_id),
            "previous": None,
            "previous_until": 0,
            "version": 1,
            "created_at": self._db.now_ms(),
        }
        connection.execute(insert(t.callback_secret), made)
        return made

    def _sealed(self, tenant_id: str) -> bytes:
        return self._vault.seal(tenant_id, _NAME, {"secret": new_secret()})

    def _opened(self, tenant_id: str, sealed: bytes) -> str:
        try:
            return self._vault.open(tenant_id, _NAME, bytes(sealed))["secret"]
        except PlatformFailure as error:
            raise Unavailable(error.message) from None

    def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        overlapping = row["previous"] is not None and row["previous_until"] > self._db.now_ms()
        return {
            "secret": self._opened(row["tenant_id"], row["sealed"]),
            "version": row["version"],
            "created_at": to_rfc3339(row["created_at"]),
            "previous_until": to_rfc3339(row["previous_until"]) if overlapping else None,
        }


def _mine(tenant_id: str) -> Any:
    return t.callback_secret.c.tenant_id == tenant_id


def _query(tenant_id: str) -> Any:
    return select(t.callback_secret).where(_mine(tenant_id))
