"""What the jobs of a tenant may reach: the tenant's policy, and the meeting of manifest, tenant and platform.

Asked twice: when a job is submitted, where a refusal names the parameter to change, and when it runs, since a policy may have become narrower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.dialect import insert_or
from cloche.db.engine import Database
from cloche.domain.egress import (
    MAX_PATTERNS,
    BadRule,
    Endpoint,
    PlatformEgress,
    Policy,
    parameter,
    parse_pattern,
    parse_policy,
    resolve,
)
from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.domain.states import Reason
from cloche.errors import Conflict, Invalid, PluginFailure, Problem
from cloche.isolation.egress import EgressReport
from cloche.registry.manifest import Manifest

_OBJECT = "egress_policy"


class EgressService:
    """Shared by a process's threads. ``platform``: the operator's policy, which bounds every tenant's."""

    def __init__(self, db: Database, audit: AuditLog, platform: PlatformEgress) -> None:
        self._db = db
        self._audit = audit
        self._platform = platform

    def get(self, actor: Actor) -> dict[str, Any]:
        """The tenant's policy, with what the platform allows at most; version 0 until somebody set one."""
        row = self._db.read(lambda connection: _row(connection, actor.tenant_id))
        return self._shown(row)

    def put(self, actor: Actor, allow: Sequence[str], version: int) -> dict[str, Any]:
        """Set the tenant's policy.

        Raises:
            Invalid: an entry is no pattern, with pointers.
            Conflict: the policy is no longer at ``version``.
        """
        patterns = _patterns(allow)
        row = {
            "tenant_id": actor.tenant_id,
            "allow": patterns,
            "version": version + 1,
            "updated_by": actor.user_id,
            "updated_at": self._db.now_ms(),
        }

        def unit(connection: Connection) -> None:
            before = _row(connection, actor.tenant_id)
            if (before["version"] if before else 0) != version:
                raise _changed()
            if before is None:
                try:
                    connection.execute(insert(t.egress_policy), row)
                except IntegrityError:
                    raise _changed() from None
            else:
                mine = (t.egress_policy.c.tenant_id == actor.tenant_id) & (t.egress_policy.c.version == version)
                if connection.execute(update(t.egress_policy).where(mine).values(row)).rowcount != 1:
                    raise _changed()
            was = list(before["allow"]) if before else []
            self._record(connection, actor, was, patterns)

        self._db.write(unit)
        return self._shown(row)

    def policy(self, connection: Connection, tenant_id: str) -> Policy:
        """What the tenant's own policy allows; nothing until somebody set one."""
        row = _row(connection, tenant_id)
        return parse_policy(row["allow"]) if row else Policy()

    def admitted(
        self,
        connection: Connection,
        tenant_id: str,
        manifest: Manifest,
        payload: Mapping[str, Any],
        tenant: Policy | None = None,
    ) -> tuple[tuple[Endpoint, ...], list[Problem]]:
        """What a job with this (valid) payload may reach, and a problem for each of its hosts that it may not. ``tenant``: the tenant's
        :meth:`policy` where the caller has just read it."""
        if not manifest.network_allow:
            return (), []
        if tenant is None:
            tenant = self.policy(connection, tenant_id)
        found: list[Endpoint] = []
        problems: list[Problem] = []
        for entry in manifest.network_allow:
            name = parameter(entry)
            pointer = "/type" if name is None else f"/payload/{name}"
            try:
                endpoint = resolve(entry, payload)
            except BadRule as error:
                problems.append(Problem(pointer, str(error)))
                continue
            if endpoint is None:
                continue
            if (why := self._refusal(endpoint, tenant)) is not None:
                problems.append(Problem(pointer, f"{manifest.name} needs to reach {endpoint}, {why}"))
            found.append(endpoint)
        return tuple(dict.fromkeys(found)), problems

    def for_attempt(self, tenant_id: str, manifest: Manifest, payload: Mapping[str, Any]) -> tuple[Endpoint, ...]:
        """What an attempt that starts now may reach.

        Raises:
            PluginFailure: ``egress_denied``: the policies have become narrower since the job was accepted. It names the host and whose rule.
        """
        endpoints, problems = self._db.read(lambda c: self.admitted(c, tenant_id, manifest, payload))
        if problems:
            raise PluginFailure(Reason.EGRESS_DENIED, "; ".join(problem.detail for problem in problems)[:2_000])
        return endpoints

    def _refusal(self, endpoint: Endpoint, tenant: Policy) -> str | None:
        if not self._platform.policy.allows(endpoint):
            return "which this platform's operator does not allow (CLOCHE_EGRESS_ALLOW)"
        if not tenant.allows(endpoint):
            return "which this tenant's egress policy does not allow (PUT /api/v1/egress-policy)"
        return None

    def _record(self, connection: Connection, actor: Actor, before: list[str], after: list[str]) -> None:
        details = {"added": sorted({*after} - {*before})[:50], "removed": sorted({*before} - {*after})[:50]}
        entry = AuditEntry(
            actor=actor, action=Action.EGRESS_UPDATE, object=_OBJECT, before=before, after=after, details=details
        )
        self._audit.record(connection, entry)

    def _shown(self, row: RowMapping | Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "allow": list(row["allow"]) if row else [],
            "platform_allow": [str(pattern) for pattern in self._platform.policy.patterns],
            "version": row["version"] if row else 0,
            "updated_at": to_rfc3339(row["updated_at"]) if row else None,
        }


