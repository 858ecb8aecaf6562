"""Jobs that were submitted together."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("submitted_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_batch_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
    )
    op.create_index("ix_batch_tenant_id_id", "batch", ["tenant_id", "id"])
    op.add_column("job", sa.Column("batch_id", sa.String(length=36), nullable=True))
    op.create_index(
        "ix_job_batch_id",
        "job",
        ["batch_id", "state", "id"],
        sqlite_where=sa.text("batch_id IS NOT NULL"),
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_job_batch_id", table_name="job")
    op.drop_column("job", "batch_id")
    op.drop_index("ix_batch_tenant_id_id", table_name="batch")
    op.drop_table("batch")
