"""New passwords: changed by who knows the old one, or by who has a one-time code that an administrator made."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from cloche.clock import is_uuid7, to_rfc3339, uuid7
from cloche.db import scope, tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor, Kind, Permission
from cloche.errors import Conflict, Forbidden, RequestError, Unauthenticated
from cloche.services import members
from cloche.services.actors import Origin, actor_of, changed, digest
from cloche.services.passwords import check_password
from cloche.services.sessions import SignedIn, _end_all, new_secret
from cloche.services.sign_in import SignIns

RESET_PREFIX = "cloche_reset_"
_user, _reset = tables.user, tables.password_reset
_BY_ID = select(_user).where(_user.c.id == bindparam("id"))
_RESET = (
    select(_reset, _user.c.username, _user.c.disabled)
    .join(_user, _user.c.id == _reset.c.user_id)
    .where(_reset.c.id == bindparam("id"))
)
_BAD_CODE = "The code is not valid, has been used, or is over. Ask an administrator for a new one."


class NewPasswords(SignIns):
    """The part of :class:`cloche.services.access.AccessService` that sets passwords of users who exist."""

    @scope.across_tenants("one's own sessions and tokens, in whichever tenant they are")
    def change_password(
        self,
        actor: Actor,
        current: str,
        new: str,
        origin: Origin,
        *,
        revoke_tokens: bool = False,
        agent: str | None = None,
    ) -> SignedIn | None:
        """Set the actor's own password. All their sessions end; the one that asked is followed by a new one, which is returned.

        Raises:
            Forbidden: the actor came with a token (``needs-session``).
            Unauthenticated: the current password is wrong (``bad-credentials``), which counts as a failed sign-in; or the session or the
                account has been ended meanwhile.
            RateLimited, Unavailable: see ``sign_in``.
            Invalid: the new one cannot be used.
        """
        if actor.token_id is not None:
            raise Forbidden(
                "A token cannot change a password. Sign in, or send user name and password.", code="needs-session"
            )
        row = self._db.read(lambda connection: connection.execute(_BY_ID, {"id": actor.user_id}).one())
        check_password(new, minimum=self._settings.signin.password_min, username=row.username, pointer="/new_password")
        if not self._password_fits(row.username, row.password_hash, current, origin):
            entry = AuditEntry(
                actor, Action.PASSWORD_CHANGE, f"user:{actor.user_id}", Outcome.FAILED, reason="bad credentials"
            )
            self._db.write(lambda connection: self._audit.record(connection, entry))
            raise Unauthenticated("The current password does not fit.", code="bad-credentials")
        self._lockout.succeeded(row.username, origin.ip)
        encoded, secret = self._vault.hash(new), new_secret()

        def unit(connection: Connection) -> Actor | None:
            # Two changes at once: the second one's current password is no longer that.
            same = _user.c.password_hash == row.password_hash
            guard = (_user.c.id == actor.user_id) & same & ~_user.c.disabled
            changed = connection.execute(update(_user).where(guard).values(password_hash=encoded)).rowcount
            # Whoever ended the session while the password was proved has ended this, too.
            self._still(connection, actor)
            if not changed:
                raise Conflict("The password was changed meanwhile.", code="password-changed")
            details = self._after_change(connection, actor.user_id, revoke_tokens)
            entry = AuditEntry(actor, Action.PASSWORD_CHANGE, f"user:{actor.user_id}", details=details)
            self._audit.record(connection, entry)
            return None if actor.session_id is None else self._open(connection, actor, secret, agent)

        opened = self._db.write(unit)
        return None if opened is None else SignedIn(secret, opened)

    def create_reset(self, actor: Actor, user_id: str) -> dict[str, Any]:
        """A code with which somebody sets a new password for this user, once and soon: ``{"code", "user_id", "expires_at"}``.

        It is shown this once. An earlier one of the same user is void. The old password works until the code is used.

        Raises:
            NotFound: no such user in the actor's tenant.
            Forbidden: the user holds what the actor may not hand on, or is of other tenants too (``user-exceeds-own``); or the actor came
                with a token that names no scopes (``needs-scope``).
            Conflict: it is the actor (``reset-own``), an account without a password (``no-password``), or disabled (``account-disabled``).
        """
        if not actor.named:
            raise Forbidden(
                "A token makes resets only where its scopes name user:manage: who sets a password can sign in.",
                code="needs-scope",
            )
        reset_id, secret, now = uuid7(), secrets.token_urlsafe(32), self._db.now_ms()
        ends = now + self._settings.signin.reset_life

        def unit(connection: Connection) -> None:
            _check_reach(connection, self._still(connection, actor), user_id)
            connection.execute(delete(_reset).where((_reset.c.user_id == user_id) | (_reset.c.expires_at <= now)))
            values = {
                "id": reset_id,
                "user_id": user_id,
                "created_by": actor.user_id,
                "created_at": now,
                "expires_at": ends,
            }
            connection.execute(insert(_reset).values(secret_sha256=digest(secret), **values))
            details = {"reset": reset_id, "expires_at": to_rfc3339(ends)}
            entry = AuditEntry(actor, Action.PASSWORD_RESET_CREATE, f"user:{user_id}", after=details, details=details)
            self._audit.record(connection, entry)

        self._db.write(unit)
        return {"code": f"{RESET_PREFIX}{reset_id}_{secret}", "user_id": user_id, "expires_at": to_rfc3339(ends)}

    @scope.across_tenants("who has a code is not known before; it changes its own account alone")
    def use_reset(self, code: str, new: str, origin: Origin, *, revoke_tokens: bool = False) -> None:
        """Set the password of the code's user. The code is used up; the user's sessions end.

        Raises:
            Unauthenticated: the code is not valid, has been used, or is over (``reset-invalid``).
            Invalid: the password cannot be used; the code still can.
            Unavailable: too many sign-ins at once.
        """
        reset_id, _, secret = code.removeprefix(RESET_PREFIX).partition("_")
        row = self._db.read(lambda connection: self._valid(connection, reset_id, secret))
        check_password(new, minimum=self._settings.signin.password_min, username=row.username, pointer="/new_password")
        encoded = self._vault.hash(new)

        def unit(connection: Connection) -> None:
            _check_maker(connection, self._valid(connection, reset_id, secret))
            if not connection.execute(delete(_reset).where(_reset.c.id == reset_id)).rowcount:
                raise Unauthenticated(_BAD_CODE, code="reset-invalid")
            connection.execute(update(_user).where(_user.c.id == row.user_id).values(password_hash=encoded))
            who = self._themselves(connection, row, origin)
            details = self._after_change(connection, row.user_id, revoke_tokens) | {"reset": reset_id}
            self._audit.record(
                connection, AuditEntry(who, Action.PASSWORD_RESET_USE, f"user:{row.user_id}", details=details)
            )

        self._db.write(unit)
        self._lockout.cleared(row.username)

    def _check_password(self, text: str, *, username: str = "") -> None:
        check_password(text, minimum=self._settings.signin.password_min, username=username)

    def _after_change(self, connection: Connection, user_id: str, revoke_tokens: bool) -> dict[str, Any]:
        """What a new password ends, as details for the record."""
        details = {"sessions_ended": _end_all(connection, user_id)}
        connection.execute(delete(_reset).where(_reset.c.user_id == user_id))
        if revoke_tokens:
            details["tokens_revoked"] = members.end_tokens(connection, user_id, self._db.now_ms())
        changed(connection, user_id=user_id)
        return details

    def _valid(self, connection: Connection, reset_id: str, secret: str) -> Row[Any]:
        row = connection.execute(_RESET, {"id": reset_id}).first() if is_uuid7(reset_id) and secret.isascii() else None
        fits = hmac.compare_digest(row.secret_sha256 if row else "", digest(secret) if secret.isascii() else "-")
        if row is None or not fits or row.expires_at <= self._db.now_ms() or row.disabled:
            raise Unauthenticated(_BAD_CODE, code="reset-invalid")
        return row

    def _themselves(self, connection: Connection, row: Row[Any], origin: Origin) -> Actor:
        """Who used the code, as far as the record can say."""
        try:
            return actor_of(connection, row.user_id, None, origin)
        except Unauthenticated:
            return replace(self._anonymous(origin), user_id=row.user_id, username=row.username)


def _check_maker(connection: Connection, reset: Row[Any]) -> None:
    """Whoever made the code may have been dismissed since, and its user may have risen above them.

    Raises:
        Unauthenticated: they could not make it now (``reset-invalid``).
    """
    homes = members.tenants_of(connection, reset.user_id)
    try:
        for tenant_id in homes:
            _check_reach(connection, actor_of(connection, reset.created_by, tenant_id, Origin()), reset.user_id)
    except RequestError:
        homes = set()
    if not homes:
        raise Unauthenticated(_BAD_CODE, code="reset-invalid")


def _check_reach(connection: Connection, actor: Actor, user_id: str) -> None:
    homes = members.tenants_of(connection, user_id)
    still = members.begin(connection, actor, Permission.USER_MANAGE, homes)
    row = members.account(connection, still, user_id)
    if user_id == actor.user_id:
        raise Conflict("Change your own password with PUT /me/password.", code="reset-own")
    if row["kind"] != Kind.PERSON:
        raise Conflict("This account has no password: it goes by tokens alone.", code="no-password")
    if row["disabled"]:
        raise Conflict("The account is disabled: enable it first.", code="account-disabled")
    # Whoever sets a password is that user from then on, wherever they are: nothing of it may be more than the actor holds.
    members.check_within(still, members.holds(connection, row, actor.tenant_id))
    if homes != {actor.tenant_id} and not still.may(Permission.TENANT_MANAGE):
        raise Forbidden(
            "This user belongs to other tenants too: ask a platform administrator.", code="user-exceeds-own"
        )
