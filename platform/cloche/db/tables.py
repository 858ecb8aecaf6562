"""Every table, as SQLAlchemy Core. Times are milliseconds since the epoch; ids are UUIDv7 text; JSON is text."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_ID = String(36)
_NAME = String(64)
_MS = BigInteger
_SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column of type INTEGER

tenant = Table(
    "tenant",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", _NAME, nullable=False, unique=True),
    Column("created_at", _MS, nullable=False),
)

user = Table(
    "account",  # "user" is a reserved word in PostgreSQL
    metadata,
    Column("id", _ID, primary_key=True),
    Column("username", _NAME, nullable=False, unique=True),
    Column("password_hash", String(256), nullable=False),
    Column("platform_admin", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_at", _MS, nullable=False),
)

user_role = Table(
    "account_role",
    metadata,
    Column("user_id", _ID, ForeignKey("account.id"), nullable=False),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("role", _NAME, nullable=False),
    PrimaryKeyConstraint("user_id", "tenant_id", "role"),
)

session = Table(
    "session",
    metadata,
    Column("id", String(64), primary_key=True),  # SHA-256 of the cookie's secret
    Column("user_id", _ID, ForeignKey("account.id"), nullable=False),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("created_at", _MS, nullable=False),
    Column("last_seen_at", _MS, nullable=False),
    Column("ip", String(64)),
)

token = Table(
    "token",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("user_id", _ID, ForeignKey("account.id"), nullable=False),
    Column("name", _NAME, nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),  # list of permissions, or null for all of the user's
    Column("created_at", _MS, nullable=False),
    Column("expires_at", _MS),
    Column("last_used_at", _MS),
    Column("revoked_at", _MS),
    Index(None, "user_id"),
)

artifact = Table(
    "artifact",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("name", String(255), nullable=False),
    Column("media_type", String(128), nullable=False),
    Column("created_by", _ID, nullable=False),
    Column("created_at", _MS, nullable=False),
    Column("job_id", _ID),  # set when a job wrote it
    Index(None, "tenant_id", "sha256"),
    Index(None, "sha256"),
)

remote = Table(
    "remote",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("name", String(32), nullable=False),
    Column("type", String(32), nullable=False),
    Column("options_encrypted", LargeBinary, nullable=False),
    Column("version", Integer, nullable=False),  # the ETag
    Column("created_by", _ID, nullable=False),
    Column("created_at", _MS, nullable=False),
    Column("updated_at", _MS, nullable=False),
    UniqueConstraint("tenant_id", "name"),
)

egress_policy = Table(
    "egress_policy",
    metadata,
    Column("tenant_id", _ID, ForeignKey("tenant.id"), primary_key=True),
    Column("allow", JSON, nullable=False),  # list of patterns; a tenant without a row may reach nothing
    Column("version", Integer, nullable=False),  # the ETag
    Column("updated_by", _ID, nullable=False),
    Column("updated_at", _MS, nullable=False),
)

egress_total = Table(
    "egress_total",
    metadata,
    Column("verdict", String(32), primary_key=True),  # how a connection of a job ended
    Column("connections", BigInteger, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
)

plugin_version = Table(
    "plugin_version",
    metadata,
    Column("name", _NAME, nullable=False),
    Column("version", _NAME, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("first_seen_at", _MS, nullable=False),
    PrimaryKeyConstraint("name", "version"),
)

job = Table(
    "job",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("name", String(200)),
    Column("type", _NAME, nullable=False),
    Column("version_spec", String(100)),
    Column("plugin_version", _NAME, nullable=False),
    Column("plugin_digest", String(64), nullable=False),
    Column("image_digest", String(80)),
    Column("payload", JSON, nullable=False),
    Column("payload_sha256", String(64), nullable=False),
    Column("queue", _NAME, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("outputs", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("retry", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("retries_used", Integer, nullable=False),
    Column("platform_failures", Integer, nullable=False),
    Column("worker_deaths", Integer, nullable=False),
    Column("ready_at", _MS, nullable=False),  # when it may run; orders the queue with the priority
    Column("lease_owner", _ID),
    Column("lease_until", _MS),
    Column("cancel_requested_at", _MS),
    Column("progress", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("usage", JSON),
    Column("submitted_by", _ID, nullable=False),
    Column("created_at", _MS, nullable=False),
    Column("started_at", _MS),
    Column("finished_at", _MS),
    Column("audit_seq", Integer, nullable=False),  # audit events of this job so far
    Index("ix_job_tenant_id_id", "tenant_id", "id"),
    Index("ix_job_tenant_id_state", "tenant_id", "state", "id"),
    Index("ix_job_tenant_id_type", "tenant_id", "type", "id"),
    Index("ix_job_tenant_id_submitted_by", "tenant_id", "submitted_by", "id"),
    Index("ix_job_state_ready_at", "state", "ready_at", "id"),
    Index(
        "ix_job_lease_until",
        "lease_until",
        sqlite_where=text("state = 'processing'"),
        postgresql_where=text("state = 'processing'"),
    ),
)

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", _ID, ForeignKey("job.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("worker_id", _ID, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("outcome", String(16)),  # completed, failed, canceled, abandoned
    Column("reason", String(32)),
    Column("error", JSON),
    Column("usage", JSON),
    Column("started_at", _MS, nullable=False),
    Column("finished_at", _MS),
    PrimaryKeyConstraint("job_id", "number"),
)

job_log = Table(
    "job_log",
    metadata,
    Column("job_id", _ID, ForeignKey("job.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("at", _MS, nullable=False),
    Column("stream", String(8), nullable=False),  # stdout, stderr, platform
    Column("text", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "attempt", "seq"),
)

job_output = Table(
    "job_output",
    metadata,
    Column("job_id", _ID, ForeignKey("job.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("path", String(1024), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("artifact_id", _ID),
    Column("destination", String(1100)),
    PrimaryKeyConstraint("job_id", "attempt", "path"),
)

trace_event = Table(
    "trace_event",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("job_id", _ID, ForeignKey("job.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("event_type", String(32), nullable=False),
    Column("at", _MS, nullable=False),
    Column("details", JSON, nullable=False),
    Index(None, "job_id", "id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("job_id", _ID, nullable=False),
    Column("created_at", _MS, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", _ID, nullable=False),
    Column("user_id", _ID, nullable=False),
    Column("key", String(255), nullable=False),
    Column("body_sha256", String(64), nullable=False),
    Column("job_id", _ID, nullable=False),
    Column("response", JSON, nullable=False),
    Column("created_at", _MS, nullable=False),
    PrimaryKeyConstraint("tenant_id", "user_id", "key"),
    Index(None, "created_at"),
)

worker = Table(
    "worker",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", _NAME, nullable=False),
    Column("status", String(16), nullable=False),  # alive, draining, dead
    Column("status_reason", String(255)),
    Column("queues", JSON, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("pools", JSON),  # of its host, as last reported: see worker/pools.py
    Column("started_at", _MS, nullable=False),
    Column("last_heartbeat_at", _MS, nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", _NAME, primary_key=True),  # one process at a time does what the name says
    Column("owner", _ID, nullable=False),
    Column("until", _MS, nullable=False),
)

audit_event = Table(
    "audit_event",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("at", _MS, nullable=False),
    Column("tenant_id", _ID, nullable=False),
    Column("actor", String(64), nullable=False),  # salted commitment, or a platform part's name
    Column("token_id", _ID),
    Column("action", String(64), nullable=False),
    Column("object", String(255), nullable=False),
    Column("object_seq", Integer),  # numbers a job's events without gaps
    Column("outcome", String(16), nullable=False),
    Column("ip", String(64)),  # salted commitment
    Column("request_id", String(64)),
    Column("reason", String(255)),
    Column("before_sha256", String(64)),
    Column("after_sha256", String(64)),
    Column("details", Text, nullable=False),  # canonical JSON, exactly as it was sealed
    Column("mac", String(64), nullable=False),
    Index(None, "tenant_id", "id"),
    UniqueConstraint("object", "object_seq"),
)

audit_person = Table(
    "audit_person",
    metadata,
    Column("commitment", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),  # name, ip
    Column("value", String(255), nullable=False),
    Column("salt", String(32), nullable=False),
    UniqueConstraint("kind", "value"),
)

audit_leaf = Table(
    "audit_leaf",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),  # from 0, without gaps
    Column("event_id", _ID, nullable=False, unique=True),
    Column("hash", String(64), nullable=False),
)

audit_batch = Table(
    "audit_batch",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # from 0, without gaps
    Column("size", BigInteger, nullable=False),  # leaves in the tree once this batch is closed
    Column("root", String(64), nullable=False),
    Column("previous", String(64), nullable=False),  # hash of the previous batch's signed note; zeros for the first
    Column("at", _MS, nullable=False),
    Column("note", Text, nullable=False),  # the signed checkpoint
)
