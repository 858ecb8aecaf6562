"""Quotas, what is used of them, and what was used day by day. No constraint on the tenant: what was used is billed after it is gone, too."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, PrimaryKeyConstraint, String, Table

from cloche.db.schema import ID, MS, SERIAL, metadata

WHOLE = ""  # in place of a user's id: the tenant as a whole

quota = Table(
    "quota",  # of tenants and users that somebody has set one for
    metadata,
    Column("tenant_id", ID, nullable=False),
    Column("user_id", ID, nullable=False),
    # null: as by default; -1: no limit
    Column("jobs", BigInteger),
    Column("submissions_per_minute", BigInteger),
    Column("storage_bytes", BigInteger),
    Column("cpu_seconds_per_day", BigInteger),
    Column("version", Integer, nullable=False),  # the ETag
    Column("updated_by", ID, nullable=False),
    Column("updated_at", MS, nullable=False),
    PrimaryKeyConstraint("tenant_id", "user_id"),
)

# Together with the changes in quota_delta: stored bytes, and jobs in flight of those that were counted when they were accepted.
quota_use = Table(
    "quota_use",
    metadata,
    Column("tenant_id", ID, nullable=False),
    Column("user_id", ID, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "user_id"),
)

quota_delta = Table(
    "quota_delta",  # appended where nobody should wait for a counter; added to quota_use later
    metadata,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    Column("tenant_id", ID, nullable=False),
    Column("user_id", ID, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Index(None, "tenant_id", "id"),
)

quota_refusal = Table(
    "quota_refusal",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

usage_event = Table(
    "usage_event",  # what the operator's extensions have still to be told; written only where there are any
    metadata,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    Column("tenant_id", ID, nullable=False),
    Column("user_id", ID, nullable=False),
    Column("job_id", ID, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("ended_at", MS, nullable=False),
    Column("cpu_ms", BigInteger, nullable=False),
    Column("memory_mb_ms", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("bytes_stored", BigInteger, nullable=False),
    Column("wall_ms", BigInteger, nullable=False),
)

usage_day = Table(
    "usage_day",
    metadata,
    Column("tenant_id", ID, nullable=False),
    Column("day", Integer, nullable=False),  # since the epoch, in UTC
    Column("user_id", ID, nullable=False),
    Column("shard", Integer, nullable=False),  # so that attempts which end at once seldom wait for each other
    Column("attempts", BigInteger, nullable=False),
    Column("cpu_ms", BigInteger, nullable=False),
    Column("memory_mb_ms", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    Column("bytes_stored", BigInteger, nullable=False),
    Column("wall_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "day", "user_id", "shard"),
)
