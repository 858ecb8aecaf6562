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
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from cloche.db.audit_tables import audit_batch as audit_batch
from cloche.db.audit_tables import audit_event as audit_event
from cloche.db.audit_tables import audit_leaf as audit_leaf
from cloche.db.audit_tables import audit_node as audit_node
from cloche.db.audit_tables import audit_person as audit_person
from cloche.db.audit_tables import audit_prune as audit_prune
from cloche.db.audit_tables import audit_sink as audit_sink
from cloche.db.callback_tables import callback_delivery as callback_delivery
from cloche.db.callback_tables import callback_secret as callback_secret
from cloche.db.callback_tables import callback_total as callback_total
from cloche.db.credential_tables import access_epoch as access_epoch
from cloche.db.credential_tables import password_reset as password_reset
from cloche.db.credential_tables import session as session
from cloche.db.credential_tables import token as token
from cloche.db.life_tables import DEAD_LETTER as DEAD_LETTER
from cloche.db.life_tables import ENDED as ENDED
from cloche.db.life_tables import LIVE as LIVE
from cloche.db.life_tables import MAY_EXPIRE as MAY_EXPIRE
from cloche.db.life_tables import job_dependency as job_dependency
from cloche.db.life_tables import job_past as job_past
from cloche.db.life_tables import job_release as job_release
from cloche.db.people_tables import role as role
from cloche.db.people_tables import tenant as tenant
from cloche.db.people_tables import user as user
from cloche.db.people_tables import user_role as user_role
from cloche.db.queue_tables import queue as queue
from cloche.db.queue_tables import queue_share as queue_share
from cloche.db.quota_tables import quota as quota
from cloche.db.quota_tables import quota_delta as quota_delta
from cloche.db.quota_tables import quota_refusal as quota_refusal
from cloche.db.quota_tables import quota_use as quota_use
from cloche.db.quota_tables import usage_day as usage_day
from cloche.db.quota_tables import usage_event as usage_event
from cloche.db.schema import ID as _ID
from cloche.db.schema import MS as _MS
from cloche.db.schema import NAME as _NAME
from cloche.db.schema import SERIAL as _SERIAL
from cloche.db.schema import metadata
from cloche.db.secret_tables import secret as secret
from cloche.db.worker_tables import lease as lease
from cloche.db.worker_tables import worker as worker
from cloche.domain.versions import MAX_REASON

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
    Column("state", String(16), nullable=False, server_default="enabled"),  # of cloche.domain.versions
    Column("state_reason", String(MAX_REASON)),  # shown to whoever submits
    Column("state_changed_at", _MS),
    Column("revision", Integer, nullable=False, server_default="1"),  # of the state, for the ETag
    Column("first_seen_at", _MS, nullable=False),
    PrimaryKeyConstraint("name", "version"),
)

batch = Table(
    "batch",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column("name", String(200)),
    Column("count", Integer, nullable=False),  # jobs it was accepted with; some may have been purged since
    Column("submitted_by", _ID, nullable=False),
    Column("created_at", _MS, nullable=False),
    Index(None, "tenant_id", "id"),
)

