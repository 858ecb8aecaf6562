"""That somebody read the record, in the record: one event for each read, and for repetitions within a minute none."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from cloche.audit import canonical
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor

_MINUTE_MS = 60_000
_DIFFERENT = 60  # of one actor in a minute; whoever reads more has one event that says so
_ACTORS = 10_000  # kept apart at once


class Reads:
    """One per process. Safe from any thread."""

    def __init__(self, db: Database, audit: AuditLog) -> None:
        self._db = db
        self._audit = audit
        self._lock = threading.Lock()
        self._minute = 0
        self._seen: dict[str, set[str]] = {}

    def record(self, actor: Actor, action: Action, target: str, details: Mapping[str, Any] | None = None) -> None:
        """Record the read before it is answered, unless the actor did the same within this minute.

        Raises:
            Unavailable: it cannot be recorded, so it must not be answered.
        """
        what = canonical.digest([action.value, target, dict(details or {})])
        kept = self._first(actor.user_id, what)
        if kept is None:
            return
        given = dict(details or {}) if kept else {"more": f"over {_DIFFERENT} different reads in this minute"}
        entry = AuditEntry(actor, action, target, details=given)
        try:
            self._db.write(lambda connection: self._audit.record(connection, entry))
        except BaseException:
            self._forget(actor.user_id, what)
            raise

    def _first(self, user_id: str, what: str) -> bool | None:
        """None where nothing is to be written; whether it is one of those that are told apart."""
        minute = self._db.now_ms() // _MINUTE_MS
        with self._lock:
            if minute != self._minute or len(self._seen) >= _ACTORS:
                self._minute, self._seen = minute, {}
            seen = self._seen.setdefault(user_id, set())
            if what in seen or len(seen) > _DIFFERENT:
                return None
            seen.add(what)
            return len(seen) <= _DIFFERENT

    def _forget(self, user_id: str, what: str) -> None:
        with self._lock:
            self._seen.get(user_id, set()).discard(what)
