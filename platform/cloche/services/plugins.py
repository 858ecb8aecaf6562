"""Which plugin versions there are, and whether each is still what it was when first seen.

A version is frozen: its digest is recorded the first time a platform sees it. Files that differ later make that version unavailable to new
jobs, and the difference is audited. Jobs accepted before keep running from the frozen copy of the first digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select

from cloche import logs
from cloche.clock import to_rfc3339
from cloche.db import tables as t
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import Actor, Permission, system_actor
from cloche.errors import Forbidden, Invalid, NotFound, Problem
from cloche.registry.catalog import Bundle, Catalog
from cloche.registry.manifest import Manifest

_log = logs.get(__name__)


class PluginService:
    """Shared by a process's threads. ``resolve`` and ``available`` touch no database once the state has been read."""

    def __init__(self, db: Database, catalog: Catalog, audit: AuditLog) -> None:
        self._db = db
        self._catalog = catalog
        self._audit = audit
        self._unavailable: Mapping[tuple[str, str], str] | None = None  # why, by (name, version); replaced as a whole

    def sync(self, tenant_id: str) -> None:
        """Record versions that are new and audit those that changed. At the start of a process that accepts jobs; safe to repeat.

        Raises:
            Unavailable: the database does not answer.
        """
        actor = system_actor(tenant_id, "plugins")
        self._unavailable = self._db.write(lambda connection: self._register(connection, actor))
        for (name, version), why in self._unavailable.items():
            _log.warning("plugin version unavailable", plugin=name, version=version, why=why)

    def resolve(self, name: str, spec: str | None) -> Bundle:
        """The bundle a job's ``type`` and ``version`` mean.

        Raises:
            Invalid: there is none, or the one meant is not available.
        """
        bundle = self._catalog.resolve(name, spec)
        why = self._state().get((name, bundle.manifest.version))
        if why is not None:
            detail = f"{name} {bundle.manifest.version} takes no new jobs: {why}"
            raise Invalid(detail, problems=[Problem("/version", detail)])
        return bundle

    def available(self, name: str, version: str) -> bool:
        """Whether new jobs may use that version."""
        return self._catalog.get(name, version) is not None and (name, version) not in self._state()

    def list(self, actor: Actor) -> list[dict[str, Any]]:
        """Every version of every plugin, by name, newest first.

        Raises:
            Forbidden: the actor may not see plugins.
        """
        _may_read(actor)
        seen = self._db.read(_rows)
        return [self._shown(bundle, seen) for bundle in self._catalog.bundles()]

    def get(self, actor: Actor, name: str, version: str | None = None) -> dict[str, Any]:
        """One version, or the default one; ``versions`` lists what else there is.

        Raises:
            Forbidden: the actor may not see plugins.
            NotFound: no such plugin or version.
        """
        _may_read(actor)
        versions = self._catalog.versions(name)
        if not versions:
            raise NotFound(f"there is no plugin '{name[:64]}'")
        bundle = (self._catalog.default(name) or versions[0]) if version is None else self._catalog.get(name, version)
        if bundle is None:
            raise NotFound(f"there is no version '{(version or '')[:64]}' of '{name}'")
        shown = self._shown(bundle, self._db.read(_rows))
        return {**shown, "versions": [each.manifest.version for each in versions]}

    def _state(self) -> Mapping[tuple[str, str], str]:
        if self._unavailable is None:
            seen = self._db.read(_rows)
            self._unavailable = _unavailable(self._catalog, seen)
        return self._unavailable

    def _register(self, connection: Connection, actor: Actor) -> dict[tuple[str, str], str]:
        seen = _rows(connection)
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
        return _unavailable(self._catalog, seen)

    def _shown(self, bundle: Bundle, seen: Mapping[tuple[str, str], RowMapping]) -> dict[str, Any]:
        manifest = bundle.manifest
        row = seen.get((manifest.name, manifest.version))
        why = self._state().get((manifest.name, manifest.version))
        default = self._catalog.default(manifest.name)
        return {
            "id": f"{manifest.name}=={manifest.version}",
            "name": manifest.name,
            "version": manifest.version,
            "digest": bundle.digest,
            "enabled": why is None,
            "disabled_reason": why,
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
        "enabled": True,
        "first_seen_at": at,
    }


def _entry(
    actor: Actor, action: Action, manifest: Manifest, details: Mapping[str, Any], outcome: Outcome = Outcome.ALLOWED
) -> AuditEntry:
    reason = "its files differ from those first seen" if action is Action.PLUGIN_CHANGED else None
    name = f"plugin:{manifest.name}=={manifest.version}"
    return AuditEntry(actor=actor, action=action, object=name, outcome=outcome, reason=reason, details=details)


def _rows(connection: Connection) -> dict[tuple[str, str], RowMapping]:
    return {(row["name"], row["version"]): row for row in connection.execute(select(t.plugin_version)).mappings()}


def _unavailable(catalog: Catalog, seen: Mapping[tuple[str, str], RowMapping]) -> dict[tuple[str, str], str]:
    found = {}
    for key, row in seen.items():
        bundle = catalog.get(*key)
        if bundle is not None and not row["enabled"]:
            found[key] = "it is disabled"
        elif bundle is not None and bundle.digest != row["digest"]:
            found[key] = "its files differ from those first seen; publish a new version instead"
    return found


def _may_read(actor: Actor) -> None:
    if not actor.may(Permission.PLUGIN_READ):
        raise Forbidden(f"this needs the permission {Permission.PLUGIN_READ}")
