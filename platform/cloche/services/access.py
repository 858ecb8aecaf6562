"""Who may ask: tenants, users, sessions and tokens. The only place where an :class:`Actor` of a person is made."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select

from cloche.clock import uuid7
from cloche.db import scope, tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action, Outcome
from cloche.domain.names import skeleton
from cloche.domain.permissions import (
    ADMIN,
    Actor,
    Kind,
    Permission,
    system_actor,
)
from cloche.errors import Invalid, SettingsError, Unauthenticated
from cloche.services import members
from cloche.services.actors import Origin
from cloche.services.credentials import DEFAULT_TENANT
from cloche.services.new_passwords import NewPasswords
from cloche.services.tokens import Tokens


@dataclass(frozen=True)
class FirstStart:
    """What :meth:`AccessService.bootstrap` did. ``password`` is set once: when it was generated just now."""

    created: bool
    password: str | None


class AccessService(NewPasswords, Tokens):
    """Accounts and credentials. Every method may be called from any thread."""

    # First start

    def bootstrap(self) -> FirstStart:
        """Make tenant ``default`` and user ``admin`` unless they are there. Any number of processes may call it at once.

        Raises:
            SettingsError: ``CLOCHE_ADMIN_PASSWORD`` cannot be used.
        """
        if self._db.read(_any_user):
            return FirstStart(False, None)
        given = self._settings.admin.password
        password = given.get_secret_value() if given else secrets.token_urlsafe(18)
        try:
            self._check_password(password)
        except Invalid as error:
            raise SettingsError(f"CLOCHE_ADMIN_PASSWORD: {error.problems[0].detail}") from None
        encoded = self._vault.hash(password)
        now = self._db.now_ms()

        def unit(connection: Connection) -> bool:
            if _any_user(connection):
                return False
            tenant_id, user_id = uuid7(), uuid7()
            actor = system_actor(tenant_id, "bootstrap")
            connection.execute(
                insert(tables.tenant).values(
                    id=tenant_id, name=DEFAULT_TENANT, skeleton=skeleton(DEFAULT_TENANT), created_at=now
                )
            )
            named = {"name": DEFAULT_TENANT}
            self._audit.record(
                connection,
                AuditEntry(actor, Action.TENANT_CREATE, f"tenant:{tenant_id}", after=named, details=named),
            )
            row: dict[str, Any] = {
                "id": user_id,
                "username": ADMIN,
                "kind": Kind.PERSON.value,
                "password_hash": encoded,
            }
            row |= {"platform_admin": True, "disabled": False, "created_at": now}
            members.insert_user(connection, self._audit, actor, row, [ADMIN])
            return True

        created = self._db.write(unit)
        return FirstStart(created, password if created and given is None else None)

    # People

    def encode_password(self, password: str, username: str) -> str:
        """The hash of a new password of that user.

        Raises:
            Invalid: it breaks a rule.
            Unavailable: too many hashes are being computed already.
        """
        self._check_password(password, username=username)
        return self._vault.hash(password)

    @scope.across_tenants("one's own tenants")
    def tenants(self, actor: Actor) -> list[dict[str, Any]]:
        """Those the actor has roles in, the first joined first; of a token only its own."""
        tenant, held = tables.tenant, tables.user_role
        query = (
            select(tenant.c.id, tenant.c.name, tenant.c.suspended, held.c.role)
            .join(held, held.c.tenant_id == tenant.c.id)
            .where(held.c.user_id == actor.user_id)
            .order_by(tenant.c.id, held.c.role)
        )
        if actor.token_id is not None:
            query = query.where(tenant.c.id == actor.tenant_id)
        found: dict[str, dict[str, Any]] = {}
        for row in self._db.read(lambda connection: connection.execute(query).all()):
            empty = {"id": row.id, "name": row.name, "suspended": row.suspended, "roles": []}
            found.setdefault(row.id, empty)["roles"].append(row.role)
        return list(found.values())

    @scope.across_tenants("the credential itself is looked at, wherever it is")
    def still_may(self, actor: Actor, permission: Permission) -> bool:
        """Whether the credential that the actor came with is good, and gives the permission, at this moment. For what goes on for long."""

        def unit(connection: Connection) -> bool:
            try:
                return self._still(connection, actor).may(permission)
            except Unauthenticated:
                return False

        return self._db.read(unit)

    # What was refused

    def record_denied(self, actor: Actor, target: str, reason: str, count: int = 1) -> None:
        """Audit ``count`` refusals of a signed-in actor as one event. ``target`` names the act, such as ``POST /api/v1/jobs``."""
        details = {"count": count} if count > 1 else {}
        entry = AuditEntry(
            actor, Action.ACCESS_DENY, target[:255], Outcome.DENIED, reason=reason[:255], details=details
        )
        self._db.write(lambda connection: self._audit.record(connection, entry))

    def record_anonymous(self, address: str, count: int) -> None:
        """Audit ``count`` requests of one address without a valid credential, as one event."""
        actor = self._anonymous(Origin(ip=address))
        entry = AuditEntry(
            actor, Action.ACCESS_DENY, "api", Outcome.DENIED, reason="no valid credential", details={"count": count}
        )
        self._db.write(lambda connection: self._audit.record(connection, entry))


def _any_user(connection: Connection) -> bool:
    return bool(connection.execute(select(func.count()).select_from(tables.user)).scalar())
