"""Workers as they tell of themselves, and who does what only one process may do."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Integer, String, Table

from cloche.db.schema import ID, MS, NAME, metadata

worker = Table(
    "worker",
    metadata,
    Column("id", ID, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", NAME, nullable=False),
    Column("status", String(16), nullable=False),  # alive, draining, dead
    Column("status_reason", String(255)),
    Column("queues", JSON, nullable=False),
    Column("labels", JSON),  # none: {} or NULL
    Column("slots", Integer, nullable=False),
    Column("pools", JSON),  # of its host, as last reported: see worker/pools.py
    Column("resources", JSON),  # of its host, as last reported: see worker/resources.py
    Column("drain_requested_at", MS),
    Column("started_at", MS, nullable=False),
    Column("last_heartbeat_at", MS, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", NAME, primary_key=True),  # one process at a time does what the name says
    Column("owner", ID, nullable=False),
    Column("until", MS, nullable=False),
)
