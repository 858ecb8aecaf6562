"""Delays, expiry, runs, dependencies and dead letters of jobs.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MAY_EXPIRE = "expires_at IS NOT NULL AND started_at IS NULL AND finished_at IS NULL"
_DEAD_LETTER = "state = 'failed'"
# What the version before has no word for, in the words it has.
_REASONS = {
    "waits_for_time": "retry_backoff",
    "dependencies_met": "submitted",
    "retried": "submitted",
    "expired": "canceled_by_user",
    "upstream_failed": "canceled_by_user",
    "quarantined": "lease_lapsed",
}


def _columns() -> tuple[sa.Column, ...]:
    return (
        sa.Column("scheduled_at", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("run", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("depends_on", sa.JSON(), nullable=True),
        sa.Column("depends_on_condition", sa.String(length=16), nullable=True),
        sa.Column("on_upstream_failure", sa.String(length=16), nullable=True),
        sa.Column("has_dependents", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def upgrade() -> None:
    for column in _columns():
        op.add_column("job", column)
    op.add_column("attempt", sa.Column("run", sa.Integer(), server_default=sa.text("1"), nullable=False))
    where = sa.text("finished_at IS NOT NULL")
    op.create_index("ix_job_finished_at", "job", ["finished_at", "id"], sqlite_where=where, postgresql_where=where)
    where = sa.text(_DEAD_LETTER)
    columns = ["tenant_id", "finished_at", "id"]
    op.create_index("ix_job_dead_letters", "job", columns, sqlite_where=where, postgresql_where=where)
    where = sa.text(_MAY_EXPIRE)
    op.create_index("ix_job_expires_at", "job", ["expires_at"], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "job_dependency",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("upstream_id", sa.String(length=36), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_dependency_job_id")),
        sa.PrimaryKeyConstraint("job_id", "upstream_id", name=op.f("pk_job_dependency")),
    )
    op.create_index(op.f("ix_job_dependency_upstream_id_job_id"), "job_dependency", ["upstream_id", "job_id"])
    op.create_table(
        "job_release",
        sa.Column("upstream_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("upstream_id", name=op.f("pk_job_release")),
    )
    op.create_table(
        "job_past",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_job_past")),
    )


def downgrade() -> None:
    op.drop_table("job_past")
    op.drop_table("job_release")
    op.drop_table("job_dependency")
    for name in ("ix_job_expires_at", "ix_job_dead_letters", "ix_job_finished_at"):
        op.drop_index(name, table_name="job")
    op.drop_column("attempt", "run")
    for column in reversed(_columns()):
        op.drop_column("job", column.name)
    # Nothing would ever release what still waits for other jobs.
    op.execute(
        "UPDATE job SET state = 'canceled', reason = 'canceled_by_user', finished_at = ready_at WHERE state = 'blocked'"
    )
    job = sa.table("job", sa.column("reason"))
    for new, old in _REASONS.items():
        op.execute(sa.update(job).where(job.c.reason == new).values(reason=old))
