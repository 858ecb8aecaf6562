"""Objects for the walk over all routes: of the caller, of a colleague, of another tenant, and ones that never were.

A route whose path names something that :data:`MAKERS` does not know fails with a message that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import insert, select, update

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action
from cloche.domain.permissions import BUILTIN_ROLES, EVERYTHING, Actor, Permission
from cloche.services.sealer import Sealer
from cloche.services.sessions import new_secret
from tests.support import jobs
from tests.support.stores import add_actor, add_tenant
from tests.support.web import ADMIN_PASSWORD, Site

MARK = "zebra-of-the-other-tenant"  # in everything of the other tenant that has a name
NEVER = "01900000-0000-7000-8000-00000000dead"
ROLES = tuple(BUILTIN_ROLES)
CALLERS = ("anonymous", *ROLES, "platform", "narrow")
OUTPUT = "out.txt"
VERSION = "1.0.0"  # of the plugin that :func:`plugin` names
FIXED = {"path": OUTPUT, "version": VERSION}  # what a path names beside its object
S3 = {
    "provider": "Other",
    "endpoint": "https://s3.invalid",
    "bucket": "demo",
    "access_key_id": "k",
    "secret_access_key": "s",
}


@dataclass(frozen=True)
class Caller:
    """``actor`` is None for nobody; ``token`` the text of a bearer token. ``browser``: who comes with a session's cookie instead, and ``csrf``."""

    name: str
    actor: Actor | None
    token: str | None
    browser: FlaskClient | None = None
    csrf: str = ""

    @property
    def headers(self) -> dict[str, str]:
        if self.browser is not None:
            return {"X-CSRFToken": self.csrf}
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class World:
    """Two tenants with people in each, over one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.db = site.services.db
        home, away = site.services.access.default_tenant(), add_tenant(self.db, MARK)
        admin = site.request("GET", "/me").json
        self.colleague = self._person("colleague", home, "admin")
        self.stranger = self._person(MARK, away, "admin")
        platform = replace(self.colleague.actor, user_id=admin["id"], username="admin", platform_admin=True)
        self.callers = {name: self._person(f"the-{name}", home, name) for name in ROLES}
        self.callers["anonymous"] = Caller("anonymous", None, None)
        self.callers["platform"] = Caller("platform", platform, site.token(scopes=sorted(Permission)))
        scoped = self.site.services.access.create_token(self.callers["admin"].actor, "narrow", ["job:read"])
        self.callers["narrow"] = Caller("narrow", self.callers["admin"].actor, scoped["token"])
        self.numbers = iter(range(10**6))
        self.inputs: dict[str, str] = {}
        self.suspended = ""  # name of the tenant that was suspended last
        self.sealed = {person.actor.tenant_id: self._sealed(person.actor) for person in (self.colleague, self.stranger)}

    def _sealed(self, actor: Actor) -> str:
        """An audit event of the actor's tenant. Now: what the tests write later has another HMAC key, and no sealer takes it."""
        services, name = self.site.services, f"file:of-{actor.username}"
        entry = AuditEntry(actor, Action.FILE_CREATE, name)
        self.db.write(lambda c: services.audit_log.record(c, entry))
        Sealer(self.db, services.keyring, "walk").run_once()
        here = select(t.audit_event.c.id).where(t.audit_event.c.object == name)
        return str(self.db.read(lambda c: c.scalar(here)))

    def _person(self, name: str, tenant_id: str, role: str) -> Caller:
        actor = add_actor(self.db, tenant_id, name, role)
        # It names all of its user's permissions: what no scope names, a token does not have.
        made = self.site.services.access.create_token(actor, "walk", sorted(actor.permissions))
        return Caller(name.removeprefix("the-"), actor, made["token"])

    def send(self, caller: Caller, method: str, path: str, **options: Any) -> Any:
        """One request from an address that is not this machine's; the answer is not read yet."""
        headers = {**caller.headers, **options.pop("headers", {})}
        return (caller.browser or self.site.client()).open(
            path,
            method=method,
            headers=headers,
            buffered=False,
            environ_overrides={"REMOTE_ADDR": "203.0.113.9"},
            **options,
        )

    def custom(self, name: str, permissions: Collection[str]) -> Caller:
        """Somebody in whose one role, of the tenant's own, these are. They have no token."""
        chief = self.colleague.actor
        self.site.services.roles.create(chief, name, "", sorted(permissions))
        actor = add_actor(self.db, chief.tenant_id, f"the-{name}", "viewer")
        mine = t.user_role.c.user_id == actor.user_id
        self.db.write(lambda c: c.execute(update(t.user_role).where(mine).values(role=name)).rowcount)
        return Caller(name, actor, None)

    def sign_in(self, caller: Caller) -> Caller:
        """The caller with the cookie of a new session, as browsers have it. The password is the first administrator's."""
        assert caller.actor is not None
        encoded = select(t.user.c.password_hash).where(t.user.c.username == "admin").scalar_subquery()
        here = t.user.c.id == caller.actor.user_id
        self.db.write(lambda c: c.execute(update(t.user).where(here).values(password_hash=encoded)).rowcount)
        client = self.site.client()
        body = {"username": caller.actor.username, "password": ADMIN_PASSWORD}
        answer = client.post("/api/v1/session", json=body)
        assert answer.status_code == 200, answer.text
        return replace(caller, token=None, browser=client, csrf=answer.get_json()["csrf_token"])

    def job(self, actor: Actor | None = None) -> dict[str, Any]:
        """A body for ``POST /jobs`` of the actor's tenant."""
        owner = actor or self.colleague.actor
        if owner.tenant_id not in self.inputs:
            self.inputs[owner.tenant_id] = artifact(self, owner)
        return {"type": "csv_profile", "inputs": [{"from": f"artifact:{self.inputs[owner.tenant_id]}"}]}

    def admin_of(self, actor: Actor) -> Caller:
        """Who may make things in the actor's tenant."""
        return self.stranger if actor.tenant_id == self.stranger.actor.tenant_id else self.colleague

    def name(self, actor: Actor) -> str:
        """A new name; it shows whose it is."""
        return f"{MARK if actor.tenant_id == self.stranger.actor.tenant_id else 'ours'}-{next(self.numbers)}"

    def make(self, actor: Actor, path: str, **options: Any) -> Any:
        answer = self.send(self.admin_of(actor), "POST", f"/api/v1{path}", **options)
        assert answer.status_code in (201, 202), answer.text
        return answer.json

    def owned(self, table: Any, key: str, column: str, actor: Actor) -> str:
        """The row now belongs to the actor."""
        self.db.write(
            lambda c: c.execute(update(table).where(table.c.id == key).values(**{column: actor.user_id})).rowcount
        )
        return key


