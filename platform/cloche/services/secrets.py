"""Secrets of a tenant: values go in and never come out; who made them and who gets them can be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloche.clock import to_rfc3339, uuid7
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.masks import LEAST
from cloche.domain.permissions import Actor
from cloche.domain.secrets import MAX_GRANTS, MAX_SECRETS, MAX_VALUE, BadGrant, parse_versions
from cloche.errors import Conflict, Invalid, NotFound, Problem
from cloche.redact import MASK
from cloche.services.secret_vault import Place, SecretVault

Row = Mapping[str, Any]
_CHANGED = "the secret has changed since; read it again"


class SecretService:
    """Shared by a process's threads. No method answers, records or logs a value, its length or its digest."""

    def __init__(self, db: Database, audit: AuditLog, vault: SecretVault) -> None:
        self._db = db
        self._audit = audit
        self._vault = vault

    def create(self, actor: Actor, name: str, value: str, description: str = "") -> dict[str, Any]:
        """A new secret, granted to nobody.

        Raises:
            Invalid: the value is empty, too long, or not text that can be stored.
            Conflict: the tenant has a secret of that name, or too many.
            Unavailable: the platform's key is not what it should be.
        """
        row_id, now = uuid7(), self._db.now_ms()
        row = {
            "id": row_id,
            "tenant_id": actor.tenant_id,
            "name": name,
            "description": description,
            **self._sealed(Place(actor.tenant_id, name, row_id, 1), value),
            "grants": [],
            "version": 1,
            "created_by": actor.user_id,
            "created_at": now,
            "updated_by": actor.user_id,
            "updated_at": now,
            "last_used_at": None,
        }

        def unit(connection: Connection) -> dict[str, Any]:
            # One at a time in a tenant, or two could both find room for the last one.
            connection.execute(select(t.tenant.c.id).where(t.tenant.c.id == actor.tenant_id).with_for_update())
            if len(connection.execute(select(t.secret.c.id).where(_of(actor))).all()) >= MAX_SECRETS:
                raise Conflict(f"a tenant has at most {MAX_SECRETS} secrets")
            try:
                connection.execute(insert(t.secret), row)
            except IntegrityError:
                raise Conflict(f"there is a secret '{name}' already", code="secret-exists") from None
            self._record(connection, actor, Action.SECRET_CREATE, name, after=row, details={"value_version": 1})
            return _found(connection, actor, name)

        return _shown(self._db.write(unit))

    def list(self, actor: Actor) -> list[dict[str, Any]]:
        """The tenant's secrets by name, without their values."""
        query = _named().where(_of(actor)).order_by(t.secret.c.name)
        return [
            _shown(dict(row)) for row in self._db.read(lambda connection: connection.execute(query).mappings().all())
        ]

    def get(self, actor: Actor, name: str) -> dict[str, Any]:
        """
        Raises:
            NotFound: the tenant has no such secret.
        """
        return _shown(self._db.read(lambda connection: _found(connection, actor, name)))

    def put(self, actor: Actor, name: str, value: str, description: str | None, version: int) -> dict[str, Any]:
        """Another value; jobs that begin from now on get it. ``description`` None: as it is. Grants stay.

        Raises:
            NotFound: the tenant has no such secret.
            Conflict: it is no longer at ``version``.
            Invalid, Unavailable: as for :meth:`create`.
        """
        seen = self._db.read(lambda connection: _at(connection, actor, name, version))
        number = seen["value_version"] + 1
        values = self._sealed(Place(actor.tenant_id, name, seen["id"], number), value)
        if description is not None:
            values["description"] = description

        def unit(connection: Connection) -> dict[str, Any]:
            before = _at(connection, actor, name, version)
            self._change(connection, actor, before, values)
            after = _found(connection, actor, name)
            details = {"value_version": number}
            self._record(connection, actor, Action.SECRET_UPDATE, name, before=before, after=after, details=details)
            return after

        return _shown(self._db.write(unit))

    def grant(self, actor: Actor, name: str, grants: Sequence[Mapping[str, str]], version: int) -> dict[str, Any]:
        """Set which plugin versions get it: exactly these, each ``{"plugin", "versions"}``. An empty list: none.

        Raises:
            NotFound, Conflict: as for :meth:`put`.
            Invalid: versions are no specifier, or an entry comes twice, with pointers.
        """
        asked = _asked(grants)

        def unit(connection: Connection) -> dict[str, Any]:
            before = _at(connection, actor, name, version)
            known = {(grant["plugin"], grant["versions"]): grant for grant in before["grants"]}
            made = {"granted_by": actor.user_id, "granted_at": self._db.now_ms()}
            kept = [known.get(pair) or {"plugin": pair[0], "versions": pair[1], **made} for pair in asked]
            self._change(connection, actor, before, {"grants": kept})
            after = _found(connection, actor, name)
            for action, pairs in (
                (Action.SECRET_GRANT, [pair for pair in asked if pair not in known]),
                (Action.SECRET_REVOKE, [pair for pair in known if pair not in asked]),
            ):
                if pairs:
                    details = {"plugins": [f"{plugin} {versions}" for plugin, versions in pairs]}
                    self._record(connection, actor, action, name, before=before, after=after, details=details)
            return after

        return _shown(self._db.write(unit))

    def delete(self, actor: Actor, name: str, version: int) -> None:
        """Remove it with its grants. Jobs of plugins that name it fail as ``secret_denied`` when they begin.

        Raises:
            NotFound, Conflict: as for :meth:`put`.
        """

        def unit(connection: Connection) -> None:
            before = _at(connection, actor, name, version)
            if connection.execute(delete(t.secret).where(_same(actor, before))).rowcount != 1:
                raise Conflict(_CHANGED, code="secret-changed")
            self._record(connection, actor, Action.SECRET_DELETE, name, before=before)

        self._db.write(unit)

    def _sealed(self, place: Place, value: str) -> dict[str, Any]:
        _check(value)
        sealed, key_id = self._vault.seal(place, value)
        masked = len(value.strip()) >= LEAST
        return {"sealed": sealed, "key_id": key_id, "masked": masked, "value_version": place.version}

    def _change(self, connection: Connection, actor: Actor, before: Row, values: Mapping[str, Any]) -> None:
        stamp = {"version": before["version"] + 1, "updated_by": actor.user_id, "updated_at": self._db.now_ms()}
        if connection.execute(update(t.secret).where(_same(actor, before)).values(**values, **stamp)).rowcount != 1:
            raise Conflict(_CHANGED, code="secret-changed")

    def _record(
        self,
        connection: Connection,
        actor: Actor,
        action: Action,
        name: str,
        *,
        before: Row | None = None,
        after: Row | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """The digests are of what may be seen: one of the value would let anybody check a guess."""
        digested = [None if row is None else _digested(row) for row in (before, after)]
        entry = AuditEntry(
            actor, action, f"secret:{name}", before=digested[0], after=digested[1], details=details or {}
        )
        self._audit.record(connection, entry)


def _check(value: str) -> None:
    size = len(value.encode("utf-8", "surrogatepass"))
    detail = None
    if not value or size > MAX_VALUE:
        detail = f"is text of 1 to {MAX_VALUE} bytes of UTF-8"
    elif "\x00" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        detail = "is text without NUL and without lone surrogates; encode binary values, for example in base64"
    elif value == MASK:
        detail = "is the mask that stands for a secret"
    if detail is not None:
        raise Invalid("the secret was not stored", problems=[Problem("/value", detail)])


def _asked(grants: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    problems: list[Problem] = []
    found: list[tuple[str, str]] = []
    if len(grants) > MAX_GRANTS:
        problems.append(Problem("/grants", f"has more than {MAX_GRANTS} entries"))
    for number, grant in enumerate(grants[:MAX_GRANTS]):
        try:
            pair = (grant["plugin"], parse_versions(grant["versions"]))
        except BadGrant as error:
            problems.append(Problem(f"/grants/{number}/versions", str(error)))
            continue
        if pair in found:
            problems.append(Problem(f"/grants/{number}", "is there twice"))
        found.append(pair)
    if problems:
        raise Invalid("the grants were not changed", problems=problems)
    return found


def _of(actor: Actor) -> Any:
    return t.secret.c.tenant_id == actor.tenant_id


def _same(actor: Actor, row: Row) -> Any:
    """As it was read: on PostgreSQL, somebody may have changed it since the statement before."""
    return _of(actor) & (t.secret.c.id == row["id"]) & (t.secret.c.version == row["version"])


def _named() -> Select[Any]:
    """Rows with the names of who made and who changed them last; a removed user's is null."""
    maker, changer = t.user.alias(), t.user.alias()
    shown = [column for column in t.secret.c if column.name != "sealed"]
    return (
        select(*shown, maker.c.username.label("creator"), changer.c.username.label("changer"))
        .outerjoin(maker, maker.c.id == t.secret.c.created_by)
        .outerjoin(changer, changer.c.id == t.secret.c.updated_by)
    )


def _found(connection: Connection, actor: Actor, name: str) -> dict[str, Any]:
    row = connection.execute(_named().where(_of(actor), t.secret.c.name == name)).mappings().one_or_none()
    if row is None:
        raise NotFound("there is no such secret")
    return dict(row)


def _at(connection: Connection, actor: Actor, name: str, version: int) -> dict[str, Any]:
    row = _found(connection, actor, name)
    if row["version"] != version:
        raise Conflict(_CHANGED, code="secret-changed")
    return row


def _digested(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in ("name", "description", "value_version", "grants", "version")}


def _shown(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "description": row["description"],
        "value_version": row["value_version"],
        "masked": row["masked"],
        "grants": [
            {"plugin": grant["plugin"], "versions": grant["versions"], "granted_at": to_rfc3339(grant["granted_at"])}
            for grant in row["grants"]
        ],
        "version": row["version"],
        "created_by": row["creator"],
        "created_at": to_rfc3339(row["created_at"]),
        "updated_by": row["changer"],
        "updated_at": to_rfc3339(row["updated_at"]),
        "last_used_at": to_rfc3339(row["last_used_at"]),
    }
