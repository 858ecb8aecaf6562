"""Users and service accounts of a tenant: made, given roles, disabled, removed. The rules are in :mod:`cloche.services.members`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, insert, select, update

from cloche.clock import to_rfc3339, uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry
from cloche.db.engine import now_ms
from cloche.domain.events import Action
from cloche.domain.names import checked_username, fold
from cloche.domain.permissions import ADMIN, EVERYTHING, PERMISSION_TEXT, PLATFORM_PERMISSIONS, Actor, Kind, Permission
from cloche.errors import Conflict, Forbidden, Invalid, Problem
from cloche.services import members
from cloche.services.actors import changed
from cloche.services.cursors import decode_cursor, encode_cursor
from cloche.services.user_tokens import UserTokens

Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class
Row = dict[str, Any]  # of table account
_user, _held = t.user.c, t.user_role.c


class UserService(UserTokens):
    """Thread-safe. Scoped to the actor's tenant: who has no role in it is not there. With ``everywhere``, for those who manage tenants, a
    method reaches every account; roles are still those in the actor's tenant."""

    def list(
        self, actor: Actor, filters: Mapping[str, Any], cursor: str | None = None, limit: int = 50
    ) -> dict[str, Any]:
        """Oldest first. ``filters``: username, prefix (of it), role, kind; ``everywhere``: of all tenants. Returns ``{"items", "next_cursor"}``.

        Raises:
            Forbidden: ``everywhere``, and the actor does not manage tenants.
        """
        key: ColumnElement[str] = _user.id
        if not filters.get("everywhere"):
            key = _held.user_id  # answered by the index on (tenant, user)
            query = select(key).distinct().join(t.user).where(_held.tenant_id == actor.tenant_id)
        else:
            members.check_everywhere(actor)
            query = select(key).where(_user.deleted_at.is_(None))
        if filters.get("role") is not None:
            query = query.where(key.in_(_holders(actor.tenant_id, filters["role"])))
        if filters.get("username") is not None:
            query = query.where(_user.username == fold(filters["username"]))
        if filters.get("prefix") is not None:
            query = query.where(_user.username.startswith(fold(filters["prefix"]), autoescape=True))
        if filters.get("kind") is not None:
            query = query.where(_user.kind == filters["kind"])
        if cursor is not None:
            query = query.where(key > decode_cursor(cursor))
        query = query.order_by(key).limit(limit + 1)

        def unit(connection: Connection) -> tuple[Sequence[str], Items]:
            ids = connection.scalars(query).all()
            return ids, _views(connection, actor, ids[:limit])

        ids, items = self._db.read(unit)
        return {"items": items, "next_cursor": encode_cursor(ids[limit - 1]) if len(ids) > limit else None}

    def get(self, actor: Actor, user_id: str, *, everywhere: bool = False) -> dict[str, Any]:
        """
        Raises:
            NotFound: there is no such user.
            Forbidden: ``everywhere``, and the actor does not manage tenants.
        """
        return self._db.read(lambda c: _view(c, actor, members.account(c, actor, user_id, everywhere=everywhere)["id"]))

    def permissions(self, actor: Actor, user_id: str, *, everywhere: bool = False) -> dict[str, Any]:
        """What the user could do in the actor's tenant: ``{"items": [{"name", "summary", "granted", "roles"}], …}``, every permission with the
        user's roles that give it. A disabled user can do nothing until enabled; platform administrators can do everything."""

        def unit(connection: Connection) -> dict[str, Any]:
            row = members.account(connection, actor, user_id, everywhere=everywhere)
            roles = members.roles_of(connection, user_id, actor.tenant_id)
            by_role = members.allowed(connection, actor.tenant_id, roles)
            items = []
            for permission in Permission:
                via = [role for role in roles if permission in by_role.get(role, ())]
                granted = bool(via) or row["platform_admin"]
                text = {"name": permission.value, "summary": PERMISSION_TEXT[permission]}
                platform = permission in PLATFORM_PERMISSIONS
                items.append({**text, "granted": granted, "roles": via, "platform": platform})
            known = {key: row[key] for key in ("username", "disabled", "platform_admin")}
            return {"id": user_id, **known, "roles": roles, "items": items}

        return self._db.read(unit)

    def create(
        self, actor: Actor, username: str, password: str | None, roles: Sequence[str], kind: Kind = Kind.PERSON
    ) -> dict[str, Any]:
        """A new user of the actor's tenant. A service account has no password.

        Raises:
            Invalid: name, password or a role cannot be used.
            Forbidden: a role allows what the actor may not do.
            Conflict: the name is taken, or looks like one that is.
        """
        name = checked_username(username)
        if (kind is Kind.SERVICE) != (password is None):
            detail = "is required" if password is None else "a service account has none; issue tokens for it"
            raise Invalid("The user cannot be made.", problems=[Problem("/password", detail)])
        self._db.read(lambda c: members.check_grant(c, actor, roles))  # before a hash is computed for nothing
        encoded = members.NO_PASSWORD if password is None else self._access.encode_password(password, name)
        user_id = uuid7()

        def unit(connection: Connection) -> dict[str, Any]:
            still = members.begin(connection, actor, Permission.USER_MANAGE)
            row: dict[str, Any] = {"id": user_id, "username": name, "kind": kind.value, "password_hash": encoded}
            row |= {"platform_admin": False, "disabled": False, "created_at": now_ms(connection)}
            members.insert_user(connection, self._audit, actor, row, members.check_grant(connection, still, roles))
            return _view(connection, actor, user_id)

        return self._db.write(unit)

    def set_disabled(
        self, actor: Actor, user_id: str, disabled: bool, version: int | None = None, *, everywhere: bool = False
    ) -> dict[str, Any]:
        """Disable the account, in every tenant, and end its sessions and tokens for good; or enable it.

        Raises:
            NotFound: there is no such user.
            Forbidden: the user may do more than the actor, or is of other tenants too and the actor does not manage those.
            Conflict: it is the last administrator, or no longer at ``version`` (``user-changed``).
        """

        def unit(connection: Connection) -> dict[str, Any]:
            still, row, homes = self._begin(connection, actor, user_id, version, everywhere)
            _check_whole(still, row, homes)
            if disabled:
                _keep_admins(connection, row, homes)
                members.end_credentials(connection, user_id, now_ms(connection))
            _bump(connection, row, disabled=disabled)
            before, after = {"disabled": row["disabled"]}, {"disabled": disabled}
            self._record(connection, actor, Action.USER_UPDATE, user_id, before, after, after)
            return _view(connection, actor, user_id)

        return self._db.write(unit)

    def set_roles(
        self, actor: Actor, user_id: str, roles: Sequence[str], version: int | None = None, *, everywhere: bool = False
    ) -> dict[str, Any]:
        """The user's roles in the actor's tenant from now on. With ``everywhere`` it brings in users of other tenants.

        Raises:
            NotFound, Conflict: see :meth:`set_disabled`.
            Invalid: none, too many, or an unknown one.
            Forbidden: a role allows what the actor may not do, or the user may do more than they.
        """

        def unit(connection: Connection) -> dict[str, Any]:
            still, row, _ = self._begin(connection, actor, user_id, version, everywhere)
            given = members.check_grant(connection, still, roles)
            before = members.roles_of(connection, user_id, actor.tenant_id)
            if ADMIN in before and ADMIN not in given:
                members.keep_admin(connection, row, actor.tenant_id)
            here = (_held.user_id == user_id) & (_held.tenant_id == actor.tenant_id)
            if gone := set(before) - set(given):
                connection.execute(delete(t.user_role).where(here, _held.role.in_(gone)))
            if new := set(given) - set(before):
                rows = [{"user_id": user_id, "tenant_id": actor.tenant_id, "role": role} for role in sorted(new)]
                connection.execute(insert(t.user_role), rows)
            _bump(connection, row)
            details = {"roles": given, "added": sorted(new), "removed": sorted(gone)}
            self._record(connection, actor, Action.USER_ROLES, user_id, before, given, details)
            return _view(connection, actor, user_id)

        return self._db.write(unit)

    def remove(self, actor: Actor, user_id: str, version: int | None = None, *, everywhere: bool = False) -> None:
        """Take the user out of the actor's tenant, or of all; one that is in none then is deleted: name and password go, and only the id stays,
        for the jobs and files that tell whose they are.

        Raises:
            NotFound, Conflict: see :meth:`set_disabled`.
            Forbidden: the user may do more than the actor; or ``everywhere``, and the actor does not manage tenants.
        """

        def unit(connection: Connection) -> None:
            _, row, homes = self._begin(connection, actor, user_id, version, everywhere)
            left = homes if everywhere else homes & {actor.tenant_id}
            deleted = everywhere or (left == homes and not row["platform_admin"])
            _keep_admins(connection, row, left, whole=deleted)
            now = now_ms(connection)
            if deleted:
                members.bury(connection, user_id, now)
            else:
                members.end_credentials(connection, user_id, now, actor.tenant_id)
                mine = (_held.user_id == user_id) & (_held.tenant_id == actor.tenant_id)
                connection.execute(delete(t.user_role).where(mine))
                _bump(connection, row)
            details = {"deleted": deleted, "everywhere": everywhere}
            self._record(connection, actor, Action.USER_DELETE, user_id, members.state(row, homes), None, details)

        self._db.write(unit)

    def set_platform_admin(
        self, actor: Actor, user_id: str, appointed: bool, version: int | None = None, *, everywhere: bool = False
    ) -> dict[str, Any]:
        """Appoint or dismiss an administrator of the platform.

        Raises:
            NotFound: there is no such user.
            Conflict: it is the last one, a service account, disabled, or no longer at ``version``.
            Forbidden: the actor is none themselves, or came with a token that does not name everything.
        """

        def unit(connection: Connection) -> dict[str, Any]:
            admins = members.hold_platform_admins(connection)
            still, row, _ = self._begin(connection, actor, user_id, version, everywhere, Permission.PLATFORM_MANAGE)
            if appointed and (row["kind"] != Kind.PERSON or row["disabled"]):
                detail = "Only a person whose account is enabled can administer the platform."
                raise Conflict(detail, code="no-platform-admin")
            if appointed:
                members.check_held(still, EVERYTHING, "The platform's administration")
            elif row["platform_admin"]:
                members.keep_platform_admin(admins, user_id)
            _bump(connection, row, platform_admin=appointed)
            action = Action.PLATFORM_ADMIN_GRANT if appointed else Action.PLATFORM_ADMIN_REVOKE
            before, after = ({"platform_admin": value} for value in (row["platform_admin"], appointed))
            self._record(connection, still, action, user_id, before, after, {})
            return _view(connection, actor, user_id)

        return self._db.write(unit)

    def _begin(
        self,
        connection: Connection,
        actor: Actor,
        user_id: str,
        version: int | None,
        everywhere: bool,
        permission: Permission = Permission.USER_MANAGE,
    ) -> tuple[Actor, Row, set[str]]:
        """One's turn with the account and all its tenants: the actor as of now, the account's row, the tenants' ids."""
        homes = members.tenants_of(connection, user_id)
        still = members.begin(connection, actor, permission, homes)
        if members.account(connection, still, user_id, everywhere=everywhere)["platform_admin"]:
            members.hold_platform_admins(connection)
        row = members.account(connection, still, user_id, everywhere=everywhere, lock=True)
        now = members.tenants_of(connection, user_id)
        if (version is not None and version != row["version"]) or now - homes:
            raise Conflict("The user has changed since; read it again.", code="user-changed")
        members.check_within(still, members.holds(connection, row, actor.tenant_id))
        return still, row, now

    def _record(
        self,
        connection: Connection,
        actor: Actor,
        action: Action,
        user_id: str,
        before: Any,
        after: Any,
        details: Mapping[str, Any],
    ) -> None:
        changed(connection, user_id=user_id)
        entry = AuditEntry(actor, action, f"user:{user_id}", before=before, after=after, details=details)
        self._audit.record(connection, entry)


