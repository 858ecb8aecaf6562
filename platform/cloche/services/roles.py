"""Roles of a tenant: the built-in ones, which nobody changes, and its own, made from the list of permissions. Roles do not nest."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.domain.names import NAME, checked, skeleton
from cloche.domain.permissions import (
    BUILTIN_ROLES,
    PERMISSION_TEXT,
    PLATFORM_PERMISSIONS,
    ROLE_TEXT,
    Actor,
    Permission,
)
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from cloche.services import members
from cloche.services.actors import changed

MAX_ROLES = 2_000  # of a tenant's own
Row = dict[str, Any]  # of table role
Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class
_role, _held = t.role.c, t.user_role.c
_NAMES = {permission.value for permission in Permission}


class RoleService:
    """Thread-safe. Scoped to the actor's tenant."""

    def __init__(self, db: Database, audit: AuditLog) -> None:
        self._db = db
        self._audit = audit

    @staticmethod
    def permissions() -> list[dict[str, Any]]:
        """Every permission with one sentence on what it allows; ``platform``: only the platform's administrators have it, and no role gives it."""
        return [
            {"name": one.value, "summary": PERMISSION_TEXT[one], "platform": one in PLATFORM_PERMISSIONS}
            for one in Permission
        ]

    def list(self, actor: Actor, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
        """The built-in ones, then the tenant's own by name. Returns ``{"items", "next_cursor"}``."""
        after = None if cursor is None else _decode(cursor)
        builtin = list(BUILTIN_ROLES)
        if after is not None:
            builtin = builtin[builtin.index(after) + 1 :] if after in BUILTIN_ROLES else []
        query = select(t.role).where(_role.tenant_id == actor.tenant_id).order_by(_role.name)
        if after is not None and after not in BUILTIN_ROLES:
            query = query.where(_role.name > after)
        query = query.limit(max(0, limit + 1 - len(builtin)))

        def unit(connection: Connection) -> Items:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            found: list[str | Row] = [*builtin, *rows]
            return _views(connection, actor, found[: limit + 1])

        items = self._db.read(unit)
        following = _encode(items[limit - 1]["name"]) if len(items) > limit else None
        return {"items": items[:limit], "next_cursor": following}

    def get(self, actor: Actor, name: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: the tenant has no such role.
        """
        if name in BUILTIN_ROLES:
            return self._db.read(lambda c: _views(c, actor, [name])[0])
        return self._db.read(lambda c: _views(c, actor, [_found(c, actor, name)])[0])

    def create(self, actor: Actor, name: str, summary: str, permissions: Sequence[str]) -> dict[str, Any]:
        """
        Raises:
            Invalid: the name or a permission cannot be used.
            Forbidden: a permission is one that the actor does not hold.
            Conflict: the name is taken or looks like one that is (``role-exists``), or the tenant has as many as it may.
        """
        name = checked(name, "/name")
        given = _known(permissions)

        def unit(connection: Connection) -> dict[str, Any]:
            still = members.begin(connection, actor, Permission.ROLE_MANAGE)
            _check_held(still, given)
            _check_free(connection, actor, name)
            now = now_ms(connection)
            row: Row = {"tenant_id": actor.tenant_id, "name": name, "skeleton": skeleton(name), "summary": summary}
            row |= {"permissions": given, "version": 1, "created_at": now, "updated_at": now}
            connection.execute(insert(t.role), row)
            self._record(connection, actor, Action.ROLE_CREATE, name, None, _said(row))
            return _views(connection, actor, [row])[0]

        return self._db.write(unit)

    def change(
        self, actor: Actor, name: str, summary: str, permissions: Sequence[str], version: int | None = None
    ) -> dict[str, Any]:
        """Say anew what the role is for and what it allows; for everybody who has it that holds from their next request.

        Raises:
            NotFound: the tenant has no such role.
            Invalid: a permission cannot be used.
            Forbidden: the role allows, or would, what the actor does not hold.
            Conflict: it is built in (``role-built-in``), or no longer at ``version`` (``role-changed``).
        """
        given = _known(permissions)

        def unit(connection: Connection) -> dict[str, Any]:
            row = self._begin(connection, actor, name, version, given)
            values = {"summary": summary, "permissions": given, "version": row["version"] + 1}
            values["updated_at"] = now_ms(connection)
            connection.execute(update(t.role).where(_is(actor, name)).values(values))
            self._record(connection, actor, Action.ROLE_UPDATE, name, _said(row), _said(values))
            return _views(connection, actor, [{**row, **values}])[0]

        return self._db.write(unit)

    def delete(self, actor: Actor, name: str, version: int | None = None) -> None:
        """Remove a role that nobody has.

        Raises:
            NotFound, Forbidden: see :meth:`change`.
            Conflict: also where somebody has it (``role-in-use``).
        """

        def unit(connection: Connection) -> None:
            row = self._begin(connection, actor, name, version, [])
            if count := _counts(connection, actor, [name]).get(name):
                who = "1 user has" if count == 1 else f"{count} users have"
                detail = (
                    f"{who} this role (GET /users?role={name}). Give them another with PUT /users/{{id}}/roles first."
                )
                raise Conflict(detail, code="role-in-use")
            connection.execute(delete(t.role).where(_is(actor, name)))
            self._record(connection, actor, Action.ROLE_DELETE, name, _said(row), None)

        self._db.write(unit)

    def _begin(self, connection: Connection, actor: Actor, name: str, version: int | None, given: Sequence[str]) -> Row:
        still = members.begin(connection, actor, Permission.ROLE_MANAGE)
        if name in BUILTIN_ROLES:
            raise Conflict(
                f"The role '{name}' is built in and stays as it is. Create one of your own.", code="role-built-in"
            )
        row = _found(connection, actor, name)
        if version is not None and version != row["version"]:
            raise Conflict("The role has changed since; read it again.", code="role-changed")
        # What it allows already counts too: nobody takes from others what they could not give back.
        _check_held(still, sorted({*given, *_NAMES.intersection(row["permissions"])}))
        return row

    def _record(
        self,
        connection: Connection,
        actor: Actor,
        action: Action,
        name: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        changed(connection, tenant_id=actor.tenant_id)
        details = {} if after is None else after
        entry = AuditEntry(actor, action, f"role:{name}", before=before, after=after, details=details)
        self._audit.record(connection, entry)


def _known(permissions: Sequence[str]) -> list[str]:
    for index, name in enumerate(permissions):
        if name not in _NAMES:
            problem = Problem(f"/permissions/{index}", "there is no such permission; GET /permissions lists all")
        elif name in PLATFORM_PERMISSIONS:
            problem = Problem(f"/permissions/{index}", "concerns every tenant, and no role can give it")
        else:
            continue
        raise Invalid("The role cannot allow that.", problems=[problem])
    return sorted(set(permissions))


def _check_held(actor: Actor, permissions: Sequence[str]) -> None:
    if missing := [name for name in permissions if name not in actor.permissions]:
        detail = f"The role allows, or would, what you do not hold yourself: {members.listed(missing)}."
        raise Forbidden(detail, code="grant-exceeds-own")


def _check_free(connection: Connection, actor: Actor, name: str) -> None:
    mine = _role.tenant_id == actor.tenant_id
    if skeleton(name) in {skeleton(builtin) for builtin in BUILTIN_ROLES}:
        raise Conflict(f"'{name}' is, or looks like, a built-in role. Choose another name.", code="role-exists")
    if connection.scalar(select(_role.name).where(mine, _role.skeleton == skeleton(name))):
        raise Conflict(f"There is a role '{name}', or one that looks like it. Choose another name.", code="role-exists")
    if (connection.scalar(select(func.count()).select_from(t.role).where(mine)) or 0) >= MAX_ROLES:
        raise Conflict(f"A tenant has at most {MAX_ROLES} roles of its own. Remove one first.", code="too-many-roles")


def _found(connection: Connection, actor: Actor, name: str) -> Row:
    row = None
    if NAME.match(name):
        row = connection.execute(select(t.role).where(_is(actor, name))).mappings().one_or_none()
    if row is None:
        raise NotFound("There is no such role.")
    return dict(row)


def _is(actor: Actor, name: str) -> Any:
    return (_role.tenant_id == actor.tenant_id) & (_role.name == name)


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"summary": row["summary"], "permissions": list(row["permissions"])}


def _counts(connection: Connection, actor: Actor, names: Sequence[str]) -> dict[str, int]:
    counted = select(_held.role, func.count()).where(_held.tenant_id == actor.tenant_id, _held.role.in_(names))
    return {name: count for name, count in connection.execute(counted.group_by(_held.role))}


def _views(connection: Connection, actor: Actor, roles: Sequence[str | Row]) -> Items:
    """Of built-in ones by name, of others by their rows."""
    counts = _counts(connection, actor, [role if isinstance(role, str) else role["name"] for role in roles])
    shown: Items = []
    for role in roles:
        if isinstance(role, str):
            said: Row = {"name": role, "summary": ROLE_TEXT[role], "permissions": sorted(BUILTIN_ROLES[role])}
            times: Row = {"version": None, "created_at": None, "updated_at": None}
        else:
            said = {"name": role["name"], **_said(role)}
            times = {key: to_rfc3339(role[key]) for key in ("created_at", "updated_at")} | {"version": role["version"]}
        shown.append({**said, "builtin": isinstance(role, str), "users": counts.get(said["name"], 0), **times})
    return shown


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        name = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        name = ""
    if not NAME.match(name):
        raise Invalid("the cursor is not one of ours", problems=[Problem("/cursor", "use next_cursor as it came")])
    return name
