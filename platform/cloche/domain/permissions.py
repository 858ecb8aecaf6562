"""Permissions, built-in roles, and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache


class Permission(StrEnum):
    JOB_READ = "job:read"
    JOB_SUBMIT = "job:submit"
    JOB_CANCEL = "job:cancel"
    JOB_CANCEL_ANY = "job:cancel_any"
    JOB_RETRY = "job:retry"
    JOB_RETRY_ANY = "job:retry_any"
    JOB_PURGE = "job:purge"
    JOB_REVEAL = "job:reveal"
    JOB_REVEAL_ANY = "job:reveal_any"
    FILE_READ = "file:read"
    FILE_WRITE = "file:write"
    FILE_DELETE_ANY = "file:delete_any"
    PLUGIN_READ = "plugin:read"
    PLUGIN_MANAGE = "plugin:manage"
    QUEUE_READ = "queue:read"
    QUEUE_PAUSE = "queue:pause"
    QUEUE_MANAGE = "queue:manage"
    WORKER_READ = "worker:read"
    WORKER_DRAIN = "worker:drain"
    REMOTE_READ = "remote:read"
    REMOTE_USE = "remote:use"
    REMOTE_MANAGE = "remote:manage"
    SECRET_READ = "secret:read"  # noqa: S105 - the name of a permission
    SECRET_MANAGE = "secret:manage"  # noqa: S105
    EGRESS_READ = "egress:read"
    EGRESS_MANAGE = "egress:manage"
    USER_READ = "user:read"
    USER_MANAGE = "user:manage"
    ROLE_READ = "role:read"
    ROLE_MANAGE = "role:manage"
    TENANT_MANAGE = "tenant:manage"
    PLATFORM_MANAGE = "platform:manage"
    QUOTA_MANAGE = "quota:manage"
    QUOTA_ASSIGN = "quota:assign"
    USAGE_READ = "usage:read"
    TOKEN_MANAGE = "token:manage"  # noqa: S105 - the name of a permission
    AUDIT_READ = "audit:read"
    AUDIT_EXPORT = "audit:export"
    AUDIT_FORGET = "audit:forget"
    CALLBACK_MANAGE = "callback:manage"


PERMISSION_TEXT: dict[Permission, str] = {
    Permission.JOB_READ: "See jobs, their logs, trace, outputs and results.",
    Permission.JOB_SUBMIT: "Submit jobs.",
    Permission.JOB_CANCEL: "Cancel jobs one has submitted oneself.",
    Permission.JOB_CANCEL_ANY: "Cancel anybody's jobs in the tenant.",
    Permission.JOB_RETRY: "Retry jobs one has submitted oneself, once they have failed or were canceled.",
    Permission.JOB_RETRY_ANY: "Retry anybody's jobs in the tenant, and replay dead letters.",
    Permission.JOB_PURGE: "Remove jobs that have ended, with their logs and traces.",
    Permission.JOB_REVEAL: "Read what sensitive jobs one has submitted oneself hold.",
    Permission.JOB_REVEAL_ANY: "Read what anybody's sensitive jobs in the tenant hold.",
    Permission.FILE_READ: "Download stored files.",
    Permission.FILE_WRITE: "Upload files and delete one's own.",
    Permission.FILE_DELETE_ANY: "Delete anybody's files in the tenant.",
    Permission.PLUGIN_READ: "See which job types and versions there are.",
    Permission.PLUGIN_MANAGE: "Enable, deprecate, disable and yank versions of plugins, for every tenant; of platform administrators alone.",
    Permission.QUEUE_READ: "See queues and how full they are.",
    Permission.QUEUE_PAUSE: "Pause and resume a queue for the tenant's own jobs.",
    Permission.QUEUE_MANAGE: "Create, limit, pause and remove queues for every tenant; of platform administrators alone.",
    Permission.WORKER_READ: "See workers and what they do.",
    Permission.WORKER_DRAIN: "Have a worker finish what it runs and leave; of platform administrators alone.",
    Permission.REMOTE_READ: "See which remotes there are, never their credentials.",
    Permission.REMOTE_USE: "Name a remote as a job's input or output.",
    Permission.REMOTE_MANAGE: "Create, change, test and remove remotes.",
    Permission.SECRET_READ: "See which secrets there are and who gets them, never their values.",
    Permission.SECRET_MANAGE: "Create, change and remove secrets, and grant them to plugin versions.",
    Permission.EGRESS_READ: "See which hosts jobs of the tenant may reach.",
    Permission.EGRESS_MANAGE: "Set which hosts jobs of the tenant may reach.",
    Permission.USER_READ: "See users and their roles.",
    Permission.USER_MANAGE: "Create, disable and remove users and service accounts, and give them roles, within what one holds oneself.",
    Permission.ROLE_READ: "See roles, what they allow and who has them.",
    Permission.ROLE_MANAGE: "Create, change and remove roles of the tenant, within what one holds oneself.",
    Permission.TENANT_MANAGE: "Create, suspend, empty and remove tenants, and put users into them; of platform administrators alone.",
    Permission.PLATFORM_MANAGE: "Appoint and dismiss platform administrators; of platform administrators alone.",
    Permission.QUOTA_MANAGE: "Set what each tenant may use at most; of platform administrators alone.",
    Permission.QUOTA_ASSIGN: "Set what other users of the tenant may use at most, within the tenant's own quota.",
    Permission.USAGE_READ: "See what the tenant and each of its users have used.",
    Permission.TOKEN_MANAGE: "List, create and revoke one's own tokens, and end one's own sessions.",
    Permission.AUDIT_READ: "Read the audit trail and verify it.",
    Permission.AUDIT_EXPORT: "Export the audit trail.",
    Permission.AUDIT_FORGET: "Remove a person's name or address from the audit trail; of platform administrators alone.",
    Permission.CALLBACK_MANAGE: "Read and renew the secret that callbacks are signed with.",
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
    Permission.JOB_RETRY,
    Permission.JOB_REVEAL,
    Permission.FILE_WRITE,
    Permission.REMOTE_READ,
    Permission.REMOTE_USE,
    Permission.EGRESS_READ,
}
_OPERATE = _SUBMIT | {
    Permission.JOB_CANCEL_ANY,
    Permission.JOB_RETRY_ANY,
    Permission.JOB_PURGE,
    Permission.QUEUE_PAUSE,
    Permission.SECRET_READ,
    Permission.USAGE_READ,
}
_AUDIT = {
    Permission.AUDIT_READ,
    Permission.AUDIT_EXPORT,
    Permission.JOB_READ,
    Permission.PLUGIN_READ,
    Permission.SECRET_READ,
    Permission.EGRESS_READ,
    Permission.USER_READ,
    Permission.ROLE_READ,
    Permission.USAGE_READ,
    Permission.TOKEN_MANAGE,
}

# What concerns every tenant. No role gives it: platform administrators have it, as they have everything, in whichever tenant they are.
PLATFORM_PERMISSIONS = frozenset(
    {
        Permission.PLUGIN_MANAGE,
        Permission.QUEUE_MANAGE,
        Permission.WORKER_DRAIN,
        Permission.TENANT_MANAGE,
        Permission.PLATFORM_MANAGE,
        Permission.AUDIT_FORGET,
        Permission.QUOTA_MANAGE,
    }
)
EVERYTHING = frozenset(Permission)

# What hands on power. A token has it only where its scopes name it: one that names nothing holds all else that its user holds.
NAMED_ONLY = frozenset(
    {Permission.TOKEN_MANAGE, Permission.ROLE_MANAGE, Permission.TENANT_MANAGE, Permission.PLATFORM_MANAGE}
)

ADMIN = "admin"
BUILTIN_ROLES: dict[str, frozenset[Permission]] = {
    "viewer": frozenset(_VIEW),
    "submitter": frozenset(_SUBMIT),
    "operator": frozenset(_OPERATE),
    "author": frozenset(_SUBMIT | {Permission.SECRET_READ}),
    "auditor": frozenset(_AUDIT),
    ADMIN: frozenset(Permission) - PLATFORM_PERMISSIONS,
}
_BY_NAME = {permission.value: permission for permission in Permission}
ROLE_TEXT: dict[str, str] = {
    "viewer": "Looks at jobs and their files.",
    "submitter": "Submits jobs and cancels their own.",
    "operator": "Keeps the platform running: cancels, retries and removes any job.",
    "author": "Writes plugins and tries them.",
    "auditor": "Reads and verifies the record.",
    "admin": "Everything in the tenant.",
}


@lru_cache(maxsize=1_024)
def permissions_of(roles: frozenset[str], own: tuple[str, ...] = ()) -> frozenset[Permission]:
    """The union of what the built-in ones among the roles allow, and ``own``: what the tenant's own ones among them do, by name.

    An unknown role allows nothing, nor does an unknown permission, and no role gives what concerns every tenant.
    """
    granted = {permission for name in own if (permission := _BY_NAME.get(name)) is not None}
    for role in roles:
        granted |= BUILTIN_ROLES.get(role, frozenset())
    return frozenset(granted) - PLATFORM_PERMISSIONS


class Kind(StrEnum):
    """Of an account."""

    PERSON = "person"
    SERVICE = "service"  # for programs: no password, tokens alone


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
    scoped: bool = False  # the token names what it may do
    ip: str | None = None
    request_id: str | None = None
    tenant_suspended: bool = False  # only platform administrators are let into such a tenant

    @property
    def named(self) -> bool:
        """Whether what only people and tokens that name it may do is in its permissions at all."""
        return self.token_id is None or self.scoped

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions


def beyond(actor: Actor, wanted: frozenset[Permission]) -> frozenset[Permission]:
    """What of ``wanted`` the actor may not hand on. To manage one's own tokens is no power over others: a token without it may hand it on."""
    own = frozenset() if actor.named else frozenset({Permission.TOKEN_MANAGE})
    return wanted - actor.permissions - own


SYSTEM_NAME = "system"


def system_actor(tenant_id: str, part: str = SYSTEM_NAME) -> Actor:
    """The platform acting by itself (``part`` names the process, such as ``worker:<id>``)."""
    return Actor(user_id=part, username=part, tenant_id=tenant_id, permissions=frozenset())
