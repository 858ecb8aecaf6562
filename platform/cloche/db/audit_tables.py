"""The tables of the audit trail: append-only, see ``audit_triggers``."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from cloche.db.schema import ID, MS, metadata

_HAS_IP = text("ip IS NOT NULL")
_NOT_USUAL = text("outcome <> 'allowed'")

audit_event = Table(
    "audit_event",
    metadata,
    Column("id", ID, primary_key=True),
    Column("at", MS, nullable=False),
    Column("tenant_id", ID, nullable=False),
    Column("actor", String(64), nullable=False),  # salted commitment, or a platform part's name
    Column("token_id", ID),
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
    # A page for each filter that by itself finds few among many; for the others the one above will do
    Index("ix_audit_event_who", "tenant_id", "actor", "id"),
    Index("ix_audit_event_what", "tenant_id", "action", "id"),
    Index("ix_audit_event_where", "tenant_id", "ip", "id", sqlite_where=_HAS_IP, postgresql_where=_HAS_IP),
    Index("ix_audit_event_outcome", "tenant_id", "outcome", "id", sqlite_where=_NOT_USUAL, postgresql_where=_NOT_USUAL),
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
    Column("event_id", ID, nullable=False, unique=True),
    Column("hash", String(64), nullable=False),
)

audit_batch = Table(
    "audit_batch",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # from 0, without gaps
    Column("size", BigInteger, nullable=False),  # leaves in the tree once this batch is closed
    Column("root", String(64), nullable=False),
    Column("previous", String(64), nullable=False),  # hash of the previous batch's signed note; zeros for the first
    Column("at", MS, nullable=False),
    Column("note", Text, nullable=False),  # the signed checkpoint
)

# Roots of the tree's perfect subtrees of 2^8, 2^16 and 2^24 leaves, so that a proof need not read every leaf. Nobody believes them: a proof
# is checked against the signed root before it is given away.
audit_node = Table(
    "audit_node",
    metadata,
    Column("level", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),  # leaves number << level to (number + 1 << level) - 1
    Column("hash", String(64), nullable=False),
    PrimaryKeyConstraint("level", "number"),
)

audit_prune = Table(
    "audit_prune",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # from 0, without gaps
    Column("upto", BigInteger, nullable=False),  # leaves before this one were deleted, with their events
    Column("at", MS, nullable=False),
    Column("note", Text, nullable=False),  # the signed mark
)

# Where checkpoints are sent, and how that goes. One row for each place.
audit_sink = Table(
    "audit_sink",
    metadata,
    Column("name", String(16), primary_key=True),  # file, remote, webhook
    Column("place", String(255), nullable=False),
    # A keyed digest of the whole address, of which ``place`` shows what may be seen; empty: written before there was one
    Column("mark", String(64), nullable=False, server_default=text("''")),
    Column("number", BigInteger),  # of the last batch whose checkpoint is there
    Column("sent_at", MS),
    Column("due_at", MS, nullable=False),
    Column("tries", Integer, nullable=False),  # in vain since then
    Column("failing_since", MS),
    Column("error", String(255)),
)
