"""How a stored user becomes an :class:`Actor`, always from what the database says now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from cloche.db import tables
from cloche.domain.permissions import Actor, permissions_of
from cloche.errors import Unauthenticated

SEEN_MS = 60_000  # "last used" and "last seen" are written at most this often

# Built once: one of them runs on every request.
_ROLES = (
    select(
        tables.user.c.username,
        tables.user.c.platform_admin,
        tables.user.c.disabled,
        tables.user_role.c.tenant_id,
        tables.user_role.c.role,
    )
    .join(tables.user_role, tables.user_role.c.user_id == tables.user.c.id)
    .where(tables.user.c.id == bindparam("user_id"))
    .order_by(tables.user_role.c.tenant_id)
)
_ROLES_IN_TENANT = _ROLES.where(tables.user_role.c.tenant_id == bindparam("tenant_id"))


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
    query = _ROLES if tenant_id is None else _ROLES_IN_TENANT
    rows = connection.execute(query, {"user_id": user_id, "tenant_id": tenant_id}).all()
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
