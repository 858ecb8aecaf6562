"""Tokens of others: issued for service accounts, listed and revoked by those who manage the tenant's users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from cloche.db.audit_log import AuditLog
from cloche.db.engine import Database
from cloche.domain.permissions import Actor, Kind, Permission
from cloche.errors import Conflict, Forbidden
from cloche.services import members
from cloche.services.access import AccessService


class UserTokens:
    """The part of :class:`cloche.services.users.UserService` that looks after tokens."""

    def __init__(self, db: Database, audit: AuditLog, access: AccessService) -> None:
        self._db = db
        self._audit = audit
        self._access = access

    def issue_token(
        self,
        actor: Actor,
        user_id: str,
        name: str,
        scopes: Sequence[str] | None = None,
        expires_in_ms: int | None = None,
        addresses: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """A token of a service account, for no more than both it and the actor may do; its text is in the answer, this once.

        Raises:
            NotFound: there is no such user in the actor's tenant.
            Conflict: it is a person, who makes tokens themselves, or disabled.
            Forbidden: a scope is one that the account or the actor does not hold; or the actor manages no users any more.
            Invalid: see :meth:`cloche.services.tokens.Tokens.create_token`.
        """
        both = self._db.read(lambda c: _service_holds(c, actor, user_id)) & actor.permissions
        asked = sorted(both - {Permission.TOKEN_MANAGE}) if scopes is None else scopes
        _check_both(asked, both)

        def begin(connection: Connection) -> None:
            # Whoever disables or removes the account waits, and ends this token too.
            still = members.begin(connection, actor, Permission.USER_MANAGE)
            _check_both(asked, _service_holds(connection, still, user_id, lock=True) & still.permissions)

        return self._access.create_token(actor, name, asked, expires_in_ms, addresses, owner=user_id, begin=begin)

    def tokens(self, actor: Actor, user_id: str) -> list[dict[str, Any]]:
        """The user's tokens in the actor's tenant, newest first, without their secrets.

        Raises:
            NotFound: there is no such user in the actor's tenant.
        """
        _check_may(actor)
        self._db.read(lambda c: members.account(c, actor, user_id))
        return self._access.list_tokens(actor, owner=user_id)

    def revoke_token(self, actor: Actor, user_id: str, token_id: str) -> None:
        """End one of the user's tokens in the actor's tenant; safe to repeat.

        Raises:
            NotFound: there is no such user there, or no such token of theirs.
            Forbidden: the user may do more than the actor, or the actor manages no users any more.
        """
        _check_may(actor)

        def begin(connection: Connection) -> None:
            still = members.begin(connection, actor, Permission.USER_MANAGE)
            row = members.account(connection, still, user_id)
            members.check_within(still, members.holds(connection, row, actor.tenant_id))

        self._access.revoke_token(actor, token_id, owner=user_id, begin=begin)


def looks_after(actor: Actor) -> bool:
    """Whether the actor may see and end tokens of others whom they manage: signed in, or with a token that names ``token:manage``."""
    return actor.token_id is None or actor.may(Permission.TOKEN_MANAGE)


def _check_may(actor: Actor) -> None:
    if not looks_after(actor):
        raise Forbidden(f"A token looks after tokens only where its scopes name {Permission.TOKEN_MANAGE}.")


def _check_both(asked: Sequence[str], both: frozenset[Permission]) -> None:
    if not asked or (missing := set(asked) & set(Permission) - both):
        named = members.listed(missing) if asked else "anything"
        raise Forbidden(f"You and this account do not both hold {named}.", code="grant-exceeds-own")


def _service_holds(connection: Connection, actor: Actor, user_id: str, *, lock: bool = False) -> frozenset[Permission]:
    row = members.account(connection, actor, user_id, lock=lock)
    if row["kind"] != Kind.SERVICE:
        detail = "This is a person's account: they make tokens themselves, with POST /tokens."
        raise Conflict(detail, code="no-service-account")
    if row["disabled"]:
        raise Conflict("The account is disabled. Enable it first.", code="account-disabled")
    return members.holds(connection, row, actor.tenant_id)