def count(connection: Connection, report: EgressReport) -> None:
    """Add an attempt's connections to the sums that metrics show. Bytes are counted with the verdict of their connection, as far as those
    were told one by one; the rest under ``closed``."""
    sums: dict[str, list[int]] = {name: [number, 0, 0] for name, number in report.verdicts.items()}
    up, down = report.bytes_up, report.bytes_down
    for one in report.connections:
        known = sums.setdefault(one.verdict, [0, 0, 0])
        known[1] += one.bytes_up
        known[2] += one.bytes_down
        up -= one.bytes_up
        down -= one.bytes_down
    if up or down:
        rest = sums.setdefault("closed", [0, 0, 0])
        rest[1] += up
        rest[2] += down
    for verdict, (number, sent, received) in sorted(
        sums.items()
    ):  # in one order, or two units could wait for each other
        _add(connection, {"verdict": verdict, "connections": number, "bytes_up": sent, "bytes_down": received})


def totals(connection: Connection) -> Iterable[RowMapping]:
    """The sums of all connections ever counted, by verdict."""
    return connection.execute(select(t.egress_total).order_by(t.egress_total.c.verdict)).mappings().all()


def _add(connection: Connection, row: dict[str, Any]) -> None:
    statement = insert_or(connection, t.egress_total).values(row)
    column = t.egress_total.c
    added = {name: column[name] + statement.excluded[name] for name in ("connections", "bytes_up", "bytes_down")}
    connection.execute(statement.on_conflict_do_update(index_elements=["verdict"], set_=added))


def _row(connection: Connection, tenant_id: str) -> RowMapping | None:
    query = select(t.egress_policy).where(t.egress_policy.c.tenant_id == tenant_id)
    return connection.execute(query).mappings().one_or_none()


def _patterns(allow: Sequence[str]) -> list[str]:
    """The entries in their one notation, each once."""
    problems: list[Problem] = []
    found: dict[str, None] = {}
    if len(allow) > MAX_PATTERNS:
        problems.append(Problem("/allow", f"has more than {MAX_PATTERNS} entries"))
    for number, text in enumerate(allow[:MAX_PATTERNS]):
        try:
            found[str(parse_pattern(text))] = None
        except BadRule as error:
            problems.append(Problem(f"/allow/{number}", str(error)))
    if problems:
        raise Invalid("the egress policy was not changed", problems=problems)
    return list(found)


def _changed() -> Conflict:
    return Conflict("the egress policy has changed since; read it again", code="egress-policy-changed")
