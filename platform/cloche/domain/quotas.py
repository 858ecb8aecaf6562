"""Quotas: what a tenant, and each of its users, may use at most. Pure.

A limit is a whole number, or None where there is none. Bytes, and CPU-seconds of one day of UTC; submissions of any sixty seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

UNLIMITED = "unlimited"
MOST = 10**15  # a petabyte; no quota is larger, so that sums of what is used stay whole numbers of 64 bits
DAY_MS = 86_400_000
MINUTE_S = 60


class Kind(StrEnum):
    """What is counted. The names are those of the REST API's fields."""

    JOBS = "jobs"
    SUBMISSIONS = "submissions_per_minute"
    STORAGE = "storage_bytes"
    CPU = "cpu_seconds_per_day"


class Whose(StrEnum):
    """Whose limit it is."""

    TENANT = "tenant"
    USER = "user"


KIND_TEXT: dict[Kind, str] = {
    Kind.JOBS: "jobs that have not ended",
    Kind.SUBMISSIONS: "jobs submitted within a minute",
    Kind.STORAGE: "bytes of stored files",
    Kind.CPU: "CPU-seconds of one day",
}
CODES: dict[Kind, str] = {
    Kind.JOBS: "quota-jobs",
    Kind.SUBMISSIONS: "quota-submissions",
    Kind.STORAGE: "quota-storage",
    Kind.CPU: "quota-cpu",
}


@dataclass(frozen=True)
class Quota:
    """The limits of one tenant or one user."""

    jobs: int | None = None
    submissions_per_minute: int | None = None
    storage_bytes: int | None = None
    cpu_seconds_per_day: int | None = None

    def of(self, kind: Kind) -> int | None:
        found: int | None = getattr(self, kind.value)
        return found

    def to_dict(self) -> dict[str, int | str]:
        """As it is shown: a number, or ``"unlimited"``."""
        return {kind.value: shown(self.of(kind)) for kind in Kind}


@dataclass(frozen=True)
class Quotas:
    """What holds for one user in one tenant: both of them, each on its own."""

    tenant: Quota = Quota()
    user: Quota = Quota()

    def limits(self, kind: Kind) -> tuple[tuple[Whose, int | None], ...]:
        return (Whose.TENANT, self.tenant.of(kind)), (Whose.USER, self.user.of(kind))

    def any(self, kind: Kind) -> bool:
        """Whether there is a limit at all."""
        return self.tenant.of(kind) is not None or self.user.of(kind) is not None


NO_QUOTAS = Quotas()


def laid_over(default: Quota, stored: Mapping[str, Any] | None) -> Quota:
    """``default`` with the limits that were set. ``stored``: by field, None: as by default; -1: none."""
    if stored is None:
        return default
    named = {kind.value: stored[kind.value] for kind in Kind if stored[kind.value] is not None}
    return replace(default, **{name: None if value < 0 else value for name, value in named.items()})


def to_stored(asked: Mapping[str, int | str | None]) -> dict[str, int | None]:
    """What a request names, as it is stored: see :func:`laid_over`."""
    values = {kind.value: asked.get(kind.value) for kind in Kind}
    return {name: -1 if value == UNLIMITED else None if value is None else int(value) for name, value in values.items()}


def from_stored(stored: Mapping[str, Any] | None) -> dict[str, int | str | None]:
    """The limits that were set, as they are shown: a number, ``"unlimited"``, or None where the default holds."""
    row: Mapping[str, Any] = stored or {}
    values = {kind.value: row.get(kind.value) for kind in Kind}
    return {name: UNLIMITED if value is not None and value < 0 else value for name, value in values.items()}


def shown(limit: int | None) -> int | str:
    return UNLIMITED if limit is None else limit


def beyond(asked: Quota, bound: Quota) -> list[Kind]:
    """The limits of ``asked`` that are wider than those of ``bound``. Where there is none, that of ``bound`` holds alone."""
    found = []
    for kind in Kind:
        ours, theirs = asked.of(kind), bound.of(kind)
        if theirs is not None and ours is not None and ours > theirs:
            found.append(kind)
    return found


def day_of(ms: int) -> int:
    """Days since the epoch, in UTC."""
    return ms // DAY_MS


def next_day_ms(ms: int) -> int:
    """When the day after this moment's begins."""
    return (day_of(ms) + 1) * DAY_MS


def refused(kind: Kind, whose: Whose, limit: int, used: int, asked: int, until: str | None) -> str:
    """The sentence of a refusal. ``until``: when it is over by itself, in words."""
    who = {Whose.TENANT: "Your tenant's quota", Whose.USER: "Your own quota"}[whose]
    does = {
        Kind.JOBS: "wait until some have ended, or cancel some",
        Kind.SUBMISSIONS: "send fewer at once",
        Kind.STORAGE: "delete files that are not needed",
        Kind.CPU: "no more jobs are accepted",
    }[kind]
    by = {Whose.TENANT: "a platform administrator", Whose.USER: "an administrator of the tenant"}[whose]
    ends = f" until {until}" if until else ""
    counted = f"{used} are used" + (f" and this asks for {asked} more" if asked else "")
    return f"{who} of {limit} {KIND_TEXT[kind]} is used up: {counted}; {does}{ends}. {by.capitalize()} can raise it."
