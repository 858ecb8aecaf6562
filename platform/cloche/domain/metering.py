"""What jobs have used, as whole numbers that can be summed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

_MOST = 10**16  # of one attempt; what a host reports beyond it is not true
TOTAL = "total"  # in a job's usage: the sum of its run's attempts


@dataclass(frozen=True)
class Metered:
    """Of one attempt, or the sum of many. CPU and wall time in ms; memory in MB × ms (MB = 2**20 bytes)."""

    attempts: int = 0
    cpu_ms: int = 0
    memory_mb_ms: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_stored: int = 0
    wall_ms: int = 0

    def __add__(self, other: Metered) -> Metered:
        return Metered(*(getattr(self, name) + getattr(other, name) for name in FIELDS))

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in FIELDS}

    def shown(self) -> dict[str, int | float]:
        """As the REST API says it: seconds, GB × seconds (GB = 2**30 bytes), bytes."""
        return {
            "attempts": self.attempts,
            "cpu_seconds": round(self.cpu_ms / 1000, 3),
            "memory_gb_seconds": round(self.memory_mb_ms / 1_024_000, 6),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "bytes_stored": self.bytes_stored,
            "wall_seconds": round(self.wall_ms / 1000, 3),
        }


FIELDS = tuple(field.name for field in fields(Metered))


def metered(usage: Mapping[str, Any]) -> Metered:
    """What one attempt used. ``usage``: what its worker reported, of which everything may be missing. Memory counts as far as it was
    asked for, while the plugin ran."""
    ran, memory = _number(usage, "ran_ms"), _number(usage, "memory_limit")
    return Metered(
        attempts=1,
        cpu_ms=_number(usage, "cpu_ms"),
        memory_mb_ms=min(_MOST, (memory >> 20) * ran),
        bytes_in=_number(usage, "bytes_in"),
        bytes_out=_number(usage, "bytes_out"),
        bytes_stored=_number(usage, "bytes_stored"),
        wall_ms=_number(usage, "wall_ms"),
    )


def total_of(usage: Mapping[str, Any] | None) -> Metered:
    """The sum that a job's stored usage holds; nothing where it holds none."""
    found = (usage or {}).get(TOTAL)
    return Metered(**{name: _number(found, name) for name in FIELDS}) if isinstance(found, Mapping) else Metered()


def shown(usage: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A job's usage as the REST API says it."""
    return None if usage is None else {**usage, **({TOTAL: total_of(usage).shown()} if TOTAL in usage else {})}


def _number(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return 0
    return int(max(0, min(value, _MOST)))
