"""Lists of jobs go by when each was stored, not by its id, which a web host's clock has made."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_LISTS = ([], ["state"], ["type"], ["submitted_by"])


def upgrade() -> None:
    for columns in _LISTS:
        op.drop_index(op.f("_".join(["ix_job_tenant_id", *(columns or ["id"])])), table_name="job")
        named = ["tenant_id", *columns, "created_at"]
        op.create_index(op.f("_".join(["ix_job", *named])), "job", [*named, "id"])


def downgrade() -> None:
    for columns in _LISTS:
        op.drop_index(op.f("_".join(["ix_job_tenant_id", *columns, "created_at"])), table_name="job")
        op.create_index(
            op.f("_".join(["ix_job_tenant_id", *(columns or ["id"])])), "job", ["tenant_id", *columns, "id"]
        )
