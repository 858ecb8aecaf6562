"""Signing in with a user name and a password: who it is, nobody learns anything else, and it takes nothing from the others."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from cloche.db import scope, tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.events import Action, Outcome
from cloche.domain.names import NAME, fold
from cloche.domain.permissions import Actor, Kind
from cloche.errors import Unauthenticated
from cloche.services.actors import Origin, actor_of, chosen
from cloche.services.lockout import place_of
from cloche.services.sessions import Sessions, SignedIn, new_secret

RECORDED = 60  # failed sign-ins that one process records one by one in a minute: nobody fills the disk with them
_LONGEST_NAME = 64
_BY_NAME = select(tables.user).where(tables.user.c.username == bindparam("username"))


class _EachMinute:
    """Room for so many in each minute."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._minute = self._taken = 0
        self._lock = threading.Lock()

    def room(self, now: int) -> bool:
        with self._lock:
            if (minute := now // 60_000) != self._minute:
                self._minute, self._taken = minute, 0
            self._taken += 1
            return self._taken <= self._most


class SignIns(Sessions):
    """The part of :class:`cloche.services.access.AccessService` that looks at passwords."""

    def __init__(self, *stores: Any, **more: Any) -> None:
        super().__init__(*stores, **more)
        self._failures = _EachMinute(RECORDED)

    @scope.across_tenants("who signs in is not known before, whoever was signed in here")
    def sign_in(
        self,
        username: str,
        password: str,
        origin: Origin,
        *,
        agent: str | None = None,
        before: Actor | None = None,
    ) -> SignedIn:
        """Check a password and open a session. ``before``: whose session the browser had until now; it ends.

        Raises:
            Unauthenticated: name and password do not fit (which of them, nobody learns).
            RateLimited: too many failures.
            Unavailable: too many sign-ins at once.
        """
        actor, row = self._proved_by_password(username, password, origin)
        secret = new_secret()

        def unit(connection: Connection) -> Actor:
            _check_unchanged(connection, row, lock=True)
            opened = self._open(connection, actor, secret, agent)
            details = {"session": opened.session_id}
            entry = AuditEntry(opened, Action.SESSION_CREATE, f"user:{actor.user_id}", details=details)
            self._audit.record(connection, entry)
            return opened

        if before is not None:
            self.sign_out(before)
        return SignedIn(secret, self._db.write(unit))

    @scope.across_tenants("who is asking is not known before")
    def check_credentials(self, username: str, password: str, origin: Origin) -> Actor:
        """The user whom name and password prove. Failures are audited and counted.

        Raises:
            Unauthenticated, RateLimited, Unavailable: see :meth:`sign_in`.
        """
        return self._proved_by_password(username, password, origin)[0]

    def _proved_by_password(self, username: str, password: str, origin: Origin) -> tuple[Actor, Row[Any]]:
        name = fold(username)[:_LONGEST_NAME]
        # What cannot be a name is not asked for: no database takes a zero byte.
        known = {"username": name if NAME.match(name) else ""}
        row = self._db.read(lambda connection: connection.execute(_BY_NAME, known).first())
        # A service account has no password: what is compared then takes the time of one.
        stored = row.password_hash if row is not None and row.kind == Kind.PERSON else None
        if not self._password_fits(name, stored, password, origin) or row is None or row.disabled:
            self._record_failed_sign_in(row, origin)
            raise _unfit()
        self._lockout.succeeded(name, origin.ip)

        def unit(connection: Connection) -> Actor:
            _check_unchanged(connection, row)
            return actor_of(connection, row.id, chosen(connection, row.id, None, origin), origin)

        return self._db.read(unit), row

    def _password_fits(self, name: str, stored: str | None, password: str, origin: Origin) -> bool:
        """Whether it does. The try counts as failed until ``_lockout.succeeded`` is told; an unknown name takes as long as a known one."""
        self._lockout.check(name, origin.ip)
        return self._vault.verify(
            stored, password, place=place_of(origin.ip), first=lambda: self._lockout.attempt(name, origin.ip)
        )

    def _record_failed_sign_in(self, row: Row[Any] | None, origin: Origin) -> None:
        # The name that was typed is not recorded: people type their password there.
        target = f"user:{row.id}" if row else "user:unknown"
        if not self._failures.room(self._db.now_ms()):
            return  # it is in its address's count of that minute, as every request without a valid credential is
        entry = AuditEntry(
            self._anonymous(origin), Action.SESSION_CREATE, target, Outcome.FAILED, reason="bad credentials"
        )
        self._db.write(lambda connection: self._audit.record(connection, entry))


def _check_unchanged(connection: Connection, row: Row[Any], *, lock: bool = False) -> None:
    """Who waited for their turn proved what the account was before. ``lock``: it stays like this until the transaction ends.

    Raises:
        Unauthenticated: it has another password since, or is disabled.
    """
    user = tables.user.c
    query = select(user.id).where(user.id == row.id, user.password_hash == row.password_hash, ~user.disabled)
    if connection.scalar(query.with_for_update(read=True) if lock else query) is None:
        raise _unfit()


def _unfit() -> Unauthenticated:
    return Unauthenticated("User name and password do not fit.", code="bad-credentials")
