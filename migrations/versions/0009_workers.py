"""Workers: labels, what their hosts have left, drain. Indexes that statistics are counted with."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_LIVE = sa.text("state IN ('scheduled', 'blocked', 'pending', 'processing')")
_ENDED = sa.text("finished_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("worker", sa.Column("labels", sa.JSON(), nullable=True))
    op.add_column("worker", sa.Column("resources", sa.JSON(), nullable=True))
    op.add_column("worker", sa.Column("drain_requested_at", sa.BigInteger(), nullable=True))
    op.create_index("ix_job_arrived", "job", ["tenant_id", "queue", "created_at"])
    op.create_index(
        "ix_job_live", "job", ["tenant_id", "queue", "state", "ready_at"], sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_index(
        "ix_job_ended",
        "job",
        ["tenant_id", "queue", "finished_at", "state"],
        sqlite_where=_ENDED,
        postgresql_where=_ENDED,
    )


def downgrade() -> None:
    op.drop_index("ix_job_ended", table_name="job")
    op.drop_index("ix_job_live", table_name="job")
    op.drop_index("ix_job_arrived", table_name="job")
    op.drop_column("worker", "drain_requested_at")
    op.drop_column("worker", "resources")
    op.drop_column("worker", "labels")
