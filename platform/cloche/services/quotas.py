"""Quotas as administrators see and set them, what is used of them, and their repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloche.clock import is_uuid7, to_rfc3339
from cloche.db import scope
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.db.quota_tables import WHOLE
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, Permission
from cloche.domain.quotas import (
    Kind,
    Quota,
    Quotas,
    Whose,
    beyond,
    from_stored,
    laid_over,
    next_day_ms,
    shown,
    to_stored,
)
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from cloche.services import members, quota_rows, usage_rows
from cloche.setting_groups import QuotaSettings

_STEP = 2_000  # jobs counted in one transaction
_TENANTS = 1_000


def default_quotas(settings: QuotaSettings) -> Quotas:
    """What holds where nobody has set anything else."""

    def of(whose: str) -> Quota:
        return Quota(
            *(getattr(settings, f"{whose}_{name}") or None for name in ("jobs", "submissions", "storage", "cpu"))
        )

    return Quotas(of("tenant"), of("user"))


class QuotaService:
    """Thread-safe. Users are those of the actor's tenant; what is not there, or another tenant's, is NotFound."""

    def __init__(self, db: Database, audit: AuditLog, defaults: Quotas) -> None:
        self._db = db
        self._audit = audit
        self._defaults = defaults

    def tenant(self, tenant_id: str) -> dict[str, Any]:
        """``{"limits", "effective", "version", "updated_at"}``: what was set, and what holds."""

        def unit(connection: Connection) -> dict[str, Any]:
            _require_tenant(connection, tenant_id)
            with scope.within(tenant_id, "the platform's administrators bound every tenant"):
                return self._shown(quota_rows.stored(connection, tenant_id), self._defaults.tenant)

        return self._db.read(unit)

    def set_tenant(self, actor: Actor, tenant_id: str, asked: Mapping[str, Any], version: int | None) -> dict[str, Any]:
        """Set the tenant's limits; those that are not named are as by default. ``version`` None: whichever is there.

        Raises:
            Conflict: ``quota-changed``: they are no longer at ``version``.
        """
        self._db.read(lambda connection: _require_tenant(connection, tenant_id))
        row = self._put(actor, tenant_id, WHOLE, to_stored(asked), version)
        return self._shown(row, self._defaults.tenant)

    def user(self, actor: Actor, user_id: str) -> dict[str, Any]:
        """As :meth:`tenant`, of a user in the actor's tenant."""

        def unit(connection: Connection) -> dict[str, Any]:
            _require_user(connection, actor.tenant_id, user_id)
            return self._shown(quota_rows.stored(connection, actor.tenant_id, user_id), self._defaults.user)

        return self._db.read(unit)

    def set_user(self, actor: Actor, user_id: str, asked: Mapping[str, Any], version: int | None) -> dict[str, Any]:
        """
        Raises:
            Conflict: ``quota-changed``.
            Forbidden: it is the actor's own, and they are no platform administrator; or the user may do more than they (``user-exceeds-own``).
            Invalid: a limit is wider than the tenant's.
        """
        values = to_stored(asked)

        def bound(connection: Connection) -> None:
            whole = laid_over(self._defaults.tenant, quota_rows.stored(connection, actor.tenant_id))
            wide = beyond(laid_over(Quota(), values), whole)
            if wide:
                problems = [
                    Problem(f"/{kind.value}", f"is more than the tenant's own limit, {whole.of(kind)}") for kind in wide
                ]
                raise Invalid("the quota was not changed", problems=problems)

        row = self._put(actor, actor.tenant_id, user_id, values, version, bound)
        return self._shown(row, self._defaults.user)

    def clear_user(self, actor: Actor, user_id: str, version: int | None) -> None:
        """Back to the default.

        Raises:
            Conflict, Forbidden: see :meth:`set_user`.
            NotFound: nobody has set one.
        """
        tenant = actor.tenant_id

        def unit(connection: Connection) -> None:
            _may_set(connection, actor, user_id)
            before = quota_rows.stored(connection, tenant, user_id)
            if before is None:
                raise NotFound("nobody has set a quota for this user; the default holds")
            _expect(before, version)
            if connection.execute(_same(t.quota.delete(), tenant, user_id, before["version"])).rowcount != 1:
                raise _changed()
            was = from_stored(before)
            entry = AuditEntry(actor, Action.QUOTA_DELETE, f"user:{user_id}", before=was, details={"was": was})
            self._audit.record(connection, entry)

        self._db.write(unit)

    def own(self, actor: Actor) -> dict[str, Any]:
        """What the actor and their tenant may use, have used, and when that begins anew: ``{"tenant": {kind: {"limit", "used", "resets_at"}},
        "user": …}``. Submissions of the last minute are not told: they are counted elsewhere."""

        def unit(connection: Connection) -> dict[str, Any]:
            tenant, user, now = actor.tenant_id, actor.user_id, now_ms(connection)
            quotas = quota_rows.in_force(connection, self._defaults, tenant, user)
            used = quota_rows.used(connection, tenant, user)
            spent = usage_rows.cpu_ms(connection, tenant, user, now)

            def of(whose: Whose, quota: Quota) -> dict[str, Any]:
                jobs = used[whose][0] if quotas.any(Kind.JOBS) else None
                numbers = {
                    Kind.JOBS: (jobs, None),
                    Kind.SUBMISSIONS: (None, None),
                    Kind.STORAGE: (used[whose][1], None),
                    Kind.CPU: (round(spent[whose] / 1000, 3), to_rfc3339(next_day_ms(now))),
                }
                return {
                    kind.value: {"limit": shown(quota.of(kind)), "used": number, "resets_at": resets}
                    for kind, (number, resets) in numbers.items()
                }

            return {"tenant": of(Whose.TENANT, quotas.tenant), "user": of(Whose.USER, quotas.user)}

        return self._db.read(unit)

    # --- for the scheduler --------------------------------------------------------------------------------------------------

    def fold(self) -> int:
        """Add up what was appended to the counters. Returns how many changes."""
        tenants = self._db.read(lambda connection: quota_rows.unfolded(connection, _TENANTS))
        return sum(self._db.write(lambda c, one=tenant: quota_rows.fold(c, one)) for tenant in tenants)  # type: ignore[misc]

    def count_live(self) -> int:
        """Count jobs that were accepted before there was a limit on jobs in flight. Returns how many."""

        def limited(connection: Connection) -> list[str]:
            if self._defaults.any(Kind.JOBS):
                return list(connection.scalars(select(t.tenant.c.id)))
            return list(connection.scalars(select(t.quota.c.tenant_id).where(t.quota.c.jobs >= 0).distinct()))

        return sum(self._count_live(tenant) for tenant in self._db.read(limited))

    def _count_live(self, tenant_id: str) -> int:
        counted = 0
        while True:
            step = self._db.write(lambda c: quota_rows.count_live(c, tenant_id, _STEP))
            counted += step
            if step < _STEP:
                return counted

    # --- the pieces ---------------------------------------------------------------------------------------------------------

    def _put(
        self,
        actor: Actor,
        tenant_id: str,
        user_id: str,
        values: Mapping[str, int | None],
        version: int | None,
        bound: Any = lambda _connection: None,
    ) -> dict[str, Any]:
        jobs = values[Kind.JOBS.value]

        def check(connection: Connection) -> Mapping[str, Any] | None:
            if user_id != WHOLE:
                _may_set(connection, actor, user_id)
            before = quota_rows.stored(connection, tenant_id, user_id)
            _expect(before, version)
            bound(connection)
            return before

        if jobs is not None and jobs >= 0:
            with scope.within(tenant_id, "the platform's administrators bound every tenant"):
                self._db.read(check)  # what is refused anyway costs nobody a count
                self._count_live(tenant_id)  # in steps, so that little is left for the transaction

        def put(connection: Connection) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
            before = check(connection)
            row = {
                "tenant_id": tenant_id,
                "user_id": user_id,
                **values,
                "version": (before["version"] if before else 0) + 1,
                "updated_by": actor.user_id,
                "updated_at": now_ms(connection),
            }
            _write(connection, row, before)
            if jobs is not None and jobs >= 0:
                quota_rows.count_live(connection, tenant_id, _STEP)
            return before, row

        def unit(connection: Connection) -> dict[str, Any]:
            with scope.within(tenant_id, "the platform's administrators bound every tenant"):
                before, row = put(connection)
            name = f"user:{user_id}" if user_id != WHOLE else f"tenant:{tenant_id}"
            was, now = from_stored(before), from_stored(row)
            details = {"was": was, "now": now}
            self._audit.record(
                connection, AuditEntry(actor, Action.QUOTA_UPDATE, name, before=was, after=now, details=details)
            )
            return row

        return self._db.write(unit)

    @staticmethod
    def _shown(row: Mapping[str, Any] | None, default: Quota) -> dict[str, Any]:
        return {
            "limits": from_stored(row),
            "effective": laid_over(default, row).to_dict(),
            "version": row["version"] if row else 0,
            "updated_at": to_rfc3339(row["updated_at"]) if row else None,
        }


