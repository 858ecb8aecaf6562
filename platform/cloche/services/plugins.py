"""Which plugin versions there are, whether each is still what it was when first seen, and what state platform administrators gave it.

A version is frozen: its digest is recorded the first time a platform sees it. Files that differ later make that version unavailable to new
jobs, and the difference is audited. Jobs accepted before keep running from the frozen copy of the first digest, whatever became of the version:
:mod:`cloche.domain.versions` says what each state means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from cloche import logs
from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor, Permission, system_actor
from cloche.domain.versions import VersionState
from cloche.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from cloche.registry.catalog import Bundle, Catalog
from cloche.registry.manifest import Manifest
from cloche.services import version_rows
from cloche.services.version_rows import Rows

_CHANGED = "its files differ from those first seen; publish a new version instead"
_log = logs.get(__name__)
Items = list[dict[str, Any]]  # the service's own `list` hides the built-in one inside the class
Warnings = list[str]


class PluginService:
    """Shared by a process's threads. Nothing of the database is remembered: a state acts on the next request, in every process."""

    def __init__(self, db: Database, catalog: Catalog, audit: AuditLog) -> None:
        self._db = db
        self._catalog = catalog
        self._audit = audit

    def sync(self, tenant_id: str) -> None:
        """Record versions that are new and audit those that changed. At the start of a process that accepts jobs; safe to repeat.

        Raises:
            Unavailable: the database does not answer.
        """
        actor = system_actor(tenant_id, "plugins")
        seen = self._db.write(lambda connection: self._register(connection, actor))
        for bundle in self._catalog.bundles():
            if why := _refused(bundle, seen):
                _log.warning(
                    "plugin version unavailable", plugin=bundle.manifest.name, version=bundle.manifest.version, why=why
                )

    def resolve(self, connection: Connection, name: str, spec: str | None) -> tuple[Bundle, Warnings]:
        """The bundle a job's ``type`` and ``version`` mean, and what whoever submits it has to be told.

        Disabled and yanked versions are passed over; one whose files changed is refused.

        Raises:
            Invalid: there is none, or the one meant is not available.
        """
        seen = version_rows.states(connection, name)
        bundle = self._catalog.resolve(name, spec, version_rows.closed(seen))
        version = bundle.manifest.version
        if why := _refused(bundle, seen):
            detail = f"{name} {version} takes no new jobs: {why}"
            raise Invalid(detail, problems=[Problem("/version", detail)])
        row = seen.get((name, version))
        if row is None or row["state"] != VersionState.DEPRECATED:
            return bundle, []
        return bundle, [f"{name} {version}: {version_rows.said(row)}"]

    def list(self, actor: Actor) -> Items:
        """Every version of every plugin, by name, newest first.

        Raises:
            Forbidden: the actor may not see plugins.
        """
        _need(actor, Permission.PLUGIN_READ)
        seen = self._db.read(version_rows.states)
        return [self._shown(bundle, seen) for bundle in self._catalog.bundles()]

    def get(self, actor: Actor, name: str, version: str | None = None) -> dict[str, Any]:
        """One version, or the default one; ``versions`` lists what else there is.

        Raises:
            Forbidden: the actor may not see plugins.
            NotFound: no such plugin or version.
        """
        _need(actor, Permission.PLUGIN_READ)
        versions = self._catalog.versions(name)
        if not versions:
            raise NotFound(f"there is no plugin '{name[:64]}'")
        seen = self._db.read(lambda connection: version_rows.states(connection, name))
        default = self._catalog.default(name, version_rows.closed(seen)) or versions[0]
        bundle = default if version is None else self._bundle(name, version)
        return {**self._shown(bundle, seen), "versions": [each.manifest.version for each in versions]}

    def set_state(
        self,
        actor: Actor,
        name: str,
        version: str,
        state: VersionState,
        reason: str | None = None,
        revision: int | None = None,
    ) -> dict[str, Any]:
        """Give a version a state, for every tenant. ``reason`` is the new state's, and told to whoever submits. ``revision``: the one that was
        read; None is whichever there is. Workers give up the sandboxes that wait for its jobs at their next heartbeat.

        Raises:
            Forbidden: the actor may not manage plugins.
            NotFound: no such plugin or version.
            Conflict: it is no longer at ``revision`` (``version-changed``).
        """
        _need(actor, Permission.PLUGIN_MANAGE)
        bundle = self._bundle(name, version)
        table = t.plugin_version
        mine = (table.c.name == name) & (table.c.version == version)

        def unit(connection: Connection) -> Rows:
            columns = (table.c.state, table.c.state_reason, table.c.revision)
            row = connection.execute(select(*columns).where(mine).with_for_update()).one_or_none()
            if row is None:
                raise _missing(name, version)
            if revision is not None and revision != row.revision:
                raise Conflict("the version has changed since; read it again", code="version-changed")
            values = {"state": state.value, "state_reason": reason, "revision": row.revision + 1}
            connection.execute(update(table).where(mine).values(**values, state_changed_at=now_ms(connection)))
            before = {"state": row.state, "reason": row.state_reason}
            after = {"state": state.value, "reason": reason}
            entry = AuditEntry(
                actor,
                Action.PLUGIN_UPDATE,
                _object(bundle.manifest),
                before=before,
                after=after,
                details={**after, "was": row.state},
            )
            self._audit.record(connection, entry)
            return version_rows.states(connection, name)

        return self._shown(bundle, self._db.write(unit))

    def _bundle(self, name: str, version: str) -> Bundle:
        bundle = self._catalog.get(name, version)
        if bundle is None:
            raise _missing(name, version)
        return bundle

    def _register(self, connection: Connection, actor: Actor) -> Rows:
        seen = version_rows.states(connection)
        at = now_ms(connection)
        for bundle in self._catalog.bundles():
            manifest = bundle.manifest
            row = seen.get((manifest.name, manifest.version))
            if row is None:
                connection.execute(insert(t.plugin_version), _row(bundle, at))
                details = {"digest": bundle.digest, "wheels": bundle.wheels}
                self._audit.record(connection, _entry(actor, Action.PLUGIN_REGISTER, manifest, details))
            elif row["digest"] != bundle.digest:
                details = {"digest": row["digest"], "found": bundle.digest}
                entry = _entry(actor, Action.PLUGIN_CHANGED, manifest, details, Outcome.DENIED)
                self._audit.record(connection, entry)
        return seen

    def _shown(self, bundle: Bundle, seen: Rows) -> dict[str, Any]:
        manifest = bundle.manifest
        row = seen.get((manifest.name, manifest.version))
        why = _refused(bundle, seen)
        mine = {key: each for key, each in seen.items() if key[0] == manifest.name}
        default = self._catalog.default(manifest.name, version_rows.closed(mine))
        return {
            "id": f"{manifest.name}=={manifest.version}",
            "name": manifest.name,
            "version": manifest.version,
            "digest": bundle.digest,
            "enabled": why is None,
            "disabled_reason": why,
            "state": VersionState.ENABLED.value if row is None else row["state"],
            "state_reason": None if row is None else row["state_reason"],
            "state_changed_at": to_rfc3339(None if row is None else row["state_changed_at"]),
            "revision": None if row is None else row["revision"],
            "default": default is not None and default.manifest.version == manifest.version,
            "summary": manifest.summary,
            "configuration": _configuration(manifest),
            "params": dict(manifest.params),
            "inputs": {"min": manifest.inputs_min, "max": manifest.inputs_max, "accept": list(manifest.accept)},
            "limits": manifest.limits.to_dict(),
            "isolation": manifest.isolation,
            "first_seen_at": to_rfc3339(None if row is None else row["first_seen_at"]),
        }