def artifact(world: World, actor: Actor) -> str:
    made = world.make(actor, "/files", query_string={"name": f"{world.name(actor)}.csv"}, data=b"a\n1\n")
    return world.owned(t.artifact, made["id"], "created_by", actor)


def job(world: World, actor: Actor) -> str:
    """One that waits, with an output in the artifact store."""
    job_id = jobs.submit(world.db, world.site.services.broker, actor, name=world.name(actor))
    stored = artifact(world, actor)
    row = {"job_id": job_id, "attempt": 0, "path": OUTPUT, "size": 4, "sha256": "0" * 64, "artifact_id": stored}
    world.db.write(lambda c: c.execute(insert(t.job_output), row))
    return job_id


def failed_job(world: World, actor: Actor) -> str:
    job_id, broker = job(world, actor), world.site.services.broker
    jobs.claim(world.db, broker, [job_id])
    jobs.fail(world.db, broker, job_id)
    return job_id


def failed_batch(world: World, actor: Actor) -> str:
    batch_id = batch(world, actor)
    [job_id] = world.db.read(
        lambda c: c.execute(select(t.job.c.id).where(t.job.c.batch_id == batch_id)).scalars().all()
    )
    jobs.claim(world.db, world.site.services.broker, [job_id])
    jobs.fail(world.db, world.site.services.broker, job_id)
    return batch_id


def batch(world: World, actor: Actor) -> str:
    body = {"name": world.name(actor), "jobs": [world.job(actor) | {"retry": {"max_retries": 0}}]}
    made = world.make(actor, "/jobs/batch", json=body)
    world.db.write(
        lambda c: c.execute(update(t.job).where(t.job.c.batch_id == made["id"]).values(submitted_by=actor.user_id))
    )
    return world.owned(t.batch, made["id"], "submitted_by", actor)


def token(world: World, actor: Actor) -> str:
    return str(world.site.services.access.create_token(actor, world.name(actor)[:40])["id"])


def session(world: World, actor: Actor) -> str:
    access = world.site.services.access
    return str(world.db.write(lambda c: access._open(c, actor, new_secret(), None)).session_id)


def user(world: World, actor: Actor) -> str:
    return add_actor(world.db, actor.tenant_id, world.name(actor), "viewer").user_id


