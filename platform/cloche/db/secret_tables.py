"""The table of tenants' secrets."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from cloche.db.schema import ID, MS, metadata

secret = Table(
    "secret",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant_id", ID, ForeignKey("tenant.id"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("description", String(300), nullable=False),
    Column("sealed", Text, nullable=False),  # the value, encrypted
    Column("key_id", String(16), nullable=False),  # of the platform's key that it is encrypted with
    Column("masked", Boolean, nullable=False),  # whether the value is long enough for that
    Column("value_version", Integer, nullable=False),  # 1, 2, 3 … of its values
    Column("grants", JSON, nullable=False),  # [{"plugin", "versions", "granted_by", "granted_at"}]
    Column("version", Integer, nullable=False),  # of the row, for ETags
    Column("created_by", ID, nullable=False),
    Column("created_at", MS, nullable=False),
    Column("updated_by", ID, nullable=False),
    Column("updated_at", MS, nullable=False),
    Column("last_used_at", MS),  # coarse
    UniqueConstraint("tenant_id", "name"),
    Index("ix_secret_key_id", "key_id", "id"),
)
