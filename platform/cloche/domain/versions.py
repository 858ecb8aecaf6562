"""The state of a plugin version: whether it takes new jobs, and what becomes of those that it has."""

from __future__ import annotations

from enum import StrEnum

MAX_REASON = 300  # characters; the width of the column


class VersionState(StrEnum):
    ENABLED = "enabled"
    DEPRECATED = "deprecated"  # takes jobs, and each is told so
    DISABLED = (
        "disabled"  # takes none; jobs that were accepted go on, and those that have ended are not retried by hand
    )
    YANKED = "yanked"  # takes none; jobs that were accepted go on, and are retried


CLOSED = frozenset({VersionState.DISABLED, VersionState.YANKED})  # no new jobs, and no sandbox waits for any


def words(state: VersionState, reason: str | None) -> str:
    """What is said of a version in that state: ``it is yanked (it corrupts pictures)``."""
    return f"it is {state}" + (f" ({reason})" if reason else "")