def _may_set(connection: Connection, actor: Actor, user_id: str) -> None:
    row = members.account(connection, actor, user_id)
    if actor.may(Permission.QUOTA_MANAGE):
        return  # the whole tenant's are theirs to set
    if user_id == actor.user_id:
        raise Forbidden("nobody sets their own quota; another administrator can")
    members.check_within(actor, members.holds(connection, row, actor.tenant_id))


def _write(connection: Connection, row: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    if before is None:
        try:
            connection.execute(insert(t.quota), row)
        except IntegrityError:
            raise _changed() from None
    else:
        changed = _same(update(t.quota), row["tenant_id"], row["user_id"], before["version"]).values(row)
        if connection.execute(changed).rowcount != 1:
            raise _changed()


def _same(statement: Any, tenant_id: str, user_id: str, version: int) -> Any:
    quota = t.quota.c
    return statement.where(quota.tenant_id == tenant_id, quota.user_id == user_id, quota.version == version)


def _expect(before: Mapping[str, Any] | None, version: int | None) -> None:
    if version is not None and (before["version"] if before else 0) != version:
        raise _changed()


def _changed() -> Conflict:
    return Conflict("the quota has changed since; read it again", code="quota-changed")


def _require_tenant(connection: Connection, tenant_id: str) -> None:
    found = is_uuid7(tenant_id) and connection.execute(select(t.tenant.c.id).where(t.tenant.c.id == tenant_id)).first()
    if not found:
        raise NotFound("there is no such tenant")


def _require_user(connection: Connection, tenant_id: str, user_id: str) -> None:
    role = t.user_role.c
    query = select(role.user_id).where(role.tenant_id == tenant_id, role.user_id == user_id).limit(1)
    if not is_uuid7(user_id) or connection.execute(query).first() is None:
        raise NotFound("there is no such user")