def _bump(connection: Connection, row: Row, **values: Any) -> None:
    """The row is locked, or, on SQLite, nobody else writes. A code for a new password was made for who the user was before: it is void."""
    connection.execute(delete(t.password_reset).where(t.password_reset.c.user_id == row["id"]))
    connection.execute(update(t.user).where(_user.id == row["id"]).values(version=row["version"] + 1, **values))


def _holders(tenant_id: str, role: str) -> Select[Any]:
    held = t.user_role.alias().c
    return select(held.user_id).where(held.tenant_id == tenant_id, held.role == role)


def _check_whole(actor: Actor, row: Row, homes: set[str]) -> None:
    """To disable an account concerns every tenant that it is in."""
    if (homes - {actor.tenant_id} or row["platform_admin"]) and not actor.may(Permission.TENANT_MANAGE):
        detail = "This account is not your tenant's alone: remove it from yours, or ask the platform's administrators."
        raise Forbidden(detail, code="user-of-others")


def _keep_admins(connection: Connection, row: Row, homes: set[str], *, whole: bool = True) -> None:
    with scope.across_tenants("no tenant that the account is in may lose its last administrator"):
        for tenant_id in sorted(homes):
            members.keep_admin(connection, row, tenant_id)
    if whole and row["platform_admin"]:
        members.keep_platform_admin(members.hold_platform_admins(connection), row["id"])


