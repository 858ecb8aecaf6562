"""Sessions of people in browsers: kept on the server, where they end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cloche.clock import to_rfc3339, uuid7
from cloche.db import scope, tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Conflict, Forbidden, NotFound, Unauthenticated
from cloche.services.actor_cache import Known
from cloche.services.actors import Origin, actor_of, changed, chosen, digest
from cloche.services.credentials import Credentials

MAX_SESSIONS = 50  # of one user; a further one ends the oldest
_AGENT = 200  # characters kept of what a browser calls itself
_session = tables.session
_BY_ID = select(_session).where(_session.c.id == bindparam("id"))


@dataclass(frozen=True)
class SignedIn:
    """A session just opened. ``secret`` goes into the cookie and is stored nowhere."""

    secret: str
    actor: Actor


class Sessions(Credentials):
    """The part of :class:`cloche.services.access.AccessService` that opens, finds, lists and ends sessions."""

    def resume(self, secret: str, origin: Origin) -> Actor | None:
        """The actor of a session cookie's secret, or None when the session has ended: by itself, by hand, or with its user."""
        session_id, now = digest(secret), self._db.now_ms()
        key, mark = ("session", session_id, origin.tenant), self._actors.mark()
        known = self._actors.get(key, mark, now)
        if known is None:
            found = self._db.read(lambda connection: self._found(connection, session_id, origin))
            if found is None or not found.lives(now):
                return None
            known = found
            self._actors.put(key, mark, known)
        self._seen(known, key, mark, now, _session.c.last_seen_at, session_id)
        return replace(known.actor, ip=origin.ip, request_id=origin.request_id)

    @scope.across_tenants("one's own sessions, in whichever tenant they are")
    def list_sessions(self, actor: Actor) -> list[dict[str, Any]]:
        """The actor's sessions, newest first; ``current`` is the one that asks.

        Raises:
            Forbidden: the actor came with a token that does not name ``token:manage``.
        """
        _check_may(actor)
        server, now = self._settings.server, self._db.now_ms()
        query = select(_session).where(
            _session.c.user_id == actor.user_id,
            _session.c.last_seen_at >= now - server.session_idle,
            _session.c.created_at > now - server.session_life,
        )
        rows = self._db.read(lambda connection: connection.execute(query.order_by(_session.c.handle.desc())).all())
        return [
            {
                "id": row.handle,
                "current": row.handle == actor.session_id,
                "created_at": to_rfc3339(row.created_at),
                "last_seen_at": to_rfc3339(row.last_seen_at),
                "expires_at": to_rfc3339(row.created_at + server.session_life),
                "ip": row.ip,
                "user_agent": row.user_agent,
            }
            for row in rows
        ]

    @scope.across_tenants("one's own sessions, in whichever tenant they are")
    def end_session(self, actor: Actor, handle: str) -> None:
        """End one of the actor's sessions.

        Raises:
            NotFound: no such session of this actor.
            Forbidden: see :meth:`list_sessions`.
        """
        _check_may(actor)

        def unit(connection: Connection) -> None:
            mine = (_session.c.handle == handle, _session.c.user_id == actor.user_id)
            if not connection.execute(delete(_session).where(*mine)).rowcount:
                raise NotFound("There is no such session.")
            self._audit.record(connection, AuditEntry(actor, Action.SESSION_REVOKE, f"session:{handle}"))
            changed(connection, user_id=actor.user_id)

        self._db.write(unit)

    @scope.across_tenants("one's own sessions, in whichever tenant they are")
    def end_other_sessions(self, actor: Actor) -> int:
        """End all of the actor's sessions but the one that asks; how many there were.

        Raises:
            Forbidden: see :meth:`list_sessions`.
        """
        _check_may(actor)

        def unit(connection: Connection) -> int:
            ended = _end_all(connection, actor.user_id, but=actor.session_id)
            if ended:
                entry = AuditEntry(actor, Action.SESSION_REVOKE, f"user:{actor.user_id}", details={"count": ended})
                self._audit.record(connection, entry)
            return ended

        return self._db.write(unit)

    @scope.across_tenants("what one goes to is another of one's own tenants")
    def enter(self, actor: Actor, tenant: str) -> None:
        """Let the session that asks act in another of its user's tenants, by name or id, from now on.

        Raises:
            Forbidden: there is no session: a token belongs to one tenant (``needs-session``).
            NotFound: it is none of the user's (``tenant-unknown``).
            Conflict: it is suspended (``tenant-suspended``).
        """
        if actor.session_id is None:
            raise Forbidden("A token belongs to one tenant. Sign in to choose another.", code="needs-session")

        def unit(connection: Connection) -> None:
            tenant_id = chosen(connection, actor.user_id, None, Origin(tenant=tenant))
            try:
                there = actor_of(connection, actor.user_id, tenant_id, Origin(actor.ip, actor.request_id))
            except Unauthenticated as refused:
                raise Conflict(refused.detail, code=refused.code) from None
            mine = (_session.c.handle == actor.session_id, _session.c.user_id == actor.user_id)
            connection.execute(update(_session).where(*mine).values(tenant_id=tenant_id))
            details = {"session": actor.session_id, "from": actor.tenant_id}
            before, after = ({"tenant": each} for each in (actor.tenant_id, tenant_id))
            entry = AuditEntry(
                there, Action.SESSION_ENTER, f"tenant:{tenant_id}", before=before, after=after, details=details
            )
            self._audit.record(connection, entry)
            changed(connection, user_id=actor.user_id)

        self._db.write(unit)

    @scope.across_tenants("one's own sessions, in whichever tenant they are")
    def sign_out(self, actor: Actor) -> None:
        """End the actor's session; nothing happens when it has ended already."""

        def unit(connection: Connection) -> None:
            if connection.execute(delete(_session).where(_session.c.handle == actor.session_id)).rowcount:
                self._audit.record(connection, AuditEntry(actor, Action.SESSION_DELETE, f"user:{actor.user_id}"))
                changed(connection, user_id=actor.user_id)

        self._db.write(unit)

    def _open(self, connection: Connection, actor: Actor, secret: str, agent: str | None) -> Actor:
        """Store a session of the actor, whose secret is new; the actor as that session's. Those that have lapsed are removed."""
        now, handle = self._db.now_ms(), uuid7()
        connection.execute(delete(_session).where(_session.c.last_seen_at < now - self._settings.server.session_idle))
        connection.execute(
            insert(_session).values(
                id=digest(secret),
                handle=handle,
                user_id=actor.user_id,
                tenant_id=actor.tenant_id,
                created_at=now,
                last_seen_at=now,
                ip=actor.ip,
                user_agent=_shown(agent),
            )
        )
        mine = _session.c.user_id == actor.user_id
        oldest = select(_session.c.id).where(mine).order_by(_session.c.handle.desc()).offset(MAX_SESSIONS)
        if surplus := connection.scalars(oldest).all():
            connection.execute(delete(_session).where(_session.c.id.in_(surplus)))
            changed(connection, user_id=actor.user_id)
        return replace(actor, session_id=handle)

    @scope.across_tenants("a session is found by the digest of its secret; who its user is decides the tenant")
    def _found(self, connection: Connection, session_id: str, origin: Origin) -> Known | None:
        row = connection.execute(_BY_ID, {"id": session_id}).first()
        if row is None:
            return None
        try:
            tenant_id = chosen(connection, row.user_id, row.tenant_id, origin)
            actor = actor_of(connection, row.user_id, tenant_id, Origin())
        except Unauthenticated:
            return None
        server = self._settings.server
        ends = row.created_at + server.session_life
        return Known(replace(actor, session_id=row.handle), row.last_seen_at, idle=server.session_idle, ends_at=ends)


def new_secret() -> str:
    """256 random bits for a cookie."""
    return secrets.token_urlsafe(32)


def _end_all(connection: Connection, user_id: str, *, but: str | None = None) -> int:
    """End the user's sessions (``but`` one, by its handle), for every process; how many there were."""
    those = (
        _session.c.user_id == user_id if but is None else (_session.c.user_id == user_id) & (_session.c.handle != but)
    )
    ended = int(connection.execute(delete(_session).where(those)).rowcount)
    if ended:
        changed(connection, user_id=user_id)
    return ended


def _check_may(actor: Actor) -> None:
    if actor.token_id is not None and not actor.may(Permission.TOKEN_MANAGE):
        raise Forbidden("A token sees and ends sessions only where its scopes name token:manage.")


def _shown(agent: str | None) -> str | None:
    text = "".join(character for character in agent or "" if character.isprintable())
    return text[:_AGENT] or None
