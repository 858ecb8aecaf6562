"""Signing in: sessions have names and can be listed, tokens have addresses and parents, one-time resets, and what tells of changes.

Sessions do not outlive the change: everybody signs in again. Tokens stay as they are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("session")
    op.create_table(
        "session",
        *_session_columns(),
        sa.Column("handle", sa.String(length=36), nullable=False),
        sa.Column("user_agent", sa.String(length=200), nullable=True),
        *_session_keys(),
        sa.UniqueConstraint("handle", name=op.f("uq_session_handle")),
    )
    op.create_index("ix_session_user_id", "session", ["user_id"])
    op.create_index("ix_session_last_seen_at", "session", ["last_seen_at"])
    op.add_column("token", sa.Column("addresses", sa.JSON(), nullable=True))
    op.add_column("token", sa.Column("parent_id", sa.String(length=36), nullable=True))
    op.create_table(
        "password_reset",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_by", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["account.id"], name=op.f("fk_password_reset_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_reset")),
    )
    op.create_index("ix_password_reset_user_id", "password_reset", ["user_id"])
    epoch = op.create_table(
        "access_epoch",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_epoch")),
    )
    op.execute(epoch.insert().values(id=1, value=0))


def downgrade() -> None:
    # A version that knows no addresses would take such a token from anywhere.
    op.execute(
        "UPDATE token SET revoked_at = created_at WHERE revoked_at IS NULL AND CAST(addresses AS TEXT) LIKE '[%'"
    )
    op.drop_table("access_epoch")
    op.drop_table("password_reset")
    op.drop_column("token", "parent_id")
    op.drop_column("token", "addresses")
    op.drop_table("session")
    op.create_table("session", *_session_columns(), *_session_keys())


def _session_columns() -> list[sa.Column]:
    return [
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=False),
        sa.Column("tenant_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("ip", sa.String(length=64), nullable=True),
    ]


def _session_keys() -> list[sa.Constraint]:
    return [
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_session_tenant_id")),
        sa.ForeignKeyConstraint(["user_id"], ["account.id"], name=op.f("fk_session_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
    ]