job = Table(
    "job",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("tenant_id", _ID, ForeignKey("tenant.id"), nullable=False),
    Column(
        "batch_id", _ID
    ),  # of table batch; no constraint, so that SQLite need not rewrite all jobs to get the column
    Column("name", String(200)),
    Column("type", _NAME, nullable=False),
    Column("version_spec", String(100)),
    Column("plugin_version", _NAME, nullable=False),
    Column("plugin_digest", String(64), nullable=False),
    Column("image_digest", String(80)),
    Column("sensitive", Boolean, nullable=False, server_default=false()),
    # Of a sensitive job payload, result, the words of errors and of progress, and the log's text are sealed: see services/sealing.py
    Column("payload", JSON, nullable=False),
    Column("payload_sha256", String(64), nullable=False),  # keyed, where the job is sensitive
    Column("queue", _NAME, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("outputs", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("retry", JSON, nullable=False),
    Column("callback", JSON),  # {"url", "events"}
    Column("warnings", JSON),  # what was said when it was accepted; null: nothing
    Column("state", String(16), nullable=False),
    Column("reason", String(32), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("retries_used", Integer, nullable=False),
    Column("platform_failures", Integer, nullable=False),
    Column("worker_deaths", Integer, nullable=False),
    Column("ready_at", _MS, nullable=False),  # when it may run; orders the queue with the priority
    Column("scheduled_at", _MS),  # as asked for
    Column("expires_at", _MS),  # canceled when it has not been started by then
    Column("run", Integer, nullable=False, server_default=text("1")),  # one more with each retry by hand
    Column("depends_on", JSON),  # ids, as asked for; what became of them is in job_dependency
    Column("depends_on_condition", String(16)),
    Column("on_upstream_failure", String(16)),
    Column(
        "has_dependents", Boolean, nullable=False, server_default=false()
    ),  # whether its end has to be told to others
    Column("lease_owner", _ID),
    Column("lease_until", _MS),
    Column("cancel_requested_at", _MS),
    Column("progress", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("usage", JSON),
    Column("submitted_by", _ID, nullable=False),
    Column("quota_counted", Boolean, nullable=False, server_default=false()),  # in quota_use, until it ends
    Column("created_at", _MS, nullable=False),
    Column("started_at", _MS),
    Column("finished_at", _MS),
    Column("audit_seq", Integer, nullable=False),  # audit events of this job so far
    # What services/job_pages.py lists with.
    Index("ix_job_tenant_id_created_at", "tenant_id", "created_at", "id"),
    Index("ix_job_tenant_id_state_created_at", "tenant_id", "state", "created_at", "id"),
    Index("ix_job_tenant_id_type_created_at", "tenant_id", "type", "created_at", "id"),
    Index("ix_job_tenant_id_submitted_by_created_at", "tenant_id", "submitted_by", "created_at", "id"),
    Index("ix_job_state_ready_at", "state", "ready_at", "id"),
    Index(
        "ix_job_batch_id",
        "batch_id",
        "state",
        "id",
        sqlite_where=text("batch_id IS NOT NULL"),
        postgresql_where=text("batch_id IS NOT NULL"),
    ),
    Index(
        "ix_job_lease_until",
        "lease_until",
        sqlite_where=text("state = 'processing'"),
        postgresql_where=text("state = 'processing'"),
    ),
    Index("ix_job_finished_at", "finished_at", "id", sqlite_where=text(ENDED), postgresql_where=text(ENDED)),
    Index(
        "ix_job_dead_letters",
        "tenant_id",
        "finished_at",
        "id",
        sqlite_where=text(DEAD_LETTER),
        postgresql_where=text(DEAD_LETTER),
    ),
    # What services/statistics.py counts with.
    Index("ix_job_arrived", "tenant_id", "queue", "created_at"),
    Index(
        "ix_job_live",
        "tenant_id",
        "queue",
        "state",
        "ready_at",
        sqlite_where=text(LIVE),
        postgresql_where=text(LIVE),
    ),
    Index(
        "ix_job_ended",
        "tenant_id",
        "queue",
        "finished_at",
        "state",
        sqlite_where=text(ENDED),
        postgresql_where=text(ENDED),
    ),
    Index("ix_job_expires_at", "expires_at", sqlite_where=text(MAY_EXPIRE), postgresql_where=text(MAY_EXPIRE)),
)

# What follows a job's end goes by these, what a callback and the record tell of it too; what may be large is not among them.
_BRIEF = (
    "id tenant_id queue priority state reason attempt ready_at audit_seq has_dependents depends_on_condition on_upstream_failure callback"
    " batch_id type plugin_version created_at started_at finished_at plugin_digest image_digest"
    " submitted_by quota_counted"
)
JOB_BRIEF = tuple(job.c[name] for name in _BRIEF.split())

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", _ID, ForeignKey("job.id"), nullable=False),
    Column("number", Integer, nullable=False),  # counts on over all runs
    Column("run", Integer, nullable=False, server_default=text("1")),
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

sealing_key = Table(
    "sealing_key",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # the highest is the one in use
    Column("id", String(16), nullable=False, unique=True),  # of a key file; tells nothing of the key
    Column("created_at", _MS, nullable=False),
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
