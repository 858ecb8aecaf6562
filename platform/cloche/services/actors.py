"""How a stored user becomes an :class:`Actor`, always from what the database says now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, select

from cloche.db import tables
from cloche.domain.permissions import Actor, permissions_of
from cloche.errors import Unauthenticated

SEEN_MS = 60_000  # "last used" and "last seen" are written at most this often


@dataclass(frozen=True)
class Origin:
    """Where a request came from; becomes part of its actor."""

    ip: str | None = None
    request_id: str | None = None


def digest(secret: str) -> str:
    """Hex SHA-256, as sessions and tokens are stored: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def actor_of(connection: Connection, user_id: str, tenant_id: str | None, origin: Origin) -> Actor:
    """The user with the roles held now, in ``tenant_id`` or else in the tenant first joined.

    Raises:
        Unauthenticated: the account is disabled or has no role left.
    """
    user, role = tables.user, tables.user_role
    query = (
        select(user.c.username, user.c.platform_admin, user.c.disabled, role.c.tenant_id, role.c.role)
        .join(role, role.c.user_id == user.c.id)
        .where(user.c.id == user_id)
        .order_by(role.c.tenant_id)
    )
    rows = connection.execute(query if tenant_id is None else query.where(role.c.tenant_id == tenant_id)).all()
    if not rows or rows[0].disabled:
        raise Unauthenticated("The account is disabled.", code="account-disabled")
    home = rows[0].tenant_id
    roles = frozenset(row.role for row in rows if row.tenant_id == home)
    return Actor(
        user_id=user_id,
        username=rows[0].username,
        tenant_id=home,
        permissions=permissions_of(roles),
        roles=roles,
        platform_admin=rows[0].platform_admin,
        ip=origin.ip,
        request_id=origin.request_id,
    )
