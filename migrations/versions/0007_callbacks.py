"""Callbacks: what a job asks for, what is to be delivered, what it is signed with."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("callback", sa.JSON(), nullable=True))
    op.create_table(
        "callback_delivery",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("receiver", sa.String(length=300), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("next_try_at", sa.BigInteger(), nullable=False),
        sa.Column("claimed_by", sa.String(length=36), nullable=True),
        sa.Column("claimed_until", sa.BigInteger(), nullable=False),
        sa.Column("last_attempt_at", sa.BigInteger(), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_outcome", sa.String(length=16), nullable=True),
        sa.Column("last_error", sa.String(length=300), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_callback_delivery_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_delivery")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_callback_delivery_job_id_number")),
    )
    op.create_index(
        "ix_callback_delivery_pending",
        "callback_delivery",
        ["tenant_id", "receiver", "next_try_at"],
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_table(
        "callback_secret",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=True),
        sa.Column("previous_until", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_callback_secret_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_callback_secret")),
    )
    op.create_table(
        "callback_total",
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("outcome", name=op.f("pk_callback_total")),
    )


def downgrade() -> None:
    op.drop_table("callback_total")
    op.drop_table("callback_secret")
    op.drop_index("ix_callback_delivery_pending", table_name="callback_delivery")
    op.drop_table("callback_delivery")
    op.drop_column("job", "callback")
