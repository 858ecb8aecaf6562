"""What the host's pools of waiting sandboxes hold, told to operators; and versions that are disabled or yanked, told to the pools."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import Connection, RowMapping, select, update

from cloche import logs
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.versions import CLOSED
from cloche.errors import ClocheError

_log = logs.get(__name__)
_SHOWN = (
    "warm",
    "filling",
    "busy",
    "hits",
    "cold_starts",
    "evictions",
    "expired",
    "lost",
    "failures",
    "memory",
    "last_error",
)


class PoolBackend(Protocol):
    """The part of sandboxd's client that this needs; see :class:`cloche.isolation.client.SandboxdBackend`."""

    def pools(self) -> list[Mapping[str, Any]]: ...

    def retire(self, bundle: str) -> int: ...


class PoolReport:
    """``start`` once, ``close`` once; ``retired`` from any thread. Several workers of a host say the same."""

    def __init__(self, db: Database, backend: PoolBackend, worker_id: str, every_s: float) -> None:
        self._db = db
        self._backend = backend
        self._worker_id = worker_id
        self._every_s = every_s
        self._retired: frozenset[str] = frozenset()
        self._told: list[dict[str, Any]] | None = None
        self._stop = threading.Event()
        # A thread of its own: a sandboxd that does not answer must not hold up the heartbeat.
        self._thread = threading.Thread(target=self._run, name="pools", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def retired(self, bundle: str) -> bool:
        """Whether the bundle's version was disabled or yanked, as far as is known: no more sandboxes shall wait for its jobs."""
        return bundle in self._retired

    def once(self) -> None:
        """
        Raises:
            ClocheError: sandboxd or the database does not answer.
        """
        pools = self._backend.pools()
        bundles = {str(pool["bundle"]) for pool in pools}
        versions = self._db.read(lambda connection: _versions(connection, bundles))
        closed = frozenset(bundle for bundle, row in versions.items() if row["state"] in CLOSED)
        self._retired = closed  # first: a job that starts now must not have one made again
        for bundle in closed & bundles:
            count = self._backend.retire(bundle)
            _log.info("waiting sandboxes of a closed version removed", bundle=bundle, count=count)
        self._tell([_shown(pool, versions[pool["bundle"]]) for pool in pools if pool["bundle"] in versions])

    def _tell(self, shown: list[dict[str, Any]]) -> None:
        if shown != self._told:
            mine = t.worker.c.id == self._worker_id
            self._db.write(lambda connection: connection.execute(update(t.worker).where(mine).values(pools=shown)))
            self._told = shown

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.once()
            except ClocheError as error:
                _log.warning("the pools cannot be looked at", error=str(error))
            except Exception:  # noqa: BLE001 - operators see old numbers; jobs go on
                _log.exception("the pools cannot be looked at")


def _versions(connection: Connection, bundles: set[str]) -> dict[str, RowMapping]:
    """Of these bundles, and of every version that takes no new jobs: its accepted jobs start cold, and no pool is begun for them."""
    version = t.plugin_version.c
    query = select(version.digest, version.name, version.version, version.state)
    query = query.where(version.digest.in_(bundles) | version.state.in_(CLOSED))
    return {row["digest"]: row for row in connection.execute(query).mappings()}


def _shown(pool: Mapping[str, Any], version: RowMapping) -> dict[str, Any]:
    """Nothing of any tenant: which version, and numbers."""
    return {"plugin": version["name"], "version": version["version"], **{name: pool[name] for name in _SHOWN}}
