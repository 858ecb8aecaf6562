"""Tenants: made, suspended, resumed and removed by those who manage them. What a tenant holds is emptied by :mod:`cloche.services.emptying`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, case, delete, func, insert, literal, select, update

from cloche import logs
from cloche.clock import is_uuid7, to_rfc3339, uuid7
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.domain.names import checked, fold, skeleton
from cloche.domain.permissions import ADMIN, BUILTIN_ROLES, Actor, Kind, Permission
from cloche.errors import Conflict, Invalid, NotFound, Problem, Unavailable
from cloche.queueing.broker import Broker
from cloche.services import members, queue_rows
from cloche.services.actors import changed
from cloche.services.credentials import DEFAULT_TENANT
from cloche.services.cursors import decode_cursor, encode_cursor

_log = logs.get(__name__)
MAX_TENANTS = 10_000
MOST_SHOWN = 10_000  # what a tenant holds is counted no further
Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class
Row = dict[str, Any]  # of table tenant
_tenant, _user, _held = t.tenant.c, t.user.c, t.user_role.c


class TenantService:
    """Thread-safe. Every method is for those who manage tenants; events are recorded in the tenant from which they act."""

    def __init__(self, db: Database, broker: Broker, audit: AuditLog) -> None:
        self._db = db
        self._broker = broker
        self._audit = audit

    @scope.across_tenants("platform administrators manage every tenant")
    def list(self, name: str | None = None, cursor: str | None = None, limit: int = 50) -> dict[str, Any]:
        """The oldest first, or the one of that name. Returns ``{"items", "next_cursor"}``."""
        query = select(t.tenant).order_by(_tenant.id).limit(limit + 1)
        if name is not None:
            query = query.where(_tenant.name == fold(name))
        if cursor is not None:
            query = query.where(_tenant.id > decode_cursor(cursor))
        rows = self._db.read(lambda c: _views(c, [dict(row) for row in c.execute(query).mappings()]))
        following = encode_cursor(rows[limit - 1]["id"]) if len(rows) > limit else None
        return {"items": rows[:limit], "next_cursor": following}

    @scope.across_tenants("platform administrators manage every tenant")
    def get(self, tenant_id: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: there is no such tenant.
        """
        return self._db.read(lambda c: _views(c, [row_of(c, tenant_id)])[0])

    @scope.across_tenants("platform administrators manage every tenant")
    def create(self, actor: Actor, name: str, admin: str | None = None) -> dict[str, Any]:
        """A new tenant; ``admin``: the name of a user who becomes its first administrator.

        Raises:
            Invalid: it cannot be called so, or there is no such user.
            Forbidden: ``admin``, and the actor's token does not name all that an administrator may do.
            Conflict: the name is taken or looks like one that is (``tenant-exists``), or there are too many.
        """
        name = checked(name, "/name")
        tenant_id = uuid7()

        def unit(connection: Connection) -> dict[str, Any]:
            still = members.begin(connection, actor, Permission.TENANT_MANAGE)
            alike = (_tenant.name == name) | (_tenant.skeleton == skeleton(name))
            if connection.scalar(select(_tenant.id).where(alike).limit(1)):
                detail = f"There is a tenant '{name}', or one whose name looks like it. Choose another."
                raise Conflict(detail, code="tenant-exists")
            if (connection.scalar(select(func.count()).select_from(t.tenant)) or 0) >= MAX_TENANTS:
                raise Conflict(f"There are at most {MAX_TENANTS} tenants. Remove one first.", code="too-many-tenants")
            row = {"id": tenant_id, "name": name, "skeleton": skeleton(name), "created_at": now_ms(connection)}
            connection.execute(insert(t.tenant), row)
            details: dict[str, Any] = {"name": name}
            if admin is not None:
                members.check_held(still, BUILTIN_ROLES[ADMIN], f"The role '{ADMIN}'")
                details["admin"] = _appoint(connection, tenant_id, admin)
            changed(connection, tenant_id=tenant_id)
            self._record(connection, actor, Action.TENANT_CREATE, tenant_id, None, details, details)
            return _views(connection, [row_of(connection, tenant_id)])[0]

        return self._db.write(unit)

    @scope.across_tenants("platform administrators manage every tenant")
    def set_suspended(
        self, actor: Actor, tenant_id: str, suspended: bool, version: int | None = None
    ) -> dict[str, Any]:
        """Suspend a tenant: its users and tokens are refused and no job of it starts, though what runs ends by itself. Or resume it.

        Raises:
            NotFound: there is no such tenant.
            Conflict: it is no longer at ``version`` (``tenant-changed``).
        """

        def unit(connection: Connection) -> tuple[dict[str, Any], Sequence[Any]]:
            row = self._begin(connection, actor, tenant_id, version)
            values = {"suspended": suspended, "version": row["version"] + 1}
            connection.execute(update(t.tenant).where(_tenant.id == tenant_id).values(values))
            _renew_rules(connection)
            changed(connection, tenant_id=tenant_id)
            action = Action.TENANT_SUSPEND if suspended else Action.TENANT_RESUME
            before, after = {"suspended": row["suspended"]}, {"suspended": suspended}
            self._record(connection, actor, action, tenant_id, before, after, {"name": row["name"]})
            return _views(connection, [{**row, **values}])[0], queue_rows.rules(connection)

        view, rules = self._db.write(unit)
        try:
            self._broker.set_rules(rules)
        except Unavailable as error:
            _log.warning("the index is not told of a tenant's suspension; the sweeper will", error=str(error))
        return view

    def delete(self, actor: Actor, tenant_id: str, version: int | None = None) -> None:
        """Remove a tenant that is suspended and empty, with everything else of it. Users who are in no other are deleted; the record stays.

        Raises:
            NotFound: there is no such tenant.
            Conflict: it is ``default``, one's own, not suspended, not empty, or no longer at ``version``.
        """

        def unit(connection: Connection) -> None:
            row = self._begin(connection, actor, tenant_id, version)
            check_suspended(row)
            if row["name"] == DEFAULT_TENANT or tenant_id == actor.tenant_id:
                own = "'default' is built in and stays" if row["name"] == DEFAULT_TENANT else "you act from this tenant"
                raise Conflict(f"The tenant cannot be removed: {own}.", code="tenant-in-use")
            # Nobody refers to it from now on.
            connection.execute(select(_tenant.id).where(_tenant.id == tenant_id).with_for_update()).all()
            with scope.within(tenant_id, "platform administrators manage every tenant"):
                left = contents(connection, tenant_id)
            if any(left.values()):
                words = f"{left['jobs']} jobs and {left['files']} files"
                detail = f"The tenant holds {words}: empty it first, with POST /tenants/{{id}}/empty."
                raise Conflict(detail, code="tenant-not-empty")
            users = self._part(connection, actor, tenant_id)
            with scope.within(tenant_id, "platform administrators manage every tenant"):
                for table in reversed(t.metadata.sorted_tables):
                    if "tenant_id" in table.c and table.name not in _KEPT and not table.name.startswith("audit_"):
                        connection.execute(delete(table).where(table.c.tenant_id == tenant_id))
            connection.execute(delete(t.tenant).where(_tenant.id == tenant_id))
            _renew_rules(connection)
            changed(connection, tenant_id=tenant_id)
            details = {"name": row["name"], "users_deleted": len(users)}
            self._record(connection, actor, Action.TENANT_DELETE, tenant_id, details, None, details)

        self._db.write(unit)

    def _part(self, connection: Connection, actor: Actor, tenant_id: str) -> Sequence[str]:
        """Delete the accounts that are in no other tenant."""
        here = select(_held.user_id).where(_held.tenant_id == tenant_id)
        elsewhere = select(_held.user_id).where(_held.user_id == _user.id, _held.tenant_id != tenant_id)
        alone = (_user.id.in_(here)) & ~elsewhere.exists() & ~_user.platform_admin
        query = select(t.user).where(alone).order_by(_user.id)
        why = "whether a user of the tenant is in another one, too"
        rows = connection.execute(query.execution_options(across_tenants=why)).mappings().all()
        now, details = now_ms(connection), {"deleted": True, "with": "tenant"}
        for row in rows:
            before = members.state(dict(row), [tenant_id])
            members.bury(connection, row["id"], now)
            entry = AuditEntry(actor, Action.USER_DELETE, f"user:{row['id']}", before=before, details=details)
            self._audit.record(connection, entry)
        return [row["id"] for row in rows]

    def _begin(self, connection: Connection, actor: Actor, tenant_id: str, version: int | None) -> Row:
        members.begin(connection, actor, Permission.TENANT_MANAGE, [tenant_id])
        row = row_of(connection, tenant_id)
        if version is not None and version != row["version"]:
            raise Conflict("The tenant has changed since; read it again.", code="tenant-changed")
        return row

    def _record(
        self,
        connection: Connection,
        actor: Actor,
        action: Action,
        tenant_id: str,
        before: Any,
        after: Any,
        details: Mapping[str, Any],
    ) -> None:
        entry = AuditEntry(actor, action, f"tenant:{tenant_id}", before=before, after=after, details=details)
        self._audit.record(connection, entry)


