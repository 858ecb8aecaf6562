"""What is learnt about one column, value by value."""

from __future__ import annotations

import re
from datetime import date, datetime
from hashlib import blake2b
from math import isfinite
from typing import Any

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
BOOLEANS = frozenset({"true", "false", "yes", "no"})
# "007" is a code, not a number: leading zeros would be lost. 18 digits fit every program that reads the result.
INT = re.compile(r"^[+-]?(0|[1-9]\d{0,17})$", re.ASCII)
FLOAT = re.compile(r"^[+-]?(\d{1,40}\.\d{0,40}|\.\d{1,40}|\d{1,40})([eE][+-]?\d{1,3})?$", re.ASCII)
LEADING_ZERO = re.compile(r"^[+-]?0\d")
DATE = re.compile(r"^\d{4}[-/]\d{2}[-/]\d{2}([T ]\d{2}:\d{2}.{0,20})?$", re.ASCII)
MAX_VALUE = 64  # characters of a value that get into the result


class Column:
    """Memory: ``max_distinct`` numbers of 64 bits, and a few totals."""

    def __init__(self, name: str, max_distinct: int) -> None:
        self.name = name
        self.missing = 0
        self.kinds: dict[str, int] = {}
        self._seen: set[int] = set()
        self._max_distinct = max_distinct
        self._more = False
        self._numbers = _Numbers()
        self._first = self._last = ""  # dates, as text: ISO dates sort like time
        self._shortest = self._longest = -1

    def add(self, value: str) -> None:
        value = value.strip()
        if value.lower() in MISSING:
            self.missing += 1
            return
        self._count_distinct(value)
        kind = kind_of(value)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if kind in ("int", "float"):
            self._numbers.add(int(value) if kind == "int" else float(value))
        elif kind == "date":
            moment = value.replace("/", "-")
            self._first = min(self._first or moment, moment)
            self._last = max(self._last, moment)
        length = len(value)
        self._shortest = length if self._shortest < 0 else min(self._shortest, length)
        self._longest = max(self._longest, length)

    def summary(self) -> dict[str, Any]:
        """``type`` is one of int, float, date, boolean, text, empty: the narrowest that fits every value that is not missing."""
        kind = self.type()
        found: dict[str, Any] = {
            "name": self.name[:MAX_VALUE],
            "type": kind,
            "missing": self.missing,
            "distinct": len(self._seen),
            "distinct_capped": self._more,
        }
        if kind in ("int", "float"):
            found |= self._numbers.summary()
        elif kind == "date":
            found |= {"min": self._first[:MAX_VALUE], "max": self._last[:MAX_VALUE]}
        elif kind == "text":
            found |= {"min_length": self._shortest, "max_length": self._longest}
        return found

    def type(self) -> str:
        if not self.kinds:
            return "empty"
        if len(self.kinds) == 1:
            return next(iter(self.kinds))
        return "float" if self.kinds.keys() == {"int", "float"} else "text"

    def _count_distinct(self, value: str) -> None:
        key = int.from_bytes(blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        if key in self._seen:
            return
        if len(self._seen) < self._max_distinct:
            self._seen.add(key)
        else:
            self._more = True


class _Numbers:
    """Minimum, maximum and mean of a stream; the mean is updated (Welford), so that no sum grows out of a float's reach."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.low: float | int = 0
        self.high: float | int = 0

    def add(self, value: float | int) -> None:
        self.count += 1
        self.mean += (value - self.mean) / self.count
        self.low = value if self.count == 1 else min(self.low, value)
        self.high = value if self.count == 1 else max(self.high, value)

    def summary(self) -> dict[str, Any]:
        return {"min": self.low, "max": self.high, "mean": float(f"{self.mean:.12g}") if isfinite(self.mean) else None}


def kind_of(value: str) -> str:
    """The narrowest kind of one value that is not missing."""
    if INT.match(value):
        return "int"
    if FLOAT.match(value) and not LEADING_ZERO.match(value) and isfinite(float(value)):
        return "float"
    if value.lower() in BOOLEANS:
        return "boolean"
    if DATE.match(value) and is_date(value.replace("/", "-")):
        return "date"
    return "text"


def is_date(text: str) -> bool:
    """Whether ISO 8601 text is a day, or a moment, of the calendar."""
    try:
        if len(text) == 10:
            date.fromisoformat(text)
        else:
            datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
