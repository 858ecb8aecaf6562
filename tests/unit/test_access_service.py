"""Tenants, users, sessions and tokens against a migrated database."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, update

from cloche import config
from cloche.clock import now_ms, uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.permissions import NAMED_ONLY, Permission
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, RateLimited, SettingsError, Unauthenticated
from cloche.services.access import AccessService
from cloche.services.actors import Origin, changed
from cloche.services.passwords import PasswordVault
from cloche.services.users import UserService

KEY = b"k" * 32
PASSWORD = "correct horse battery"
HERE = Origin("192.0.2.7", "request-1")
VAULT = PasswordVault(2)


def service(db, password: str | None = PASSWORD, **server) -> AccessService:
    settings = config.load(home="/nowhere", admin={"password": password} if password else {}, server=server)
    return AccessService(db, AuditLog(KEY), settings, vault=VAULT)


@pytest.fixture
def access(db):
    made = service(db)
    made.bootstrap()
    return made


@pytest.fixture
def users(db, access):
    return UserService(db, AuditLog(KEY), access)


@pytest.fixture
def root(access):
    return access.check_credentials("admin", PASSWORD, HERE)


def audited(db, **columns):
    """Audit events with these column values."""
    event = t.audit_event
    query = select(event).where(*(event.c[name] == value for name, value in columns.items()))
    return db.read(lambda c: c.execute(query).all())


def change(db, statement):
    """What a service does when it changes who may do what."""

    def unit(connection):
        connection.execute(statement)
        changed(connection)

    db.write(unit)


def test_first_start_with_the_operators_password(db):
    first = service(db).bootstrap()
    assert (first.created, first.password) == (True, None)
    again = service(db).bootstrap()
    assert (again.created, again.password) == (False, None)
    assert len(audited(db, action="user:create")) == 1
    assert len(audited(db, action="tenant:create")) == 1


def test_first_start_makes_a_password_and_tells_it_once(db):
    first = service(db, None).bootstrap()
    assert first.password is not None
    assert service(db, None).check_credentials("admin", first.password, HERE).platform_admin
    assert service(db, None).bootstrap().password is None


def test_a_short_password_of_the_operator_is_refused(db):
    with pytest.raises(SettingsError, match="CLOCHE_ADMIN_PASSWORD"):
        service(db, "short").bootstrap()


def test_two_first_starts_at_once_make_one_admin(db, tmp_path):
    other = Database(db.url)
    found: list[str | None] = []
    starts = [
        threading.Thread(target=lambda d=d: found.append(service(d, None).bootstrap().password)) for d in (db, other)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    other.close()
    assert sum(password is not None for password in found) == 1
    assert len(db.read(lambda c: c.execute(select(t.user.c.id)).all())) == 1


def test_users_are_created_once_and_never_with_more_than_the_creator_holds(access, users, root):
    made = users.create(root, "Anna", PASSWORD, ["submitter", "auditor", "submitter"])
    assert (made["username"], made["roles"]) == ("anna", ["auditor", "submitter"])
    with pytest.raises(Conflict):
        users.create(root, "ANNA", PASSWORD, ["viewer"])
    with pytest.raises(Invalid) as caught:
        users.create(root, "berta", PASSWORD, ["viewer", "wizard"])
    assert caught.value.problems[0].pointer == "/roles/1"
    anna = access.check_credentials("anna", PASSWORD, HERE)
    with pytest.raises(Forbidden):
        users.create(anna, "mallory", PASSWORD, ["admin"])
    names = [user["username"] for user in users.list(root, {})["items"]]
    assert names == ["admin", "anna"]


def test_no_hash_and_no_secret_is_ever_listed(access, users, root):
    access.create_token(root, "ci")
    shown = repr([*users.list(root, {})["items"], *access.list_tokens(root)])
    assert "argon2" not in shown
    assert "sha256" not in shown


def test_wrong_credentials_are_audited_without_what_was_typed(db, access):
    for name in ("admin", "nobody-there"):
        with pytest.raises(Unauthenticated):
            access.sign_in(name, "a password typed wrong", HERE)
    failed = audited(db, action="session:create", outcome="failed")
    assert len(failed) == 2
    assert failed[0].object.startswith("user:")
    assert failed[1].object == "user:unknown"
    assert "typed wrong" not in repr(failed)
    assert "nobody-there" not in repr(failed)


def test_lockout_holds_for_the_right_password_too(access):
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            access.sign_in("admin", "wrong password here", HERE)
    with pytest.raises(RateLimited):
        access.sign_in("admin", PASSWORD, HERE)
    assert access.sign_in("admin", PASSWORD, Origin("192.0.2.8"))


def test_a_session_lives_until_it_is_ended(db, access):
    signed = access.sign_in("admin", PASSWORD, HERE)
    assert access.resume(signed.secret, HERE).username == "admin"
    assert access.resume("x" * 43, HERE) is None
    stored = db.read(lambda c: c.execute(select(t.session.c.id)).scalar_one())
    assert stored != signed.secret
    access.sign_out(signed.actor)
    access.sign_out(signed.actor)
    assert access.resume(signed.secret, HERE) is None
    assert len(audited(db, action="session:delete")) == 1


def test_an_idle_session_ends(db):
    access = service(db, session_idle="60s")
    access.bootstrap()
    signed = access.sign_in("admin", PASSWORD, HERE)
    db.write(lambda c: c.execute(update(t.session).values(last_seen_at=now_ms() - 61_000)))
    assert access.resume(signed.secret, HERE) is None


def test_tokens_work_until_revoked(db, access, root):
    made = access.create_token(root, "ci")
    actor = access.authenticate_token(made["token"], HERE)
    assert (actor.username, actor.token_id, actor.ip) == ("admin", made["id"], HERE.ip)
    assert actor.permissions == root.permissions - NAMED_ONLY
    assert made["token"].rsplit("_", 1)[1] not in repr(db.read(lambda c: c.execute(select(t.token)).all()))
    access.revoke_token(root, made["id"])
    access.revoke_token(root, made["id"])
    with pytest.raises(Unauthenticated) as caught:
        access.authenticate_token(made["token"], HERE)
    assert caught.value.code == "token-revoked"


def test_every_bad_token_has_its_own_code(db, access, root):
    made = access.create_token(root, "ci", expires_in_ms=60_000)
    good = made["token"]
    bad = {
        "": "token-malformed",
        "cloche_pat_": "token-malformed",
        "cloche_pat_x_y": "token-malformed",
        good.removeprefix("cloche_pat_"): "token-malformed",
        good + "ä": "token-malformed",
        good[:-1]: "token-invalid",
        good + "x": "token-invalid",
        good.replace(made["id"], uuid7()): "token-invalid",
        f"cloche_pat_{made['id']}_": "token-invalid",
    }
    for text, code in bad.items():
        with pytest.raises(Unauthenticated) as caught:
            access.authenticate_token(text, HERE)
        assert caught.value.code == code, text
    change(db, update(t.token).values(expires_at=now_ms() - 1))
    with pytest.raises(Unauthenticated) as caught:
        access.authenticate_token(good, HERE)
    assert caught.value.code == "token-expired"


def test_scopes_narrow_and_never_widen(access, users, root):
    narrow = access.create_token(root, "narrow", ["job:read", "token:manage"], 3_600_000)
    actor = access.authenticate_token(narrow["token"], HERE)
    assert actor.permissions == {Permission.JOB_READ, Permission.TOKEN_MANAGE}
    with pytest.raises(Forbidden):
        access.create_token(actor, "wider", ["job:submit"])
    with pytest.raises(Forbidden):
        users.create(actor, "mallory", PASSWORD, ["viewer"])
    with pytest.raises(Forbidden, match="name token:manage"):
        access.create_token(access.authenticate_token(access.create_token(root, "whole")["token"], HERE), "child")
    with pytest.raises(Invalid):
        access.create_token(root, "forever", expires_in_ms=10**18)
    with pytest.raises(Invalid):
        access.create_token(root, "typo", ["job:reed"])
    with pytest.raises(Invalid):
        access.create_token(root, "never", expires_in_ms=0)


def test_a_change_acts_on_the_next_request(db, access, users, root):
    users.create(root, "anna", PASSWORD, ["submitter"])
    anna = access.check_credentials("anna", PASSWORD, HERE)
    made = access.create_token(anna, "ci")
    signed = access.sign_in("anna", PASSWORD, HERE)
    mine = t.user_role.c.user_id == anna.user_id
    change(db, update(t.user_role).where(mine).values(role="viewer"))
    assert not access.authenticate_token(made["token"], HERE).may(Permission.JOB_SUBMIT)
    assert not access.resume(signed.secret, HERE).may(Permission.JOB_SUBMIT)
    change(db, update(t.user).where(t.user.c.id == anna.user_id).values(disabled=True))
    with pytest.raises(Unauthenticated) as caught:
        access.authenticate_token(made["token"], HERE)
    assert caught.value.code == "account-disabled"
    assert access.resume(signed.secret, HERE) is None
    with pytest.raises(Unauthenticated):
        access.sign_in("anna", PASSWORD, HERE)


def test_somebody_elses_token_is_not_there(access, users, root):
    made = access.create_token(root, "ci")
    users.create(root, "anna", PASSWORD, ["viewer"])
    anna = access.check_credentials("anna", PASSWORD, HERE)
    with pytest.raises(NotFound):
        access.revoke_token(anna, made["id"])
    assert access.list_tokens(anna) == []
    assert access.authenticate_token(made["token"], HERE)