# What is left of a tenant when its row goes: its record for ever; jobs and files there are none of.
_KEPT = frozenset({"job", "artifact", "tenant", "usage_day"})  # what was used is billed afterwards, too


def row_of(connection: Connection, tenant_id: str) -> Row:
    """
    Raises:
        NotFound: there is no such tenant.
    """
    row = None
    if is_uuid7(tenant_id):
        row = connection.execute(select(t.tenant).where(_tenant.id == tenant_id)).mappings().one_or_none()
    if row is None:
        raise NotFound("There is no such tenant.")
    return dict(row)


def check_suspended(row: Mapping[str, Any]) -> None:
    """
    Raises:
        Conflict: the tenant is in use: what removes things for good is only done to a suspended one (``tenant-active``).
    """
    if not row["suspended"]:
        raise Conflict("The tenant is active. Suspend it first.", code="tenant-active")


def contents(connection: Connection, tenant_id: str) -> dict[str, int]:
    """How many jobs and files the tenant holds, counted up to :data:`MOST_SHOWN`."""
    found = {}
    for name, table in (("jobs", t.job), ("files", t.artifact)):
        some = select(literal(1)).select_from(table).where(table.c.tenant_id == tenant_id).limit(MOST_SHOWN)
        found[name] = int(connection.scalar(select(func.count()).select_from(some.subquery())) or 0)
    return found


