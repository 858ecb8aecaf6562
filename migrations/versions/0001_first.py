"""The first schema: people, files, jobs, queue, audit.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# As they were declared for this revision; a later change of the declaration is a later migration.
TRIGGERS = (
    "CREATE TRIGGER audit_event_no_update BEFORE UPDATE ON audit_event BEGIN SELECT RAISE(ABORT, 'audit_event is append-only: update refused'); END",
    "CREATE TRIGGER audit_event_no_delete BEFORE DELETE ON audit_event BEGIN SELECT RAISE(ABORT, 'audit_event is append-only: delete refused'); END",
    "CREATE TRIGGER audit_event_no_replace BEFORE INSERT ON audit_event WHEN EXISTS (SELECT 1 FROM audit_event WHERE id = NEW.id OR rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM audit_event WHERE object = NEW.object AND object_seq = NEW.object_seq) BEGIN SELECT RAISE(ABORT, 'audit_event is append-only: the row would replace another or leave a gap'); END",
    "CREATE TRIGGER audit_leaf_no_update BEFORE UPDATE ON audit_leaf BEGIN SELECT RAISE(ABORT, 'audit_leaf is append-only: update refused'); END",
    "CREATE TRIGGER audit_leaf_no_delete BEFORE DELETE ON audit_leaf BEGIN SELECT RAISE(ABORT, 'audit_leaf is append-only: delete refused'); END",
    "CREATE TRIGGER audit_leaf_no_replace BEFORE INSERT ON audit_leaf WHEN NEW.seq IS NOT (SELECT coalesce(max(seq) + 1, 0) FROM audit_leaf) OR EXISTS (SELECT 1 FROM audit_leaf WHERE event_id = NEW.event_id OR rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'audit_leaf is append-only: the row would replace another or leave a gap'); END",
    "CREATE TRIGGER audit_batch_no_update BEFORE UPDATE ON audit_batch BEGIN SELECT RAISE(ABORT, 'audit_batch is append-only: update refused'); END",
    "CREATE TRIGGER audit_batch_no_delete BEFORE DELETE ON audit_batch BEGIN SELECT RAISE(ABORT, 'audit_batch is append-only: delete refused'); END",
    "CREATE TRIGGER audit_batch_no_replace BEFORE INSERT ON audit_batch WHEN NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM audit_batch) OR EXISTS (SELECT 1 FROM audit_batch WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'audit_batch is append-only: the row would replace another or leave a gap'); END",
)

POSTGRESQL = (
    "CREATE FUNCTION audit_refused() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, lower(TG_OP) USING ERRCODE = 'integrity_constraint_violation'; END $$",
    "CREATE TRIGGER audit_event_no_change BEFORE UPDATE OR DELETE ON audit_event FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_event_no_truncate BEFORE TRUNCATE ON audit_event FOR EACH STATEMENT EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_leaf_no_change BEFORE UPDATE OR DELETE ON audit_leaf FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_leaf_no_truncate BEFORE TRUNCATE ON audit_leaf FOR EACH STATEMENT EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_batch_no_change BEFORE UPDATE OR DELETE ON audit_batch FOR EACH ROW EXECUTE FUNCTION audit_refused()",
    "CREATE TRIGGER audit_batch_no_truncate BEFORE TRUNCATE ON audit_batch FOR EACH STATEMENT EXECUTE FUNCTION audit_refused()",
    "CREATE FUNCTION audit_leaf_in_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.seq IS DISTINCT FROM (SELECT coalesce(max(seq) + 1, 0) FROM audit_leaf) THEN RAISE EXCEPTION 'audit_leaf is append-only: the row would replace another or leave a gap' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER audit_leaf_no_gap BEFORE INSERT ON audit_leaf FOR EACH ROW EXECUTE FUNCTION audit_leaf_in_order()",
    "CREATE FUNCTION audit_batch_in_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.number IS DISTINCT FROM (SELECT coalesce(max(number) + 1, 0) FROM audit_batch) THEN RAISE EXCEPTION 'audit_batch is append-only: the row would replace another or leave a gap' USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER audit_batch_no_gap BEFORE INSERT ON audit_batch FOR EACH ROW EXECUTE FUNCTION audit_batch_in_order()",
    # Which transaction wrote an event: the sealer asks for what may have been committed since it looked last (cloche.db.unsealed).
    "ALTER TABLE audit_event ADD COLUMN txid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint",
    "CREATE INDEX ix_audit_event_txid ON audit_event (txid)",
)
FUNCTIONS = ("audit_refused", "audit_leaf_in_order", "audit_batch_in_order")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("username", sa.String(length=64), nullable=False),
        sa.Column("password_hash", sa.String(length=256), nullable=False),
        sa.Column("platform_admin", sa.Boolean(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("username", name=op.f("uq_account_username")),
    )
    op.create_table(
        "audit_batch",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_batch")),
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("token_id", sa.String(length=36), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("object", sa.String(length=255), nullable=False),
        sa.Column("object_seq", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("ip", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=255), nullable=True),
        sa.Column("before_sha256", sa.String(length=64), nullable=True),
        sa.Column("after_sha256", sa.String(length=64), nullable=True),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("mac", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
        sa.UniqueConstraint("object", "object_seq", name=op.f("uq_audit_event_object_object_seq")),
    )
    op.create_index(op.f("ix_audit_event_tenant_id_id"), "audit_event", ["tenant_id", "id"], unique=False)
    op.create_table(
        "audit_leaf",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=36), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_leaf")),
        sa.UniqueConstraint("event_id", name=op.f("uq_audit_leaf_event_id")),
    )
    op.create_table(
        "audit_person",
        sa.Column("commitment", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=False),
        sa.Column("salt", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("commitment", name=op.f("pk_audit_person")),
        sa.UniqueConstraint("kind", "value", name=op.f("uq_audit_person_kind_value")),
    )
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("response", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=36), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )
    op.create_table(
        "plugin_version",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_plugin_version")),
    )
    op.create_table(
        "tenant",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenant")),
        sa.UniqueConstraint("name", name=op.f("uq_tenant_name")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("status_reason", sa.String(length=255), nullable=True),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("last_heartbeat_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_table(
        "account_role",
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_account_role_tenant_id")),
        sa.ForeignKeyConstraint(["user_id"], ["account.id"], name=op.f("fk_account_role_user_id")),
        sa.PrimaryKeyConstraint("user_id", "tenant_id", "role", name=op.f("pk_account_role")),
    )
    op.create_table(
        "artifact",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("media_type", sa.String(length=128), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_artifact_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
    )
    op.create_index(op.f("ix_artifact_sha256"), "artifact", ["sha256"], unique=False)
    op.create_index(op.f("ix_artifact_tenant_id_sha256"), "artifact", ["tenant_id", "sha256"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("version_spec", sa.String(length=100), nullable=True),
        sa.Column("plugin_version", sa.String(length=64), nullable=False),
        sa.Column("plugin_digest", sa.String(length=64), nullable=False),
        sa.Column("image_digest", sa.String(length=80), nullable=True),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("payload_sha256", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("retry", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("retries_used", sa.Integer(), nullable=False),
        sa.Column("platform_failures", sa.Integer(), nullable=False),
        sa.Column("worker_deaths", sa.Integer(), nullable=False),
        sa.Column("ready_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.String(length=36), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("cancel_requested_at", sa.BigInteger(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("submitted_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("audit_seq", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_job_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index(
        "ix_job_lease_until",
        "job",
        ["lease_until"],
        unique=False,
        sqlite_where=sa.text("state = 'processing'"),
        postgresql_where=sa.text("state = 'processing'"),
    )
    op.create_index("ix_job_state_ready_at", "job", ["state", "ready_at", "id"], unique=False)
    op.create_index("ix_job_tenant_id_id", "job", ["tenant_id", "id"], unique=False)
    op.create_index("ix_job_tenant_id_state", "job", ["tenant_id", "state", "id"], unique=False)
    op.create_index("ix_job_tenant_id_submitted_by", "job", ["tenant_id", "submitted_by", "id"], unique=False)
    op.create_index("ix_job_tenant_id_type", "job", ["tenant_id", "type", "id"], unique=False)
    op.create_table(
        "remote",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("options_encrypted", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_remote_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_remote")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_remote_tenant_id_name")),
    )
    op.create_table(
        "session",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("ip", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_session_tenant_id")),
        sa.ForeignKeyConstraint(["user_id"], ["account.id"], name=op.f("fk_session_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
    )
    op.create_table(
        "token",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_token_tenant_id")),
        sa.ForeignKeyConstraint(["user_id"], ["account.id"], name=op.f("fk_token_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
    )
    op.create_index(op.f("ix_token_user_id"), "token", ["user_id"], unique=False)
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=36), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_attempt_job_id")),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempt")),
    )
    op.create_table(
        "job_log",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.String(length=8), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_log_job_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", "seq", name=op.f("pk_job_log")),
    )
    op.create_table(
        "job_output",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(length=1024), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("artifact_id", sa.String(length=36), nullable=True),
        sa.Column("destination", sa.String(length=1100), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_output_job_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", "path", name=op.f("pk_job_output")),
    )
    op.create_table(
        "trace_event",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("event_type", sa.String(length=32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_trace_event_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trace_event")),
    )
    op.create_index(op.f("ix_trace_event_job_id_id"), "trace_event", ["job_id", "id"], unique=False)
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    # a table's triggers go with it
    op.drop_index(op.f("ix_trace_event_job_id_id"), table_name="trace_event")
    op.drop_table("trace_event")
    op.drop_table("job_output")
    op.drop_table("job_log")
    op.drop_table("attempt")
    op.drop_index(op.f("ix_token_user_id"), table_name="token")
    op.drop_table("token")
    op.drop_table("session")
    op.drop_table("remote")
    op.drop_index("ix_job_tenant_id_type", table_name="job")
    op.drop_index("ix_job_tenant_id_submitted_by", table_name="job")
    op.drop_index("ix_job_tenant_id_state", table_name="job")
    op.drop_index("ix_job_tenant_id_id", table_name="job")
    op.drop_index("ix_job_state_ready_at", table_name="job")
    op.drop_index(
        "ix_job_lease_until",
        table_name="job",
        sqlite_where=sa.text("state = 'processing'"),
        postgresql_where=sa.text("state = 'processing'"),
    )
    op.drop_table("job")
    op.drop_index(op.f("ix_artifact_tenant_id_sha256"), table_name="artifact")
    op.drop_index(op.f("ix_artifact_sha256"), table_name="artifact")
    op.drop_table("artifact")
    op.drop_table("account_role")
    op.drop_table("worker")
    op.drop_table("tenant")
    op.drop_table("plugin_version")
    op.drop_table("outbox")
    op.drop_table("lease")
    op.drop_index(op.f("ix_idempotency_created_at"), table_name="idempotency")
    op.drop_table("idempotency")
    op.drop_table("audit_person")
    op.drop_table("audit_leaf")
    op.drop_index(op.f("ix_audit_event_tenant_id_id"), table_name="audit_event")
    op.drop_table("audit_event")
    op.drop_table("audit_batch")
    op.drop_table("account")
    if op.get_bind().dialect.name == "postgresql":
        for name in FUNCTIONS:
            op.execute(f"DROP FUNCTION {name}()")
