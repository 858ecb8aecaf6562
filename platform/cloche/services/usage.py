"""What was used, for those who look after a tenant or bill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Table, select

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.metering import FIELDS, Metered
from cloche.domain.permissions import Actor, Permission
from cloche.domain.quotas import DAY_MS, day_of
from cloche.errors import Forbidden, Invalid, Problem
from cloche.services import usage_rows
from cloche.services.records import chunks

DEFAULT_DAYS = 30
MOST_DAYS = 366
MOST_ROWS = 10_000
_KEYS = {"tenant": ("tenant_id",), "user": ("tenant_id", "user_id"), "day": ("day",)}


class UsageService:
    """Thread-safe; only reads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def report(
        self, actor: Actor, since: int | None, until: int | None, group: str, *, platform: bool
    ) -> dict[str, Any]:
        """Sums of whole days of UTC. ``since``: days since the epoch, the first; ``until``: the one after the last. None: the last 30 days, and
        up to today's end. ``platform``: of every tenant.

        Raises:
            Forbidden: of every tenant is for platform administrators.
            Invalid: the days are in the wrong order or too many.
        """
        if platform and not actor.may(Permission.QUOTA_MANAGE):
            raise Forbidden(f"what every tenant has used needs the permission {Permission.QUOTA_MANAGE}")

        def unit(connection: Connection) -> dict[str, Any]:
            last = day_of(now_ms(connection)) + 1 if until is None else until
            first = last - DEFAULT_DAYS if since is None else since
            if not 0 < last - first <= MOST_DAYS:
                detail = f"comes before until, by at most {MOST_DAYS} days"
                raise Invalid("the days do not fit", problems=[Problem("/since", detail)])
            tenants = None if platform else [actor.tenant_id]
            rows = usage_rows.sums(connection, tenants, first, last, _KEYS[group], MOST_ROWS + 1)
            names = _Names(connection, rows)
            return {
                "since": _date(first),
                "until": _date(last),
                "group": group,
                "items": [names.shown(row) for row in rows[:MOST_ROWS]],
                "total": sum((_metered(row) for row in rows), Metered()).shown(),
                "complete": len(rows) <= MOST_ROWS,
            }

        return self._db.read(unit)


class _Names:
    """The names of tenants and users in these rows; what is gone has none."""

    def __init__(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        self._tenants = _names(connection, t.tenant, t.tenant.c.name, {row.get("tenant_id") for row in rows})
        self._users = _names(connection, t.user, t.user.c.username, {row.get("user_id") for row in rows})

    def shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        if "day" in row:
            shown["day"] = _date(row["day"])
        if "tenant_id" in row:
            shown |= {"tenant_id": row["tenant_id"], "tenant": self._tenants.get(row["tenant_id"])}
        if "user_id" in row:
            shown |= {"user_id": row["user_id"], "user": self._users.get(row["user_id"])}
        return shown | _metered(row).shown()


def _names(connection: Connection, table: Table, name: Column[Any], ids: set[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for some in chunks(sorted(ids - {None}), 500):
        found |= {row[0]: row[1] for row in connection.execute(select(table.c.id, name).where(table.c.id.in_(some)))}
    return found


def _metered(row: Mapping[str, Any]) -> Metered:
    return Metered(**{name: row[name] for name in FIELDS})


def _date(day: int) -> str:
    return str(to_rfc3339(day * DAY_MS))[:10]
