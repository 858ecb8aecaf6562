"""Tokens for programs: opaque, shown once, stored as a hash, read from the database on every request."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from cloche.clock import is_uuid7, now_ms, to_rfc3339, uuid7
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, Permission
from cloche.errors import Forbidden, Invalid, NotFound, Problem, Unauthenticated
from cloche.services.actors import SEEN_MS, Origin, actor_of, digest

TOKEN_PREFIX = "cloche_pat_"  # noqa: S105 - marks a token, so that scanners find a leaked one
_LONGEST_MS = 3_650 * 86_400_000
# Built once: this one runs on every request of every program.
_BY_ID = select(tables.token).where(tables.token.c.id == bindparam("id"))


class Tokens:
    """The part of :class:`cloche.services.access.AccessService` that makes, ends and proves tokens."""

    def __init__(self, db: Database, audit: AuditLog) -> None:
        self._db = db
        self._audit = audit

    def create_token(
        self, actor: Actor, name: str, scopes: Sequence[str] | None = None, expires_in_ms: int | None = None
    ) -> dict[str, Any]:
        """A new token of the actor; its text is in the answer, this once.

        Raises:
            Invalid: a scope does not exist, or the life is not positive.
            Forbidden: a scope allows what the actor may not do, or the actor came with a token: a leaked one must not be able to outlive
                its revocation by way of a child.
        """
        if actor.token_id is not None:
            raise Forbidden("A token cannot make tokens. Sign in, or send user name and password (HTTP Basic).")
        if expires_in_ms is not None and expires_in_ms > _LONGEST_MS:
            raise Invalid("The token would live too long.", problems=[Problem("/expires_in", "is at most 3650 days")])
        if expires_in_ms is not None and expires_in_ms <= 0:
            raise Invalid(
                "The token would never be valid.", problems=[Problem("/expires_in", "has to be longer than 0")]
            )
        limited = _check_scopes(actor, scopes)
        token_id, secret, now = uuid7(), secrets.token_urlsafe(32), now_ms()

        def unit(connection: Connection) -> dict[str, Any]:
            row: dict[str, Any] = {
                "id": token_id,
                "tenant_id": actor.tenant_id,
                "user_id": actor.user_id,
                "name": name,
                "scopes": limited,
                "created_at": now,
                "expires_at": now + expires_in_ms if expires_in_ms is not None else None,
                "last_used_at": None,
                "revoked_at": None,
            }
            connection.execute(insert(tables.token).values(secret_sha256=digest(secret), **row))
            details = {"name": name, "scopes": limited, "expires_at": to_rfc3339(row["expires_at"])}
            self._audit.record(connection, AuditEntry(actor, Action.TOKEN_CREATE, f"token:{token_id}", details=details))
            return row

        return _token_json(self._db.write(unit)) | {"token": f"{TOKEN_PREFIX}{token_id}_{secret}"}

    def list_tokens(self, actor: Actor) -> list[dict[str, Any]]:
        """The actor's tokens in this tenant, newest first, without their secrets."""
        token = tables.token
        query = (
            select(token)
            .where(token.c.user_id == actor.user_id, token.c.tenant_id == actor.tenant_id)
            .order_by(token.c.id.desc())
        )
        return [_token_json(row._mapping) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def revoke_token(self, actor: Actor, token_id: str) -> None:
        """End one of the actor's tokens; safe to repeat.

        Raises:
            NotFound: no such token of this actor.
        """
        token, now = tables.token, now_ms()

        def unit(connection: Connection) -> None:
            mine = (token.c.id == token_id, token.c.user_id == actor.user_id, token.c.tenant_id == actor.tenant_id)
            row = connection.execute(select(token.c.revoked_at).where(*mine)).first()
            if row is None:
                raise NotFound("There is no such token.")
            if row.revoked_at is None:
                connection.execute(update(token).where(*mine).values(revoked_at=now))
                self._audit.record(connection, AuditEntry(actor, Action.TOKEN_REVOKE, f"token:{token_id}"))

        self._db.write(unit)

    def authenticate_token(self, text: str, origin: Origin) -> Actor:
        """The actor of a bearer token, read anew on each call, so that a change acts on the next request.

        Raises:
            Unauthenticated: code ``token-malformed``, ``token-invalid``, ``token-revoked``, ``token-expired`` or ``account-disabled``.
        """
        token_id, _, secret = text.removeprefix(TOKEN_PREFIX).partition("_")
        if not text.startswith(TOKEN_PREFIX) or not is_uuid7(token_id) or not secret.isascii():
            raise Unauthenticated("The token is malformed.", code="token-malformed")
        now = now_ms()

        def unit(connection: Connection) -> tuple[int | None, Actor]:
            row = connection.execute(_BY_ID, {"id": token_id}).first()
            if not hmac.compare_digest(row.secret_sha256 if row else "", digest(secret)) or row is None:
                raise Unauthenticated("There is no such token.", code="token-invalid")
            if row.revoked_at is not None:
                raise Unauthenticated("The token has been revoked.", code="token-revoked")
            if row.expires_at is not None and row.expires_at <= now:
                raise Unauthenticated("The token has expired.", code="token-expired")
            actor = actor_of(connection, row.user_id, row.tenant_id, origin)
            allowed = actor.permissions if row.scopes is None else actor.permissions & frozenset(row.scopes)
            return row.last_used_at, replace(
                actor,
                permissions=frozenset(allowed),
                token_id=token_id,
                platform_admin=actor.platform_admin and row.scopes is None,
            )

        used_at, actor = self._db.read(unit)
        if used_at is None or used_at < now - SEEN_MS:
            self._touch(tables.token.c.last_used_at, tables.token.c.id, token_id, now)
        return actor

    def _touch(self, column: Any, key: Any, value: str, now: int) -> None:
        # Nobody waits for it: losing the last minute of "last used" harms nobody.
        self._db.submit(
            lambda connection: connection.execute(update(column.table).where(key == value).values({column.name: now}))
        )


def _check_scopes(actor: Actor, scopes: Sequence[str] | None) -> list[str] | None:
    if scopes is None:
        # A token's own reach may be smaller than its user's; what it makes must not grow back.
        return None if actor.token_id is None else sorted(actor.permissions)
    for index, scope in enumerate(scopes):
        if scope not in list(Permission):
            raise Invalid(
                "There is no such permission.", problems=[Problem(f"/scopes/{index}", "GET /permissions lists all")]
            )
        if scope not in actor.permissions:
            raise Forbidden(f"You do not hold '{scope}' yourself.", code="grant-exceeds-own")
    return sorted(set(scopes))


def _token_json(row: Any) -> dict[str, Any]:
    times = ("created_at", "expires_at", "last_used_at", "revoked_at")
    return {"id": row["id"], "name": row["name"], "scopes": row["scopes"]} | {
        key: to_rfc3339(row[key]) for key in times
    }
