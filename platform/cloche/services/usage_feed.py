"""Tells the operator's extensions what attempts have used: each record at least once, in order."""

from __future__ import annotations

from typing import Any

import pluggy
from sqlalchemy import Connection, delete, select

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.metering import FIELDS, Metered
from cloche.errors import Unavailable

_EVENT = t.usage_event.c


class UsageFeed:
    """For the scheduler. A record is removed once every extension has taken it."""

    def __init__(self, db: Database, extensions: pluggy.PluginManager) -> None:
        self._db = db
        self._extensions = extensions

    def run_once(self, limit: int) -> int:
        """Tell of the oldest records. Returns how many.

        Raises:
            Unavailable: an extension has failed, and will be told the same again; or the database does not answer.
        """
        query = select(t.usage_event).order_by(_EVENT.id).limit(limit)
        rows = self._db.read(lambda c: [dict(row) for row in c.execute(query).mappings()])
        if not rows:
            return 0
        try:
            self._extensions.hook.usage_recorded(records=[_record(row) for row in rows])
        except Exception as error:
            raise Unavailable(f"an extension did not take usage records ({type(error).__name__}: {error})") from error
        ids = [row["id"] for row in rows]

        def unit(connection: Connection) -> None:
            connection.execute(delete(t.usage_event).where(_EVENT.id.in_(ids)))

        self._db.write(unit)
        return len(rows)


def _record(row: dict[str, Any]) -> dict[str, Any]:
    used = Metered(**{name: row.get(name, 1) for name in FIELDS}).shown()
    used.pop("attempts")
    named = {name: row[name] for name in ("id", "tenant_id", "user_id", "job_id", "attempt")}
    return {**named, "ended_at": to_rfc3339(row["ended_at"]), **used}
