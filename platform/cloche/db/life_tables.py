"""What belongs to a job's life beside its own row: what it waits for, who is still to be told of its end, ends of the past."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, PrimaryKeyConstraint, String, Table

from cloche.db.schema import ID, MS, metadata

# Which rows the partial indexes of `job` hold. A query has to say the same words: SQLite does not look behind a bound value.
MAY_EXPIRE = "expires_at IS NOT NULL AND started_at IS NULL AND finished_at IS NULL"
ENDED = "finished_at IS NOT NULL"
LIVE = "state IN ('scheduled', 'blocked', 'pending', 'processing')"
DEAD_LETTER = "state = 'failed'"

job_dependency = Table(
    "job_dependency",
    metadata,
    Column("job_id", ID, ForeignKey("job.id"), nullable=False),
    Column("upstream_id", ID, nullable=False),  # no foreign key: an upstream may be purged before its dependents
    Column("outcome", String(16)),  # the upstream's terminal state, once it has been told to the job
    PrimaryKeyConstraint("job_id", "upstream_id"),
    Index(None, "upstream_id", "job_id"),
)

job_release = Table(
    "job_release",  # upstreams that have ended, and have more dependents than one transaction tells
    metadata,
    Column("upstream_id", ID, primary_key=True),
    Column("created_at", MS, nullable=False),
)

job_past = Table(
    "job_past",  # ends that no row of `job` shows any more: of jobs that were purged, or retried by hand
    metadata,
    Column("name", String(32), primary_key=True),  # see services/past.py
    Column("value", BigInteger, nullable=False),
)