def _appoint(connection: Connection, tenant_id: str, username: str) -> str:
    named = (_user.username == fold(username)) & _user.deleted_at.is_(None)
    able = ~_user.disabled & (_user.kind == Kind.PERSON.value)
    # Locked: whoever disables or deletes them at this moment comes first, or finds them here.
    user_id = connection.scalar(select(_user.id).where(named, able).with_for_update(key_share=True))
    if user_id is None:
        problem = Problem("/admin", "there is no such user, or their account is disabled, or a service's")
        raise Invalid("The tenant was not created.", problems=[problem])
    connection.execute(insert(t.user_role), {"user_id": user_id, "tenant_id": tenant_id, "role": ADMIN})
    connection.execute(update(t.user).where(_user.id == user_id).values(version=_user.version + 1))
    changed(connection, user_id=user_id)
    return str(user_id)


def _renew_rules(connection: Connection) -> None:
    """How every queue is taken from has changed: the index keeps the newest rules."""
    now = literal(now_ms(connection), BigInteger)
    version = t.queue.c.rules_version
    connection.execute(select(t.queue.c.name).order_by(t.queue.c.name).with_for_update(key_share=True)).all()
    connection.execute(update(t.queue).values(rules_version=case((version >= now, version + 1), else_=now)))


def _views(connection: Connection, rows: Sequence[Row]) -> Items:
    ids = [row["id"] for row in rows]
    counted = select(_held.tenant_id, func.count(_held.user_id.distinct())).where(_held.tenant_id.in_(ids))
    users = {row[0]: row[1] for row in connection.execute(counted.group_by(_held.tenant_id))}
    return [
        {
            "id": row["id"],
            "name": row["name"],
            "suspended": row["suspended"],
            "users": users.get(row["id"], 0),
            "version": row["version"],
            "created_at": to_rfc3339(row["created_at"]),
        }
        for row in rows
    ]
