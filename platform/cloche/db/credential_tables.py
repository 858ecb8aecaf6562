"""The tables of what people and programs prove themselves with: sessions, tokens, one-time resets; and what tells that something changed."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, String, Table

from cloche.db.schema import ID, MS, NAME, metadata

session = Table(
    "session",
    metadata,
    Column("id", String(64), primary_key=True),  # SHA-256 of the cookie's secret; shown to nobody
    Column("handle", ID, nullable=False, unique=True),  # what it is called by in answers and in the record
    Column("user_id", ID, ForeignKey("account.id"), nullable=False),
    Column("tenant_id", ID, ForeignKey("tenant.id"), nullable=False),
    Column("created_at", MS, nullable=False),
    Column("last_seen_at", MS, nullable=False),
    Column("ip", String(64)),
    Column("user_agent", String(200)),
    Index(None, "user_id"),
    Index(None, "last_seen_at"),
)

token = Table(
    "token",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant_id", ID, ForeignKey("tenant.id"), nullable=False),
    Column("user_id", ID, ForeignKey("account.id"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),  # list of permissions, or null for what a token has that names none
    Column("addresses", JSON),  # list of networks it is taken from; null: from anywhere
    Column("parent_id", ID),  # the token that made it, and takes it along when it is revoked
    Column("created_at", MS, nullable=False),
    Column("expires_at", MS),
    Column("last_used_at", MS),
    Column("revoked_at", MS),
    Index(None, "user_id"),
)

password_reset = Table(
    "password_reset",
    metadata,
    Column("id", ID, primary_key=True),
    Column("user_id", ID, ForeignKey("account.id"), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("created_by", ID, nullable=False),
    Column("created_at", MS, nullable=False),
    Column("expires_at", MS, nullable=False),
    Index(None, "user_id"),
)

access_epoch = Table(
    "access_epoch",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # one row, 1
    Column("value", BigInteger, nullable=False),  # another one after each change of who may do what: see db/epoch.py
)
