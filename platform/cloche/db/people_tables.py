"""The tables of people: tenants, accounts, roles of a tenant's own, and who holds which role where."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    false,
    text,
)

from cloche.db.schema import ID, MS, NAME, metadata

tenant = Table(
    "tenant",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column(
        "skeleton", NAME
    ),  # what names that look alike have in common: see domain/names.py; null in rows made before it
    Column("suspended", Boolean, nullable=False, server_default=false()),
    Column("version", Integer, nullable=False, server_default=text("1")),  # the ETag
    Column("created_at", MS, nullable=False),
    Index(None, "skeleton", unique=True),
    Index("ix_tenant_suspended", "id", sqlite_where=text("suspended"), postgresql_where=text("suspended")),
)

user = Table(
    "account",  # "user" is a reserved word in PostgreSQL
    metadata,
    Column("id", ID, primary_key=True),
    Column("username", NAME, nullable=False, unique=True),
    Column("skeleton", NAME),
    Column("kind", String(8), nullable=False, server_default=text("'person'")),  # or service: no password, tokens alone
    Column("password_hash", String(256), nullable=False),
    Column("platform_admin", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),  # the ETag; grows with a change of roles too
    Column("created_at", MS, nullable=False),
    Column("deleted_at", MS),  # the row stays, without its name, because jobs and files tell whose they are
    Index(None, "skeleton", unique=True),
    Index(
        "ix_account_platform_admin", "id", sqlite_where=text("platform_admin"), postgresql_where=text("platform_admin")
    ),
)

role = Table(
    "role",
    metadata,
    Column("tenant_id", ID, ForeignKey("tenant.id"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("skeleton", NAME, nullable=False),
    Column("summary", String(300), nullable=False),
    Column("permissions", JSON, nullable=False),  # list of names
    Column("version", Integer, nullable=False),  # the ETag
    Column("created_at", MS, nullable=False),
    Column("updated_at", MS, nullable=False),
    PrimaryKeyConstraint("tenant_id", "name"),
    Index(None, "tenant_id", "skeleton", unique=True),
)

user_role = Table(
    "account_role",
    metadata,
    Column("user_id", ID, ForeignKey("account.id"), nullable=False),
    Column("tenant_id", ID, ForeignKey("tenant.id"), nullable=False),
    Column("role", NAME, nullable=False),  # built in, or a row of table role
    PrimaryKeyConstraint("user_id", "tenant_id", "role"),
    Index(None, "tenant_id", "user_id"),
    Index(None, "tenant_id", "role", "user_id"),
)
