"""What a tenant's jobs may reach, and sums of what they did."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "egress_policy",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("allow", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_by", sa.String(length=36), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_egress_policy_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_egress_policy")),
    )
    op.create_table(
        "egress_total",
        sa.Column("verdict", sa.String(length=32), nullable=False),
        sa.Column("connections", sa.BigInteger(), nullable=False),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("verdict", name=op.f("pk_egress_total")),
    )


def downgrade() -> None:
    op.drop_table("egress_total")
    op.drop_table("egress_policy")
