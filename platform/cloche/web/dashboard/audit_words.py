"""The record as its pages say it: a form's filters, and a verdict in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloche.clock import from_rfc3339
from cloche.web.dashboard.show import sentence

FIELDS = ("actor", "action", "object", "outcome", "ip", "since", "until")
_LONGEST = {"object": 255}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?\Z")
_WORDS = {
    "valid": ("good", "shield", "Valid", "Nothing was changed, taken out or put in between."),
    "tampered": ("bad", "broken", "Tampered", "Somebody has changed the record, or its keys are not these."),
    "incomplete": (
        "warn",
        "partial",
        "Incomplete",
        "What is sealed is valid, but some events should have been sealed by now.",
    ),
    "gap": ("warn", "partial", "Valid, with a declared gap", "A restore was declared, and what it lost is known."),
}


def typed(args: Mapping[str, str]) -> dict[str, str]:
    """What the form holds, without what is empty."""
    text = {name: args.get(name, "").strip()[: _LONGEST.get(name, 64)] for name in FIELDS}
    return {name: value for name, value in text.items() if value}


def filters(given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """``given`` as the service takes it, and what cannot be read, by field. Times are of UTC, as the form says."""
    found: dict[str, Any] = dict(given)
    problems: dict[str, list[str]] = {}
    for name in ("since", "until"):
        if name in found:
            try:
                found[name] = from_rfc3339(rfc3339(found[name]))
            except ValueError:
                del found[name]
                problems[name] = ["This is no date, as 2026-01-31T09:30."]
    if found.get("outcome", "allowed") not in ("allowed", "denied", "failed"):
        del found["outcome"]
        problems["outcome"] = ["Choose one of these."]
    return found, problems


def rfc3339(text: str) -> str:
    """A date, or a date and time as browsers send it, as a moment of UTC.

    Raises:
        ValueError: it is neither.
    """
    if not _MOMENT.match(text):
        raise ValueError("no date")
    day, _, time = text.partition("T")
    return f"{day}T{(time or '00:00') + ('' if time.count(':') == 2 else ':00')}Z"


@dataclass(frozen=True)
class Verdict:
    """``tone``: good, warn or bad. ``counted``: labels and numbers. ``notes``: sentences."""

    status: str
    tone: str
    icon: str
    word: str
    text: str
    counted: Sequence[tuple[str, str]]
    notes: Sequence[str]


def verdict(found: Mapping[str, Any]) -> Verdict:
    """``found`` as ``AuditService.verify`` gives it."""
    status, bad = str(found["status"]), found["first_bad"]
    tone, icon, word, text = _WORDS.get(status, ("bad", "broken", status, ""))
    if bad:
        place = f"event number {bad['seq']}" if bad["seq"] is not None else "an event that is not sealed yet"
        text = f"The first thing that is wrong: {place}: {bad['why']}."
    notes = [sentence(note) for note in found["notes"]]
    notes += [f"Lost by a declared restore: numbers {gap['from']} to {gap['to']}." for gap in found["gaps"]]
    if not found["hmac_checked"]:
        notes.append("The HMACs were not checked: their key is not here.")
    counted = [("events", found["events"]), ("in the tree", found["leaves"]), ("batches", found["batches"])]
    counted += [
        (label, found[name]) for label, name in (("not sealed yet", "unsealed"), ("pruned", "pruned")) if found[name]
    ]
    return Verdict(status, tone, icon, word, text, [(label, f"{count:,}") for label, count in counted], notes)
