"""The rows of ``plugin_version``: which state a version is in, asked in the transaction that depends on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, Connection, RowMapping, select

from cloche.db import tables as t
from cloche.domain.versions import CLOSED, VersionState, words
from cloche.errors import Conflict

_version = t.plugin_version.c
_STATES = select(
    _version.name,
    _version.version,
    _version.digest,
    _version.state,
    _version.state_reason,
    _version.state_changed_at,
    _version.revision,
    _version.first_seen_at,
)
Rows = Mapping[tuple[str, str], RowMapping]


def states(connection: Connection, name: str | None = None) -> Rows:
    """By name and version; of all plugins, or of one. Without their manifests."""
    query = _STATES if name is None else _STATES.where(_version.name == name)
    return {(row["name"], row["version"]): row for row in connection.execute(query).mappings()}


def said(row: RowMapping) -> str:
    """The version's state and its reason, in words."""
    return words(VersionState(row["state"]), row["state_reason"])


def closed(rows: Rows) -> dict[str, str]:
    """Of the rows of one plugin: the versions that are disabled or yanked, each with the words for it."""
    return {row["version"]: said(row) for row in rows.values() if is_closed(row)}


def is_closed(row: RowMapping) -> bool:
    return row["state"] in CLOSED


def refuse_disabled(connection: Connection, kinds: Collection[tuple[str, str]]) -> None:
    """``kinds``: of jobs that shall run again, each a plugin's name and version. One that is yanked, or gone from the folders, runs what it
    has accepted.

    Raises:
        Conflict: one of them is disabled (``version-disabled``).
    """
    disabled = _version.state == VersionState.DISABLED.value
    query = _STATES.where(disabled).order_by(_version.name, _version.version)
    for row in connection.execute(query).mappings():
        if (row["name"], row["version"]) in kinds:
            what = f"{row['name']} {row['version']}"
            detail = (
                f"jobs of {what} are not retried: {said(row)}; have it enabled, or submit new jobs for another version"
            )
            raise Conflict(detail, code="version-disabled")


def refuse_disabled_jobs(connection: Connection, *which: ColumnElement[bool]) -> None:
    """The same of all jobs that fit these conditions."""
    kinds = connection.execute(select(t.job.c.type, t.job.c.plugin_version).where(*which).distinct())
    refuse_disabled(connection, {(row.type, row.plugin_version) for row in kinds})
