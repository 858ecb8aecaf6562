"""Named queues: what is said of each, and of tenants' shares. Both that there were are there from the start."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BUILT_IN = {"default": "Jobs that name no queue.", "sensitive": "Sensitive jobs, and they alone."}


def upgrade() -> None:
    queue = op.create_table(
        "queue",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("description", sa.String(length=300), nullable=True),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("max_concurrency", sa.Integer(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("rules_version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_queue")),
    )
    op.create_table(
        "queue_share",
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["queue"], ["queue.name"], name=op.f("fk_queue_share_queue")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_queue_share_tenant_id")),
        sa.PrimaryKeyConstraint("queue", "tenant_id", name=op.f("pk_queue_share")),
    )
    now = time.time_ns() // 1_000_000
    rows = [
        {"name": name, "description": text, "paused": False, "revision": 1, "rules_version": now, "created_at": now}
        for name, text in BUILT_IN.items()
    ]
    op.bulk_insert(queue, [{**row, "updated_at": now} for row in rows])


def downgrade() -> None:
    # A version that knows two queues takes from no other: what waits in one would wait for ever.
    job = sa.table("job", sa.column("queue", sa.String()))
    op.execute(job.update().where(job.c.queue.not_in(list(BUILT_IN))).values(queue="default"))
    op.drop_table("queue_share")
    op.drop_table("queue")
