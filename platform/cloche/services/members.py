"""What holds for every change of people: one at a time in a tenant, by somebody who may do it at that moment, within what they hold
themselves, and never without an administrator left."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, update

from cloche.clock import is_uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.domain.events import Action
from cloche.domain.names import skeleton
from cloche.domain.permissions import ADMIN, BUILTIN_ROLES, EVERYTHING, Actor, Kind, Permission, beyond, permissions_of
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from cloche.services.actors import Origin, actor_of, changed

NO_PASSWORD = "!"  # noqa: S105 - no hash is so short: nothing fits it
MAX_ROLES_HELD = 32  # by one user in one tenant: a request reads them all
_SHOWN = 5
_user, _held = t.user.c, t.user_role.c


def begin(connection: Connection, actor: Actor, permission: Permission, tenants: Iterable[str] = ()) -> Actor:
    """Wait for one's turn in the actor's tenant and ``tenants``, and look again who the actor is: what they may do may have been taken from
    them since the request began. Returns the actor with what is left of that. Rows of accounts are locked after this, never before it.

    Raises:
        Forbidden: the permission is gone.
        Unauthenticated: the account has been disabled, or removed from the tenant.
    """
    tenant = t.tenant.c.id
    # Not against those who only refer to the row: jobs are accepted meanwhile.
    turns = select(tenant).where(tenant.in_({actor.tenant_id, *tenants})).order_by(tenant)
    connection.execute(turns.with_for_update(key_share=True)).all()
    now = actor_of(connection, actor.user_id, actor.tenant_id, Origin())
    still = replace(actor, permissions=actor.permissions & now.permissions)
    if not still.may(permission):
        raise Forbidden(f"This needs the permission {permission}.")
    return still


def check_everywhere(actor: Actor) -> None:
    """
    Raises:
        Forbidden: the actor may not reach beyond their tenant.
    """
    if not actor.may(Permission.TENANT_MANAGE):
        raise Forbidden(f"To reach users of every tenant needs the permission {Permission.TENANT_MANAGE}.")


def _visible(actor: Actor, everywhere: bool) -> ColumnElement[bool]:
    if everywhere:
        check_everywhere(actor)
        return _user.deleted_at.is_(None)
    mine = select(_held.user_id).where(_held.user_id == _user.id, _held.tenant_id == actor.tenant_id)
    return and_(mine.exists(), _user.deleted_at.is_(None))


def account(
    connection: Connection, actor: Actor, user_id: str, *, everywhere: bool = False, lock: bool = False
) -> dict[str, Any]:
    """The row of an account with a role in the actor's tenant; ``everywhere``: or in another, or in none. ``lock``: nobody else changes it
    until the transaction ends.

    Raises:
        NotFound: there is none.
        Forbidden: ``everywhere``, and the actor does not manage tenants.
    """
    row = None
    if is_uuid7(user_id):
        query = select(t.user).where(_user.id == user_id, _visible(actor, everywhere))
        row = connection.execute(query.with_for_update(key_share=True) if lock else query).mappings().one_or_none()
    if row is None:
        raise NotFound("There is no such user.")
    return dict(row)


def tenants_of(connection: Connection, user_id: str) -> set[str]:
    """Ids of the tenants in which the user has a role."""
    query = select(_held.tenant_id).where(_held.user_id == user_id).distinct()
    why = "what an account is allowed depends on all the tenants that it is in"
    return set(connection.scalars(query.execution_options(across_tenants=why)))


def roles_of(connection: Connection, user_id: str, tenant_id: str) -> list[str]:
    """By name; a user without any is not of the tenant."""
    query = select(_held.role).where(_held.user_id == user_id, _held.tenant_id == tenant_id)
    return sorted(connection.scalars(query))


def allowed(connection: Connection, tenant_id: str, roles: Collection[str]) -> dict[str, frozenset[Permission]]:
    """What each of the roles allows; one that is not there is left out."""
    role = t.role.c
    found = {name: BUILTIN_ROLES[name] for name in roles if name in BUILTIN_ROLES}
    if own := [name for name in roles if name not in BUILTIN_ROLES]:
        query = select(role.name, role.permissions).where(role.tenant_id == tenant_id, role.name.in_(own))
        found |= {row.name: permissions_of(frozenset(), tuple(row.permissions)) for row in connection.execute(query)}
    return found


def holds(connection: Connection, row: Mapping[str, Any], tenant_id: str) -> frozenset[Permission]:
    """What the account's holder may do in the tenant, if it is not disabled."""
    if row["platform_admin"]:
        return EVERYTHING
    return frozenset().union(*allowed(connection, tenant_id, roles_of(connection, row["id"], tenant_id)).values())


