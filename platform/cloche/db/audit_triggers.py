"""The triggers that make the audit tables append-only, as the text the migration runs.

They stop mistakes and ordinary SQL, not somebody who may drop a trigger: that is what the signed tree is for. Two ways around a plain
UPDATE/DELETE trigger are closed as well: SQLite's ``INSERT OR REPLACE`` removes the row in its way without firing a DELETE trigger (by any
unique column, or by ``rowid``), and a leaf or batch out of order would leave a gap that only a verification would find.
"""

from __future__ import annotations

_REFUSED = {
    "audit_event": "EXISTS (SELECT 1 FROM audit_event WHERE id = NEW.id OR rowid = NEW.rowid)"
    " OR EXISTS (SELECT 1 FROM audit_event WHERE object = NEW.object AND object_seq = NEW.object_seq)",
    "audit_leaf": "NEW.seq IS NOT (SELECT coalesce(max(seq) + 1, 0) FROM audit_leaf)"
    " OR EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = NEW.event_id OR rowid = NEW.rowid)",
    "audit_batch": "NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM audit_batch)"
    " OR EXISTS (SELECT 1 FROM audit_batch WHERE rowid = NEW.rowid)",
}


def _guard(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table}"
        f" BEGIN SELECT RAISE(ABORT, '{table} is append-only: {verb} refused'); END"
    )


def _order(table: str, refused: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {refused}"
        f" BEGIN SELECT RAISE(ABORT, '{table} is append-only: the row would replace another or leave a gap'); END"
    )


SQLITE: tuple[str, ...] = tuple(
    statement
    for table, refused in _REFUSED.items()
    for statement in (_guard(table, "update"), _guard(table, "delete"), _order(table, refused))
)

DROP_SQLITE: tuple[str, ...] = tuple(
    f"DROP TRIGGER IF EXISTS {table}_no_{what}" for table in _REFUSED for what in ("update", "delete", "replace")
)
