"""Quotas and what was used, as pages say it; and a quota's form as the API's body. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloche.domain.limits import parse_size
from cloche.domain.quotas import UNLIMITED, Kind
from cloche.web.dashboard.show import size

KIND_WORD = {
    Kind.JOBS: "Jobs that have not ended",
    Kind.SUBMISSIONS: "Jobs submitted in a minute",
    Kind.STORAGE: "Stored files",
    Kind.CPU: "CPU time of today (UTC)",
}
HINTS = {
    Kind.JOBS: "A number, or unlimited.",
    Kind.SUBMISSIONS: "A number, or unlimited. A batch counts as its jobs.",
    Kind.STORAGE: "A size such as 10GB, bytes, or unlimited.",
    Kind.CPU: "Seconds, or unlimited.",
}


@dataclass(frozen=True)
class Line:
    """One limit: ``used`` and ``limit`` in words; ``share`` of 100, None where there is no limit or nothing is counted."""

    kind: str
    word: str
    used: str
    limit: str
    share: int | None
    tight: bool
    resets_at: str | None


def own_lines(limits: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """``limits`` as ``QuotaService.own`` gives them for a tenant or a user."""
    return [_line(kind, limits[kind.value]) for kind in Kind]


def _line(kind: Kind, found: Mapping[str, Any]) -> Line:
    limit, used = found["limit"], found["used"]
    share = None
    if limit != UNLIMITED and used is not None:
        share = 100 if limit == 0 else min(100, int(100 * used / limit))
    shown = "not told" if used is None else amount(kind, used)
    return Line(kind.value, KIND_WORD[kind], shown, amount(kind, limit), share, (share or 0) >= 90, found["resets_at"])


def amount(kind: Kind, value: float | str) -> str:
    """A limit, or what is used of it."""
    if isinstance(value, str):
        return "no limit"
    if kind is Kind.STORAGE:
        return size(int(value))
    return cpu(value) if kind is Kind.CPU else f"{int(value):,}"


def cpu(seconds: float) -> str:
    """``7300`` → ``2 h 1 min``; ``0.012`` → ``12 ms``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours:,} h {minutes} min" if hours and minutes else f"{hours:,} h" if hours else f"{minutes} min"


def typed(limits: Mapping[str, Any]) -> dict[str, str]:
    """What a form begins with: what was set; empty is as by default."""
    return {kind.value: "" if limits[kind.value] is None else str(limits[kind.value]) for kind in Kind}


def body(form: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What ``PUT …/quotas`` takes, and what cannot be read, by field."""
    made: dict[str, Any] = {}
    problems: dict[str, list[str]] = {}
    for kind in Kind:
        text = form.get(kind.value, "").strip().replace(",", "")
        try:
            made[kind.value] = _limit(kind, text)
        except ValueError:
            problems[kind.value] = [f"“{text[:40]}” is no limit. {HINTS[kind]}"]
    return made, problems


def _limit(kind: Kind, text: str) -> int | str | None:
    if not text:
        return None
    if text.casefold() == UNLIMITED:
        return UNLIMITED
    if text.isascii() and text.isdigit():
        return int(text[:20])
    if kind is Kind.STORAGE:
        return parse_size(text)
    raise ValueError("no limit")
