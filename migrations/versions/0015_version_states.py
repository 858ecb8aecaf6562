"""Plugin versions are enabled, deprecated, disabled or yanked; jobs keep what was said of theirs when they were accepted."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("plugin_version", sa.Column("state", sa.String(length=16), server_default="enabled", nullable=False))
    op.add_column("plugin_version", sa.Column("state_reason", sa.String(length=300), nullable=True))
    op.add_column("plugin_version", sa.Column("state_changed_at", sa.BigInteger(), nullable=True))
    op.add_column("plugin_version", sa.Column("revision", sa.Integer(), server_default="1", nullable=False))
    op.execute("UPDATE plugin_version SET state = 'disabled' WHERE NOT enabled")
    op.drop_column("plugin_version", "enabled")
    op.add_column("job", sa.Column("warnings", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "warnings")
    op.add_column("plugin_version", sa.Column("enabled", sa.Boolean(), server_default=sa.true(), nullable=False))
    # The version before has one word for both: such a version takes no new jobs.
    op.execute(
        sa.text("UPDATE plugin_version SET enabled = :no WHERE state IN ('disabled', 'yanked')").bindparams(
            sa.bindparam("no", False, sa.Boolean())
        )
    )
    for name in ("revision", "state_changed_at", "state_reason", "state"):
        op.drop_column("plugin_version", name)
