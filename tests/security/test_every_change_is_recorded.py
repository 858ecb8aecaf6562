"""Whatever a request changes is in the record, under the request's own id: every route that is no GET, walked by a platform administrator.

And with the digests that docs/audit.md promises of each action: :data:`DIGESTS`.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import select

from cloche.db import tables as t
from cloche.domain.events import Action
from cloche.domain.permissions import EVERYTHING
from cloche.services.audit_keeping import rotate_hmac_key, rotate_signing_key
from cloche.services.sealing import rotate as rotate_sensitive
from cloche.services.secret_rotation import rotate as rotate_secrets
from cloche.services.secret_vault import SecretVault
from tests.security import objects
from tests.security.objects import SPECIAL, World, failed_job
from tests.security.route_table import BODIES, NONE, OWN, Walk, declared, whose
from tests.support.audit import Platform
from tests.support.stores import add_actor, add_tenant
from tests.support.web import running_site

MADE, GONE, CHANGED = "after alone", "before alone", "before and after, and they differ"
_JOB = "none: a job is what its submission's details say, by digest, and each event after it is a step between states"
_BATCH = "none: each of its jobs has events of its own"
_READ = "none: nothing was changed"
_CREDENTIAL = "none: it is a credential, and all of it that is no secret is in the event"
# What has to be in ``before_sha256`` and ``after_sha256``; else why they are empty. A new action needs its line, here and in docs/audit.md.
DIGESTS = {
    Action.PLATFORM_START: MADE,
    Action.SETTINGS_CHANGE: CHANGED,
    Action.TENANT_CREATE: MADE,
    Action.TENANT_SUSPEND: CHANGED,
    Action.TENANT_RESUME: CHANGED,
    Action.TENANT_EMPTY: GONE,
    Action.TENANT_DELETE: GONE,
    Action.USER_CREATE: MADE,
    Action.USER_UPDATE: CHANGED,
    Action.USER_ROLES: CHANGED,
    Action.USER_DELETE: GONE,
    Action.PLATFORM_ADMIN_GRANT: CHANGED,
    Action.PLATFORM_ADMIN_REVOKE: CHANGED,
    Action.ROLE_CREATE: MADE,
    Action.ROLE_UPDATE: CHANGED,
    Action.ROLE_DELETE: GONE,
    Action.SESSION_CREATE: _CREDENTIAL,
    Action.SESSION_DELETE: _CREDENTIAL,
    Action.SESSION_REVOKE: _CREDENTIAL,
    Action.SESSION_ENTER: CHANGED,
    Action.PASSWORD_CHANGE: _CREDENTIAL,
    Action.PASSWORD_RESET_CREATE: MADE,
    Action.PASSWORD_RESET_USE: _CREDENTIAL,
    Action.TOKEN_CREATE: MADE,
    Action.TOKEN_REVOKE: GONE,
    Action.ACCESS_DENY: _READ,
    Action.ACCESS_READ: _READ,
    Action.FILE_CREATE: MADE,
    Action.FILE_DELETE: GONE,
    Action.BATCH_SUBMIT: _BATCH,
    Action.BATCH_CANCEL: _BATCH,
    Action.BATCH_RETRY: _BATCH,
    **{action: _JOB for action in Action if action.startswith("job:")},
    Action.QUEUE_CREATE: MADE,
    Action.QUEUE_UPDATE: CHANGED,
    Action.QUEUE_DELETE: GONE,
    Action.REMOTE_CREATE: MADE,
    Action.REMOTE_UPDATE: CHANGED,
    Action.REMOTE_DELETE: GONE,
    Action.EGRESS_UPDATE: CHANGED,
    Action.QUOTA_UPDATE: CHANGED,
    Action.QUOTA_DELETE: GONE,
    Action.WORKER_DRAIN: CHANGED,
    Action.PLUGIN_REGISTER: MADE,
    Action.PLUGIN_CHANGED: CHANGED,
    Action.PLUGIN_UPDATE: CHANGED,
    Action.SECRET_CREATE: MADE,
    Action.SECRET_UPDATE: CHANGED,
    Action.SECRET_DELETE: GONE,
    Action.SECRET_GRANT: CHANGED,
    Action.SECRET_REVOKE: CHANGED,
    Action.SECRET_DELIVER: _READ,
    Action.KEY_ROTATE: CHANGED,
    Action.AUDIT_READ: _READ,
    Action.AUDIT_VERIFY: _READ,
    Action.AUDIT_EXPORT: _READ,
    Action.AUDIT_PRUNE: "none: the signed mark in the details says what went",
    Action.AUDIT_FORGET: "none: a digest of a name or an address would be what was to be forgotten",
    Action.AUDIT_RESTORE: "none: what was lost is not there; the details have the checkpoint's digest",
    Action.CHECKPOINT_SEND: _READ,
    Action.CALLBACK_SECRET_READ: _READ,
    Action.CALLBACK_SECRET_RENEW: CHANGED,
}

ROUTES = {key: found for key, found in declared().items() if found[1].method != "GET"}
# What changes nothing, and why; a new name here needs a reason.
NOTHING = {
    "POST /remotes/{name}/test": "it looks whether the remote answers",
    "DELETE /session": "it ends the session of whoever asks, and a token has none",
    "DELETE /sessions": "it ends the others, and there are none",
}
# What cannot be done here, so that only a refusal is looked at; its digests are in DIGESTS all the same.
REFUSED = {
    "POST /session": "a token has no password",
    "PUT /me/password": "it takes a session",
    "POST /password-resets": "its code is shown once, to somebody else",
    "POST /audit/forget": "nobody is left who could be forgotten",
}
# What there has to be besides the object that the path names.
BEFORE = {"POST /dead-letters/replay": failed_job, "DELETE /dead-letters": failed_job}


def platform_admin(world, actor):
    user_id = objects.user(world, actor)
    path = f"/api/v1/users/{user_id}/platform-admin"
    answer = world.send(world.callers["platform"], "PUT", path, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text
    return user_id


# Where the walk over the table would change nothing, or only looks: what is sent here, and to what.
EARNEST = {
    "POST /dead-letters/replay": {"filter": {}},
    "DELETE /dead-letters": {"filter": {}},
    "PATCH /users/{user_id}": {"disabled": True},
    "PUT /users/{user_id}/roles": {"roles": ["submitter"]},
    "PUT /roles/{name}": {"permissions": ["job:read", "job:submit"]},
    "PATCH /tenants/{tenant_id}": {"suspended": True},
    "PATCH /queues/{name}": {"paused": True},
    "PATCH /plugins/{name}/{version}": {"state": "deprecated"},
    "PUT /egress-policy": {"allow": ["pypi.org:443"]},
    "PUT /users/{user_id}/quotas": {"jobs": 7},
    "PUT /tenants/{tenant_id}/quotas": {"jobs": 70},
}
TO = {"DELETE /users/{user_id}/platform-admin": platform_admin}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with running_site(tmp_path_factory.mktemp("home")) as site:
        yield World(site)


@pytest.fixture(scope="module")
def walk(world):
    return Walk(world)


@pytest.mark.parametrize("key", ROUTES)
def test_what_was_changed_is_in_the_record(world, walk, key, monkeypatch):
    prefix, route = ROUTES[key]
    sent, send = [], world.send

    def noting(caller, *arguments, **options):
        answer = send(caller, *arguments, **options)
        sent.append(answer.headers["X-Request-ID"])
        return answer

    monkeypatch.setattr(world, "send", noting)
    if key in BEFORE:
        BEFORE[key](world, world.callers["platform"].actor)
    if key in EARNEST:
        monkeypatch.setitem(BODIES, key, lambda _: EARNEST[key])
    if key in TO:
        monkeypatch.setitem(SPECIAL, key, TO[key])
    owner = OWN if OWN in whose(route) else NONE
    answer = walk.ask(prefix, route, world.callers["platform"], owner)
    events = recorded(world, t.audit_event.c.request_id == sent[-1])
    actions = {event.action for event in events} - {Action.AUDIT_READ.value}
    assert (answer.status < 300) == (key not in REFUSED), answer.text
    assert answer.status < 500, answer.text
    if answer.status < 300 and key not in NOTHING:
        assert actions, f"{key} answers {answer.status} and leaves no event"
    for event in events:
        check_digests(event)
    if answer.status in (401, 403):
        return  # refused: the denials are gathered and written later
    assert answer.status < 300 or not actions - {Action.SESSION_CREATE.value, Action.ACCESS_DENY.value}, actions


def recorded(world, *which):
    query = select(t.audit_event).where(*which).order_by(t.audit_event.c.id)
    return world.db.read(lambda connection: connection.execute(query).all())


def check_digests(event):
    """That the event has the digests that its action has to have."""
    wanted, before, after = DIGESTS[Action(event.action)], event.before_sha256, event.after_sha256
    if wanted == CHANGED:
        assert before and after, f"{event.action} lacks a digest: {before} → {after}"
        assert before != after, f"{event.action} changed nothing"
    else:
        has = (before is not None, after is not None)
        assert has == (wanted == GONE, wanted == MADE), f"{event.action} should have {wanted}: {before} → {after}"


def only(world, action, name):
    """The one event of this action on this object; its digests are looked at."""
    [event] = recorded(world, t.audit_event.c.action == action.value, t.audit_event.c.object == name)
    check_digests(event)
    return event


def test_every_action_says_what_digests_it_has():
    assert DIGESTS.keys() == set(Action)


def test_what_the_start_recorded_has_its_digests(world):
    wanted = {Action.TENANT_CREATE, Action.PLUGIN_REGISTER}
    found = recorded(world, t.audit_event.c.request_id.is_(None), t.audit_event.c.action.in_(wanted))
    assert {event.action for event in found} == wanted
    for event in found:
        check_digests(event)


class TestOfWhatNoRouteReachesByItself:
    def test_a_weight_of_a_queue_before_and_after(self, world):
        root, name = world.callers["platform"], objects.queue(world, world.callers["platform"].actor)
        tenant = world.db.read(lambda c: c.scalar(select(t.tenant.c.name).where(t.tenant.c.id == root.actor.tenant_id)))
        for weight in (5, 7):
            body = {"scope": "platform", "weights": {tenant: weight}}
            answer = world.send(root, "PATCH", f"/api/v1/queues/{name}", json=body, headers={"If-Match": "*"})
            assert answer.status_code == 200, answer.text
        action = (t.audit_event.c.action == Action.QUEUE_UPDATE.value, t.audit_event.c.object == f"queue:{name}")
        first, second = recorded(world, *action)
        check_digests(first)
        assert (second.before_sha256, first.before_sha256 != second.before_sha256) == (first.after_sha256, True)

    def test_a_remote_of_which_a_secret_alone_was_changed_and_then_removed(self, world):
        admin = world.colleague
        name = objects.remote(world, admin.actor)
        path, headers = f"/api/v1/remotes/{name}", {"If-Match": "*"}
        changed = {"options": {"secret_access_key": "another"}}
        assert world.send(admin, "PATCH", path, json=changed, headers=headers).status_code == 200
        assert world.send(admin, "DELETE", path, headers=headers).status_code == 204
        made, after, gone = (
            only(world, action, f"remote:{name}")
            for action in (Action.REMOTE_CREATE, Action.REMOTE_UPDATE, Action.REMOTE_DELETE)
        )
        assert made.after_sha256 == after.before_sha256
        assert after.after_sha256 == gone.before_sha256

    def test_a_secret_s_grants_are_taken_back(self, world):
        name = objects.secret(world, world.colleague.actor)
        for grants in ([{"plugin": "text_stats", "versions": "*"}], []):
            path, headers = f"/api/v1/secrets/{name}/grants", {"If-Match": "*"}
            answer = world.send(world.colleague, "PUT", path, json={"grants": grants}, headers=headers)
            assert answer.status_code == 200, answer.text
        given, taken = (only(world, action, f"secret:{name}") for action in (Action.SECRET_GRANT, Action.SECRET_REVOKE))
        assert given.after_sha256 == taken.before_sha256

    def test_a_token_says_the_same_when_it_goes_as_when_it_came(self, world):
        admin = world.colleague
        token_id = objects.token(world, admin.actor)
        world.site.services.access.revoke_token(admin.actor, token_id)
        made, gone = (only(world, action, f"token:{token_id}") for action in (Action.TOKEN_CREATE, Action.TOKEN_REVOKE))
        assert made.after_sha256 == gone.before_sha256

    def test_a_user_who_goes_with_their_tenant(self, world):
        root = replace(world.callers["platform"].actor, permissions=EVERYTHING)
        tenant_id = objects.suspended_tenant(world, root)
        user_id = add_actor(world.db, tenant_id, world.name(root), "viewer").user_id
        world.site.services.tenants.delete(root, tenant_id)
        only(world, Action.USER_DELETE, f"user:{user_id}")


def test_keys_by_their_ids(tmp_path, database_url):
    platform = Platform(tmp_path / "home", database_url)
    add_tenant(platform.db)
    for _ in range(2):  # of some there is none before the first
        rotate_sensitive(platform.keys, platform.db, platform.log)
        rotate_secrets(SecretVault(platform.keys, platform.db), platform.db, platform.log)
    rotate_signing_key(platform.db, platform.keyring)
    rotate_hmac_key(platform.db, platform.keyring)
    found = recorded(platform, t.audit_event.c.action == Action.KEY_ROTATE.value)
    last = {event.object: event for event in found if "before" in json.loads(event.details)}
    assert last.keys() == {"key:sensitive", "key:secrets", "key:audit", "key:audit-hmac"}
    for event in last.values():
        check_digests(event)
        ids = json.loads(event.details)
        assert (ids["before"] != ids["after"], min(len(ids["before"]), len(ids["after"])) >= 8) == (True, True)
    platform.db.close()
