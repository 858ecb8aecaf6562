"""The triggers that make the audit tables append-only, as the text the migration runs, for each kind of database.

They stop mistakes and ordinary SQL, not somebody who may drop a trigger: that is what the signed tree is for. What may be deleted is what
lies before the newest prune mark, and a mark may be no further than the last batch but one. Two ways around a plain UPDATE/DELETE trigger
are closed as well: SQLite's ``INSERT OR REPLACE`` removes the row in its way without firing a DELETE trigger (by any unique column, or by
``rowid``), and a leaf, batch or mark out of order would leave a gap that only a verification would find. On PostgreSQL an
``ON CONFLICT DO UPDATE`` meets the UPDATE trigger, and TRUNCATE has a trigger of its own.
"""

from __future__ import annotations

TABLES = ("audit_event", "audit_leaf", "audit_batch", "audit_prune")
_MARK = "(SELECT coalesce(max(upto), 0) FROM audit_prune)"
_KEPT = {
    "audit_event": f"NOT EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = OLD.id AND seq < {_MARK})",  # noqa: S608 # nosec B608
    "audit_leaf": f"OLD.seq >= {_MARK}",
    "audit_batch": f"OLD.size > {_MARK}",
    "audit_prune": "",
}
_TOO_FAR = (
    f"NEW.upto <= {_MARK}"  # noqa: S608 # nosec B608
    " OR NEW.upto NOT IN (SELECT size FROM audit_batch WHERE number < (SELECT max(number) FROM audit_batch))"
)
_REFUSED = {
    "audit_event": "EXISTS (SELECT 1 FROM audit_event WHERE id = NEW.id OR rowid = NEW.rowid)"
    " OR EXISTS (SELECT 1 FROM audit_event WHERE object = NEW.object AND object_seq = NEW.object_seq)",
    "audit_leaf": "NEW.seq IS NOT (SELECT coalesce(max(seq) + 1, 0) FROM audit_leaf)"
    " OR EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = NEW.event_id OR rowid = NEW.rowid)",
    "audit_batch": "NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM audit_batch)"
    " OR EXISTS (SELECT 1 FROM audit_batch WHERE rowid = NEW.rowid)",
    "audit_prune": "NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM audit_prune)"  # noqa: S608 # nosec B608
    f" OR EXISTS (SELECT 1 FROM audit_prune WHERE rowid = NEW.rowid) OR {_TOO_FAR}",
}


def _guard(table: str, verb: str, when: str) -> str:
    return (
        f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb.upper()} ON {table}{f' WHEN {when}' if when else ''}"
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
    for statement in (_guard(table, "update", ""), _guard(table, "delete", _KEPT[table]), _order(table, refused))
)

DROP_SQLITE: tuple[str, ...] = tuple(
    f"DROP TRIGGER IF EXISTS {table}_no_{what}" for table in TABLES for what in ("update", "delete", "replace")
)

_IN_ORDER = {"audit_leaf": "seq", "audit_batch": "number", "audit_prune": "number"}
_INTEGRITY = "USING ERRCODE = 'integrity_constraint_violation'"


def _in_order(table: str, column: str) -> str:
    """On the table of marks: no further than the last batch but one, too."""
    wrong = f"NEW.{column} IS DISTINCT FROM (SELECT coalesce(max({column}) + 1, 0) FROM {table})"  # noqa: S608 # nosec B608
    if table == "audit_prune":
        wrong += f" OR {_TOO_FAR}"
    return (
        f"CREATE FUNCTION {table}_in_order() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" BEGIN IF {wrong} THEN"
        f" RAISE EXCEPTION '{table} is append-only: the row would replace another or leave a gap' {_INTEGRITY};"
        " END IF; RETURN NEW; END $$"
    )


POSTGRESQL: tuple[str, ...] = (
    "CREATE FUNCTION audit_refused() RETURNS trigger LANGUAGE plpgsql AS $$"
    f" BEGIN RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, lower(TG_OP) {_INTEGRITY}; END $$",
    *(
        statement
        for table, kept in _KEPT.items()
        for statement in (
            f"CREATE FUNCTION {table}_kept() RETURNS trigger LANGUAGE plpgsql AS $$"
            f" BEGIN IF {kept or 'true'} THEN RAISE EXCEPTION '{table} is append-only: delete refused' {_INTEGRITY};"
            " END IF; RETURN OLD; END $$",
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_kept()",
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refused()",
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION audit_refused()",
        )
    ),
    *(
        statement
        for table, column in _IN_ORDER.items()
        for statement in (
            _in_order(table, column),
            f"CREATE TRIGGER {table}_no_gap BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_in_order()",
        )
    ),
)

DROP_POSTGRESQL: tuple[str, ...] = (
    *(
        f"DROP TRIGGER IF EXISTS {table}_no_{what} ON {table}"
        for table in TABLES
        for what in ("change", "delete", "truncate")
    ),
    *(f"DROP TRIGGER IF EXISTS {table}_no_gap ON {table}" for table in _IN_ORDER),
)
