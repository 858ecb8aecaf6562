"""Who may ask: tenants, users, sessions and tokens. The only place where an :class:`Actor` of a person is made."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select

from cloche.clock import now_ms, to_rfc3339, uuid7
from cloche.config import Settings
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import (
    BUILTIN_ROLES,
    PERMISSION_TEXT,
    ROLE_TEXT,
    Actor,
    Permission,
    permissions_of,
    system_actor,
)
from cloche.errors import Conflict, Forbidden, Invalid, Problem, SettingsError, Unauthenticated
from cloche.services.actors import SEEN_MS, Origin, actor_of, digest
from cloche.services.lockout import Lockout
from cloche.services.passwords import MIN_PASSWORD, PasswordVault, check_password, check_username, fold_username
from cloche.services.tokens import Tokens

DEFAULT_TENANT = "default"
ADMIN = "admin"


@dataclass(frozen=True)
class FirstStart:
    """What :meth:`AccessService.bootstrap` did. ``password`` is set once: when it was generated just now."""

    created: bool
    password: str | None


@dataclass(frozen=True)
class SignedIn:
    """A session just opened. ``secret`` goes into the cookie and is stored nowhere."""

    secret: str
    actor: Actor


class AccessService(Tokens):
    """Accounts and credentials. Every method may be called from any thread; failed sign-ins are counted per process."""

    def __init__(
        self, db: Database, audit: AuditLog, settings: Settings, *, vault: PasswordVault | None = None
    ) -> None:
        super().__init__(db, audit)
        self._settings = settings
        self._vault = vault or PasswordVault()
        self._lockout = Lockout()
        self._default_tenant: str | None = None

    # First start

    def bootstrap(self) -> FirstStart:
        """Make tenant ``default`` and user ``admin`` unless they are there. Any number of processes may call it at once.

        Raises:
            SettingsError: ``CLOCHE_ADMIN_PASSWORD`` is too short.
        """
        if self._db.read(_any_user):
            return FirstStart(False, None)
        given = self._settings.admin.password
        password = given.get_secret_value() if given else secrets.token_urlsafe(18)
        try:
            check_password(password)
        except Invalid:
            raise SettingsError(f"CLOCHE_ADMIN_PASSWORD has to have at least {MIN_PASSWORD} characters") from None
        encoded = self._vault.hash(password)
        now = now_ms()

        def unit(connection: Connection) -> bool:
            if _any_user(connection):
                return False
            tenant_id, user_id = uuid7(), uuid7()
            actor = system_actor(tenant_id, "bootstrap")
            connection.execute(insert(tables.tenant).values(id=tenant_id, name=DEFAULT_TENANT, created_at=now))
            self._audit.record(
                connection,
                AuditEntry(actor, Action.TENANT_CREATE, f"tenant:{tenant_id}", details={"name": DEFAULT_TENANT}),
            )
            self._insert_user(connection, actor, user_id, ADMIN, encoded, [ADMIN], now, platform_admin=True)
            return True

        created = self._db.write(unit)
        return FirstStart(created, password if created and given is None else None)

    # Users and roles

    def create_user(self, actor: Actor, username: str, password: str, roles: Sequence[str]) -> dict[str, Any]:
        """A new user of the actor's tenant.

        Raises:
            Invalid: name, password or a role cannot be used.
            Forbidden: a role allows what the actor may not do.
            Conflict: the name is taken.
        """
        name = check_username(username)
        check_password(password)
        _check_grant(actor, roles)
        encoded = self._vault.hash(password)
        user_id, now = uuid7(), now_ms()

        def unit(connection: Connection) -> None:
            if connection.execute(select(tables.user.c.id).where(tables.user.c.username == name)).first():
                raise Conflict(f"The user name '{name}' is taken.", code="username-taken")
            self._insert_user(connection, actor, user_id, name, encoded, sorted(set(roles)), now)

        self._db.write(unit)
        return _user_json(user_id, name, sorted(set(roles)), False, False, now)

    def list_users(self, actor: Actor) -> list[dict[str, Any]]:
        """Users of the actor's tenant, oldest first."""

        def unit(connection: Connection) -> list[dict[str, Any]]:
            user, role = tables.user, tables.user_role
            rows = connection.execute(
                select(user, role.c.role)
                .join(role, role.c.user_id == user.c.id)
                .where(role.c.tenant_id == actor.tenant_id)
                .order_by(user.c.id, role.c.role)
            )
            found: dict[str, dict[str, Any]] = {}
            for row in rows:
                entry = found.setdefault(
                    row.id, _user_json(row.id, row.username, [], row.platform_admin, row.disabled, row.created_at)
                )
                entry["roles"].append(row.role)
            return list(found.values())

        return self._db.read(unit)

    @staticmethod
    def roles() -> list[dict[str, Any]]:
        """The built-in roles and what each allows."""
        return [
            {"name": name, "builtin": True, "summary": ROLE_TEXT[name], "permissions": sorted(allowed)}
            for name, allowed in BUILTIN_ROLES.items()
        ]

    @staticmethod
    def permissions() -> list[dict[str, str]]:
        """Every permission with one sentence on what it allows."""
        return [{"name": str(permission), "summary": PERMISSION_TEXT[permission]} for permission in Permission]

    # Sessions

    def sign_in(self, username: str, password: str, origin: Origin) -> SignedIn:
        """Check a password and open a session.

        Raises:
            Unauthenticated: name and password do not fit (which of them, nobody learns).
            RateLimited: too many failures.
        """
        actor = self.check_credentials(username, password, origin)
        secret = secrets.token_urlsafe(32)
        session_id, now = digest(secret), now_ms()
        actor = replace(actor, session_id=session_id)

        def unit(connection: Connection) -> None:
            session = tables.session
            lapsed = session.c.last_seen_at < now - self._settings.server.session_idle
            connection.execute(delete(session).where(lapsed))
            connection.execute(
                insert(session).values(
                    id=session_id,
                    user_id=actor.user_id,
                    tenant_id=actor.tenant_id,
                    created_at=now,
                    last_seen_at=now,
                    ip=origin.ip,
                )
            )
            self._audit.record(connection, AuditEntry(actor, Action.SESSION_CREATE, f"user:{actor.user_id}"))

        self._db.write(unit)
        return SignedIn(secret, actor)

    def check_credentials(self, username: str, password: str, origin: Origin) -> Actor:
        """The user whom name and password prove. Failures are audited and counted.

        Raises:
            Unauthenticated, RateLimited: see :meth:`sign_in`.
        """
        name, address = fold_username(username)[:64], origin.ip or "local"
        self._lockout.check(name, address)
        row = self._db.read(lambda connection: _user_by_name(connection, name))
        fits = self._vault.verify(row.password_hash if row else None, password)
        if row is None or not fits or row.disabled:
            self._lockout.failed(name, address)
            self._record_failed_sign_in(row, origin)
            raise Unauthenticated("User name and password do not fit.", code="bad-credentials")
        self._lockout.succeeded(name, address)
        return self._db.read(lambda connection: actor_of(connection, row.id, None, origin))

    def resume(self, secret: str, origin: Origin) -> Actor | None:
        """The actor of a session cookie's secret, or None when the session has ended."""
        session_id, now = digest(secret), now_ms()

        def unit(connection: Connection) -> tuple[int, Actor] | None:
            row = connection.execute(select(tables.session).where(tables.session.c.id == session_id)).first()
            if row is None or row.last_seen_at < now - self._settings.server.session_idle:
                return None
            try:
                return row.last_seen_at, replace(
                    actor_of(connection, row.user_id, row.tenant_id, origin), session_id=session_id
                )
            except Unauthenticated:
                return None

        found = self._db.read(unit)
        if found is None:
            return None
        seen_at, actor = found
        if seen_at < now - min(SEEN_MS, self._settings.server.session_idle // 4):
            self._touch(tables.session.c.last_seen_at, tables.session.c.id, session_id, now)
        return actor

    def sign_out(self, actor: Actor) -> None:
        """End the actor's session; nothing happens when it has ended already."""

        def unit(connection: Connection) -> None:
            gone = connection.execute(delete(tables.session).where(tables.session.c.id == actor.session_id))
            if gone.rowcount:
                self._audit.record(connection, AuditEntry(actor, Action.SESSION_DELETE, f"user:{actor.user_id}"))

        self._db.write(unit)

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

    def _record_failed_sign_in(self, row: Row[Any] | None, origin: Origin) -> None:
        # The name that was typed is not recorded: people type their password there.
        target = f"user:{row.id}" if row else "user:unknown"
        entry = AuditEntry(
            self._anonymous(origin), Action.SESSION_CREATE, target, Outcome.FAILED, reason="bad credentials"
        )
        self._db.write(lambda connection: self._audit.record(connection, entry))

    def default_tenant(self) -> str:
        """The id of tenant ``default``; there once :meth:`bootstrap` has run."""
        if self._default_tenant is None:
            query = select(tables.tenant.c.id).where(tables.tenant.c.name == DEFAULT_TENANT)
            self._default_tenant = self._db.read(lambda connection: connection.execute(query).scalar_one())
        return self._default_tenant

    def _anonymous(self, origin: Origin) -> Actor:
        return replace(system_actor(self.default_tenant(), "anonymous"), ip=origin.ip, request_id=origin.request_id)

    def _insert_user(
        self,
        connection: Connection,
        actor: Actor,
        user_id: str,
        name: str,
        encoded: str,
        roles: Sequence[str],
        now: int,
        *,
        platform_admin: bool = False,
    ) -> None:
        row = {"id": user_id, "username": name, "platform_admin": platform_admin, "disabled": False, "created_at": now}
        connection.execute(insert(tables.user).values(password_hash=encoded, **row))
        rows = [{"user_id": user_id, "tenant_id": actor.tenant_id, "role": role} for role in roles]
        connection.execute(insert(tables.user_role), rows)
        # Not the name: the record outlives the person, and they may ask to be forgotten.
        details = {"roles": list(roles), "platform_admin": platform_admin}
        self._audit.record(connection, AuditEntry(actor, Action.USER_CREATE, f"user:{user_id}", details=details))


def _any_user(connection: Connection) -> bool:
    return bool(connection.execute(select(func.count()).select_from(tables.user)).scalar())


def _user_by_name(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(select(tables.user).where(tables.user.c.username == name)).first()


def _check_grant(actor: Actor, roles: Sequence[str]) -> None:
    if not roles:
        raise Invalid("A user needs a role.", problems=[Problem("/roles", "name at least one role")])
    for index, role in enumerate(roles):
        if role not in BUILTIN_ROLES:
            known = ", ".join(BUILTIN_ROLES)
            raise Invalid("There is no such role.", problems=[Problem(f"/roles/{index}", f"one of: {known}")])
        if missing := permissions_of(frozenset({role})) - actor.permissions:
            raise Forbidden(
                f"The role '{role}' allows what you may not do: {', '.join(sorted(missing))}.", code="grant-exceeds-own"
            )


def _user_json(
    user_id: str, name: str, roles: Iterable[str], platform_admin: bool, disabled: bool, created_at: int
) -> dict[str, Any]:
    return {
        "id": user_id,
        "username": name,
        "roles": list(roles),
        "platform_admin": platform_admin,
        "disabled": disabled,
        "created_at": to_rfc3339(created_at),
    }
