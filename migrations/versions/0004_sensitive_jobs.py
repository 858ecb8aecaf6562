"""Sensitive jobs: which they are, and the ids of the keys that they are sealed with."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sealing_key",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_sealing_key")),
        sa.UniqueConstraint("id", name=op.f("uq_sealing_key_id")),
    )
    # Not a batch: the table keeps its rows and its indexes where they are.
    op.add_column("job", sa.Column("sensitive", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    # A version without this column would run a sealed payload as if it were the job's own.
    waiting = op.get_bind().scalar(
        sa.text("select count(*) from job where sensitive and state not in ('completed', 'failed', 'canceled')")
    )
    if waiting:
        raise RuntimeError(f"{waiting} sensitive jobs have not ended: let them end or cancel them before going back")
    op.drop_column("job", "sensitive")
    op.drop_table("sealing_key")
