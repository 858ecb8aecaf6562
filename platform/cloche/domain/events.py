"""Names of trace events (for operators) and audit actions (for auditors)."""

from __future__ import annotations

from enum import StrEnum


class Trace(StrEnum):
    """What happened to one job, in the order it usually happens."""

    ACCEPTED = "accepted"
    QUEUED = "queued"
    CLAIMED = "claimed"
    STAGED_IN = "staged_in"
    SANDBOX_STARTED = "sandbox_started"
    STARTED = "started"
    PROGRESS = "progress"
    LOG_TRUNCATED = "log_truncated"
    EGRESS_CONNECTION = "egress_connection"
    EGRESS_CLOSED = "egress_closed"
    FINISHED = "finished"
    STAGED_OUT = "staged_out"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY_SCHEDULED = "retry_scheduled"
    ATTEMPT_ABANDONED = "attempt_abandoned"
    CANCEL_REQUESTED = "cancel_requested"
    CANCELED = "canceled"
    DUE = "due"


class Action(StrEnum):
    """``subject:verb`` of an audit event. `docs/audit.md` lists each; a test compares."""

    PLATFORM_START = "platform:start"
    TENANT_CREATE = "tenant:create"
    USER_CREATE = "user:create"
    SESSION_CREATE = "session:create"
    SESSION_DELETE = "session:delete"
    TOKEN_CREATE = "token:create"  # noqa: S105 - the name of an act
    TOKEN_REVOKE = "token:revoke"  # noqa: S105
    ACCESS_DENY = "access:deny"
    FILE_CREATE = "file:create"
    FILE_DELETE = "file:delete"
    JOB_SUBMIT = "job:submit"
    JOB_START = "job:start"
    JOB_COMPLETE = "job:complete"
    JOB_FAIL = "job:fail"
    JOB_RETRY = "job:retry"
    JOB_RELEASE = "job:release"
    JOB_CANCEL = "job:cancel"
    JOB_STALE_WRITE = "job:stale_write"
    REMOTE_CREATE = "remote:create"
    REMOTE_UPDATE = "remote:update"
    REMOTE_DELETE = "remote:delete"
    EGRESS_UPDATE = "egress_policy:update"
    PLUGIN_REGISTER = "plugin:register"
    PLUGIN_CHANGED = "plugin:changed"
    AUDIT_EXPORT = "audit:export"


class Outcome(StrEnum):
    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"
