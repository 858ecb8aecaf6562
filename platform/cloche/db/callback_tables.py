"""The tables of callbacks."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from cloche.db.schema import ID, MS, metadata

callback_delivery = Table(
    "callback_delivery",
    metadata,
    Column("id", ID, primary_key=True),  # the same in every try: by it a receiver knows what it has already had
    Column("tenant_id", ID, nullable=False),
    Column("job_id", ID, ForeignKey("job.id"), nullable=False),
    Column("number", Integer, nullable=False),  # 1, 2, 3 … of its job: one is not sent before the last is settled
    Column("event", String(16), nullable=False),  # the job's terminal state
    Column("receiver", String(300), nullable=False),  # host:port
    Column("body", Text, nullable=False),
    Column("status", String(16), nullable=False),  # see domain/callbacks.py, as of last_outcome
    Column("attempts", Integer, nullable=False),
    Column("created_at", MS, nullable=False),
    Column("next_try_at", MS, nullable=False),
    Column("claimed_by", ID),  # who sends it now, until
    Column("claimed_until", MS, nullable=False),
    Column("last_attempt_at", MS),
    Column("last_status", Integer),  # of HTTP
    Column("last_outcome", String(16)),
    Column("last_error", String(300)),
    Column("ended_at", MS),
    UniqueConstraint("job_id", "number"),
    Index(
        "ix_callback_delivery_pending",
        "tenant_id",
        "receiver",
        "next_try_at",
        sqlite_where=text("status = 'pending'"),
        postgresql_where=text("status = 'pending'"),
    ),
)

callback_secret = Table(
    "callback_secret",
    metadata,
    Column("tenant_id", ID, ForeignKey("tenant.id"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("previous", LargeBinary),  # signs beside it until
    Column("previous_until", MS, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", MS, nullable=False),
)

callback_total = Table(
    "callback_total",
    metadata,
    Column("outcome", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
)
