"""Queues: what the platform says of each, and what a tenant says of its own share."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, PrimaryKeyConstraint, String, Table

from cloche.db.schema import ID, MS, NAME, metadata

queue = Table(
    "queue",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("description", String(300)),
    Column("paused", Boolean, nullable=False),
    Column("max_concurrency", Integer),  # jobs in flight over all hosts; null: no limit
    Column("revision", Integer, nullable=False),  # of this row, for the ETag
    Column(
        "rules_version", BigInteger, nullable=False
    ),  # grows with every change of it or of a share: the index keeps the newest
    Column("created_at", MS, nullable=False),
    Column("updated_at", MS, nullable=False),
)

queue_share = Table(
    "queue_share",  # of tenants that have said something of their share, or of whose the platform has
    metadata,
    Column("queue", NAME, ForeignKey("queue.name"), nullable=False),
    Column("tenant_id", ID, ForeignKey("tenant.id"), nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("weight", Integer, nullable=False),
    Column("revision", Integer, nullable=False),  # for the ETag
    Column("updated_at", MS, nullable=False),
    PrimaryKeyConstraint("queue", "tenant_id"),
)