def service(world: World, actor: Actor) -> str:
    user_id = user(world, actor)
    world.db.write(lambda c: c.execute(update(t.user).where(t.user.c.id == user_id).values(kind="service")))
    return user_id


def user_with_token(world: World, actor: Actor) -> str:
    """The token's id is the user's: a path is given one id."""
    user_id = user(world, actor)
    row = {
        "id": user_id,
        "user_id": user_id,
        "tenant_id": actor.tenant_id,
        "name": "t",
        "secret_sha256": "",
        "scopes": [],
        "created_at": 1,
    }
    world.db.write(lambda c: c.execute(insert(t.token), row))
    return user_id


def remote(world: World, actor: Actor) -> str:
    name = f"r{next(world.numbers)}"
    return str(world.make(actor, "/remotes", json={"name": name, "type": "s3", "options": S3})["name"])


def secret(world: World, actor: Actor) -> str:
    body = {"name": f"S{next(world.numbers)}", "value": "a value of some length"}
    return str(world.make(actor, "/secrets", json=body)["name"])


def queue(world: World, _actor: Actor) -> str:
    name = f"q{next(world.numbers)}"
    body = {"name": name}
    answer = world.send(world.callers["platform"], "POST", "/api/v1/queues", json=body)
    assert answer.status_code == 201, answer.text
    return name


def worker(world: World, _actor: Actor) -> str:
    worker_id = uuid7()
    world.site.services.workers.register(worker_id, "host", 1, ["default"], 2)
    return worker_id


def plugin(_world: World, _actor: Actor) -> str:
    return "text_stats"


def role(world: World, actor: Actor) -> str:
    chief = world.admin_of(actor).actor
    return str(world.site.services.roles.create(chief, world.name(actor), "", ["job:read"])["name"])


def tenant(world: World, _actor: Actor) -> str:
    root = replace(world.callers["platform"].actor, permissions=EVERYTHING)
    return str(world.site.services.tenants.create(root, f"tenant-{next(world.numbers)}")["id"])


def suspended_tenant(world: World, actor: Actor) -> str:
    root = replace(world.callers["platform"].actor, permissions=EVERYTHING)
    made = world.site.services.tenants.set_suspended(root, tenant(world, actor), True)
    world.suspended = made["name"]
    return str(made["id"])


def user_with_quota(world: World, actor: Actor) -> str:
    user_id = user(world, actor)
    path, headers = f"/api/v1/users/{user_id}/quotas", {"If-Match": "*"}
    assert world.send(world.admin_of(actor), "PUT", path, json={"jobs": 5}, headers=headers).status_code == 200
    return user_id


Maker = Callable[[World, Actor], str]


@dataclass(frozen=True)
class Kind:
    """``shared``: of the whole platform, so there is no other tenant's. ``missing``: an id or name of one that never was."""

    make: Maker
    shared: bool = False
    missing: str = NEVER


def audit_event(world: World, owner: Actor) -> str:
    """Sealed, so that there is a proof of it."""
    return world.sealed[owner.tenant_id]


# By the path below /api/v1 up to the id; the longest that fits is taken.
MAKERS: dict[str, Kind] = {
    "/files/{file_id}": Kind(artifact),
    "/jobs/{job_id}": Kind(job),
    "/trace/{job_id}": Kind(job),
    "/batches/{batch_id}": Kind(batch),
    "/tokens/{token_id}": Kind(token),
    "/sessions/{session_id}": Kind(session),
    "/users/{user_id}": Kind(user),
    "/remotes/{name}": Kind(remote, missing="r-none"),
    "/secrets/{name}": Kind(secret, missing="S_NONE"),
    "/queues/{name}": Kind(queue, shared=True, missing="q-none"),
    "/plugins/{name}": Kind(plugin, shared=True, missing="none"),
    "/workers/{worker_id}": Kind(worker, shared=True),
    "/roles/{name}": Kind(role, missing="role-none"),
    "/tenants/{tenant_id}": Kind(tenant, shared=True),
    "/audit/{event}": Kind(audit_event),
}
# Where a route wants its object in a state of its own to succeed.
SPECIAL: dict[str, Maker] = {
    "POST /jobs/{job_id}/retry": failed_job,
    "DELETE /jobs/{job_id}": failed_job,
    "DELETE /users/{user_id}/quotas": user_with_quota,
    "POST /batches/{batch_id}/retry": failed_batch,
    "POST /users/{user_id}/tokens": service,
    "DELETE /users/{user_id}/tokens/{token_id}": user_with_token,
    "POST /tenants/{tenant_id}/empty": suspended_tenant,
    "DELETE /tenants/{tenant_id}": suspended_tenant,
}
