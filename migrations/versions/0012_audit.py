"""Audit: marks of retention, nodes of the tree for proofs, places that checkpoints are sent to, an index for each filter.

What lies before the newest mark may be deleted from now on; before, nothing could be.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TABLES = ("audit_event", "audit_leaf", "audit_batch")
_HAS_IP = sa.text("ip IS NOT NULL")
_NOT_USUAL = sa.text("outcome <> 'allowed'")

NEW_SQLITE = (
    "CREATE TRIGGER audit_event_no_delete BEFORE DELETE ON audit_event WHEN NOT EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = OLD.id AND seq < (SELECT coalesce(max(upto), 0) FROM audit_prune)) BEGIN SELECT RAISE(ABORT, 'audit_event is append-only: delete refused'); END",
    "CREATE TRIGGER audit_leaf_no_delete BEFORE DELETE ON audit_leaf WHEN OLD.seq >= (SELECT coalesce(max(upto), 0) FROM audit_prune) BEGIN SELECT RAISE(ABORT, 'audit_leaf is append-only: delete refused'); END",
    "CREATE TRIGGER audit_batch_no_delete BEFORE DELETE ON audit_batch WHEN OLD.size > (SELECT coalesce(max(upto), 0) FROM audit_prune) BEGIN SELECT RAISE(ABORT, 'audit_batch is append-only: delete refused'); END",
    "CREATE TRIGGER audit_prune_no_update BEFORE UPDATE ON audit_prune BEGIN SELECT RAISE(ABORT, 'audit_prune is append-only: update refused'); END",
    "CREATE TRIGGER audit_prune_no_delete BEFORE DELETE ON audit_prune BEGIN SELECT RAISE(ABORT, 'audit_prune is append-only: delete refused'); END",
    "CREATE TRIGGER audit_prune_no_replace BEFORE INSERT ON audit_prune WHEN NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM audit_prune) OR EXISTS (SELECT 1 FROM audit_prune WHERE rowid = NEW.rowid) OR NEW.upto <= (SELECT coalesce(max(upto), 0) FROM audit_prune) OR NEW.upto NOT IN (SELECT size FROM audit_batch WHERE number < (SELECT max(number) FROM audit_batch)) BEGIN SELECT RAISE(ABORT, 'audit_prune is append-only: the row would replace another or leave a gap'); END",
)

NEW_POSTGRESQL = (
    "CREATE TRIGGER audit_event_no_change BEFORE UPDATE ON audit_event FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_leaf_no_change BEFORE UPDATE ON audit_leaf FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_batch_no_change BEFORE UPDATE ON audit_batch FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE FUNCTION audit_event_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NOT EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = OLD.id AND seq < (SELECT coalesce(max(upto), 0) FROM audit_prune)) THEN RAISE EXCEPTION 'audit_event is append-only: delete refused' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN OLD; END $$",
    "CREATE TRIGGER audit_event_no_delete BEFORE DELETE ON audit_event FOR EACH ROW EXECUTE FUNCTION audit_event_kept()",
    "CREATE FUNCTION audit_leaf_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.seq >= (SELECT coalesce(max(upto), 0) FROM audit_prune) THEN RAISE EXCEPTION 'audit_leaf is append-only: delete refused' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN OLD; END $$",
    "CREATE TRIGGER audit_leaf_no_delete BEFORE DELETE ON audit_leaf FOR EACH ROW EXECUTE FUNCTION audit_leaf_kept()",
    "CREATE FUNCTION audit_batch_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.size > (SELECT coalesce(max(upto), 0) FROM audit_prune) THEN RAISE EXCEPTION 'audit_batch is append-only: delete refused' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN OLD; END $$",
    "CREATE TRIGGER audit_batch_no_delete BEFORE DELETE ON audit_batch FOR EACH ROW EXECUTE FUNCTION audit_batch_kept()",
    "CREATE FUNCTION audit_prune_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF true THEN RAISE EXCEPTION 'audit_prune is append-only: delete refused' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN OLD; END $$",
    "CREATE TRIGGER audit_prune_no_delete BEFORE DELETE ON audit_prune FOR EACH ROW EXECUTE FUNCTION audit_prune_kept()",
    "CREATE TRIGGER audit_prune_no_change BEFORE UPDATE ON audit_prune FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_prune_no_truncate BEFORE TRUNCATE ON audit_prune FOR EACH STATEMENT EXECUTE FUNCTION audit_refused()",
    "CREATE FUNCTION audit_prune_in_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.number IS DISTINCT FROM (SELECT coalesce(max(number) + 1, 0) FROM audit_prune) OR NEW.upto <= (SELECT coalesce(max(upto), 0) FROM audit_prune) OR NEW.upto NOT IN (SELECT size FROM audit_batch WHERE number < (SELECT max(number) FROM audit_batch)) THEN RAISE EXCEPTION 'audit_prune is append-only: the row would replace another or leave a gap' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER audit_prune_no_gap BEFORE INSERT ON audit_prune FOR EACH ROW EXECUTE FUNCTION audit_prune_in_order()",
)

OLD_SQLITE = tuple(
    f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, '{table} is append-only: delete refused'); END"
    for table in _TABLES
)
OLD_POSTGRESQL = tuple(
    f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refused()"
    for table in _TABLES
)


def upgrade() -> None:
    op.create_table(
        "audit_node",
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("level", "number", name=op.f("pk_audit_node")),
    )
    op.create_table(
        "audit_prune",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("upto", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_prune")),
    )
    op.create_table(
        "audit_sink",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("place", sa.String(length=255), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_audit_sink")),
    )
    op.create_index("ix_audit_event_who", "audit_event", ["tenant_id", "actor", "id"])
    op.create_index("ix_audit_event_what", "audit_event", ["tenant_id", "action", "id"])
    _partial("ix_audit_event_where", "ip", _HAS_IP)
    _partial("ix_audit_event_outcome", "outcome", _NOT_USUAL)
    _drop_guards()
    for statement in NEW_POSTGRESQL if _postgresql() else NEW_SQLITE:
        op.get_bind().exec_driver_sql(statement.replace("%", "%%") if _postgresql() else statement)


def _partial(name: str, column: str, where: sa.TextClause) -> None:
    op.create_index(name, "audit_event", ["tenant_id", column, "id"], sqlite_where=where, postgresql_where=where)


def _postgresql() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def _drop_guards() -> None:
    what = "change" if _postgresql() else "delete"
    for table in _TABLES:
        op.execute(f"DROP TRIGGER {table}_no_{what}" + (f" ON {table}" if _postgresql() else ""))


def downgrade() -> None:
    # A version that knows neither marks nor a second key would call the trail tampered.
    pruned = op.get_bind().scalar(sa.text("select count(*) from audit_prune"))
    said = op.get_bind().scalar(
        sa.text("select count(*) from audit_batch where note like :key or note like :gap"),
        {"key": "%\nkey %", "gap": "%\nrestored %"},
    )
    if pruned or said:
        raise RuntimeError(
            "the audit trail was pruned, its key was rotated, or a restore was declared: an older version cannot verify that"
        )
    _drop_guards()
    if _postgresql():
        for table in _TABLES:
            op.execute(f"DROP TRIGGER {table}_no_delete ON {table}")
    for statement in OLD_POSTGRESQL if _postgresql() else OLD_SQLITE:
        op.execute(statement)
    for name in ("outcome", "where", "what", "who"):
        op.drop_index(f"ix_audit_event_{name}", table_name="audit_event")
    for table in ("audit_sink", "audit_prune", "audit_node"):
        op.drop_table(table)
    if _postgresql():
        for name in ("audit_prune_in_order", *(f"{table}_kept" for table in (*_TABLES, "audit_prune"))):
            op.execute(f"DROP FUNCTION {name}()")
