"""Tokens for programs: opaque, shown once, stored as a hash."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, or_, select, update

from cloche.clock import is_uuid7, to_rfc3339, uuid7
from cloche.db import scope, tables
from cloche.db.audit_log import AuditEntry
from cloche.domain.addresses import Network, covers, parse_network, peer
from cloche.domain.events import Action
from cloche.domain.permissions import NAMED_ONLY, Actor, Permission
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem, Unauthenticated
from cloche.services.actor_cache import Known
from cloche.services.actors import Origin, actor_of, changed, chosen, digest
from cloche.services.credentials import Credentials

TOKEN_PREFIX = "cloche_pat_"  # noqa: S105 - marks a token, so that scanners find a leaked one
MAX_TOKENS = 1_000  # of one user that are valid at once
MAX_ADDRESSES = 32
_LONGEST_MS = 3_650 * 86_400_000
Begin = Callable[[Connection], object]
_token = tables.token
# Built once: this one runs for every token that is not remembered.
_BY_ID = select(_token).where(_token.c.id == bindparam("id"))


def _at_once(_connection: Connection) -> None:
    """One's own tokens need no turn."""


@dataclass(frozen=True)
class Wanted:
    """A token as it is asked for. ``scopes`` None: what its maker may do; ``expires_in`` in ms, None: never; ``addresses``: networks as text."""

    name: str
    scopes: Sequence[str] | None = None
    expires_in: int | None = None
    addresses: Sequence[str] | None = None


