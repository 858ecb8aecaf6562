"""Where checkpoints are sent is told apart by its whole address; what is there already begins anew, for nobody knows to which it was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("audit_sink", sa.Column("mark", sa.String(length=64), server_default=sa.text("''"), nullable=False))


def downgrade() -> None:
    op.drop_column("audit_sink", "mark")