def _configuration(manifest: Manifest) -> dict[str, Any]:
    """What decides how its jobs run, beside their limits."""
    return {
        "isolation": manifest.isolation,
        "runtime": manifest.runtime,
        "network": list(manifest.network_allow),
        "python": list(manifest.requires_python),
        "secrets": list(manifest.secrets),
        "image": manifest.image,
        "command": None if manifest.command is None else list(manifest.command),
        "max_retries": manifest.retry.get("max_retries"),
        "retry": dict(manifest.retry),
    }


def _row(bundle: Bundle, at: int) -> dict[str, Any]:
    manifest = bundle.manifest
    kept = {
        "summary": manifest.summary,
        "api": manifest.api,
        "entry": manifest.entry,
        "params": dict(manifest.params),
        "inputs": {"min": manifest.inputs_min, "max": manifest.inputs_max, "accept": list(manifest.accept)},
        "limits": manifest.limits.to_dict(),
        **_configuration(manifest),
    }
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": bundle.digest,
        "manifest": kept,
        "first_seen_at": at,
    }


def _entry(
    actor: Actor, action: Action, manifest: Manifest, details: Mapping[str, Any], outcome: Outcome = Outcome.ALLOWED
) -> AuditEntry:
    reason = "its files differ from those first seen" if action is Action.PLUGIN_CHANGED else None
    seen = {"digest": details["digest"]}
    before, after = (seen, {"digest": details["found"]}) if action is Action.PLUGIN_CHANGED else (None, seen)
    name = _object(manifest)
    return AuditEntry(actor, action, name, outcome=outcome, reason=reason, before=before, after=after, details=details)


def _object(manifest: Manifest) -> str:
    return f"plugin:{manifest.name}=={manifest.version}"


def _refused(bundle: Bundle, seen: Rows) -> str | None:
    """Why the version takes no new jobs; None when it does."""
    row = seen.get((bundle.manifest.name, bundle.manifest.version))
    if row is None:
        return None
    if version_rows.is_closed(row):
        return version_rows.said(row)
    return None if row["digest"] == bundle.digest else _CHANGED


def _missing(name: str, version: str) -> NotFound:
    return NotFound(f"there is no version '{version[:64]}' of '{name[:64]}'")


def _need(actor: Actor, permission: Permission) -> None:
    if not actor.may(permission):
        raise Forbidden(f"this needs the permission {permission}")
