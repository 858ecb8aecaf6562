"""Permissions, built-in roles, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Permission(StrEnum):
    JOB_READ = "job:read"
    JOB_SUBMIT = "job:submit"
    JOB_CANCEL = "job:cancel"
    JOB_CANCEL_ANY = "job:cancel_any"
    FILE_READ = "file:read"
    FILE_WRITE = "file:write"
    FILE_DELETE_ANY = "file:delete_any"
    PLUGIN_READ = "plugin:read"
    QUEUE_READ = "queue:read"
    WORKER_READ = "worker:read"
    REMOTE_READ = "remote:read"
    REMOTE_USE = "remote:use"
    REMOTE_MANAGE = "remote:manage"
    EGRESS_READ = "egress:read"
    EGRESS_MANAGE = "egress:manage"
    USER_READ = "user:read"
    USER_MANAGE = "user:manage"
    ROLE_READ = "role:read"
    TOKEN_MANAGE = "token:manage"  # noqa: S105 - the name of a permission
    AUDIT_READ = "audit:read"
    AUDIT_EXPORT = "audit:export"


PERMISSION_TEXT: dict[Permission, str] = {
    Permission.JOB_READ: "See jobs, their logs, trace, outputs and results.",
    Permission.JOB_SUBMIT: "Submit jobs.",
    Permission.JOB_CANCEL: "Cancel jobs one has submitted oneself.",
    Permission.JOB_CANCEL_ANY: "Cancel anybody's jobs in the tenant.",
    Permission.FILE_READ: "Download stored files.",
    Permission.FILE_WRITE: "Upload files and delete one's own.",
    Permission.FILE_DELETE_ANY: "Delete anybody's files in the tenant.",
    Permission.PLUGIN_READ: "See which job types and versions there are.",
    Permission.QUEUE_READ: "See queues and how full they are.",
    Permission.WORKER_READ: "See workers and what they do.",
    Permission.REMOTE_READ: "See which remotes there are, never their credentials.",
    Permission.REMOTE_USE: "Name a remote as a job's input or output.",
    Permission.REMOTE_MANAGE: "Create, change, test and remove remotes.",
    Permission.EGRESS_READ: "See which hosts jobs of the tenant may reach.",
    Permission.EGRESS_MANAGE: "Set which hosts jobs of the tenant may reach.",
    Permission.USER_READ: "See users and their roles.",
    Permission.USER_MANAGE: "Create users with roles one holds oneself.",
    Permission.ROLE_READ: "See roles and what they allow.",
    Permission.TOKEN_MANAGE: "Create and revoke one's own tokens.",
    Permission.AUDIT_READ: "Read the audit trail and verify it.",
    Permission.AUDIT_EXPORT: "Export the audit trail.",
}

_VIEW = {
    Permission.JOB_READ,
    Permission.FILE_READ,
    Permission.PLUGIN_READ,
    Permission.QUEUE_READ,
    Permission.WORKER_READ,
    Permission.TOKEN_MANAGE,
}
_SUBMIT = _VIEW | {
    Permission.JOB_SUBMIT,
    Permission.JOB_CANCEL,
    Permission.FILE_WRITE,
    Permission.REMOTE_READ,
    Permission.REMOTE_USE,
    Permission.EGRESS_READ,
}
_OPERATE = _SUBMIT | {Permission.JOB_CANCEL_ANY}
_AUDIT = {
    Permission.AUDIT_READ,
    Permission.AUDIT_EXPORT,
    Permission.JOB_READ,
    Permission.PLUGIN_READ,
    Permission.EGRESS_READ,
    Permission.USER_READ,
    Permission.ROLE_READ,
    Permission.TOKEN_MANAGE,
}

BUILTIN_ROLES: dict[str, frozenset[Permission]] = {
    "viewer": frozenset(_VIEW),
    "submitter": frozenset(_SUBMIT),
    "operator": frozenset(_OPERATE),
    "author": frozenset(_SUBMIT),
    "auditor": frozenset(_AUDIT),
    "admin": frozenset(Permission),
}
ROLE_TEXT: dict[str, str] = {
    "viewer": "Looks at jobs and their files.",
    "submitter": "Submits jobs and cancels their own.",
    "operator": "Keeps the platform running: cancels any job.",
    "author": "Writes plugins and tries them.",
    "auditor": "Reads and verifies the record.",
    "admin": "Everything in the tenant.",
}


def permissions_of(roles: frozenset[str]) -> frozenset[Permission]:
    """The union of what the roles allow. An unknown role allows nothing."""
    granted: frozenset[Permission] = frozenset()
    for role in roles:
        granted |= BUILTIN_ROLES.get(role, frozenset())
    return granted


@dataclass(frozen=True)
class Actor:
    """Who is asking, in which tenant, by which credential. Made by ``services.access`` alone."""

    user_id: str
    username: str
    tenant_id: str
    permissions: frozenset[Permission]
    roles: frozenset[str] = frozenset()
    platform_admin: bool = False
    token_id: str | None = None
    session_id: str | None = None
    ip: str | None = None
    request_id: str | None = None

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions


SYSTEM_NAME = "system"


def system_actor(tenant_id: str, part: str = SYSTEM_NAME) -> Actor:
    """The platform acting by itself (``part`` names the process, such as ``worker:<id>``)."""
    return Actor(user_id=part, username=part, tenant_id=tenant_id, permissions=frozenset())