class Tokens(Credentials):
    """The part of :class:`cloche.services.access.AccessService` that makes, ends and proves tokens."""

    def create_token(
        self,
        actor: Actor,
        name: str,
        scopes: Sequence[str] | None = None,
        expires_in_ms: int | None = None,
        addresses: Sequence[str] | None = None,
        *,
        owner: str | None = None,
        begin: Begin = _at_once,
    ) -> dict[str, Any]:
        """A new token of the actor, or of the account ``owner``; its text is in the answer, this once. ``begin`` is called first in the
        transaction: it asks what has to hold of that account, and sees to it that it stays so until the end.

        One made with a token reaches no further than that: neither in scopes, nor in time, nor in addresses, and it goes when that one is
        revoked. It makes no further tokens.

        Raises:
            Invalid: a scope does not exist, the life is not positive, or an address is none.
            Forbidden: a scope allows what the actor may not do, or the actor came with a token that does not name ``token:manage``.
            Conflict: the user has :data:`MAX_TOKENS` already (``too-many-tokens``).
        """
        wanted = Wanted(name, scopes, expires_in_ms, addresses)
        _check_life(wanted.expires_in)
        limited = _check_scopes(actor, wanted.scopes)
        networks = _check_addresses(wanted.addresses)
        token_id, secret, now = uuid7(), secrets.token_urlsafe(32), self._db.now_ms()
        user_id = owner or actor.user_id

        def unit(connection: Connection) -> dict[str, Any]:
            begin(connection)
            # Whoever ends the actor's credentials at this moment ends what they make, too.
            _check_scopes(self._still(connection, actor, lock=True), wanted.scopes)
            ends, kept = _bounded(connection, actor, wanted, networks, now)
            _check_count(connection, user_id, now)
            row: dict[str, Any] = {
                "id": token_id,
                "tenant_id": actor.tenant_id,
                "user_id": user_id,
                "name": wanted.name,
                "scopes": limited,
                "addresses": kept,
                "parent_id": actor.token_id,
                "created_at": now,
                "expires_at": ends,
                "last_used_at": None,
                "revoked_at": None,
            }
            connection.execute(insert(_token).values(secret_sha256=digest(secret), **row))
            details = {"name": wanted.name, "scopes": limited, "addresses": kept, "expires_at": to_rfc3339(ends)}
            if owner is not None:
                details["owner"] = f"user:{owner}"
            entry = AuditEntry(actor, Action.TOKEN_CREATE, f"token:{token_id}", after=_digested(row), details=details)
            self._audit.record(connection, entry)
            return row

        return _token_json(self._db.write(unit)) | {"token": f"{TOKEN_PREFIX}{token_id}_{secret}"}

    def list_tokens(self, actor: Actor, *, owner: str | None = None) -> list[dict[str, Any]]:
        """The newest tokens of the actor, or of the account ``owner``, in the actor's tenant, without their secrets."""
        query = (
            select(_token)
            .where(_token.c.user_id == (owner or actor.user_id), _token.c.tenant_id == actor.tenant_id)
            .order_by(_token.c.id.desc())
            .limit(MAX_TOKENS)
        )
        return [_token_json(row._mapping) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def revoke_token(self, actor: Actor, token_id: str, *, owner: str | None = None, begin: Begin = _at_once) -> None:
        """End one of the tokens of the actor, or of the account ``owner``, with those it made; safe to repeat. ``begin``: as for
        :meth:`create_token`.

        Raises:
            NotFound: no such token of theirs.
        """
        now, user_id = self._db.now_ms(), owner or actor.user_id

        def unit(connection: Connection) -> None:
            begin(connection)
            mine = (_token.c.user_id == user_id, _token.c.tenant_id == actor.tenant_id)
            # Locked first, and looked at for what it made in a statement of its own: that sees what was being made meanwhile.
            query = select(_token).where(_token.c.id == token_id, *mine)
            row = connection.execute(query.with_for_update()).mappings().first()
            if row is None:
                raise NotFound("There is no such token.")
            if row["revoked_at"] is None:
                these = or_(_token.c.id == token_id, _token.c.parent_id == token_id)
                live = (_token.c.tenant_id == actor.tenant_id, _token.c.revoked_at.is_(None))
                connection.execute(update(_token).where(these, *live).values(revoked_at=now))
                entry = AuditEntry(actor, Action.TOKEN_REVOKE, f"token:{token_id}", before=_digested(dict(row)))
                self._audit.record(connection, entry)
                changed(connection, user_id=user_id)

        self._db.write(unit)

    def authenticate_token(self, text: str, origin: Origin) -> Actor:
        """The actor of a bearer token: what its scopes and the user's permissions have in common now.

        Raises:
            Unauthenticated: code ``token-malformed``, ``token-invalid``, ``token-revoked``, ``token-expired``, ``token-address`` or
                ``account-disabled``.
        """
        token_id, _, secret = text.removeprefix(TOKEN_PREFIX).partition("_")
        if not text.startswith(TOKEN_PREFIX) or not is_uuid7(token_id) or not secret.isascii():
            raise Unauthenticated("The token is malformed.", code="token-malformed")
        key, mark, now = ("token", digest(text), origin.tenant), self._actors.mark(), self._db.now_ms()
        known = self._actors.get(key, mark, now)
        if known is None:
            known = self._db.read(lambda connection: _proved(connection, token_id, secret, now, origin))
            self._actors.put(key, mark, known)
        if known.networks is not None and not _is_from(origin.ip, known.networks):
            raise Unauthenticated("The token is not taken from this address.", code="token-address")
        self._seen(known, key, mark, now, _token.c.last_used_at, token_id)
        return replace(known.actor, ip=origin.ip, request_id=origin.request_id)


def _is_from(ip: str | None, networks: Sequence[Network]) -> bool:
    address = peer(ip)
    return address is not None and any(address in network for network in networks)


@scope.across_tenants("a token is found by its id, and proved by its secret")
def _proved(connection: Connection, token_id: str, secret: str, now: int, origin: Origin) -> Known:
    row = connection.execute(_BY_ID, {"id": token_id}).first()
    if not hmac.compare_digest(row.secret_sha256 if row else "", digest(secret)) or row is None:
        raise Unauthenticated("There is no such token.", code="token-invalid")
    if row.revoked_at is not None:
        raise Unauthenticated("The token has been revoked.", code="token-revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise Unauthenticated("The token has expired.", code="token-expired")
    chosen(connection, row.user_id, row.tenant_id, origin, token_id=token_id)
    actor = actor_of(connection, row.user_id, row.tenant_id, Origin())
    scoped = row.scopes is not None
    allowed = actor.permissions & frozenset(row.scopes) if scoped else actor.permissions - NAMED_ONLY
    limited = replace(
        actor,
        permissions=frozenset(allowed),
        token_id=token_id,
        scoped=scoped,
        platform_admin=actor.platform_admin and not scoped,
    )
    networks = None if row.addresses is None else tuple(parse_network(text) for text in row.addresses)
    return Known(limited, row.last_used_at, ends_at=row.expires_at, networks=networks)


def _bounded(
    connection: Connection, actor: Actor, wanted: Wanted, networks: Sequence[Network] | None, now: int
) -> tuple[int | None, list[str] | None]:
    """When the token ends, and where it is taken from: no later and nowhere else than the one that makes it."""
    ends = None if wanted.expires_in is None else now + wanted.expires_in
    if actor.token_id is not None:
        mine = _BY_ID.where(_token.c.tenant_id == actor.tenant_id)
        parent = connection.execute(mine, {"id": actor.token_id}).one()
        ends = min((at for at in (ends, parent.expires_at) if at is not None), default=None)
        if parent.addresses is not None:
            outer = [parse_network(text) for text in parent.addresses]
            networks = outer if networks is None else networks
            for index, network in enumerate(networks):
                if not covers(outer, network):
                    problem = Problem(f"/addresses/{index}", "the token that makes this one is not taken from there")
                    raise Invalid("The token would be taken from more addresses.", problems=[problem])
    return ends, None if networks is None else [str(network) for network in networks]


def _check_life(expires_in: int | None) -> None:
    if expires_in is not None and expires_in > _LONGEST_MS:
        raise Invalid("The token would live too long.", problems=[Problem("/expires_in", "is at most 3650 days")])
    if expires_in is not None and expires_in <= 0:
        raise Invalid("The token would never be valid.", problems=[Problem("/expires_in", "has to be longer than 0")])


def _check_count(connection: Connection, user_id: str, now: int) -> None:
    live = (
        _token.c.user_id == user_id,
        _token.c.revoked_at.is_(None),
        or_(_token.c.expires_at.is_(None), _token.c.expires_at > now),
    )
    query = select(func.count()).select_from(_token).where(*live)
    query = query.execution_options(across_tenants="how many tokens an account has is counted over all tenants")
    if (connection.scalar(query) or 0) >= MAX_TOKENS:
        raise Conflict(f"There are {MAX_TOKENS} tokens already: revoke some first.", code="too-many-tokens")


def _check_scopes(actor: Actor, scopes: Sequence[str] | None) -> list[str] | None:
    if actor.token_id is not None and not actor.may(Permission.TOKEN_MANAGE):
        raise Forbidden(
            "A token makes tokens only where its scopes name token:manage. Sign in, or send user name and password (HTTP Basic)."
        )
    if scopes is None:
        # A token's own reach may be smaller than its user's; what it makes must not grow back.
        return None if actor.token_id is None else sorted(actor.permissions - {Permission.TOKEN_MANAGE})
    for index, name in enumerate(scopes):
        if name not in list(Permission):
            raise Invalid(
                "There is no such permission.", problems=[Problem(f"/scopes/{index}", "GET /permissions lists all")]
            )
        if name not in actor.permissions:
            raise Forbidden(f"You do not hold '{name}' yourself.", code="grant-exceeds-own")
    if actor.token_id is not None and Permission.TOKEN_MANAGE in scopes:
        raise Forbidden("What a token makes cannot make tokens: leave token:manage out.", code="grant-exceeds-own")
    return sorted(set(scopes))


def _check_addresses(addresses: Sequence[str] | None) -> list[Network] | None:
    networks = []
    for index, text in enumerate(addresses or []):
        try:
            networks.append(parse_network(text))
        except ValueError:
            detail = "has to be an address or a network without bits beyond its prefix, such as 192.0.2.0/24 or 2001:db8::/32"
            raise Invalid("An address cannot be used.", problems=[Problem(f"/addresses/{index}", detail)]) from None
    return networks or None


def _digested(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the record's digest of a token is over: nothing of its secret."""
    return {name: row[name] for name in ("user_id", "name", "scopes", "addresses", "parent_id", "expires_at")}


def _token_json(row: Any) -> dict[str, Any]:
    times = ("created_at", "expires_at", "last_used_at", "revoked_at")
    shown = {name: row[name] for name in ("id", "name", "scopes", "addresses")}
    return shown | {key: to_rfc3339(row[key]) for key in times}
