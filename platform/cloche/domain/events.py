"""Names of trace events (for operators) and audit actions (for auditors)."""

from __future__ import annotations

from enum import StrEnum


class Trace(StrEnum):
    """What happened to one job, in the order it usually happens. `docs/states.md` says when each is written; a test compares.

    That a job came to its queue has none of its own: whichever of these brought it there says so.
    """

    ACCEPTED = "accepted"
    CLAIMED = "claimed"
    STAGED_IN = "staged_in"
    SANDBOX_STARTED = "sandbox_started"
    STARTED = "started"
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
    DEPENDENCIES_MET = "dependencies_met"
    RETRIED = "retried"
    CALLBACK_DELIVERED = "callback_delivered"
    CALLBACK_FAILED = "callback_failed"


class Action(StrEnum):
    """``subject:verb`` of an audit event. `docs/audit.md` lists each; a test compares."""

    PLATFORM_START = "platform:start"
    SETTINGS_CHANGE = "settings:change"
    TENANT_CREATE = "tenant:create"
    TENANT_SUSPEND = "tenant:suspend"
    TENANT_RESUME = "tenant:resume"
    TENANT_EMPTY = "tenant:empty"
    TENANT_DELETE = "tenant:delete"
    USER_CREATE = "user:create"
    USER_UPDATE = "user:update"
    USER_ROLES = "user:roles"
    USER_DELETE = "user:delete"
    PLATFORM_ADMIN_GRANT = "platform_admin:grant"
    PLATFORM_ADMIN_REVOKE = "platform_admin:revoke"
    ROLE_CREATE = "role:create"
    ROLE_UPDATE = "role:update"
    ROLE_DELETE = "role:delete"
    SESSION_CREATE = "session:create"
    SESSION_DELETE = "session:delete"
    SESSION_REVOKE = "session:revoke"
    SESSION_ENTER = "session:enter"
    PASSWORD_CHANGE = "password:change"  # noqa: S105 - the name of an act
    PASSWORD_RESET_CREATE = "password_reset:create"  # noqa: S105
    PASSWORD_RESET_USE = "password_reset:use"  # noqa: S105
    TOKEN_CREATE = "token:create"  # noqa: S105 - the name of an act
    TOKEN_REVOKE = "token:revoke"  # noqa: S105
    ACCESS_DENY = "access:deny"
    ACCESS_READ = "access:read"
    FILE_CREATE = "file:create"
    FILE_DELETE = "file:delete"
    BATCH_SUBMIT = "batch:submit"
    BATCH_CANCEL = "batch:cancel"
    BATCH_RETRY = "batch:retry"
    JOB_SUBMIT = "job:submit"
    JOB_START = "job:start"
    JOB_COMPLETE = "job:complete"
    JOB_FAIL = "job:fail"
    JOB_RETRY = "job:retry"
    JOB_RELEASE = "job:release"
    JOB_CANCEL = "job:cancel"
    JOB_RERUN = "job:rerun"
    JOB_PURGE = "job:purge"
    JOB_REVEAL = "job:reveal"
    JOB_STALE_WRITE = "job:stale_write"
    QUEUE_CREATE = "queue:create"
    QUEUE_UPDATE = "queue:update"
    QUEUE_DELETE = "queue:delete"
    REMOTE_CREATE = "remote:create"
    REMOTE_UPDATE = "remote:update"
    REMOTE_DELETE = "remote:delete"
    EGRESS_UPDATE = "egress_policy:update"
    QUOTA_UPDATE = "quota:update"
    QUOTA_DELETE = "quota:delete"
    WORKER_DRAIN = "worker:drain"
    PLUGIN_REGISTER = "plugin:register"
    PLUGIN_CHANGED = "plugin:changed"
    PLUGIN_UPDATE = "plugin:update"
    SECRET_CREATE = "secret:create"  # noqa: S105 - the name of an act
    SECRET_UPDATE = "secret:update"  # noqa: S105
    SECRET_DELETE = "secret:delete"  # noqa: S105
    SECRET_GRANT = "secret:grant"  # noqa: S105
    SECRET_REVOKE = "secret:revoke"  # noqa: S105
    SECRET_DELIVER = "secret:deliver"  # noqa: S105
    KEY_ROTATE = "key:rotate"
    AUDIT_READ = "audit:read"
    AUDIT_VERIFY = "audit:verify"
    AUDIT_EXPORT = "audit:export"
    AUDIT_PRUNE = "audit:prune"
    AUDIT_FORGET = "audit:forget"
    AUDIT_RESTORE = "audit:restore"
    CHECKPOINT_SEND = "checkpoint:send"
    CALLBACK_SECRET_READ = "callback_secret:read"  # noqa: S105 - the name of an act
    CALLBACK_SECRET_RENEW = "callback_secret:renew"  # noqa: S105


class Outcome(StrEnum):
    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"
