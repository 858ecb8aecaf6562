"""People: roles of a tenant's own, tenants that are suspended, service accounts, versions, and names that look alike."""

import sqlalchemy as sa
from alembic import op

from cloche.domain.names import skeleton

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "role",
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("skeleton", sa.String(length=64), nullable=False),
        sa.Column("summary", sa.String(length=300), nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_role_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_role")),
    )
    op.create_index("ix_role_tenant_id_skeleton", "role", ["tenant_id", "skeleton"], unique=True)
    op.add_column("tenant", sa.Column("skeleton", sa.String(length=64), nullable=True))
    op.add_column("tenant", sa.Column("suspended", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("tenant", sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("account", sa.Column("skeleton", sa.String(length=64), nullable=True))
    op.add_column("account", sa.Column("kind", sa.String(length=8), server_default=sa.text("'person'"), nullable=False))
    op.add_column("account", sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("account", sa.Column("deleted_at", sa.BigInteger(), nullable=True))
    _fill("tenant", "name")
    _fill("account", "username")
    op.create_index("ix_tenant_skeleton", "tenant", ["skeleton"], unique=True)
    suspended = sa.text("suspended")
    op.create_index("ix_tenant_suspended", "tenant", ["id"], sqlite_where=suspended, postgresql_where=suspended)
    op.create_index("ix_account_skeleton", "account", ["skeleton"], unique=True)
    admins = sa.text("platform_admin")
    op.create_index("ix_account_platform_admin", "account", ["id"], sqlite_where=admins, postgresql_where=admins)
    op.create_index("ix_account_role_tenant_id_user_id", "account_role", ["tenant_id", "user_id"])
    op.create_index("ix_account_role_tenant_id_role_user_id", "account_role", ["tenant_id", "role", "user_id"])


def _fill(table: str, name: str) -> None:
    """Of names that are there and look alike the first keeps the others' look-alikes out; all keep their names."""
    rows = sa.table(table, sa.column("id"), sa.column(name), sa.column("skeleton"))
    taken = set()
    for row_id, text in op.get_bind().execute(sa.select(rows.c.id, rows.c[name]).order_by(rows.c.id)).all():
        found = skeleton(text)
        if found not in taken:
            taken.add(found)
            op.execute(rows.update().where(rows.c.id == row_id).values(skeleton=found))


def downgrade() -> None:
    # A version that knows no suspended tenant would start its jobs, and let its people in.
    suspended = op.get_bind().scalar(sa.text("select count(*) from tenant where suspended"))
    if suspended:
        raise RuntimeError(f"{suspended} tenants are suspended: resume or remove them before going back")
    op.drop_index("ix_account_role_tenant_id_role_user_id", table_name="account_role")
    op.drop_index("ix_account_role_tenant_id_user_id", table_name="account_role")
    op.drop_index("ix_account_platform_admin", table_name="account")
    op.drop_index("ix_account_skeleton", table_name="account")
    op.drop_index("ix_tenant_suspended", table_name="tenant")
    op.drop_index("ix_tenant_skeleton", table_name="tenant")
    for column in ("deleted_at", "version", "kind", "skeleton"):
        op.drop_column("account", column)
    for column in ("version", "suspended", "skeleton"):
        op.drop_column("tenant", column)
    op.drop_table("role")
