"""Quotas: limits, counters, and what was used day by day. What is stored already is counted here."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_ID = sa.String(length=36)
_USED = ("attempts", "cpu_ms", "memory_mb_ms", "bytes_in", "bytes_out", "bytes_stored", "wall_ms")
_KINDS = ("jobs", "submissions_per_minute", "storage_bytes", "cpu_seconds_per_day")


def upgrade() -> None:
    op.create_table(
        "quota",
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _KINDS),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_by", _ID, nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_quota")),
    )
    op.create_table(
        "quota_use",
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", name=op.f("pk_quota_use")),
    )
    op.create_table(
        "quota_delta",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_delta")),
    )
    op.create_index(op.f("ix_quota_delta_tenant_id_id"), "quota_delta", ["tenant_id", "id"])
    op.create_table(
        "quota_refusal",
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_quota_refusal")),
    )
    op.create_table(
        "usage_day",
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _USED),
        sa.PrimaryKeyConstraint("tenant_id", "day", "user_id", "shard", name=op.f("pk_usage_day")),
    )
    op.create_table(
        "usage_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("job_id", _ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _USED[1:]),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_event")),
    )
    op.add_column("job", sa.Column("quota_counted", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute(
        "INSERT INTO quota_use (tenant_id, user_id, jobs, bytes)"
        " SELECT tenant_id, created_by, 0, sum(size) FROM artifact GROUP BY tenant_id, created_by"
    )
    op.execute(
        "INSERT INTO quota_use (tenant_id, user_id, jobs, bytes) SELECT tenant_id, '', 0, sum(size) FROM artifact GROUP BY tenant_id"
    )


def downgrade() -> None:
    op.drop_column("job", "quota_counted")
    for name in ("usage_event", "usage_day", "quota_refusal", "quota_delta", "quota_use", "quota"):
        op.drop_table(name)
    # The version before has no word for it.
    op.execute("UPDATE job SET reason = 'output_rejected' WHERE reason = 'storage_quota'")