def check_within(actor: Actor, held: Collection[Permission]) -> None:
    """
    Raises:
        Forbidden: the actor would change somebody who may do more than they (``user-exceeds-own``).
    """
    if missing := beyond(actor, frozenset(held)):
        raise Forbidden(f"This user may do what you may not: {listed(missing)}.", code="user-exceeds-own")


def check_held(actor: Actor, given: frozenset[Permission], what: str) -> None:
    """
    Raises:
        Forbidden: who gets ``what`` could do more than the actor may (``grant-exceeds-own``).
    """
    if missing := beyond(actor, given):
        raise Forbidden(f"{what} allows what you may not do: {listed(missing)}.", code="grant-exceeds-own")


def check_grant(connection: Connection, actor: Actor, roles: Sequence[str]) -> list[str]:
    """The roles, sorted and each once.

    Raises:
        Invalid: none, too many, or one that the actor's tenant does not have.
        Forbidden: one allows what the actor may not do.
    """
    if not roles:
        raise Invalid("A user needs a role.", problems=[Problem("/roles", "name at least one role")])
    if len(set(roles)) > MAX_ROLES_HELD:
        raise Invalid("That is too many.", problems=[Problem("/roles", f"a user has at most {MAX_ROLES_HELD} roles")])
    found = allowed(connection, actor.tenant_id, set(roles))
    for index, role in enumerate(roles):
        if role not in found:
            detail = "the tenant has no such role; GET /roles lists them"
            raise Invalid("There is no such role.", problems=[Problem(f"/roles/{index}", detail)])
        check_held(actor, found[role], f"The role '{role}'")
    return sorted(set(roles))


def keep_admin(connection: Connection, row: Mapping[str, Any], tenant_id: str) -> None:
    """Call in the tenant's turn, before the account ceases to be an administrator of it.

    Raises:
        Conflict: it is the last one that is a person and not disabled (``last-admin``).
    """
    query = select(_user.id).join(t.user_role, _held.user_id == _user.id)
    admins = query.where(_held.tenant_id == tenant_id, _held.role == ADMIN)
    able = admins.where(_user.kind == Kind.PERSON.value, ~_user.disabled)
    is_one = connection.scalar(able.where(_user.id == row["id"]))
    if is_one and not connection.scalar(able.where(_user.id != row["id"]).limit(1)):
        detail = "This is the tenant's last administrator. Give somebody else the role 'admin' first."
        raise Conflict(detail, code="last-admin")


def hold_platform_admins(connection: Connection) -> list[str]:
    """Ids of the platform's administrators that are not disabled; nobody else appoints or dismisses one until the transaction ends."""
    query = select(_user.id, _user.disabled).where(_user.platform_admin).order_by(_user.id)
    return [row.id for row in connection.execute(query.with_for_update(key_share=True)) if not row.disabled]


def keep_platform_admin(held: Sequence[str], user_id: str) -> None:
    """``held``: as :func:`hold_platform_admins` gave them.

    Raises:
        Conflict: the account is the last one (``last-platform-admin``).
    """
    if list(held) == [user_id]:
        detail = "This is the last administrator of the platform. Appoint somebody else first."
        raise Conflict(detail, code="last-platform-admin")


