"""Which secrets a job gets: asked when it is submitted, where a refusal says what to do, and when it begins, since grants change.

What is handed out is recorded in the transaction that finds it granted: no value leaves here without its audit event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, update

from cloche.db import tables as t
from cloche.db.engine import Database, now_ms
from cloche.domain.jobs import ClaimedJob
from cloche.domain.secrets import is_granted
from cloche.domain.states import Reason
from cloche.errors import PluginFailure, Problem
from cloche.registry.manifest import Manifest
from cloche.services.secret_vault import Place, SecretVault
from cloche.services.transitions import Transitions

_COARSE_MS = 60_000  # `last_used_at` is not written more often: many jobs share a row
_COLUMNS = [t.secret.c[name] for name in "id name sealed key_id value_version grants last_used_at".split()]


def missing(connection: Connection, tenant_id: str, manifest: Manifest) -> list[Problem]:
    """A problem for each secret that the plugin version names and a job of this tenant would not get."""
    if not manifest.secrets:
        return []
    rows = _rows(connection, tenant_id, manifest)
    return [Problem("/type", why) for name in manifest.secrets if (why := _refusal(rows.get(name), name, manifest))]


class SecretDelivery:
    """A worker's. Thread-safe."""

    def __init__(self, db: Database, transitions: Transitions, vault: SecretVault, worker_id: str) -> None:
        self._db = db
        self._transitions = transitions
        self._vault = vault
        self._worker_id = worker_id

    def deliver(self, job: ClaimedJob, manifest: Manifest) -> dict[str, str]:
        """The secrets that the job's plugin version names, by name. That this attempt gets them is recorded.

        Raises:
            PluginFailure: ``secret_denied``: one is not there, or not granted; says which. Nothing was handed out.
            PlatformFailure: ``key_unavailable``: one cannot be decrypted.
            StaleAttempt: the attempt is no longer this worker's.
            Unavailable: the database does not answer.
        """
        if not manifest.secrets:
            return {}

        def unit(connection: Connection) -> dict[str, Any]:
            rows = _rows(connection, job.tenant_id, manifest)
            if denied := [why for name in manifest.secrets if (why := _refusal(rows.get(name), name, manifest))]:
                raise PluginFailure(Reason.SECRET_DENIED, "; ".join(denied)[:2_000])
            now = now_ms(connection)
            # Texts: under such names as these, a value of its own would be masked.
            names = [f"{name} v{rows[name]['value_version']}" for name in manifest.secrets]
            plugin = {"plugin": f"{manifest.name}=={manifest.version}", "digest": job.plugin_digest}
            held = (job.id, job.attempt, self._worker_id)
            details = {"attempt": job.attempt, **plugin, "names": names}
            self._transitions.delivered(connection, job.tenant_id, held, details, now)
            stale = [row["id"] for row in rows.values() if (row["last_used_at"] or 0) < now - _COARSE_MS]
            if stale:
                connection.execute(update(t.secret).where(t.secret.c.id.in_(sorted(stale))).values(last_used_at=now))
            return rows

        rows = self._db.write(unit)
        return {name: self._opened(job, rows[name]) for name in manifest.secrets}

    def _opened(self, job: ClaimedJob, row: Mapping[str, Any]) -> str:
        place = Place(job.tenant_id, row["name"], row["id"], row["value_version"])
        return self._vault.open(place, row["sealed"], row["key_id"])


def _rows(connection: Connection, tenant_id: str, manifest: Manifest) -> dict[str, Any]:
    mine = (t.secret.c.tenant_id == tenant_id) & t.secret.c.name.in_(manifest.secrets)
    return {row["name"]: dict(row) for row in connection.execute(select(*_COLUMNS).where(mine)).mappings()}


def _refusal(row: Mapping[str, Any] | None, name: str, manifest: Manifest) -> str | None:
    plugin = f"{manifest.name} {manifest.version}"
    if row is None:
        return f"{plugin} needs the secret {name}, which this tenant does not have: an administrator sets it (cloche secret set {name})"
    if not is_granted(row["grants"], manifest.name, manifest.version):
        how = f"cloche secret grant {name} {manifest.name} '=={manifest.version}'"
        return f"{plugin} needs the secret {name}, which is not granted to it: an administrator grants it ({how})"
    return None
