"""How a stored user becomes an :class:`Actor`, always from what the database says now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, or_, select

from cloche.db import epoch, tables
from cloche.domain.names import fold
from cloche.domain.permissions import EVERYTHING, Actor, permissions_of
from cloche.errors import Conflict, NotFound, Unauthenticated

SEEN_MS = 60_000  # "last used" and "last seen" are written at most this often
_LONGEST_NAME = 64

_user, _tenant, _held, _role = tables.user.c, tables.tenant.c, tables.user_role.c, tables.role.c
_given = and_(_held.user_id == _user.id, _held.tenant_id == _tenant.id)
_own = and_(_role.tenant_id == _held.tenant_id, _role.name == _held.role)
# Built once: this one runs on every request. Each of its tables is asked by its primary key.
_IN_TENANT = (
    select(
        _user.username,
        _user.platform_admin,
        _user.disabled,
        _tenant.suspended,
        _held.role,
        _role.permissions,
    )
    .select_from(tables.user)
    .join(tables.tenant, _tenant.id == bindparam("tenant_id"))
    .outerjoin(tables.user_role, _given)
    .outerjoin(tables.role, _own)
    .where(_user.id == bindparam("user_id"))
)
# Where somebody who names no tenant is: the first of theirs that is not suspended.
_HOME = (
    select(_held.tenant_id)
    .join(tables.tenant, _tenant.id == _held.tenant_id)
    .where(_held.user_id == bindparam("user_id"))
    .order_by(_tenant.suspended, _held.tenant_id)
    .limit(1)
)
_FIRST = select(_tenant.id).order_by(_tenant.id).limit(1)
_CHOSEN = (
    select(_tenant.id)
    .select_from(tables.user)
    .join(tables.tenant, or_(_tenant.name == bindparam("asked"), _tenant.id == bindparam("asked")))
    .outerjoin(tables.user_role, _given)
    .where(_user.id == bindparam("user_id"), or_(_held.role.is_not(None), _user.platform_admin))
    .limit(1)
)


@dataclass(frozen=True)
class Origin:
    """Where a request came from; becomes part of its actor. ``tenant`` is the one it asks for, by name or id (``X-Cloche-Tenant``)."""

    ip: str | None = None
    request_id: str | None = None
    tenant: str | None = None


def digest(secret: str) -> str:
    """Hex SHA-256, as sessions and tokens are stored: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def actor_of(connection: Connection, user_id: str, tenant_id: str | None, origin: Origin) -> Actor:
    """The user with the roles held now in ``tenant_id``: one SELECT by primary keys, however many roles there are.

    None is the user's first tenant that is not suspended. Platform administrators hold every permission in every tenant. What the request
    asks for is not looked at: see :func:`chosen`.

    Raises:
        Unauthenticated: the account is disabled or has no role there (``account-disabled``), or the tenant is suspended
            (``tenant-suspended``) and the user no platform administrator.
    """
    home = tenant_id or connection.scalar(_HOME, {"user_id": user_id}) or connection.scalar(_FIRST)
    rows = connection.execute(_IN_TENANT, {"user_id": user_id, "tenant_id": home}).all()
    if not rows or rows[0].disabled or not (rows[0].role or rows[0].platform_admin):
        raise Unauthenticated("The account is disabled.", code="account-disabled")
    first = rows[0]
    if first.suspended and not first.platform_admin:
        raise Unauthenticated("The tenant is suspended. Ask the platform's administrators.", code="tenant-suspended")
    roles = frozenset(row.role for row in rows if row.role)
    own = tuple(sorted({name for row in rows if row.permissions for name in row.permissions}))
    return Actor(
        user_id=user_id,
        username=first.username,
        tenant_id=str(home),
        permissions=EVERYTHING if first.platform_admin else permissions_of(roles, own),
        roles=roles,
        platform_admin=first.platform_admin,
        ip=origin.ip,
        request_id=origin.request_id,
        tenant_suspended=first.suspended,
    )


class TenantUnknown(NotFound):
    """There is no such tenant, or the credential is not good for it. Whose it is, is known: ``user_id``, and ``token_id`` of a token."""

    def __init__(self, user_id: str, token_id: str | None) -> None:
        super().__init__(
            "X-Cloche-Tenant names no tenant that this credential is good for; GET /me lists yours. A token belongs to one.",
            code="tenant-unknown",
        )
        self.user_id = user_id
        self.token_id = token_id


def chosen(
    connection: Connection, user_id: str, tenant_id: str | None, origin: Origin, *, token_id: str | None = None
) -> str | None:
    """The tenant's id for a request of the user: the one that it asks for, or else ``tenant_id``. With a token it has to be that one.

    Raises:
        TenantUnknown: there is no such tenant, it is none of the user's, or it is another than the token's.
    """
    if origin.tenant is None:
        return tenant_id
    asked = fold(origin.tenant.strip())
    known = len(asked) <= _LONGEST_NAME and asked.isascii() and asked.isprintable()
    found = connection.scalar(_CHOSEN, {"user_id": user_id, "asked": asked}) if known else None
    if found is None or (token_id is not None and found != tenant_id):
        raise TenantUnknown(user_id, token_id)
    return str(found)


def refuse_suspended(actor: Actor) -> None:
    """For what begins work. Only platform administrators get so far in such a tenant.

    Raises:
        Conflict: the actor's tenant is suspended (``tenant-suspended``).
    """
    if actor.tenant_suspended:
        raise Conflict("The tenant is suspended: no job is accepted until it is resumed.", code="tenant-suspended")


def changed(connection: Connection, *, user_id: str | None = None, tenant_id: str | None = None) -> None:  # noqa: ARG001
    """Every change of what :func:`actor_of` or :func:`chosen` reads calls this in its transaction, after its statements: an account, its
    roles or its platform administration, its sessions and tokens (``user_id``), a role of the tenant's own, or the tenant itself
    (``tenant_id``). Every process forgets with its next request whom it remembers: see :mod:`cloche.services.actor_cache`.
    """
    epoch.move(connection)