def _view(connection: Connection, actor: Actor, user_id: str) -> dict[str, Any]:
    return _views(connection, actor, [user_id])[0]


def _views(connection: Connection, actor: Actor, ids: Sequence[str]) -> Items:
    """In the order of the ids. Roles are those in the actor's tenant; other tenants are shown to those who manage tenants alone."""
    named = select(_held.user_id, _held.tenant_id, _held.role, t.tenant.c.name).join(t.tenant)
    named = named.where(_held.user_id.in_(ids)).order_by(_held.role)
    if actor.may(Permission.TENANT_MANAGE):
        named = named.execution_options(across_tenants="whoever manages tenants sees an account's other tenants")
    else:
        named = named.where(_held.tenant_id == actor.tenant_id)
    held = connection.execute(named).all() if ids else []
    rows = {row["id"]: row for row in connection.execute(select(t.user).where(_user.id.in_(ids))).mappings()}
    shown = []
    for user_id in ids:
        row, mine = rows[user_id], [each for each in held if each.user_id == user_id]
        shown.append(
            {
                "id": user_id,
                "username": row["username"],
                "kind": row["kind"],
                "roles": [each.role for each in mine if each.tenant_id == actor.tenant_id],
                "tenants": sorted({each.name for each in mine}) if actor.may(Permission.TENANT_MANAGE) else None,
                "platform_admin": row["platform_admin"],
                "disabled": row["disabled"],
                "version": row["version"],
                "created_at": to_rfc3339(row["created_at"]),
            }
        )
    return shown
