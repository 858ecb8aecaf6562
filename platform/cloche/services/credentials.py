"""What sessions, tokens and passwords have in common: the stores they go by, and who acts before anybody is known."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, or_, select, update

from cloche.config import Settings
from cloche.db import tables
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.permissions import Actor, system_actor
from cloche.errors import Unauthenticated
from cloche.services.actor_cache import ActorCache, Known
from cloche.services.actors import SEEN_MS, Origin, actor_of
from cloche.services.lockout import Lockout
from cloche.services.passwords import PasswordVault

DEFAULT_TENANT = "default"


class Credentials:
    """Base of the parts of :class:`cloche.services.access.AccessService`. Safe from any thread."""

    def __init__(
        self,
        db: Database,
        audit: AuditLog,
        settings: Settings,
        *,
        vault: PasswordVault | None = None,
        lockout: Lockout | None = None,
    ) -> None:
        self._db = db
        self._audit = audit
        self._settings = settings
        # Who waits keeps a thread that answers requests: most of them are for others.
        waiting = min(settings.signin.waiting, max(1, settings.server.threads // 4))
        self._vault = vault or PasswordVault(waiting=waiting)
        self._lockout = lockout or Lockout()
        self._actors = ActorCache(db)
        self._default_tenant: str | None = None

    def default_tenant(self) -> str:
        """The id of tenant ``default``; there once ``bootstrap`` has run."""
        if self._default_tenant is None:
            query = select(tables.tenant.c.id).where(tables.tenant.c.name == DEFAULT_TENANT)
            self._default_tenant = self._db.read(lambda connection: connection.execute(query).scalar_one())
        return self._default_tenant

    def _anonymous(self, origin: Origin) -> Actor:
        return replace(system_actor(self.default_tenant(), "anonymous"), ip=origin.ip, request_id=origin.request_id)

    def _still(self, connection: Connection, actor: Actor, *, lock: bool = False) -> Actor:
        """The actor with what is left to them at this moment, if the credential that they came with is still good. ``lock``: what would end it
        waits until the transaction ends, and finds what the transaction made.

        Raises:
            Unauthenticated: session or token have ended, or the account may not come in any more.
        """
        user, token, session = tables.user.c, tables.token.c, tables.session.c
        queries = (
            [select(user.id).where(user.id == actor.user_id)] if lock else []
        )  # the account first, as whoever ends it does
        if actor.token_id is not None:
            live = or_(token.expires_at.is_(None), token.expires_at > self._db.now_ms())
            queries.append(select(token.id).where(token.id == actor.token_id, token.revoked_at.is_(None), live))
        elif actor.session_id is not None:
            queries.append(select(session.id).where(session.handle == actor.session_id))
        why = "the actor's own credential, in whichever tenant it was made"
        for one in queries:
            query = one.execution_options(across_tenants=why)
            if connection.scalar(query.with_for_update(read=True) if lock else query) is None:
                raise Unauthenticated("The session or token has ended meanwhile.", code="credential-ended")
        now = actor_of(connection, actor.user_id, actor.tenant_id, Origin())
        return replace(actor, permissions=actor.permissions & now.permissions)

    def _seen(self, known: Known, key: Hashable, mark: int | None, now: int, column: Any, stored_id: str) -> None:
        """Write now and then that a credential was used. Nobody waits for it: losing the last minute of "last used" harms nobody."""
        often = SEEN_MS if known.idle is None else min(SEEN_MS, known.idle // 4)
        if known.seen_at is None or known.seen_at < now - often:
            self._actors.put(key, mark, known.seen(now))
            statement = update(column.table).where(column.table.c.id == stored_id).values({column.name: now})
            statement = statement.execution_options(across_tenants="the credential that has just been proved")
            self._db.submit(lambda connection: connection.execute(statement))