def insert_user(
    connection: Connection, audit: AuditLog, actor: Actor, row: Mapping[str, Any], roles: Sequence[str]
) -> None:
    """A new account with roles in the actor's tenant; ``row``: every column but the name's skeleton and what has a default.

    Raises:
        Conflict: the name is taken, or looks like one that is (``username-taken``).
    """
    name = row["username"]
    alike = or_(_user.username == name, _user.skeleton == skeleton(name))
    if taken := connection.scalar(select(_user.username).where(alike).limit(1)):
        how = "is taken" if taken == name else "looks like that of another user"
        raise Conflict(f"The user name '{name}' {how}. Choose another.", code="username-taken")
    connection.execute(insert(t.user).values(skeleton=skeleton(name), **row))
    held = [{"user_id": row["id"], "tenant_id": actor.tenant_id, "role": role} for role in roles]
    connection.execute(insert(t.user_role), held)
    changed(connection, user_id=row["id"])
    # Not the name: the record outlives the person, and they may ask to be forgotten.
    details = {key: row[key] for key in ("kind", "platform_admin") if key in row} | {"roles": list(roles)}
    entry = AuditEntry(actor, Action.USER_CREATE, f"user:{row['id']}", after=details, details=details)
    audit.record(connection, entry)


def end_credentials(connection: Connection, user_id: str, now: int, tenant_id: str | None = None) -> None:
    """End the user's sessions and tokens, those of one tenant or all; with all of them a code for a new password, too."""
    ended = delete(t.session).where(t.session.c.user_id == user_id)
    if tenant_id is not None:
        ended = ended.where(t.session.c.tenant_id == tenant_id)
    else:
        ended = ended.execution_options(across_tenants="it is all of the account's sessions, wherever they are")
    connection.execute(ended)
    end_tokens(connection, user_id, now, tenant_id)
    if tenant_id is None:
        connection.execute(delete(t.password_reset).where(t.password_reset.c.user_id == user_id))


def end_tokens(connection: Connection, user_id: str, now: int, tenant_id: str | None = None) -> int:
    """End the user's tokens, those of one tenant or all, with those that they made, whose ever, in the same tenant; how many there were."""
    token = t.token.c
    which = token.user_id == user_id
    if tenant_id is not None:
        which &= token.tenant_id == tenant_id
    those = or_(which, token.parent_id.in_(select(token.id).where(which)))
    ended = update(t.token).where(those, token.revoked_at.is_(None)).values(revoked_at=now)
    if tenant_id is not None:
        ended = ended.where(token.tenant_id == tenant_id)
    else:
        ended = ended.execution_options(across_tenants="it is all of the account's tokens, wherever they are")
    return int(connection.execute(ended).rowcount)


def state(row: Mapping[str, Any], homes: Collection[str]) -> dict[str, Any]:
    """What the record's digest of an account that goes is over; not the name, which the person may ask to be forgotten."""
    return {"disabled": row["disabled"], "platform_admin": row["platform_admin"], "tenants": sorted(homes)}


@scope.across_tenants("an account is deleted in every tenant at once")
def bury(connection: Connection, user_id: str, now: int) -> None:
    """Delete an account: roles, credentials, password and name go. The row stays for what tells whose it is, and the name is free again."""
    connection.execute(delete(t.user_role).where(_held.user_id == user_id))
    end_credentials(connection, user_id, now)
    values: dict[str, Any] = {
        "username": f"deleted.{user_id}",
        "skeleton": None,
        "password_hash": NO_PASSWORD,
        "deleted_at": now,
    }
    values |= {"disabled": True, "platform_admin": False, "version": _user.version + 1}
    connection.execute(update(t.user).where(_user.id == user_id).values(values))
    changed(connection, user_id=user_id)


def listed(names: Iterable[str]) -> str:
    """Some of them, in words."""
    ordered = sorted(names)
    return ", ".join(ordered[:_SHOWN]) + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")
